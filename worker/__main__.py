"""`last-sync`, and `python -m worker`."""

import os
import sys
from typing import NoReturn

PORTS = range(1, 65_536)


def main() -> NoReturn:
    """Run the program; `check --live` with its port in the environment does without Click."""
    port = os.environ.get("LAST_SYNC_HEALTH_PORT", "")
    if sys.argv[1:] == ["check", "--live"] and port.isdecimal() and int(port) in PORTS:
        from worker import probe  # noqa: PLC0415 - an HTTP client

        found = probe.ask(os.environ.get("LAST_SYNC_HEALTH_HOST") or "127.0.0.1", int(port))
        print(*probe.lines(found), sep="\n")  # noqa: T201 - without Click
        sys.exit(not probe.healthy(found))
    # Or else it looks into every package that is installed, for plugins that nobody means here.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from worker import cli  # noqa: PLC0415 - all the rest

    cli.main()


if __name__ == "__main__":
    main()

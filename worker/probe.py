"""Ask a running worker's probes, for a container's health check.

It runs every few seconds, so it imports next to nothing.
"""

from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException

from worker.text import printable

TIMEOUT = 4.0  # seconds; the worker gives its event loop two
HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what listens everywhere is here too  # nosec B104

Answer = tuple[bool, str]


def ask(host: str, port: int) -> dict[str, Answer]:
    """Give the verdicts by name, each with its words: `live`, and where that is good, `ready`."""
    found = {"live": _ask(host, port, "/livez")}
    if healthy(found):
        found["ready"] = _ask(host, port, "/readyz")
    return found


def healthy(found: Mapping[str, Answer]) -> bool:
    """Live decides: a worker that holds is not ready, and a restart would not help it."""
    return found["live"][0]


def lines(found: Mapping[str, Answer]) -> list[str]:
    return [
        f"{'ok ' if ok else 'BAD'} {name}: {printable(text)}" for name, (ok, text) in found.items()
    ]


def _ask(host: str, port: int, path: str) -> Answer:
    address = HERE.get(host, host)
    connection = HTTPConnection(address, port, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status == 200, answer.read().decode(errors="replace").strip()  # noqa: PLR2004
    except (OSError, UnicodeError, HTTPException) as error:
        why = str(error) or type(error).__name__
        return False, f"no answer from {address} port {port}: {why}; is the worker running there?"
    finally:
        connection.close()

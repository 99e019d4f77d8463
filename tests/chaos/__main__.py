"""The proof, to be run by whoever doubts it: `make chaos`, or a part of it with `--only`.

Every scenario is bounded and ends by itself. The table at the end has a verdict for each; the exit
code is 1 when anything in it is not 0.
"""

import argparse
import asyncio
import logging
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from tests.brokers import find_brokers
from tests.chaos.nursery import Nursery
from tests.chaos.rig import Rig
from tests.chaos.scenarios import SLICE, WHOLE, Sizes, run_all, scenarios, table
from tests.conftest import TEMPLATE, upgrade
from tests.postgres import Databases, find_postgres


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--slice", action="store_true", help="the sizes of CI")
    for one in fields(Sizes):
        parser.add_argument(f"--{one.name}", type=int, help=f"{one.default} if whole")
    parser.add_argument("--only", nargs="+", default=[""], help="scenarios whose names begin so")
    parser.add_argument("--keep", type=Path, help="folder for histories and logs")
    chosen = parser.parse_args()
    given = {one.name: getattr(chosen, one.name) for one in fields(Sizes)}
    sizes = replace(
        SLICE if chosen.slice else WHOLE,
        **{name: value for name, value in given.items() if value is not None},
    )
    if chosen.keep and chosen.keep.exists():
        parser.error(f"--keep {chosen.keep}: it is there already; name a new folder")
    began = time.monotonic()
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # of brokers that are away

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f}  {text}", flush=True)

    with ExitStack() as stack:
        folder = chosen.keep or Path(tempfile.mkdtemp(prefix="last-sync-chaos-"))
        folder.mkdir(parents=True, exist_ok=True)
        if not chosen.keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        brokers, servers = find_brokers(os.environ, say), find_postgres(os.environ, say)
        nursery = stack.enter_context(Nursery(folder))
        broker, server = stack.enter_context(brokers()), stack.enter_context(servers())
        broker.start()
        server.start()
        databases = Databases(server.url)
        databases.make_template(TEMPLATE, upgrade)
        rig = Rig(
            bootstrap=broker.bootstrap,
            folder=folder.absolute(),
            database=partial(databases.create, TEMPLATE),
            nursery=nursery,
            say=say,
        )
        wanted = [
            (name, make)
            for name, make in scenarios(rig, sizes, brokers, servers)
            if name.startswith(tuple(chosen.only))
        ]
        results = asyncio.run(run_all(wanted, say))
    print("\n".join(table(results)))
    print(f"{time.monotonic() - began:.0f} s in all")
    sys.exit(not results or not all(result.good for result in results))


if __name__ == "__main__":
    main()

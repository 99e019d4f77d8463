"""Where the worker's CPU goes, as py-spy finds it by looking at its threads' stacks.

A look counts for the innermost frame that belongs to one of `STEPS`. Each stops the process for a
moment, so that only shares are taken of them; what they are shares of is measured without.
"""

import re
import sys
from collections import Counter
from pathlib import Path

LOOKS = 200  # a second
PY_SPY = Path(sys.executable).with_name("py-spy")

# Innermost where a thread waits: it is on no CPU, though py-spy takes it for busy now and then.
WAITING = re.compile(r"(EpollSelector\.select|_worker) ")
STARTING = "<frozen importlib"
# A frame, `function (file:line)`, is of the first that it matches.
STEPS = {
    "merge": re.compile(r"Update\.\w+ |.* \(worker/(stores/rows|merge)\.py"),
    "read": re.compile(r".* \((schemas/|worker/batch\.py)"),
    "store": re.compile(r".* \((worker/stores/|asyncpg/)"),
    "fetch": re.compile(r".* \((aiokafka/|asyncio/streams\.py|worker/(batches|kafka|reader)\.py)"),
}
REST = "rest"  # the event loop and its sockets, figures, the log


def recorder(stacks: Path) -> list[str]:
    """The words to put before a command, to have it looked at."""
    return [
        *(str(PY_SPY), "record", "--format", "raw", "--rate", str(LOOKS)),
        *("--output", str(stacks), "--"),
    ]


def shares(stacks: Path) -> dict[str, float]:
    """The share that each step has in the looks at threads on a CPU."""
    looks: Counter[str] = Counter()
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")[::-1]  # the innermost first
        if not WAITING.match(frames[0]) and STARTING not in stack:
            looks[step(frames)] += int(count)
    return {name: looks[name] / looks.total() for name in (*STEPS, REST)}


def step(frames: list[str]) -> str:
    found = (name for frame in frames for name, known in STEPS.items() if known.match(frame))
    return next(found, REST)

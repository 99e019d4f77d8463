"""What was found, by target: a line an input, whose characters are its bytes."""

import json
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.targets import named

FOLDER = Path(__file__).parent / "corpus"
LONGEST = 1024  # bytes of an input that is kept: a corpus is read by people, too


def known(name: str) -> list[bytes]:
    """The seeds of the target, and what was found from them."""
    path = FOLDER / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return list(dict.fromkeys([*named(name).seeds, *(read(line) for line in lines)]))


def read(line: str) -> bytes:
    text: str = json.loads(line)
    return text.encode("latin-1")


def write(name: str, inputs: Iterable[bytes]) -> None:
    new = {data for data in inputs if len(data) <= LONGEST} - set(named(name).seeds)
    lines = [json.dumps(data.decode("latin-1")) for data in sorted(new, key=lambda d: (len(d), d))]
    (FOLDER / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))

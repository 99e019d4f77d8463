"""`make fuzz`: every target in turn, for a number of records, and what was found."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.targets import NAMES

# How many of a hundred records: the cheaper one is, the more of them.
SHARES: Mapping[str, int] = {
    "batch": 12,
    "decode": 30,
    "letters": 7,
    "replay": 3,
    "edit": 30,
    "api": 17,
    "cli": 1,
}
OPTIONS = (
    "-timeout=20",  # seconds by the clock: of what waits, for what works is timed itself
    "-max_len=4096",
    "-len_control=0",  # the seeds are as long as they are
    "-rss_limit_mb=2048",
)
PROGRESS = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) ", re.MULTILINE)
HANGS = ("AssertionError: it took", "ERROR: libFuzzer: timeout")
WRITTEN = re.compile(r"Test unit written to (.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    target: str
    records: int
    a_second: int
    edges: int
    features: int
    found: Sequence[Path]  # inputs that crash it, or take too long
    hangs: int
    ended_well: bool

    def line(self) -> str:
        return (
            f"{self.target:<8} {self.records:>9,} records {self.a_second:>7,}/s"
            f" {self.edges:>5} edges {self.features:>6} features"
            f" {len(self.found) - self.hangs} crashes {self.hangs} hangs"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--only", choices=NAMES, action="append")
    parser.add_argument("--runs", type=int, default=1_000_000, help="records of all targets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learn", action="store_true", help="keep what reaches something new")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="for what is found")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for name in given.only or NAMES:
        runs = given.runs * SHARES[name] // 100
        figures = fuzzed(name, runs, given.seed, folder, learn=given.learn)
        print(figures.line(), flush=True)
        done.append(figures)
    print(f"{sum(each.records for each in done):,} records")
    for path in (path for each in done for path in each.found):
        name = path.name.partition("-")[0]
        print(f"repeat what was found by: {sys.executable} -m tests.fuzz.repeat {name} {path}")
    sys.exit(not all(each.ended_well for each in done))


def fuzzed(name: str, runs: int, seed: int, folder: Path, *, learn: bool) -> Figures:
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch, "inputs")
        inputs.mkdir()
        for number, data in enumerate(corpus.known(name)):
            (inputs / str(number)).write_bytes(data)
        log, found = folder / f"{name}.log", f"-artifact_prefix={folder}/{name}-"
        options = (*OPTIONS, f"-runs={runs}", f"-seed={seed}", found, str(inputs))
        began = time.monotonic()
        status = engine(name, options, log, scratch)
        seconds = time.monotonic() - began
        if learn and status == 0:
            keep(name, inputs, folder / f"{name}-merge.log", scratch)
    text = log.read_text(errors="replace")
    records, edges, features = last_progress(text)
    return Figures(
        target=name,
        records=records,
        a_second=round(records / seconds),
        edges=edges,
        features=features,
        found=[Path(path) for path in WRITTEN.findall(text)],
        hangs=sum(text.count(mark) for mark in HANGS),
        ended_well=status == 0 and records >= runs,
    )


def keep(name: str, inputs: Path, log: Path, scratch: str) -> None:
    """Make the corpus of those inputs that together reach what all of them do."""
    least = Path(scratch, "least")
    least.mkdir()
    engine(name, (*OPTIONS, "-merge=1", str(least), str(inputs)), log, scratch)
    corpus.write(name, [path.read_bytes() for path in least.iterdir()])


def engine(name: str, options: Sequence[str], log: Path, scratch: str) -> int:
    """Its exit code; what it says is in the log. It ends without cleaning up."""
    environ = {**os.environ, "PYTHONHASHSEED": "0", "TMPDIR": scratch}
    with log.open("wb") as said:
        command = [sys.executable, "-m", "tests.fuzz.engine", name, *options]
        return subprocess.run(
            command, stdout=said, stderr=said, env=environ, check=False
        ).returncode


def last_progress(log: str) -> Sequence[int]:
    found = PROGRESS.findall(log)
    return [int(number) for number in found[-1]] if found else [0] * 3


if __name__ == "__main__":
    main()

"""Runs inputs on a target again, without a fuzzer: files, or the corpus and some mutants of it."""

import argparse
import sys
from pathlib import Path
from random import Random

from tests.fuzz import corpus
from tests.fuzz.inputs import timed
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import NAMES, named


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.repeat", description=__doc__)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("files", nargs="*", type=Path, help="inputs, as they were found")
    parser.add_argument("--mutants", type=int, default=0, help="of the corpus, beside it")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    target = named(given.target)
    known = [file.read_bytes() for file in given.files] or corpus.known(given.target)
    chance = Random(given.seed)  # noqa: S311 - not for secrets
    inputs = [
        *known,
        *(mutated(chance.choice(known), target.words, chance) for _ in range(given.mutants)),
    ]
    with target.opened() as run:
        for data in inputs:
            try:
                timed(run)(data)
            except BaseException:
                print(f"the input is {data!r}", file=sys.stderr)
                raise
    print(f"{given.target}: {len(inputs)} inputs, each as it should be")


if __name__ == "__main__":
    main()

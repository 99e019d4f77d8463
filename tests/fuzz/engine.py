"""Atheris on one target: `python -m tests.fuzz.engine decode [libFuzzer's options]`.

What is measured is the coverage of this project's own modules, instrumented as they are imported,
and of what reads batches for them in Python; nothing sees into what does so in C.
"""

import sys
from pathlib import Path
from random import Random

import atheris


def main() -> None:
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["worker", "schemas", "aiokafka.record"]):
        from tests.fuzz.inputs import GROWN, timed  # noqa: PLC0415 - these import what is measured
        from tests.fuzz.mutations import mutated  # noqa: PLC0415
        from tests.fuzz.targets import named  # noqa: PLC0415

        target = named(name)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        chance = Random(seed)  # noqa: S311 - not for secrets
        if chance.randint(0, 3) == 0:
            data = atheris.Mutate(data.replace(GROWN, b""), min(len(data) + 64, max_size))
        else:
            data = mutated(data, target.words, chance)
        return data[:max_size]

    # What merging starts, by a shell; a target may go to another directory.
    again = f"cd {Path.cwd()} && {sys.executable} -m tests.fuzz.engine {name}"
    with target.opened() as run:
        atheris.Setup([again, *options], timed(run), custom_mutator=mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

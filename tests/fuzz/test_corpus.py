"""What the fuzzer found stays found: every input of the corpus, and some that it never saw."""

import json
import subprocess
import sys
from random import SystemRandom

import pytest

from tests.fuzz import corpus
from tests.fuzz.inputs import joined, record, split
from tests.fuzz.targets import NAMES

MUTANTS = 400


@pytest.mark.parametrize("name", NAMES)
def test_every_input_that_was_kept_and_some_mutants_end_as_promised(name: str) -> None:
    """In a process of its own, for a command line changes what a process has for itself."""
    chosen = ["--mutants", str(MUTANTS), "--seed", str(SystemRandom().randrange(2**32))]
    command = [sys.executable, "-m", "tests.fuzz.repeat", name, *chosen]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert f"{len(corpus.known(name)) + MUTANTS} inputs" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_is_written_as_it_is_read(name: str) -> None:
    lines = (corpus.FOLDER / f"{name}.jsonl").read_text().splitlines()
    assert lines
    assert len(set(lines)) == len(lines)
    assert all(json.dumps(corpus.read(line).decode("latin-1")) == line for line in lines)


def test_parts_come_back_as_they_were_put_together() -> None:
    parts = [b"value", None, b"", b"content-type", b"\x80"]
    assert split(joined(parts)) == parts
    (large,) = split(b"[\xfdab\xfd]")
    assert large == b"[" + b"ab" * 32_768 + b"]"
    found = record(joined(parts))
    assert (found.value, found.key) == (b"value", None)
    assert found.headers == (("", b"content-type"),)

"""What is fetched in large pieces, and dropped, is used again or goes back to the system."""

import platform
import subprocess
import sys

import pytest

FETCHING = """
import os
import resource
from pathlib import Path
from worker.app.running import settle_memory

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def receive():
    for _ in range(100):
        answer = bytearray(b"x" * 3 * 2**20)
        del answer

settle_memory()
before = faults()
receive()
often = faults() - before

before = resident()
largest = bytearray(b"x" * 2**24)
del largest  # glibc by itself would keep up to twice as much from here on
answers = [bytearray(b"x" * 2**20) for _ in range(60)]
held = resident() - before
del answers
print(often, held, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc")
def test_answers_of_brokers_take_what_is_there_and_leave_little_behind() -> None:
    done = subprocess.run([sys.executable, "-c", FETCHING], capture_output=True, check=True)
    faults, held, left = map(int, done.stdout.split())
    assert faults < 10_000, "each of 200 blocks was new memory, of 768 pages"
    assert held >= 50
    assert left <= 9

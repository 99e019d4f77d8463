"""What is fetched in large pieces, and dropped, goes back to the system."""

import platform
import subprocess
import sys

import pytest

FETCHING = """
import os
from pathlib import Path
from worker.app.running import settle_memory

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

settle_memory()
before = resident()
largest = bytearray(b"x" * 2**24)
del largest  # glibc by itself would keep up to twice as much from here on
answers = [bytearray(b"x" * 2**20) for _ in range(30)]
held = resident() - before
del answers
print(held, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc")
def test_answers_of_brokers_leave_no_memory_behind() -> None:
    done = subprocess.run([sys.executable, "-c", FETCHING], capture_output=True, check=True)
    held, left = map(int, done.stdout.split())
    assert held >= 30
    assert left < 5

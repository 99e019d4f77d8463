"""A batch's memory is kept; what is fetched in large pieces, and dropped, goes back."""

import platform
import subprocess
import sys

import pytest

BATCHES = """
import resource
from worker.memory import settle

def batch():  # of 22,000 records, 1.4 kB each
    return [bytes(size % 400) for size in range(22_000 * 1_400 // 240)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

settle()
batch()  # its list is no small object
survivors, before = [], faults()
for number in range(20):
    in_hand = batch()
    survivors.append(in_hand[number * 4_000])
    del in_hand
print(faults() - before)
"""
COLLECTING = """
import gc
from worker.memory import settle

settle()
print(gc.get_freeze_count())
collected = []
gc.callbacks.append(lambda phase, _: collected.append(phase))
in_hand = [[] for _ in range(2 * 63_000)]
print(len(collected))
more = [[] for _ in range(63_000)]
print(len(collected))
"""
BETWEEN = """
import os
from pathlib import Path
from worker.memory import give_back, settle

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

settle()
before = resident()
blocks = [bytearray(b"x") * 100_000 for _ in range(300)]
survivors = blocks[::30]
del blocks
kept = resident() - before
give_back()
print(kept, resident() - before)
"""
FETCHING = """
import os
import resource
from pathlib import Path
from worker.memory import settle

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

settle()
before = resident()
answer = bytearray(b"x") * (4 * 2**20)
lives_longer = bytearray(b"x") * 500_000  # behind it
del answer
hole = resident() - before

before = faults()
for _ in range(100):
    middling = [bytearray(b"x") * 500_000 for _ in range(6)]
    del middling
often = faults() - before

before = resident()
many = [bytearray(b"x") * 500_000 for _ in range(120)]
held = resident() - before
del many
print(hole, often, held, resident() - before)
"""


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc")


@glibc
def test_what_lies_free_between_survivors_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", BETWEEN], capture_output=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 20
    assert left < 4


@glibc
def test_answers_of_brokers_leave_nothing_behind_and_smaller_blocks_little() -> None:
    done = subprocess.run([sys.executable, "-c", FETCHING], capture_output=True, check=True)
    hole, often, held, left = map(int, done.stdout.split())
    assert hole <= 2
    assert often < 10_000, "each of 600 blocks was new memory, of 122 pages"
    assert held >= 50
    assert left <= 6


def test_two_batches_in_hand_are_no_reason_to_look_for_garbage_but_three_are() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTING], capture_output=True, check=True)
    frozen, in_hand, more = map(int, done.stdout.split())
    assert frozen > 5_000
    assert in_hand == 0
    assert more > 0


def test_one_batch_after_the_other_uses_the_same_memory_whatever_outlives_them() -> None:
    done = subprocess.run([sys.executable, "-c", BATCHES], capture_output=True, check=True)
    assert int(done.stdout) < 1_000, "each of 20 batches was new memory, of 6,000 pages"

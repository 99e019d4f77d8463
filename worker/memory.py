"""How a worker comes to take the same memory after each backlog."""

import ctypes
import gc
import sys
from contextlib import suppress

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of malloc.h
LARGE = 1024 * 1024  # bytes from which on a block goes back to the system when it is freed
KEPT = 4 * 1024 * 1024  # bytes of smaller blocks that may be free at the end of the heap
RESERVE = 32 * 1024 * 1024  # bytes kept for the objects of batches: most fit in
BLOCK = 512  # bytes of the largest objects that Python takes from its arenas
APART = 512 * 1024  # bytes, half an arena, from one block that keeps it to the next
COLLECT_AFTER = 150_000  # objects made since, less those gone: two batches in hand are no reason

_libc = ctypes.CDLL(None)
_reserve: list[bytes] = []


def settle() -> None:
    """Take the memory of batches once, and spare the garbage collector what needs none.

    Python gives an arena back when nothing is left in it: each batch would ask for its arenas anew,
    and the few objects that outlive one keep other arenas each time, more and more of them.

    A batch in hand is thousands of objects without cycles; by default they are all looked at again
    and again, which takes a tenth of the time.

    glibc would keep as much memory free as twice the largest answer of a broker that it ever saw,
    and more each time that one does not fit between what lives longer.
    """
    blocks = [bytes(BLOCK - sys.getsizeof(b"")) for _ in range(RESERVE // BLOCK)]
    _reserve[:] = blocks[:: APART // BLOCK]
    del blocks
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 50)
    with suppress(AttributeError):  # other C libraries have no such call
        _libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        _libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def give_back() -> None:
    """Free what batches left behind.

    What is in reference cycles may be large in few objects, and the garbage collector counts them.
    glibc keeps the pages between what lives longer, and they are others each time.
    """
    gc.collect()
    with suppress(AttributeError):  # other C libraries have no such call
        _libc.malloc_trim(0)

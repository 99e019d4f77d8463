"""The worker with leaks in it, for a soak that has to fail: memory, file descriptors, threads.

python -m tests.soak.leaky run
"""

import os
import sys
import threading
from typing import Any

from worker import cli
from worker.metrics import Metrics

EVERY = 500  # batches from one descriptor and thread to the next
KEPT: list[Any] = []


def leak() -> None:
    """Keep every batch that was done."""
    done = Metrics.batch_done

    def leaking(metrics: Metrics, batch: Any, *arguments: Any, **more: Any) -> None:
        KEPT.append(batch)
        if len(KEPT) % EVERY == 0:
            os.dup(0)
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        done(metrics, batch, *arguments, **more)

    Metrics.batch_done = leaking  # type: ignore[method-assign,assignment]  # on purpose


if __name__ == "__main__":
    leak()
    sys.argv[0] = "last-sync"
    cli.main()

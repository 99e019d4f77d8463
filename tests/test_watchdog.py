import signal
import subprocess
import sys

import pytest

STALLED = """
import time
from worker.watchdog import Watchdog
with Watchdog(2) as watchdog:
    for _ in range({steps}):
        time.sleep(0.1)
        watchdog.step()
    time.sleep({silence})
"""

TWICE = """
import asyncio, time
from worker.signals import stopping
async def main():
    with stopping() as stop:
        print("ready", flush=True)
        await stop.wait()
        print("stopping", flush=True)
        time.sleep(60)
asyncio.run(main())
"""


def test_a_loop_without_a_step_ends_the_process_with_5() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STALLED.format(steps=0, silence=30)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 5
    assert "watchdog.stalled" in done.stdout + done.stderr


def test_a_loop_that_makes_steps_is_left_alone_for_longer_than_the_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STALLED.format(steps=24, silence=0)], timeout=20, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_kills(signum: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", TWICE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signum)
        while process.stdout.readline() != b"stopping\n":
            assert process.poll() is None  # log lines stand between
        process.send_signal(signum)
        assert process.wait(10) == -signum

"""Workers that start in milliseconds: forked from one process that has imported the program."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.eventually import eventually

ROOT = Path(__file__).parents[2]
GOODBYE = 10.0  # seconds


class Member:
    """A `last-sync` that goes on while the scenario does."""

    def __init__(self, nursery: "Nursery", pid: int, stem: Path) -> None:
        self._nursery, self.pid, self._stem = nursery, pid, stem
        self._code: int | None = None

    @property
    def stdout(self) -> str:
        return self._written(".out")

    @property
    def stderr(self) -> str:
        return self._written(".err")

    def _written(self, suffix: str) -> str:
        path = self._stem.with_suffix(suffix)
        return path.read_text(errors="replace") if path.exists() else ""  # it is not yet born

    @property
    def logged(self) -> list[dict[str, Any]]:
        """What it has logged so far, in whole lines."""
        whole, _, _ = self.stderr.rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        if self._code is None:
            self._code = self._nursery.ask(pid=self.pid)
        return self._code

    def signal(self, signum: signal.Signals) -> None:
        if self.exit_code is None:  # its pid is nobody else's until it was waited for
            os.kill(self.pid, signum)

    async def ended(self, timeout: float = 15) -> int:  # noqa: ASYNC109 - patience
        await eventually(lambda: self.exit_code is not None, timeout)
        assert self.exit_code is not None
        return self.exit_code

    async def says(self, text: str, timeout: float = 30) -> None:  # noqa: ASYNC109 - patience
        def said() -> bool:
            if self.exit_code is not None and text not in self.stderr:
                raise AssertionError(f"ended with {self.exit_code} before {text!r}: {self.tail}")
            return text in self.stderr

        try:
            await eventually(said, timeout)
        except AssertionError as error:
            raise AssertionError(f"not said in {timeout} s: {text!r}, but: {self.tail}") from error

    @property
    def tail(self) -> str:
        return self.stderr[-1500:]


class Nursery:
    """The process that they are forked from; they end with it, at the latest."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._born = folder, 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with (self._folder / "nursery.err").open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker", "--nursery"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C is for the scenario, which then ends them
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.communicate(timeout=GOODBYE)

    def spawn(
        self, *arguments: str, faults: Sequence[str] = (), environ: Mapping[str, str]
    ) -> Member:
        self._born += 1
        stem = self._folder / f"member-{self._born:04}"
        pid = self.ask(
            arguments=[*faults, "--", *arguments],
            environ=dict(environ),
            folder=str(self._folder),
            stdout=f"{stem}.out",
            stderr=f"{stem}.err",
        )
        return Member(self, pid, stem)

    def ask(self, **request: Any) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise AssertionError((self._folder / "nursery.err").read_text()[-2000:])
        return json.loads(answer)

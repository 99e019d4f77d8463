"""The real `last-sync` program, as a process of its own."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.brokers import leash, release
from tests.eventually import eventually

LAST_SYNC = str(Path(sys.executable).with_name("last-sync"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cli:
    """Runs `last-sync` to its end, in a folder and an environment of the test's own."""

    folder: Path
    environ: Mapping[str, str]
    program: str = LAST_SYNC

    async def __call__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes = b"",
        timeout: float = 60,  # noqa: ASYNC109  killed with its output shown, not cancelled
    ) -> Finished:
        process = await asyncio.create_subprocess_exec(
            self.program,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env={**self.environ, **(env or {})},
        )
        typed = stdin.encode() if isinstance(stdin, str) else stdin
        talk = asyncio.create_task(process.communicate(typed))
        done, _ = await asyncio.wait([talk], timeout=timeout)
        if not done:
            process.kill()
        stdout, stderr = (text.decode() for text in await talk)
        assert done, f"last-sync {arguments} ran longer than {timeout} s:\n{stdout}\n{stderr}"
        return Finished(exit_code=process.returncode or 0, stdout=stdout, stderr=stderr)


class Spawned:
    """A `last-sync` that goes on while the test does."""

    def __init__(
        self,
        *command: str,
        folder: Path,
        name: str,
        environ: Mapping[str, str],
    ) -> None:
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=environ,
            )
        self.pid = self._process.pid
        self._leash = leash('kill -9 "$1"', str(self.pid))

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def signal(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)

    async def ended(self, timeout: float = 15) -> int:  # noqa: ASYNC109  a test's patience is its caller's to say
        """Return the exit code, once the process has ended by itself."""
        await eventually(lambda: self.exit_code is not None, timeout)
        return self._process.returncode

    async def says(self, text: str, timeout: float = 15) -> None:  # noqa: ASYNC109  as above
        """Return once the text stands in what the program has written."""
        try:
            await eventually(lambda: text in self.stdout + self.stderr, timeout)
        except AssertionError:
            said = f"{self.stdout}\n{self.stderr}"
            raise AssertionError(f"not said in {timeout} s: {text!r}, but:\n{said}") from None

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        release(self._leash)


class Spawn:
    """Starts `last-sync` processes, and ends at `close` those that still run."""

    def __init__(
        self, folder: Path, environ: Mapping[str, str], program: Sequence[str] = (LAST_SYNC,)
    ) -> None:
        self._folder, self._environ, self._program = folder, environ, program
        self._all: list[Spawned] = []

    def __call__(self, *arguments: str, env: Mapping[str, str] | None = None) -> Spawned:
        spawned = Spawned(
            *self._program,
            *arguments,
            folder=self._folder,
            name=f"last-sync-{len(self._all)}",
            environ={**self._environ, **(env or {})},
        )
        self._all.append(spawned)
        return spawned

    def close(self) -> None:
        for spawned in self._all:
            spawned.close()

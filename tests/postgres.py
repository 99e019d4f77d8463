"""Real PostgreSQL servers to start, stop, kill and freeze: in Docker, or from local binaries.

`find_postgres` decides once a session which of the two this machine can run.
"""

import asyncio
import contextlib
import io
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import asyncpg
import docker  # type: ignore[import-untyped]
from docker.errors import DockerException  # type: ignore[import-untyped]
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from tests.brokers import (
    HOST,
    REMOVE_CONTAINER,
    collect_sockets,
    ensure_image,
    first_line,
    free_port,
    leash,
    release,
)

IMAGE = "postgres:17"
OLDEST = 13
START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 15.0  # seconds
CONNECT_TIMEOUT = 2.0  # seconds
USER = "postgres"
FOLDERS = "/usr/lib/postgresql/*/bin"  # Debian's, which are not on the path
# A collation that is not the code points' finds what relies on one; the first that works is taken.
LOCALES = (
    ("--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"),  # since 15, if built in
    ("--locale=en_US.UTF-8",),
    ("--locale=C.UTF-8",),
)
# Told to leave, it gives its shared memory back to the machine, and it may be frozen.
LEASH = (
    'kill -QUIT "$1"; kill -CONT "$1" $(cat "/proc/$1/task/$1/children");'
    ' for _ in $(seq 100); do kill -0 "$1" || break; sleep 0.1; done;'
    ' kill -9 "$1"; rm -rf "$2"'
)
ENDED, STOPPED = frozenset("XZ"), frozenset("T")  # as in /proc/PID/stat; a zombie is only a name

Files = tuple[str, str]  # certificate chain and key


class NoPostgresError(Exception):
    """No PostgreSQL can run here, or one did not start: the sentence says what to do."""


class PostgresServer(ABC):
    """One server that keeps its port and its data from `start` to `close`.

    Every method blocks: call it through `asyncio.to_thread` where the loop has other work.
    """

    def __init__(
        self, *, configuration: Mapping[str, str] | None = None, tls: Files | None = None
    ) -> None:
        self.port = free_port()
        self.tls = tls
        self._password = secrets.token_hex(8)
        self._configuration = {"fsync": "off", **(configuration or {})}

    @property
    def url(self) -> str:
        """The URL of the superuser's database."""
        return f"postgresql://{USER}:{self._password}@{HOST}:{self.port}/postgres"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Return once the server answers, or raise with the end of its log."""
        deadline = time.monotonic() + START_TIMEOUT
        self._launch()
        while not answers(self.url):
            if not self._alive() or time.monotonic() > deadline:
                tail = self.log().splitlines()[-25:] or ["(nothing)"]
                raise NoPostgresError(f"PostgreSQL did not start: {tail[-1]}\n" + "\n".join(tail))
            time.sleep(0.05)

    def stop(self) -> None:
        """Let it disconnect everyone and write what it has (a fast shutdown)."""
        self._signal(signal.SIGINT)
        self._await_end()

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        self._signal(signal.SIGKILL)
        self._await_end()

    def pause(self) -> None:
        """Freeze the server: its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    @abstractmethod
    def log(self) -> str:
        """All that the server has said since it was made."""

    @abstractmethod
    def close(self) -> None:
        """End the server and forget its data."""

    @abstractmethod
    def _launch(self) -> None: ...

    @abstractmethod
    def _alive(self) -> bool: ...

    @abstractmethod
    def _signal(self, signum: signal.Signals) -> None: ...

    @abstractmethod
    def _await_end(self) -> None: ...

    def _settings(self, **more: str) -> list[str]:
        settings = {**self._configuration, **more}
        if self.tls:
            settings["ssl"] = "on"
        return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


class LocalServer(PostgresServer):
    """A server of this machine's binaries, under a user without rights where we are root."""

    def __init__(self, *, binaries: Path, **options: Any) -> None:
        super().__init__(**options)
        self._binaries = binaries
        self._home = Path(tempfile.mkdtemp(prefix="last-sync-postgres-"))
        self._data, self._log = self._home / "data", self._home / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def close(self) -> None:
        self._signal(signal.SIGQUIT)  # unlike a kill, it leaves no shared memory behind
        self._signal(signal.SIGCONT)  # it may be frozen
        self._await_end()
        shutil.rmtree(self._home, ignore_errors=True)

    def _launch(self) -> None:
        if not self._data.exists():
            self._make()
        settings = self._settings(
            port=str(self.port), listen_addresses=HOST, unix_socket_directories=""
        )
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which then closes the server
                cwd="/",  # the other user may not see ours
                **unprivileged(),
            )
        self._leash = leash(LEASH, str(self._process.pid), str(self._home))

    def _make(self) -> None:
        own(self._home)
        (self._home / "password").write_text(self._password)
        own(self._home / "password")
        arguments = ["-D", self._data, "-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--no-sync"]
        arguments += ["--pwfile", self._home / "password"]
        self._initdb(arguments)
        if self.tls:
            for name, file in zip(("server.crt", "server.key"), self.tls, strict=True):
                shutil.copy(file, self._data / name)
                (self._data / name).chmod(0o600)
                own(self._data / name)

    def _initdb(self, arguments: Sequence[Any]) -> None:
        for locale in LOCALES:
            try:
                run([self._binaries / "initdb", *arguments, *locale])
            except NoPostgresError:
                shutil.rmtree(self._data, ignore_errors=True)
                if locale == LOCALES[-1]:
                    raise
            else:
                return

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _signal(self, signum: signal.Signals) -> None:
        """Signal the postmaster; freezing, thawing and killing mean its children as well."""
        if self._process is None or self._process.poll() is not None:
            return
        if signum in {signal.SIGINT, signal.SIGQUIT}:
            self._process.send_signal(signum)
            return
        pids = family(self._process.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        if signum is not signal.SIGCONT:
            await_states(pids, ENDED if signum is signal.SIGKILL else ENDED | STOPPED)

    def _await_end(self) -> None:
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT)
        if self._leash is not None:
            release(self._leash)


class DockerServer(PostgresServer):
    """A server in a container of the official image."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._container: Any = None
        self._leash: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        return "" if self._container is None else str(self._container.logs(), errors="replace")

    def close(self) -> None:
        if self._container is not None:
            self._container.remove(force=True, v=True)
            self._container.client.close()
        if self._leash is not None:
            release(self._leash)

    def _launch(self) -> None:
        if self._container is not None:
            self._container.start()
            return
        container = DockerContainer(IMAGE).with_bind_ports(5432, self.port)
        container.with_env("POSTGRES_PASSWORD", self._password)
        testcontainers_config.ryuk_disabled = True  # the leash needs no second image
        if self.tls:
            # The key has to belong to the server's own user, whom only the container knows.
            files = "/tmp/server.crt /tmp/server.key"
            container.with_kwargs(entrypoint=["sh", "-c", (
                f"until [ -e /tmp/server.all ]; do sleep 0.1; done; chown postgres {files};"
                f' chmod 600 {files}; exec docker-entrypoint.sh postgres "$@"'
            ), "tls"])  # fmt: skip
            paths = {"ssl_cert_file": "/tmp/server.crt", "ssl_key_file": "/tmp/server.key"}
            container.with_command(self._settings(**paths))
        else:
            container.with_command(["postgres", *self._settings()])
        self._container = container.start().get_wrapped_container()
        self._leash = leash(
            '"$1" -c "$2" "$3"', sys.executable, REMOVE_CONTAINER, self._container.id
        )
        if self.tls:
            self._container.put_archive("/tmp", archive(self.tls))

    def _alive(self) -> bool:
        self._container.reload()
        return str(self._container.status) in {"created", "running", "paused"}

    def _signal(self, signum: signal.Signals) -> None:
        if signum is signal.SIGSTOP:
            self._container.pause()
        elif signum is signal.SIGCONT:
            self._container.unpause()
        elif self._alive():
            self._container.kill(signal=signum.name)

    def _await_end(self) -> None:
        self._container.wait(timeout=STOP_TIMEOUT)


class Databases:
    """Makes databases on a server, from a template, and drops them."""

    def __init__(self, url: str) -> None:
        self._url = url

    def make_template(self, name: str, prepare: Callable[[str], None]) -> None:
        """Make the database that others are copied from, anew, and let `prepare` fill it."""
        self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}")
        prepare(self._named(name))

    def create(self, template: str = "template1") -> str:
        """Make a database of its own, and give its URL."""
        name = f"last_sync_test_{secrets.token_hex(6)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self._named(name)

    def drop(self, url: str) -> None:
        name = url.partition("?")[0].rpartition("/")[2]
        self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _named(self, name: str) -> str:
        address, question, parameters = self._url.partition("?")
        return f"{address.rpartition('/')[0]}/{name}{question}{parameters}"

    def _run(self, *statements: str) -> None:
        execute(self._url, *statements)


def execute(url: str, *statements: str) -> None:
    """Run the statements one by one, in a loop of their own: the caller may have one already."""

    async def run_all() -> None:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(run_all())).result()


def answers(url: str) -> bool:
    """Whether a client gets in: over TCP, and with the password."""
    try:
        execute(url, "SELECT 1")
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    return True


def family(pid: int) -> list[int]:
    """Give a postmaster and its children, having stopped it, so that it starts no more of them."""
    os.kill(pid, signal.SIGSTOP)
    if sys.platform == "linux":
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return [pid, *children(pid)]


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def await_states(pids: Sequence[int], wanted: frozenset[str]) -> None:
    """A signal is not there at once, and a child that is left keeps a server from starting."""
    deadline = time.monotonic() + STOP_TIMEOUT
    while others := [pid for pid in pids if state(pid) not in wanted]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {STOP_TIMEOUT} s the processes {others} are as they were")
        time.sleep(0.01)


def state(pid: int) -> str:
    """Give the kernel's letter for what a process does, and `X` where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return stat.rpartition(")")[2].split()[0]


def unprivileged() -> dict[str, Any]:
    """How to start a process that PostgreSQL, which refuses root, accepts."""
    if os.geteuid() != 0:
        return {}
    user = account()
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        return pwd.getpwnam("nobody")


def own(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, account().pw_uid, account().pw_gid)


def run(command: Sequence[Any]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_TIMEOUT,
            check=False,
            cwd="/",  # the other user may not see ours
            **unprivileged(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoPostgresError(f"{command[0]} failed: {error}") from error
    if done.returncode:
        raise NoPostgresError(f"{command[0]} failed: {done.stdout.strip()[-2000:]}")
    return str(done.stdout)


def archive(files: Files) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, file in zip(("server.crt", "server.key"), files, strict=True):
            tar.add(file, arcname=name)
        tar.addfile(tarfile.TarInfo("server.all"))  # unpacked last: the others are whole
    return packed.getvalue()


PostgresFactory = Callable[..., PostgresServer]


def find_postgres(environ: Mapping[str, str], say: Callable[[str], None]) -> PostgresFactory:
    """How to make servers here: Docker if an engine answers and has the image, else binaries."""
    forced = environ.get("LAST_SYNC_TEST_POSTGRES_SERVER", "")
    ways = {"docker": docker_servers, "local": local_servers}
    if forced and forced not in ways:
        raise NoPostgresError(
            f"LAST_SYNC_TEST_POSTGRES_SERVER is {forced!r}; it must be docker or local."
        )
    troubles = []
    for name in [forced] if forced else ways:
        try:
            make = ways[name](environ)
        except NoPostgresError as error:
            troubles.append(f"{name}: {first_line(error)}")
            say(f"no PostgreSQL from {name}: {error}")
        else:
            say(f"PostgreSQL from {name}")
            return make
        collect_sockets()
    raise NoPostgresError(
        "No PostgreSQL to test on: set LAST_SYNC_TEST_POSTGRES to postgresql://user:password@"
        "host:port/postgres, or start a Docker engine, or install PostgreSQL (Debian's package "
        f"postgresql) ({'; '.join(troubles)})."
    )


def docker_servers(environ: Mapping[str, str]) -> PostgresFactory:
    doing = "reach an engine"
    try:
        with contextlib.closing(docker.from_env(timeout=5, environment=environ)) as engine:
            engine.ping()
        doing = f"pull {IMAGE}"
        with contextlib.closing(docker.from_env(timeout=60, environment=environ)) as engine:
            ensure_image(engine, IMAGE)
        doing = "run a server"
        with DockerServer() as probe:  # its ports may not be ours: the engine can be far away
            probe.start()
    except (DockerException, OSError) as error:
        raise NoPostgresError(f"cannot {doing} ({first_line(error)})") from error
    return DockerServer


def local_servers(environ: Mapping[str, str]) -> PostgresFactory:
    binaries = find_binaries(environ)

    def make(**options: Any) -> PostgresServer:
        return LocalServer(binaries=binaries, **options)

    return make


def find_binaries(environ: Mapping[str, str]) -> Path:
    """Return the folder with `postgres` and `initdb`: the path's, or the newest of Debian's."""
    for postgres in candidates(environ):
        if version(postgres) >= OLDEST and (postgres.parent / "initdb").exists():
            return postgres.parent
    raise NoPostgresError(f"there is no postgres of version {OLDEST} or newer on this machine")


def candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    path = environ.get("PATH", "")
    if on_path := shutil.which("postgres", path=path):
        yield Path(on_path).resolve()
    yield from sorted(Path("/").glob(f"{FOLDERS[1:]}/postgres"), key=version, reverse=True)
    if pg_config := shutil.which("pg_config", path=path):
        with contextlib.suppress(NoPostgresError):
            yield Path(run([pg_config, "--bindir"]).strip()) / "postgres"


def version(postgres: Path) -> int:
    """Give the major version, and 0 for what cannot be run."""
    with contextlib.suppress(NoPostgresError):
        if number := re.search(r"(\d+)", run([postgres, "--version"])):
            return int(number[1])
    return 0

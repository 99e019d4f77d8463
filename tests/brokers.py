"""Real Apache Kafka brokers to start, stop, kill and freeze: in Docker, or from the official jars.

`find_brokers` decides once a session which of the two this machine can run.
"""

import contextlib
import fcntl
import gc
import hashlib
import io
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

import docker  # type: ignore[import-untyped]
from docker.errors import DockerException, ImageNotFound  # type: ignore[import-untyped]
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

KAFKA = "4.3.1"
IMAGE = f"apache/kafka:{KAFKA}"
HOST = "127.0.0.1"
START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 60.0  # seconds
FETCH_TIMEOUT = 600.0  # seconds
STARTED = "Kafka Server started"  # the broker's own words, once it answers clients
OLDEST_JAVA = 17
CONTAINER_DATA = "/tmp/kafka-data"
HEAP = "-Xmx512m"
JVM_OPTIONS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
LOG_OPTIONS = (
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)

POM = f"""\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>broker</groupId><artifactId>broker</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{KAFKA}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""
# The image fills in templates, which its user owns but may not be allowed to write.
START = "chmod -f u+w /etc/kafka/docker/* /opt/kafka/config/*; exec /etc/kafka/docker/run"
REMOVE_CONTAINER = """
import docker, sys
docker.from_env().containers.get(sys.argv[1]).remove(force=True, v=True)
"""
_ports = Path(tempfile.gettempdir(), f"last-sync-test-ports-{os.getuid()}").open("ab")  # noqa: SIM115
_ports_given: set[int] = set()
COPY_JARS = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"


class NoBrokerError(Exception):
    """No broker can run here, or one did not start: the sentence says what to do."""


def free_port() -> int:
    """Pick one below the range of outgoing connections: it stays free while a broker is down.

    A client that retries a closed port inside that range can end up connected to itself. The port
    is this process's for as long as it lives: others that look for one here find it locked.
    """
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        if port in _ports_given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            fcntl.lockf(_ports, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)  # a byte for each
            probe.bind((HOST, port))
            _ports_given.add(port)
            return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One way into a broker; clients are sent on to `advertised`, where a proxy may stand."""

    name: str
    protocol: str = "PLAINTEXT"
    port: int = field(default_factory=free_port)
    advertised: int | None = None


class Broker(ABC):
    """One node, broker and controller, that keeps its ports and its data from `start` to `close`.

    Every method blocks: call it through `asyncio.to_thread` where the loop has other work.
    """

    def __init__(
        self, *, listeners: Sequence[Listener] = (), properties: Mapping[str, str] | None = None
    ) -> None:
        self.listeners = (Listener(name="CLIENT"), *listeners)
        self.controller = Listener(name="CONTROLLER")
        self.properties = dict(properties or {})

    @property
    def bootstrap(self) -> str:
        return self.address("CLIENT")

    def address(self, name: str) -> str:
        """Where the listener really listens, whatever it advertises."""
        port = next(listener.port for listener in self.listeners if listener.name == name)
        return f"{HOST}:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Return once the broker answers clients, or raise with the end of its log."""
        starts = self.log().count(STARTED)
        deadline = time.monotonic() + START_TIMEOUT
        self._launch()
        while self.log().count(STARTED) == starts:
            if not self._alive() or time.monotonic() > deadline:
                tail = self.log().splitlines()[-25:] or ["(nothing)"]
                raise NoBrokerError(f"Kafka did not start: {tail[-1]}\n" + "\n".join(tail))
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self._signal(signal.SIGTERM)
        self._await_end()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._signal(signal.SIGKILL)
        self._await_end()

    def pause(self) -> None:
        """Freeze the broker: its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    @abstractmethod
    def log(self) -> str:
        """All that the broker has said since it was made."""

    @abstractmethod
    def alter(self, pattern: str, change: Callable[[bytes], bytes]) -> int:
        """Change files of a broker that is down, below its data folder; tell how many they were."""

    @abstractmethod
    def tool(self, main: str, *arguments: str) -> str:
        """Return what one of Kafka's own command line tools prints, `main` being its Java class."""

    @abstractmethod
    def close(self) -> None:
        """End the broker and forget its data."""

    @abstractmethod
    def _launch(self) -> None: ...

    @abstractmethod
    def _alive(self) -> bool: ...

    @abstractmethod
    def _signal(self, signum: signal.Signals) -> None: ...

    @abstractmethod
    def _await_end(self) -> None: ...

    def _configuration(self, *, bind: str, data: str) -> dict[str, str]:
        every = (*self.listeners, self.controller)
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{self.controller.port}",
            "controller.listener.names": self.controller.name,
            "inter.broker.listener.name": "CLIENT",
            "listeners": ",".join(f"{one.name}://{bind}:{one.port}" for one in every),
            "advertised.listeners": ",".join(
                f"{one.name}://{HOST}:{one.advertised or one.port}" for one in self.listeners
            ),
            "listener.security.protocol.map": ",".join(
                f"{one.name}:{one.protocol}" for one in every
            ),
            "log.dirs": data,
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "log.cleaner.dedupe.buffer.size": "4194304",
            "broker.session.timeout.ms": "3000",  # a killed broker is let in again only after it
            "broker.heartbeat.interval.ms": "500",
            **self.properties,
        }


class JarBroker(Broker):
    """A broker of the official jars, on a local Java."""

    def __init__(
        self,
        *,
        java: str,
        jars: Path,
        archiving: str,
        listeners: Sequence[Listener] = (),
        properties: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(listeners=listeners, properties=properties)
        self._java = (java, HEAP, *JVM_OPTIONS, *LOG_OPTIONS, archiving, "-cp", str(jars / "*"))
        self._home = Path(tempfile.mkdtemp(prefix="last-sync-broker-"))
        self._log = self._home / "broker.log"
        self._data = self._home / "data"
        self._config = self._home / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def alter(self, pattern: str, change: Callable[[bytes], bytes]) -> int:
        files = list(self._data.glob(pattern))
        for path in files:
            path.write_bytes(change(path.read_bytes()))
        return len(files)

    def tool(self, main: str, *arguments: str) -> str:
        return _output([*self._java, main, *arguments])

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def _launch(self) -> None:
        if not self._config.exists():
            self._format()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which then closes the broker
            )
        self._leash = leash('kill -9 "$1"; rm -rf "$2"', str(self._process.pid), str(self._home))

    def _format(self) -> None:
        configuration = self._configuration(bind=HOST, data=str(self._data))
        lines = (f"{name}={value}" for name, value in configuration.items())
        self._config.write_text("\n".join(lines) + "\n")
        storage = ("format", "-t", cluster_id(), "-c", str(self._config))
        self.tool("kafka.tools.StorageTool", *storage)

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _signal(self, signum: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signum)
            if signum is signal.SIGSTOP:  # its threads go on for a moment
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _await_end(self) -> None:
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT)
        if self._leash is not None:
            release(self._leash)


class DockerBroker(Broker):
    """A broker in a container of the official image."""

    def __init__(
        self, *, listeners: Sequence[Listener] = (), properties: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(listeners=listeners, properties=properties)
        self._container: Any = None
        self._leash: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        return "" if self._container is None else str(self._container.logs(), errors="replace")

    def alter(self, pattern: str, change: Callable[[bytes], bytes]) -> int:
        chunks, _ = self._container.get_archive(CONTAINER_DATA)
        altered, done = io.BytesIO(), 0
        with (
            tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as found,
            tarfile.open(fileobj=altered, mode="w") as back,
        ):
            for member in found:
                name = PurePosixPath(member.name)
                if (file := found.extractfile(member)) and name.match(f"*/{pattern}"):
                    data = change(file.read())
                    member.size, done = len(data), done + 1
                    back.addfile(member, io.BytesIO(data))
        self._container.put_archive(str(PurePosixPath(CONTAINER_DATA).parent), altered.getvalue())
        return done

    def tool(self, main: str, *arguments: str) -> str:
        command = ["/opt/kafka/bin/kafka-run-class.sh", main, *arguments]
        code, output = self._container.exec_run(command)
        if code != 0:
            raise NoBrokerError(f"{main} failed: {output.decode(errors='replace')}")
        return str(output, errors="replace")

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
        container = DockerContainer(IMAGE).with_command(["sh", "-c", START])
        for one in self.listeners:
            container.with_bind_ports(one.port, one.port)
        for name, value in self._environment().items():
            container.with_env(name, value)
        testcontainers_config.ryuk_disabled = True  # the leash needs no second image
        self._container = container.start().get_wrapped_container()
        self._leash = leash(
            '"$1" -c "$2" "$3"', sys.executable, REMOVE_CONTAINER, self._container.id
        )

    def _environment(self) -> dict[str, str]:
        configuration = self._configuration(bind="0.0.0.0", data=CONTAINER_DATA)
        names = {
            name: "KAFKA_" + name.replace("_", "__").replace("-", "___").replace(".", "_").upper()
            for name in configuration
        }
        return {
            **{names[name]: value for name, value in configuration.items()},
            "CLUSTER_ID": cluster_id(),
            "KAFKA_HEAP_OPTS": HEAP,
            "KAFKA_JVM_PERFORMANCE_OPTS": " ".join(JVM_OPTIONS),
        }

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


def cluster_id() -> str:
    return "c" + secrets.token_urlsafe(16)[1:]  # a leading hyphen would be taken for an option


def leash(command: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a shell that runs the command as soon as this process is gone, however it went."""
    return subprocess.Popen(
        ["sh", "-c", f"cat; {command}", "leash", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def release(held: subprocess.Popen[bytes]) -> None:
    held.kill()
    held.communicate()


def _output(command: Sequence[str], *, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            timeout=FETCH_TIMEOUT,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise NoBrokerError(f"{command[0]} failed: {error.stdout.strip()[-2000:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoBrokerError(f"{command[0]} failed: {error}") from error
    return done.stdout


BrokerFactory = Callable[..., Broker]


def find_brokers(environ: Mapping[str, str], say: Callable[[str], None]) -> BrokerFactory:
    """How to make brokers here: Docker if an engine answers and has the image, else the jars."""
    forced = environ.get("LAST_SYNC_TEST_BROKER", "")
    ways = {"docker": docker_brokers, "jars": jar_brokers}
    if forced and forced not in ways:
        raise NoBrokerError(f"LAST_SYNC_TEST_BROKER is {forced!r}; it must be docker or jars.")
    troubles = []
    for name in [forced] if forced else ways:
        try:
            make = ways[name](environ)
        except NoBrokerError as error:
            troubles.append(f"{name}: {first_line(error)}")
            say(f"no Kafka from {name}: {error}")
        else:
            say(f"Kafka {KAFKA} from {name}")
            return make
        collect_sockets()
    raise NoBrokerError(
        "No Kafka to test on: set LAST_SYNC_TEST_BOOTSTRAP to a broker's host:port, or start a "
        f"Docker engine, or install Java {OLDEST_JAVA} or newer and Maven ({'; '.join(troubles)})."
    )


def collect_sockets() -> None:
    """Drop what Docker's client leaves open when nobody answers, lest a later test is blamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def docker_brokers(environ: Mapping[str, str]) -> BrokerFactory:
    doing = "reach an engine"
    try:
        with contextlib.closing(docker.from_env(timeout=5, environment=environ)) as engine:
            engine.ping()
        doing = f"pull {IMAGE}"
        with contextlib.closing(docker.from_env(timeout=60, environment=environ)) as engine:
            ensure_image(engine, IMAGE)
        doing = "run a broker"
        with DockerBroker() as probe:  # its ports may not be ours: the engine can be far away
            probe.start()
    except (DockerException, OSError) as error:
        raise NoBrokerError(f"cannot {doing} ({first_line(error)})") from error
    return DockerBroker


def ensure_image(engine: Any, image: str) -> None:
    try:
        engine.images.get(image)
    except ImageNotFound:
        engine.images.pull(image)


def jar_brokers(environ: Mapping[str, str]) -> BrokerFactory:
    java, jars = find_java(environ), fetch_jars(environ)
    archiving = f"-XX:SharedArchiveFile={class_archive(java, jars)}"

    def make(
        *, listeners: Sequence[Listener] = (), properties: Mapping[str, str] | None = None
    ) -> Broker:
        return JarBroker(
            java=java, jars=jars, archiving=archiving, listeners=listeners, properties=properties
        )

    return make


def find_java(environ: Mapping[str, str]) -> str:
    home = environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    if java is None:
        raise NoBrokerError(f"there is no java; Kafka {KAFKA} needs Java {OLDEST_JAVA} or newer")
    said = _output([java, "-version"])
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < OLDEST_JAVA:
        raise NoBrokerError(f"{java} is {first_line(said)}; it must be {OLDEST_JAVA} or newer")
    return java


def fetch_jars(environ: Mapping[str, str]) -> Path:
    """Return the folder of Kafka's jars, fetched from Maven Central once and kept in the cache."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "last-sync-worker"
    jars = cache / f"kafka-{KAFKA}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise NoBrokerError(f"there is no mvn to fetch the jars of Kafka {KAFKA} with")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _fetch(maven, Path(scratch), jars)
    return jars


def class_archive(java: str, jars: Path) -> Path:
    """Return Kafka's classes as this very Java has them in memory, made once and kept in the cache.

    A broker starts with it in half the time. Java goes on without one that is not its own.
    """
    version = hashlib.sha256(_output([java, "-version"]).encode()).hexdigest()[:12]
    archive = jars.with_name(f"{jars.name}-java-{version}.jsa")
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=jars.parent) as scratch:
            made = Path(scratch, "classes.jsa")
            archiving = f"-XX:ArchiveClassesAtExit={made}"
            with JarBroker(java=java, jars=jars, archiving=archiving) as broker:
                broker.start()
                broker.stop()
            with contextlib.suppress(FileNotFoundError):  # there are Javas that write none
                made.rename(archive)
    return archive


def _fetch(maven: str, scratch: Path, jars: Path) -> None:
    scratch.joinpath("pom.xml").write_text(POM)
    goal = (COPY_JARS, "-DoutputDirectory=libs", "-DincludeScope=runtime")
    _output([maven, "-q", "-B", *goal], cwd=scratch)
    with contextlib.suppress(OSError):  # another session was quicker: its jars are the same
        scratch.joinpath("libs").rename(jars)


def first_line(text: object) -> str:
    return next(iter(str(text).strip().splitlines()), "")

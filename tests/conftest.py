"""Fixtures for tests on a real broker and of the real program."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from tests.brokers import Broker, BrokerFactory, Listener, NoBrokerError, find_brokers
from tests.kafka import Kafka, Topics
from tests.programs import Cli, Spawn

ENVIRON = pytest.StashKey[Mapping[str, str]]()
BROKERS = pytest.StashKey[BrokerFactory | NoBrokerError]()
# Microseconds on a local disk, and done once, before a store opens.
PATH_LOOKUPS = ("os.access", "os.getcwd", "os.path.abspath", "os.stat")
BEHIND_PROXY = "PROXIED"  # the listener that `make_broker(advertise=...)` adds

MakeBroker = Callable[..., Broker]


def pytest_configure(config: pytest.Config) -> None:
    """Take our variables out of the environment, so that no test inherits a person's settings."""
    config.stash[ENVIRON] = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("LAST_SYNC_")]:
        del os.environ[name]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch what brokers need before the first test, whose timeout a download must not eat."""
    environ = session.config.stash[ENVIRON]
    needing = {"brokers"} if given(environ) else {"brokers", "bootstrap"}
    wanted = any(needing & set(getattr(item, "fixturenames", ())) for item in session.items)
    if wanted and not session.config.option.collectonly:
        writer = session.config.get_terminal_writer()
        try:
            found: BrokerFactory | NoBrokerError = find_brokers(environ, writer.line)
        except NoBrokerError as error:
            found = error
        session.config.stash[BROKERS] = found


def given(environ: Mapping[str, str]) -> str | None:
    return environ.get("LAST_SYNC_TEST_BOOTSTRAP")


@pytest.fixture(autouse=True, scope="session")
def no_blocking() -> Iterator[None]:
    """Fail a test in which our own code blocks the event loop."""
    with blockbuster_ctx(scanned_modules=["worker", "schemas"]) as calls:
        for name in PATH_LOOKUPS:
            calls.functions[name].deactivate()
        yield


@pytest.fixture(scope="session")
def brokers(pytestconfig: pytest.Config) -> BrokerFactory:
    """How brokers are made on this machine; a failure, with the three ways, where it has none."""
    found = pytestconfig.stash[BROKERS]
    if isinstance(found, NoBrokerError):
        pytest.fail(str(found), pytrace=False)
    return found


@pytest.fixture(scope="session")
def bootstrap(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the address of the session's one broker."""
    if address := given(request.config.stash[ENVIRON]):
        yield address
        return
    make: BrokerFactory = request.getfixturevalue("brokers")
    with make() as broker:
        broker.start()
        yield broker.bootstrap


@pytest.fixture
def make_broker(brokers: BrokerFactory) -> Iterator[MakeBroker]:
    """Start brokers of the test's own: `make_broker(advertise=port, properties={...})`.

    With `advertise` the broker has a second listener, at `broker.address(BEHIND_PROXY)`, whose
    clients are told to come back through that port.
    """
    with ExitStack() as stack:

        def make(
            *, advertise: int | None = None, properties: Mapping[str, str] | None = None
        ) -> Broker:
            proxied = [Listener(name=BEHIND_PROXY, advertised=advertise)] if advertise else []
            broker = stack.enter_context(brokers(listeners=proxied, properties=properties))
            broker.start()
            return broker

        yield make


@pytest.fixture
def own_broker(make_broker: MakeBroker) -> Broker:
    """Start a broker that the test may stop, kill and freeze."""
    return make_broker()


@pytest.fixture
def kafka(bootstrap: str) -> Kafka:
    """Reach the session's cluster, to produce to and to read from."""
    return Kafka(bootstrap)


@pytest.fixture
async def topic(kafka: Kafka) -> Topics:
    """Make a source topic of 4 partitions and its dead-letter topic, and name a group."""
    topics = Topics.unique()
    await kafka.create(topics)
    return topics


@pytest.fixture
def clean_env() -> dict[str, str]:
    """Give an environment for a process, without any setting of ours."""
    return dict(os.environ)


@pytest.fixture
def cli(tmp_path: Path, clean_env: dict[str, str]) -> Cli:
    """Run the program to its end."""
    return Cli(folder=tmp_path, environ=clean_env)


@pytest.fixture
def spawn(tmp_path: Path, clean_env: dict[str, str]) -> Iterator[Spawn]:
    """Start programs that end with the test at the latest, as in `spawn("run", env={...})`."""
    processes = Spawn(tmp_path, clean_env)
    yield processes
    processes.close()

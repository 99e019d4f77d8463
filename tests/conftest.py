"""Fixtures for tests on a real broker and of the real program."""

import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings

from tests.brokers import Broker, BrokerFactory, Listener, NoBrokerError, find_brokers
from tests.kafka import Kafka, Topics
from tests.postgres import (
    Databases,
    NoPostgresError,
    PostgresFactory,
    PostgresServer,
    find_postgres,
)
from tests.programs import LAST_SYNC, Cli, Spawn
from worker import logs

ENVIRON = pytest.StashKey[Mapping[str, str]]()
BROKERS = pytest.StashKey[BrokerFactory | NoBrokerError]()
POSTGRES = pytest.StashKey[PostgresFactory | NoPostgresError]()
TEMPLATE = "last_sync_test_template"
# Microseconds on a local disk, and done once, before a store opens.
PATH_LOOKUPS = ("os.access", "os.getcwd", "os.path.abspath", "os.stat")
BEHIND_PROXY = "PROXIED"  # the listener that `make_broker(advertise=...)` adds

MakeBroker = Callable[..., Broker]


def pytest_configure(config: pytest.Config) -> None:
    """Take our variables out of the environment, so that no test inherits a person's settings.

    How long an example takes says more of the machine than of the code.
    """
    settings.register_profile("last-sync", deadline=None)
    settings.load_profile("last-sync")
    config.stash[ENVIRON] = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("LAST_SYNC_")]:
        del os.environ[name]


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Undo `logs.configure` at the end."""
    root, audits = logging.getLogger(), logging.getLogger(logs.AUDIT)
    handlers, level = root.handlers, root.level
    yield
    root.handlers, audits.handlers, audits.propagate = handlers, [], True
    for name in ("", "worker", logs.AUDIT, "aiokafka.cluster", "elastic_transport"):
        logging.getLogger(name).setLevel(level if name == "" else logging.NOTSET)
    logging.captureWarnings(capture=False)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Fetch what servers need once, before several processes would; each then finds it there."""
    if session.config.getoption("numprocesses", None):
        find_servers(session.config, kafka=True, postgres=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch what servers need before the first test, whose timeout a download must not eat."""
    if session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    environ = session.config.stash[ENVIRON]
    places = wanted & {"databases", "place", "sql_store_url"} and not given_postgres(environ)
    find_servers(
        session.config,
        kafka="brokers" in wanted or ("bootstrap" in wanted and not given_kafka(environ)),
        postgres="postgres_servers" in wanted or bool(places),
    )


def find_servers(config: pytest.Config, *, kafka: bool, postgres: bool) -> None:
    environ = config.stash[ENVIRON]
    say = config.get_terminal_writer().line
    if kafka:
        try:
            config.stash[BROKERS] = find_brokers(environ, say)
        except NoBrokerError as error:
            config.stash[BROKERS] = error
    if postgres:
        try:
            config.stash[POSTGRES] = find_postgres(environ, say)
        except NoPostgresError as error:
            config.stash[POSTGRES] = error


def given_kafka(environ: Mapping[str, str]) -> str | None:
    return environ.get("LAST_SYNC_TEST_BOOTSTRAP")


def given_postgres(environ: Mapping[str, str]) -> str | None:
    return environ.get("LAST_SYNC_TEST_POSTGRES")


@pytest.fixture(autouse=True, scope="session")
def no_blocking() -> Iterator[None]:
    """Fail a test in which our own code blocks the event loop."""
    import_module("elasticsearch")  # reads files, once, when a store is opened
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
    if address := given_kafka(request.config.stash[ENVIRON]):
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


@pytest.fixture(scope="session")
def postgres_servers(pytestconfig: pytest.Config) -> PostgresFactory:
    """How servers are made on this machine; a failure, with the three ways, where it has none."""
    found = pytestconfig.stash[POSTGRES]
    if isinstance(found, NoPostgresError):
        pytest.fail(str(found), pytrace=False)
    return found


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Make databases on the session's one server, with the schema of `last-sync store upgrade`."""
    with ExitStack() as stack:
        url = given_postgres(request.config.stash[ENVIRON])
        if url is None:
            make: PostgresFactory = request.getfixturevalue("postgres_servers")
            server = stack.enter_context(make())
            server.start()
            url = server.url
        databases = Databases(url)
        databases.make_template(TEMPLATE, upgrade)
        yield databases


def upgrade(url: str) -> None:
    subprocess.run([LAST_SYNC, "store", "upgrade", "--store", url], check=True, timeout=60)


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """Give the URL of a PostgreSQL store of the test's own."""
    url = databases.create(TEMPLATE)
    yield url
    databases.drop(url)


@pytest.fixture
def empty_database(databases: Databases) -> Iterator[str]:
    """Give the URL of a PostgreSQL database without a schema."""
    url = databases.create()
    yield url
    databases.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def sql_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name an empty store of each kind that can be served."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    url: str = request.getfixturevalue("database")
    return url


@pytest.fixture
def make_postgres(postgres_servers: PostgresFactory) -> Iterator[Callable[..., PostgresServer]]:
    """Start servers of the test's own, which it may stop, kill and freeze."""
    with ExitStack() as stack:

        def make(**options: Any) -> PostgresServer:
            server = stack.enter_context(postgres_servers(**options))
            server.start()
            return server

        yield make


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

"""What every Kafka client of the worker shares: options, error translation, start and stop."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka
from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.helpers import create_ssl_context
from aiokafka.protocol.group import LeaveGroupRequest

from worker import batches
from worker.errors import MisconfiguredError, TransientError
from worker.settings import Settings
from worker.variables import variable

CONNECT_TIMEOUT = 6.0  # seconds; "cannot start" has to be said within ten
LOOK = 0.2  # seconds after which metadata without a broker is asked for again
LOOKS = 20
CLOSE_TIMEOUT = 2.0  # seconds
LEAVE_TIMEOUT = 0.3  # seconds; a stop that takes longer waits for a rebalance, or for the brokers

NOT_ALLOWED = (
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.SaslAuthenticationFailed,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,
)
UNUSABLE = (
    kafka.UnsupportedVersionError,
    kafka.IncompatibleBrokerVersion,
    kafka.InvalidTopicError,
    kafka.InvalidGroupIdError,
    kafka.InvalidSessionTimeoutError,
    kafka.InconsistentGroupProtocolError,
    kafka.InvalidTimestampError,
    kafka.PolicyViolationError,
)


class Client(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Token(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """The OAUTHBEARER token; a file is read anew at every login, because tokens expire."""

    def __init__(self, token: str | None, file: Path | None) -> None:
        self._token, self._file = token, file

    async def token(self) -> str:
        if self._file is None:
            return self._token or ""
        return (await asyncio.to_thread(self._file.read_text)).strip()


def client_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments that all aiokafka clients take.

    Raises MisconfiguredError for credentials or certificates that are missing or unreadable.
    """
    protocol = settings.kafka_security_protocol
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "client_id": "last-sync-worker",
        "security_protocol": protocol,
    }
    if protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if protocol.startswith("SASL"):
        options |= _sasl(settings)
    return options


def consumer(settings: Settings, *topics: str, **options: Any) -> AIOKafkaConsumer:
    """Make a consumer that opens batches as `worker.batches` does."""
    batches.guard()
    return AIOKafkaConsumer(*topics, **client_options(settings), **options)


def _sasl(settings: Settings) -> dict[str, Any]:
    if settings.kafka_sasl_mechanism == "OAUTHBEARER":
        token, file = settings.kafka_sasl_oauth_token, settings.kafka_sasl_oauth_token_file
        if token is None and file is None:
            _require(settings, "kafka_sasl_oauth_token")
        provider = Token(token.get_secret_value() if token else None, file)
        return {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": provider}
    _require(settings, "kafka_sasl_username")
    _require(settings, "kafka_sasl_password")
    assert settings.kafka_sasl_password is not None  # noqa: S101 - narrowed by _require  # nosec B101
    return {
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": settings.kafka_sasl_password.get_secret_value(),
    }


def _require(settings: Settings, field: str) -> None:
    if getattr(settings, field) is None:
        raise MisconfiguredError(
            f"{variable(field)} is not set, and "
            f"{variable('kafka_sasl_mechanism')}={settings.kafka_sasl_mechanism} needs it"
        )


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    for field in ("kafka_ssl_cafile", "kafka_ssl_certfile", "kafka_ssl_keyfile"):
        path: Path | None = getattr(settings, field)
        if path is not None and not path.is_file():
            raise MisconfiguredError(f"{variable(field)}={path}: there is no such file")
    password = settings.kafka_ssl_password
    try:
        context: ssl.SSLContext = create_ssl_context(
            cafile=settings.kafka_ssl_cafile,
            certfile=settings.kafka_ssl_certfile,
            keyfile=settings.kafka_ssl_keyfile,
            password=password.get_secret_value() if password else None,
        )
    except (ssl.SSLError, OSError, ValueError) as error:
        raise MisconfiguredError(
            f"cannot use the TLS files of {variable('kafka_ssl_cafile')}, …_CERTFILE and "
            f"…_KEYFILE: {error}; they have to be readable PEM files that belong together"
        ) from None
    context.check_hostname = settings.kafka_ssl_check_hostname
    return context


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Map the client's errors to what has to happen next; `doing` says what was tried."""
    try:
        yield
    except NOT_ALLOWED as error:
        raise MisconfiguredError(
            f"Kafka does not allow {doing}: {describe(error)}; "
            "check the credentials and the ACLs of this user"
        ) from error
    except UNUSABLE as error:
        raise MisconfiguredError(f"Kafka refuses {doing}: {describe(error)}") from error
    except (TimeoutError, OSError) as error:
        raise TransientError(
            f"Kafka did not answer in time to {doing}: {describe(error)}"
        ) from error
    except kafka.KafkaError as error:
        if unexplained(error):
            raise TransientError(
                f"Kafka failed at {doing}, for a reason that this client does not know: "
                f"{describe(error)}; the brokers' logs may say more"
            ) from error
        if not error.retriable and not isinstance(error, kafka.KafkaTimeoutError):
            raise
        raise TransientError(f"Kafka could not do {doing}: {describe(error)}") from error


def unexplained(error: kafka.KafkaError) -> bool:
    """Whether a broker answered UNKNOWN_SERVER_ERROR, or what aiokafka does not expect there."""
    return type(error) in {kafka.UnknownError, kafka.KafkaError}


def describe(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}" if text else name


@asynccontextmanager
async def started(client: Client, settings: Settings) -> AsyncIterator[None]:
    """Start the client within a deadline, and stop it within another.

    Raises TransientError where the brokers cannot be reached.
    """
    await start(client, settings)
    try:
        yield
    finally:
        await stop(client)


async def start(client: Client, settings: Settings, *, timeout: float = CONNECT_TIMEOUT) -> None:  # noqa: ASYNC109
    with _last_words() as heard:
        try:
            async with asyncio.timeout(timeout):
                await client.start()
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            await stop(client)
            why = heard[-1] if heard else describe(error)
            raise TransientError(
                f"cannot use Kafka at {settings.kafka_bootstrap_servers} "
                f"({settings.kafka_security_protocol}): {why}; check "
                f"{variable('kafka_bootstrap_servers')}, the security settings, "
                "and that the brokers are up"
            ) from None
        except BaseException:
            await stop(client)
            raise


async def stop(client: Client) -> None:
    """Stop within a deadline: with the brokers dead, aiokafka's own stop may never return."""
    task = asyncio.create_task(client.stop(), name="kafka-stop")
    done, _ = await asyncio.wait({task}, timeout=CLOSE_TIMEOUT)
    if not done:
        task.cancel()
    elif not task.cancelled() and (error := task.exception()):
        logging.getLogger(__name__).warning("kafka.stop_failed: %s", describe(error))


async def leave(client: AIOKafkaConsumer) -> None:
    """Stop a member of a group, and have the group know of it.

    In mid-rebalance aiokafka's own stop waits until every other member has come, and gone unsaid
    the others would wait for this one until its session ends. So it is said at once, over a
    connection on which no request to join is pending.
    """
    stopping = asyncio.create_task(stop(client), name="kafka-leave")
    await asyncio.wait({stopping}, timeout=LEAVE_TIMEOUT)
    coordinator = client._coordinator  # noqa: SLF001 - nothing public tells the member's id
    if coordinator and coordinator.member_id and coordinator.coordinator_id is not None:
        request = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await client._client.send(coordinator.coordinator_id, request)  # noqa: SLF001
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            logging.getLogger(__name__).warning("kafka.leave_failed: %s", describe(error))
    await stopping


@contextmanager
def _last_words() -> Iterator[list[str]]:
    """What aiokafka logs while it connects: its exception does not say why it failed."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                heard.append(record.getMessage())

    logger, listener = logging.getLogger("aiokafka"), Listener()
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield heard
    finally:
        logger.propagate = True
        logger.removeHandler(listener)


@asynccontextmanager
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(**client_options(settings))

    class Closing:
        stop = client.close

        async def start(self) -> None:
            await client.start()
            await _listed(client._client)  # noqa: SLF001 - which it does not wait for

    async with started(Closing(), settings):
        yield client


async def _listed(client: Any) -> None:
    """Wait for metadata with a broker in it: one that has just started may not know of itself."""
    for _ in range(LOOKS):
        if client.cluster.brokers():
            return
        await asyncio.sleep(LOOK)
        await client.force_metadata_update()
    raise kafka.NodeNotReadyError("it answers, and lists no broker; it may be starting")

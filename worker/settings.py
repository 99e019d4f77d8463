"""The settings: the only place where the environment and a `.env` file are read."""

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from worker.errors import MisconfiguredError
from worker.variables import PREFIX, variable

TEST_PREFIX = "LAST_SYNC_TEST_"  # read by the test suite alone

MAX_PORT = 65535
Port = Annotated[int, Field(ge=1, le=MAX_PORT)]
Text = Annotated[str, Field(min_length=1)]


def _servers(text: str) -> str:
    """Check `host:port` or `host`, comma-separated, as the client reads them."""
    from aiokafka.conn import collect_hosts  # noqa: PLC0415 - stores are looked after without it

    try:
        found = [
            host.encode("idna") and 0 < port <= MAX_PORT for host, port, _ in collect_hosts(text)
        ]
    except ValueError:
        found = []
    if not found or not all(found):
        raise ValueError("write host:port, for example localhost:9092; several with commas")
    return text


Servers = Annotated[str, AfterValidator(_servers)]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Settings(BaseModel):
    """Everything that can be set, each as `LAST_SYNC_` and the field's name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    store_url: SecretStr | None = Field(
        None,
        description="Connector store: sqlite:///last-sync.db, postgresql://user@host/database, "
        "elasticsearch+https://host:9200, memory://",
    )
    elasticsearch_api_key: SecretStr | None = Field(
        None, description="API key for an elasticsearch+http(s) store, as Kibana shows it (base64)"
    )
    elasticsearch_cafile: Path | None = Field(
        None, description="CA certificates (PEM) of that store; by default the system's"
    )
    elasticsearch_concurrency: int = Field(
        16, ge=1, le=1000, description="Most requests in flight to that store"
    )
    kafka_bootstrap_servers: Servers = Field(
        "localhost:9092", description="Kafka brokers to start from, host:port, comma-separated"
    )
    kafka_topic: Text = Field(
        "connector.sync-finished", description="Topic of the sync-finished events"
    )
    kafka_dead_letter_topic: str = Field(
        "", description="Topic of the dead letters; by default the topic's name and .dlq"
    )
    kafka_group_id: Text = Field("last-sync-worker", description="Consumer group")
    kafka_session_timeout_ms: int = Field(
        10_000, ge=1_000, le=300_000, description="Silence after which a member is thrown out, ms"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How to talk to the brokers"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "PLAIN", description="SASL mechanism, with the SASL_… protocols"
    )
    kafka_sasl_username: str | None = Field(None, description="User for PLAIN and SCRAM")
    kafka_sasl_password: SecretStr | None = Field(None, description="Password for PLAIN and SCRAM")
    kafka_sasl_oauth_token: SecretStr | None = Field(
        None, description="Bearer token for OAUTHBEARER"
    )
    kafka_sasl_oauth_token_file: Path | None = Field(
        None, description="File with the bearer token, read anew at every login"
    )
    kafka_ssl_cafile: Path | None = Field(
        None, description="CA certificates (PEM); by default the system's"
    )
    kafka_ssl_certfile: Path | None = Field(None, description="Client certificate chain (PEM)")
    kafka_ssl_keyfile: Path | None = Field(None, description="Key of the client certificate (PEM)")
    kafka_ssl_password: SecretStr | None = Field(None, description="Password of the key file")
    kafka_ssl_check_hostname: bool = Field(
        True, description="Require the broker's certificate to name its host"
    )
    api_host: Text = Field(
        "127.0.0.1", description="Address that the API listens on; others than loopback need keys"
    )
    api_port: Port = Field(8080, description="Port that the API listens on")
    api_key: SecretStr | None = Field(
        None, description="Keys that callers of the API may use, comma-separated"
    )
    batch_size: int = Field(
        22_000,
        ge=1,
        le=22_000,
        description="Most records in one batch; with PostgreSQL 12,500 at most, "
        "with Elasticsearch 4,000",
    )
    flood_window: int = Field(
        1_000, ge=1, le=1_000_000, description="Last events that the flood breaker looks at"
    )
    flood_minimum: int = Field(
        20, ge=1, description="Distinct connectors among them below which it never trips"
    )
    flood_share: float = Field(
        0.5,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of connectors that may be dead-lettered; above it the worker holds. "
        "1 releases the breaker",
    )
    shutdown_seconds: float = Field(
        5, gt=0, le=3600, description="Time to finish the batch in flight after SIGTERM, seconds"
    )
    watchdog_seconds: float = Field(
        300,
        gt=0,
        le=86_400,
        description="Time without a step of the loop that ends the worker, seconds",
    )
    health_host: Text = Field(
        "127.0.0.1", description="Address at which health and metrics are served"
    )
    health_port: Port | None = Field(
        None,
        description="Port of /livez, /readyz and /metrics; without one they are not served",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log level that is written"
    )
    log_format: Literal["auto", "pretty", "json"] = Field(
        "auto", description="Log lines: auto is pretty on a terminal and json elsewhere"
    )

    @property
    def dead_letter_topic(self) -> str:
        return self.kafka_dead_letter_topic or f"{self.kafka_topic}.dlq"

    @property
    def api_keys(self) -> list[str]:
        given = self.api_key.get_secret_value() if self.api_key else ""
        return [key.strip() for key in given.split(",") if key.strip()]

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if not all(key.isascii() and key.isprintable() and " " not in key for key in self.api_keys):
            raise ValueError(
                f"{variable('api_key')}: a key has to be printable ASCII without spaces,"
                " for it travels in a header"
            )
        if not self.api_keys and not _is_loopback(self.api_host):
            raise ValueError(
                f"{variable('api_host')}='{self.api_host}' lets other hosts in: "
                f"set {variable('api_key')} to one or more keys, or listen on 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _topics_differ(self) -> Self:
        if self.dead_letter_topic == self.kafka_topic:
            raise ValueError(
                f"the dead-letter topic is the topic itself, '{self.kafka_topic}': "
                f"set {variable('kafka_dead_letter_topic')} to another"
            )
        return self

    def required_store_url(self) -> str:
        """The store's URL; it has no default, for a wrong store is the worst mistake."""
        if self.store_url is None:
            raise MisconfiguredError(
                "no connector store is named: set LAST_SYNC_STORE_URL or --store, "
                "for example --store sqlite:///last-sync.db"
            )
        return self.store_url.get_secret_value()


def tracing_wanted() -> bool:
    """Whether OpenTelemetry's own variables, most of which its library reads, ask for traces.

    Raises MisconfiguredError for an exporter or a protocol that this program does not have.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter, exporter_name = _otel("TRACES_EXPORTER")
    endpoint, _ = _otel("EXPORTER_OTLP_TRACES_ENDPOINT", "EXPORTER_OTLP_ENDPOINT")
    protocol, protocol_name = _otel("EXPORTER_OTLP_TRACES_PROTOCOL", "EXPORTER_OTLP_PROTOCOL")
    if exporter == "none" or not (exporter or endpoint):
        return False
    for value, name, only in (
        (exporter, exporter_name, "otlp"),
        (protocol, protocol_name, "http/protobuf"),
    ):
        if value not in {"", only}:
            raise MisconfiguredError(
                f"{name}={value!r}: this worker exports traces by {only} alone; "
                f"set {name}={only}, or OTEL_TRACES_EXPORTER=none for no traces"
            )
    return True


def _otel(*names: str) -> tuple[str, str]:
    """The first of these variables that is set, and its name."""
    for name in (f"OTEL_{each}" for each in names):
        if value := os.environ.get(name, "").strip():
            return value, name
    return "", ""


def load(options: Mapping[str, Any] | None = None, *, also_known: Iterable[str] = ()) -> Settings:
    """The settings from options, environment and `.env`, in this order of precedence.

    `also_known` are variables that are no settings but options of a command.
    Raises MisconfiguredError with one line that names the variable and what it has to be.
    """
    found = _environment()
    fields = {variable(name): name for name in Settings.model_fields}
    _refuse_unknown(found, fields.keys() | set(also_known))
    given = {fields[name]: text for name, text in found.items() if text and name in fields}
    given |= options or {}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise MisconfiguredError(_sentence(error, given)) from None


def _environment() -> dict[str, str | None]:
    """The program's variables by their names in capitals; an empty one counts as not set."""
    found: dict[str, str | None] = {}
    for name, text in (*_file().items(), *os.environ.items()):
        key = name.upper()
        if key.startswith(PREFIX) and not key.startswith(TEST_PREFIX):
            found[key] = text or found.get(key)
    return found


def _file() -> Mapping[str, str | None]:
    if not Path(".env").exists():
        return {}
    from dotenv import dotenv_values  # noqa: PLC0415 - most folders have no such file

    try:
        return dotenv_values(".env")
    except (OSError, UnicodeDecodeError) as error:
        raise MisconfiguredError(f"cannot read .env in this folder: {error}") from None


def _refuse_unknown(names: Iterable[str], known: Collection[str]) -> None:
    for name in sorted(names):
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise MisconfiguredError(
                f"{name} is no setting of this program: did you mean {nearest[0]}? "
                "Otherwise remove it from the environment (or from .env)"
            )


def _sentence(error: ValidationError, given: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return message
    field = str(first["loc"][0])
    return f"{variable(field)}{_found(field, given)}: {message[:1].lower()}{message[1:]}"


def _found(field: str, given: Mapping[str, Any]) -> str:
    """The value that was given, unless it is a secret."""
    secret = "SecretStr" in str(Settings.model_fields[field].annotation)
    return "" if secret or field not in given else f"={given[field]!r}"

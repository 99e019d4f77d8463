"""The program reaches brokers that ask who it is, and says in one line when they refuse it."""

import json
import re
import time
from pathlib import Path

import pytest

from tests.integration.conftest import (
    KEY_PASSWORD,
    PASSWORDS,
    USER,
    SecureBroker,
    unsecured_token,
)
from tests.kafka import Kafka, Topics
from tests.programs import Cli, Finished

SASL = "LAST_SYNC_KAFKA_SASL"
SSL = "LAST_SYNC_KAFKA_SSL"
PROTOCOL = "LAST_SYNC_KAFKA_SECURITY_PROTOCOL"
SERVERS = "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS"
TO_SAY_NO = 10.0  # seconds in which a misconfiguration must be named

Environment = dict[str, str]

EVENT = json.dumps(
    {
        "event_id": "e-1",
        "connector_id": "crm",
        "occurred_at": "2024-11-09T15:13:08Z",
        "job": {"job_type": "full", "status": "completed", "indexed_document_count": 42},
    }
)


@pytest.fixture
async def topic(secure_broker: SecureBroker) -> Topics:
    topics = Topics.unique()
    await Kafka(secure_broker.plain).create(topics)
    return topics


def password_login(address: str, mechanism: str) -> Environment:
    return {
        SERVERS: address,
        PROTOCOL: "SASL_PLAINTEXT",
        f"{SASL}_MECHANISM": mechanism,
        f"{SASL}_USERNAME": USER,
        f"{SASL}_PASSWORD": PASSWORDS[mechanism],
    }


def token_login(address: str) -> Environment:
    return {
        SERVERS: address,
        PROTOCOL: "SASL_PLAINTEXT",
        f"{SASL}_MECHANISM": "OAUTHBEARER",
        f"{SASL}_OAUTH_TOKEN": unsecured_token(),
    }


def client_certificate(broker: SecureBroker) -> Environment:
    return {
        SERVERS: broker.tls,
        PROTOCOL: "SSL",
        f"{SSL}_CAFILE": str(broker.cafile),
        f"{SSL}_CERTFILE": str(broker.certfile),
        f"{SSL}_KEYFILE": str(broker.keyfile),
        f"{SSL}_PASSWORD": KEY_PASSWORD,
    }


def way_in(name: str, broker: SecureBroker) -> Environment:
    if name == "OAUTHBEARER":
        return token_login(broker.login)
    if name == "client certificate":
        return client_certificate(broker)
    if name == "SASL_SSL":
        inside_tls = {PROTOCOL: "SASL_SSL", f"{SSL}_CAFILE": str(broker.cafile)}
        return password_login(broker.login_tls, "SCRAM-SHA-512") | inside_tls
    return password_login(broker.login, name)


EVERY_WAY = [
    "PLAIN",
    "SCRAM-SHA-256",
    "SCRAM-SHA-512",
    "OAUTHBEARER",
    "client certificate",
    "SASL_SSL",
]


def settings(topics: Topics, way: Environment) -> Environment:
    return {
        "LAST_SYNC_STORE_URL": "sqlite:///store.db",
        "LAST_SYNC_KAFKA_TOPIC": topics.source,
        "LAST_SYNC_KAFKA_GROUP_ID": topics.group,
        **way,
    }


@pytest.mark.parametrize("way", EVERY_WAY)
async def test_events_are_published_and_applied(
    cli: Cli, secure_broker: SecureBroker, topic: Topics, way: str
) -> None:
    env = settings(topic, way_in(way, secure_broker))
    for command in (
        ["check"],
        ["connectors", "add", "crm"],
        ["publish"],
        ["run", "--drain"],
    ):
        done = await cli(*command, env=env, stdin=EVENT + "\n" + EVENT.replace("crm", "ghost"))
        assert done.exit_code == 0, (command, done)
    shown = await cli("connectors", "show", "crm", "--json", env=env)
    assert json.loads(shown.stdout)["last_indexed_document_count"] == 42
    (letter,) = await Kafka(secure_broker.plain).read_all(topic.dlq)
    assert letter.value == EVENT.replace("crm", "ghost").encode()


async def refused(cli: Cli, env: Environment) -> Finished:
    """Run the worker where it cannot start: exit code 3 in good time, and one line."""
    asked = time.monotonic()
    done = await cli("run", "--drain", env=env)
    took = time.monotonic() - asked
    assert done.exit_code == 3, done
    assert took < TO_SAY_NO, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_wrong_password_ends_the_start_with_one_line(
    cli: Cli, secure_broker: SecureBroker, topic: Topics, mechanism: str
) -> None:
    way = password_login(secure_broker.login, mechanism) | {f"{SASL}_PASSWORD": "wr0ng-password"}
    done = await refused(cli, settings(topic, way))
    assert re.search("password|credentials", done.stderr)
    assert "wr0ng-password" not in done.stderr


async def test_an_expired_token_ends_the_start(
    cli: Cli, secure_broker: SecureBroker, topic: Topics
) -> None:
    expired = unsecured_token(lifetime=-5)
    way = token_login(secure_broker.login) | {f"{SASL}_OAUTH_TOKEN": expired}
    done = await cli("run", "--drain", env=settings(topic, way), timeout=TO_SAY_NO)
    assert done.exit_code == 3, done
    assert expired not in done.stderr


async def test_a_missing_ca_file_is_named(
    cli: Cli, secure_broker: SecureBroker, topic: Topics, tmp_path: Path
) -> None:
    missing = str(tmp_path / "nowhere.pem")
    way = client_certificate(secure_broker) | {f"{SSL}_CAFILE": missing}
    done = await refused(cli, settings(topic, way))
    assert missing in done.stderr


async def test_a_broker_of_an_unknown_authority_is_not_trusted(
    cli: Cli, secure_broker: SecureBroker, topic: Topics
) -> None:
    way = client_certificate(secure_broker)
    del way[f"{SSL}_CAFILE"]
    done = await refused(cli, settings(topic, way))
    assert "certificate verify failed" in done.stderr


async def test_a_client_without_a_certificate_is_turned_away(
    cli: Cli, secure_broker: SecureBroker, topic: Topics
) -> None:
    way = {
        SERVERS: secure_broker.tls,
        PROTOCOL: "SSL",
        f"{SSL}_CAFILE": str(secure_broker.cafile),
    }
    done = await refused(cli, settings(topic, way))
    assert secure_broker.tls in done.stderr


async def test_a_broker_whose_certificate_names_another_host_is_not_trusted(
    cli: Cli, secure_broker: SecureBroker, topic: Topics
) -> None:
    way = client_certificate(secure_broker)
    way[SERVERS] = way[SERVERS].replace("127.0.0.1", "localhost")
    done = await refused(cli, settings(topic, way))
    assert "localhost" in done.stderr


async def test_the_host_name_of_a_certificate_can_be_left_unchecked(
    cli: Cli, secure_broker: SecureBroker, topic: Topics
) -> None:
    way = client_certificate(secure_broker) | {f"{SSL}_CHECK_HOSTNAME": "false"}
    way[SERVERS] = way[SERVERS].replace("127.0.0.1", "localhost")
    assert (await cli("check", env=settings(topic, way))).exit_code == 0


async def test_a_plaintext_client_at_a_tls_listener_ends_with_one_line(
    cli: Cli, secure_broker: SecureBroker, topic: Topics
) -> None:
    done = await refused(cli, settings(topic, {SERVERS: secure_broker.tls}))
    assert secure_broker.tls in done.stderr

"""A broker that lets nobody in without a password, a token or a certificate."""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.brokers import HOST, Broker, BrokerFactory, Listener

USER = "alice"
PASSWORDS = {  # each its own, so that no mechanism passes for another
    "PLAIN": "open-sesame",
    "SCRAM-SHA-256": "open-barley",
    "SCRAM-SHA-512": "open-rye",
}
KEY_PASSWORD = "and-the-key-too"
JAAS = "org.apache.kafka.common.security"
MECHANISMS = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureBroker:
    """Its plain address is for the test; a client under test comes in by one of the others."""

    broker: Broker
    cafile: Path
    certfile: Path
    keyfile: Path

    @property
    def plain(self) -> str:
        return self.broker.bootstrap

    @property
    def login(self) -> str:
        """SASL_PLAINTEXT: PLAIN, SCRAM and OAUTHBEARER."""
        return self.broker.address("LOGIN")

    @property
    def tls(self) -> str:
        """SSL, and the client must show a certificate."""
        return self.broker.address("TLS")

    @property
    def login_tls(self) -> str:
        """SASL_SSL: a password inside TLS."""
        return self.broker.address("LOGIN_TLS")


@pytest.fixture(scope="module")
def secure_broker(
    brokers: BrokerFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecureBroker]:
    """Start a broker with a listener for each way of proving who one is."""
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    write_client_certificate(ca, folder)
    listeners = [
        Listener(name="LOGIN", protocol="SASL_PLAINTEXT"),
        Listener(name="TLS", protocol="SSL"),
        Listener(name="LOGIN_TLS", protocol="SASL_SSL"),
    ]
    properties = {**login("login"), **login("login_tls"), **tls(ca, "tls", "login_tls")}
    properties["listener.name.tls.ssl.client.auth"] = "required"
    with brokers(listeners=listeners, properties=properties) as broker:
        broker.start()
        add_scram_user(broker)
        yield SecureBroker(
            broker=broker,
            cafile=folder / "ca.pem",
            certfile=folder / "client.pem",
            keyfile=folder / "client.key",
        )


def login(listener: str) -> dict[str, str]:
    prefix = f"listener.name.{listener}"
    scram = f"{JAAS}.scram.ScramLoginModule required;"
    return {
        f"{prefix}.sasl.enabled.mechanisms": MECHANISMS,
        f"{prefix}.plain.sasl.jaas.config": (
            f'{JAAS}.plain.PlainLoginModule required user_{USER}="{PASSWORDS["PLAIN"]}";'
        ),
        f"{prefix}.scram-sha-256.sasl.jaas.config": scram,
        f"{prefix}.scram-sha-512.sasl.jaas.config": scram,
        f"{prefix}.oauthbearer.sasl.jaas.config": (
            f"{JAAS}.oauthbearer.OAuthBearerLoginModule required "
            'unsecuredLoginStringClaim_sub="broker";'
        ),
    }


def tls(ca: trustme.CA, *listeners: str) -> dict[str, str]:
    certificate = ca.issue_cert(HOST)
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    stores = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": in_one_line(chain),
        "ssl.keystore.key": in_one_line(pkcs8(certificate, NoEncryption())),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": in_one_line(ca.cert_pem.bytes()),
    }
    return {
        f"listener.name.{listener}.{name}": value
        for listener in listeners
        for name, value in stores.items()
    }


def in_one_line(pem: bytes) -> str:
    """Write line ends as a properties file does."""
    return pem.decode().replace("\n", "\\n")


def pkcs8(certificate: trustme.LeafCert, encryption: KeySerializationEncryption) -> bytes:
    """Give the key in the only form that Kafka reads."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def write_client_certificate(ca: trustme.CA, folder: Path) -> None:
    certificate = ca.issue_cert(f"{USER}@example.org")
    folder.joinpath("client.pem").write_bytes(certificate.cert_chain_pems[0].bytes())
    encrypted = pkcs8(certificate, BestAvailableEncryption(KEY_PASSWORD.encode()))
    folder.joinpath("client.key").write_bytes(encrypted)


def add_scram_user(broker: Broker) -> None:
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):  # one at a time: Kafka refuses both
        broker.tool(
            "kafka.admin.ConfigCommand",
            *("--bootstrap-server", broker.bootstrap),
            *("--alter", "--entity-type", "users", "--entity-name", USER),
            *("--add-config", f"{mechanism}=[password={PASSWORDS[mechanism]}]"),
        )


def unsecured_token(*, lifetime: float = 3600) -> str:
    """Make a JSON Web Token without a signature, which a broker without an issuer accepts."""
    now = time.time()
    claims = {"sub": USER, "iat": now - 10, "exp": now + lifetime}
    parts = (
        base64.urlsafe_b64encode(json.dumps(part).encode()) for part in ({"alg": "none"}, claims)
    )
    return ".".join(part.decode().rstrip("=") for part in parts) + "."

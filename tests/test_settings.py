from pathlib import Path

import pytest

from worker import settings
from worker.errors import MisconfiguredError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(**options: object) -> str:
    with pytest.raises(MisconfiguredError) as refused:
        settings.load(options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_defaults_are_those_of_a_laptop_and_the_store_has_none() -> None:
    found = settings.load()
    assert found.kafka_bootstrap_servers == "localhost:9092"
    assert found.kafka_topic == "connector.sync-finished"
    assert found.dead_letter_topic == "connector.sync-finished.dlq"
    assert found.kafka_group_id == "last-sync-worker"
    assert found.kafka_session_timeout_ms == 10_000
    assert (found.api_host, found.health_host) == ("127.0.0.1", "127.0.0.1")
    with pytest.raises(MisconfiguredError, match=r"sqlite:///last-sync\.db"):
        found.required_store_url()


def test_options_beat_the_environment_which_beats_the_file(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / ".env").write_text(
        "LAST_SYNC_KAFKA_TOPIC=file\nLAST_SYNC_KAFKA_GROUP_ID=file\nLAST_SYNC_BATCH_SIZE=7\n"
    )
    monkeypatch.setenv("LAST_SYNC_KAFKA_TOPIC", "environment")
    monkeypatch.setenv("LAST_SYNC_KAFKA_GROUP_ID", "environment")
    found = settings.load({"kafka_group_id": "option"})
    assert (found.kafka_topic, found.kafka_group_id, found.batch_size) == (
        "environment",
        "option",
        7,
    )


def test_an_empty_variable_counts_as_not_set(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / ".env").write_text("LAST_SYNC_KAFKA_TOPIC=file\nLAST_SYNC_BATCH_SIZE=\n")
    monkeypatch.setenv("LAST_SYNC_KAFKA_TOPIC", "")
    monkeypatch.setenv("LAST_SYNC_KAFKA_GROUP_ID", "")
    found = settings.load()
    assert (found.kafka_topic, found.kafka_group_id) == ("file", "last-sync-worker")
    assert found.batch_size == 22_000


def test_names_are_understood_in_small_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("last_sync_kafka_topic", "t")
    assert settings.load().kafka_topic == "t"


def test_the_dead_letter_topic_follows_the_topic_unless_it_is_named() -> None:
    assert settings.load({"kafka_topic": "t"}).dead_letter_topic == "t.dlq"
    found = settings.load({"kafka_topic": "t", "kafka_dead_letter_topic": "letters"})
    assert found.dead_letter_topic == "letters"


def test_the_topic_cannot_be_its_own_dead_letter_topic() -> None:
    assert "LAST_SYNC_KAFKA_DEAD_LETTER_TOPIC" in refusal(
        kafka_topic="t", kafka_dead_letter_topic="t"
    )


@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_misspelt_variable_is_refused_and_the_nearest_offered(
    where: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "file":
        (empty_folder / ".env").write_text("LAST_SYNC_KAFKA_TOPC=x\n")
    else:
        monkeypatch.setenv("LAST_SYNC_KAFKA_TOPC", "x")
    text = refusal()
    assert "LAST_SYNC_KAFKA_TOPC is no setting" in text
    assert "LAST_SYNC_KAFKA_TOPIC?" in text


def test_foreign_variables_and_those_of_the_test_suite_are_left_alone(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / ".env").write_text("POSTGRES_PASSWORD=x\n")
    monkeypatch.setenv("LAST_SYNC_TEST_BOOTSTRAP", "localhost:1")
    settings.load()


def test_a_variable_of_a_command_s_option_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAST_SYNC_RUN_DRAIN", "1")
    settings.load(also_known=["LAST_SYNC_RUN_DRAIN"])
    with pytest.raises(MisconfiguredError, match="LAST_SYNC_RUN_DRAIN is no setting"):
        settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATCH_SIZE", "many"),
        ("BATCH_SIZE", "0"),
        ("FLOOD_SHARE", "1.1"),
        ("FLOOD_SHARE", "nan"),
        ("KAFKA_SECURITY_PROTOCOL", "TLS"),
        ("KAFKA_SESSION_TIMEOUT_MS", "10"),
        ("WATCHDOG_SECONDS", "0"),
        ("WATCHDOG_SECONDS", "inf"),
    ],
)
def test_a_bad_value_is_named_with_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LAST_SYNC_{name}", value)
    assert refusal().startswith(f"LAST_SYNC_{name}={value!r}: ")


@pytest.mark.parametrize(
    "servers", ["", ",", "a:9092,", "host:abc", ":9092", "a:65536", "a,b:0", "a..b"]
)
def test_brokers_have_to_be_addresses(servers: str) -> None:
    text = refusal(kafka_bootstrap_servers=servers)
    assert text.startswith(f"LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS={servers!r}: ")
    assert "localhost:9092" in text


def test_a_bad_option_is_shown_and_not_the_variable_that_it_beats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAST_SYNC_BATCH_SIZE", "7")
    assert refusal(batch_size="many").startswith("LAST_SYNC_BATCH_SIZE='many': ")


def test_a_bad_value_of_the_file_is_shown(empty_folder: Path) -> None:
    (empty_folder / ".env").write_text("LAST_SYNC_BATCH_SIZE=many\n")
    assert refusal().startswith("LAST_SYNC_BATCH_SIZE='many': ")


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAFKA_SASL_PASSWORD", "KAFKA_SSL_PASSWORD", "KAFKA_SASL_OAUTH_TOKEN"):
        monkeypatch.setenv(f"LAST_SYNC_{name}", "hunter2")
    monkeypatch.setenv("LAST_SYNC_STORE_URL", "postgresql://user:hunter2@host/db")
    assert "hunter2" not in repr(settings.load())
    assert "hunter2" not in refusal(batch_size="hunter3")


def test_an_unreadable_file_is_said(empty_folder: Path) -> None:
    (empty_folder / ".env").write_bytes(b"\xff\xfe")
    assert "cannot read .env" in refusal()

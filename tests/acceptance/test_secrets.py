"""No secret of the settings stands in anything that the program writes or serves."""

import asyncio
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.acceptance.conftest import Stack
from tests.brokers import free_port
from tests.elasticsearch import FakeElasticsearch
from tests.probes import Probes
from tests.programs import Cli

SECRET = "s3cret%/+"  # has another form in a URL
FORMS = (SECRET, quote(SECRET, safe=""), "s3cret")
SECRETS = dict.fromkeys(
    (
        "LAST_SYNC_KAFKA_SASL_PASSWORD",
        "LAST_SYNC_KAFKA_SASL_OAUTH_TOKEN",
        "LAST_SYNC_KAFKA_SSL_PASSWORD",
        "LAST_SYNC_API_KEY",
    ),
    SECRET,
)
WITH_BROKER = [["check"], ["dlq", "replay", "--all", "--dry-run"]]


def assert_no_secret(*texts: str) -> None:
    for text in texts:
        assert not [form for form in FORMS if form in text], text


def stores() -> list[dict[str, str]]:
    """Stores that nobody can open, with a secret in each place that takes one."""
    encoded, nobody = quote(SECRET, safe=""), f"127.0.0.1:{free_port()}"
    by_key = {"LAST_SYNC_ELASTICSEARCH_API_KEY": SECRET}
    return [
        {"LAST_SYNC_STORE_URL": f"postgresql://user:{encoded}@{nobody}/db"},
        {"LAST_SYNC_STORE_URL": f"postgresql://{nobody}/db?user=u&password={encoded}"},
        {"LAST_SYNC_STORE_URL": f"elasticsearch+http://user:{encoded}@{nobody}"},
        {"LAST_SYNC_STORE_URL": f"elasticsearch+http://{nobody}", **by_key},
        {"LAST_SYNC_STORE_URL": f"postgres+x://user:{SECRET}@{nobody}/db?password={SECRET}"},
    ]


async def test_no_command_tells_a_secret_when_nothing_can_be_reached(cli: Cli) -> None:
    common = {
        **SECRETS,
        "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
        "LAST_SYNC_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "LAST_SYNC_KAFKA_SASL_USERNAME": "user",
        "LAST_SYNC_LOG_LEVEL": "debug",
    }
    first, *_ = environments = [{**common, **store} for store in stores()]
    runs = [cli("connectors", "list", env=env) for env in environments]
    for done in await asyncio.gather(*runs, *(cli(*one, env=first) for one in WITH_BROKER)):
        assert done.exit_code == 3
        assert_no_secret(done.stdout, done.stderr)


async def test_no_secret_is_told_when_it_is_refused(cli: Cli, database: str) -> None:
    scheme, _, rest = database.partition("://")
    async with FakeElasticsearch() as server:
        server.api_keys = {"another"}
        wrong = f"{scheme}://nobody:{quote(SECRET, safe='')}@{rest.rpartition('@')[2]}"
        env = {"LAST_SYNC_ELASTICSEARCH_API_KEY": SECRET, "LAST_SYNC_LOG_LEVEL": "debug"}
        for url in (f"elasticsearch+{server.url}", wrong):
            done = await cli("connectors", "list", env={**env, "LAST_SYNC_STORE_URL": url})
            assert done.exit_code == 3, done
            assert_no_secret(done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("name", "value"),
    [("LAST_SYNC_API_KEY", f"{SECRET} ä"), ("LAST_SYNC_KAFKA_SASL_PASWORD", SECRET)],
)
async def test_a_setting_that_is_refused_is_named_without_its_secret(
    cli: Cli, name: str, value: str
) -> None:
    done = await cli("connectors", "list", env={name: value})
    assert done.exit_code == 3
    assert name in done.stderr
    assert_no_secret(done.stdout, done.stderr)


async def test_a_running_worker_tells_no_secret(stack: Stack, database: str) -> None:
    """Not in its arguments, its logs, its metrics and its probes."""
    password, probes = urlsplit(database).password, Probes()
    worker = stack.worker(
        LAST_SYNC_STORE_URL=database, LAST_SYNC_LOG_LEVEL="debug", **SECRETS, **probes.env
    )
    await probes.becomes("/readyz", 200)
    said = [(await probes.get(path))[1] for path in ("/livez", "/readyz", "/metrics")]
    said += [Path(f"/proc/{worker.pid}/cmdline").read_text(), worker.stderr]  # noqa: ASYNC240
    assert_no_secret(*said)
    assert password
    assert not [text for text in said if f":{password}@" in text]

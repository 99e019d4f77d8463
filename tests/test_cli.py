"""What the command line promises of itself, without a broker."""

import json
import re

import click
import pytest
from click.testing import CliRunner

from tests.programs import Cli
from worker import cli as program
from worker import options
from worker.settings import Settings
from worker.variables import variable

COMMANDS = [
    pytest.param(path, command, id=" ".join(path))
    for path, command in options.commands(program.cli)
]


def help_of(path: tuple[str, ...]) -> str:
    shown = CliRunner().invoke(program.cli, [*path, "--help"], auto_envvar_prefix="LAST_SYNC")
    assert shown.exit_code == 0
    return shown.output


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_every_help_ends_with_an_example(path: tuple[str, ...], command: click.Command) -> None:
    *_, end = help_of(path).split("Example:\n")
    lines = end.strip().splitlines()
    assert lines
    assert all(line.strip().startswith("last-sync") for line in lines)


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_every_option_shows_its_environment_variable(
    path: tuple[str, ...], command: click.Command
) -> None:
    shown = re.sub(r"\s+", "", help_of(path))
    for param in command.params:
        if isinstance(param, options.SettingOption):
            assert f"envvar:{variable(str(param.name))}" in shown
        elif isinstance(param, click.Option) and param.name != "version":
            assert f"envvar:{options.flag_variable(path, param)}" in shown


def test_no_option_of_a_command_takes_the_variable_of_a_setting() -> None:
    names = [
        options.flag_variable(path, param)
        for path, command in options.commands(program.cli)
        for param in command.params
    ]
    assert not {variable(name) for name in Settings.model_fields} & {*names}


async def test_an_option_can_be_given_by_its_environment_variable(cli: Cli) -> None:
    added = await cli(
        "connectors",
        "add",
        "a",
        env={"LAST_SYNC_STORE_URL": "sqlite:///s.db", "LAST_SYNC_JSON": "1"},
    )
    assert json.loads(added.stdout) == {"id": "a", "added": True}


async def test_the_live_check_imports_next_to_nothing(cli: Cli) -> None:
    env = {"LAST_SYNC_HEALTH_PORT": "1", "PYTHONPROFILEIMPORTTIME": "1"}
    done = await cli("check", "--live", env=env)
    assert done.exit_code == 1
    assert "BAD live: no answer from 127.0.0.1 port 1: " in done.stdout
    assert "http.client" in done.stderr
    for heavy in ("click", "pydantic", "aiokafka", "structlog", "asyncio"):
        assert heavy not in done.stderr


@pytest.mark.parametrize("port", ["0", "65536", "x", "²"])
async def test_the_live_check_names_a_port_that_is_none(cli: Cli, port: str) -> None:
    done = await cli("check", "--live", env={"LAST_SYNC_HEALTH_PORT": port})
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"last-sync: LAST_SYNC_HEALTH_PORT='{port}'")


async def test_the_live_check_of_a_host_that_is_none_is_a_failure(cli: Cli) -> None:
    env = {"LAST_SYNC_HEALTH_PORT": "1", "LAST_SYNC_HEALTH_HOST": "a..b"}
    done = await cli("check", "--live", env=env)
    assert (done.exit_code, done.stderr) == (1, "")
    assert "no answer from a..b port 1" in done.stdout


STORE = ("--store", "sqlite:///last-sync.db")


async def test_connectors_are_added_listed_shown_and_deleted(cli: Cli) -> None:
    added = await cli("connectors", "add", *STORE, stdin="b\na\r\n\n")
    assert (added.exit_code, added.stdout) == (0, "b: registered\na: registered\n")
    again = await cli("connectors", "add", "a", *STORE)
    assert (again.exit_code, again.stdout) == (0, "a: is registered, unchanged\n")
    listed = await cli("connectors", "list", "--json", *STORE)
    assert [json.loads(line) for line in listed.stdout.splitlines()] == [{"id": "a"}, {"id": "b"}]
    shown = await cli("connectors", "show", "a", "--json", *STORE)
    assert json.loads(shown.stdout) == {"id": "a"}
    deleted = await cli("connectors", "delete", "a", *STORE)
    assert (deleted.exit_code, deleted.stdout) == (0, "a: deleted\n")
    listed = await cli("connectors", "list", "--json", *STORE)
    assert listed.stdout == '{"id": "b"}\n'


async def test_a_list_has_one_heading_also_when_it_is_empty(cli: Cli) -> None:
    for connectors in ((), ("a", "b")):
        if connectors:
            await cli("connectors", "add", *connectors, *STORE)
        lines = (await cli("connectors", "list", *STORE)).stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["CONNECTOR", *connectors]


@pytest.mark.parametrize("command", ["show", "delete"])
async def test_an_unknown_connector_is_exit_1(cli: Cli, command: str) -> None:
    done = await cli("connectors", command, "nobody", *STORE)
    assert done.exit_code == 1
    assert "nobody" in done.stdout + done.stderr


@pytest.mark.parametrize("bad", ["..", "a\x07", "é" * 257])
async def test_an_impossible_connector_id_is_a_usage_error(cli: Cli, bad: str) -> None:
    done = await cli("connectors", "add", bad, *STORE)
    assert done.exit_code == 2
    assert "cannot be a connector id" in done.stderr
    assert "\x07" not in done.stderr


@pytest.mark.parametrize("command", ["show", "delete"])
async def test_an_id_that_no_terminal_takes_is_told_all_the_same(cli: Cli, command: str) -> None:
    strict = {"PYTHONIOENCODING": "utf-8:strict"}  # as in most languages; C.UTF-8 is lenient
    done = await cli("connectors", command, "a\udcfe\x07", *STORE, env=strict)
    assert done.exit_code == 2
    assert r"'a\udcfe\x07' is not UTF-8" in done.stderr


EVENT = (
    '{"event_id":"e","connector_id":"c","occurred_at":"2026-01-01T00:00:00Z",'
    '"job":{"job_type":"full","status":"completed"}}'
)
CLOUDEVENT = (
    '{"specversion":"1.0","id":"1","source":"s","type":"t","subject":"c",'
    '"time":"2026-01-01T00:00:00Z","data":{"job":{"job_type":"full","status":"completed"}}}'
)


async def test_validate_says_what_the_worker_would_say(cli: Cli) -> None:
    done = await cli(
        "validate", "--json", stdin=f"{EVENT}\n\n{CLOUDEVENT}\n{EVENT.replace('full', 'Full')}\n"
    )
    good, cloud, bad = map(json.loads, done.stdout.splitlines())
    assert done.exit_code == 1
    assert (good["line"], good["valid"], good["connector_id"]) == (1, True, "c")
    assert good["fields"]["last_sync_status"] == "completed"
    assert (cloud["line"], cloud["fields"]) == (3, good["fields"])
    assert (bad["line"], bad["valid"], bad["path"]) == (4, False, "job.job_type")
    assert "3 events, 1 invalid" in done.stderr


async def test_validate_takes_one_document_that_fills_the_file(cli: Cli) -> None:
    done = await cli("validate", stdin=json.dumps(json.loads(EVENT), indent=2))
    assert (done.exit_code, done.stdout) == (
        0,
        "line 1: ok, sets last_sync_error, last_sync_status, last_synced of c\n",
    )


async def test_validate_of_nothing_is_a_failure(cli: Cli) -> None:
    assert (await cli("validate", stdin="\n")).exit_code == 1


async def test_schema_prints_one_document_or_all(cli: Cli) -> None:
    one = json.loads((await cli("schema", "sync-finished")).stdout)
    every = json.loads((await cli("schema")).stdout)
    assert every["sync-finished"] == one
    assert {"last-sync", "dead-letter", "asyncapi"} < every.keys()
    unknown = await cli("schema", "nothing")
    assert unknown.exit_code == 2
    assert "sync-finished" in unknown.stderr

"""`last-sync demo` tells a true story."""

import re

import pytest

from tests.programs import Cli, Finished


@pytest.fixture
async def told(cli: Cli) -> Finished:
    """Tell it where the environment belongs to another installation."""
    return await cli(
        "demo",
        env={
            "COLUMNS": "80",
            "LAST_SYNC_STORE_URL": "sqlite:////nowhere/at/all.db",
            "LAST_SYNC_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "LAST_SYNC_KAFKA_TOPIC": "theirs",
        },
        timeout=30,
    )


async def test_the_demo_shows_stats_outcomes_and_dead_letters(told: Finished) -> None:
    assert (told.exit_code, told.stderr) == (0, "")
    assert re.search(r"hr-wiki +completed +- +\d\d:\d\d:00 +1204 +-", told.stdout)
    assert re.search(r"crm-accounts +completed +- +\d\d:\d\d:00 +87 +-", told.stdout)
    assert re.search(r"support-tickets +error +- +- +- +503", told.stdout)
    assert re.search(r"legal-contracts +- +completed", told.stdout)
    worked = told.stdout.partition("\n4. ")[0]
    assert len(re.findall(r" applied$", worked, re.MULTILINE)) == 6
    assert re.search(r"the same record once more +duplicate$", told.stdout, re.MULTILINE)
    assert re.search(r"a day late +superseded$", told.stdout, re.MULTILINE)
    letters = re.findall(
        r"^(\w+) \((\d+)\)\n  last-sync-worker/connector\.sync-finished/\d/\d+@\d+$",
        told.stdout,
        re.MULTILINE,
    )
    assert sorted(letters) == [
        ("connector_not_found", "404"),
        ("connector_not_found", "404"),
        ("invalid_json", "400"),
        ("invalid_status", "400"),
        ("null_not_allowed", "400"),
    ]


async def test_the_demo_replays_and_mends(told: Finished) -> None:
    replays = re.findall(r"^  old-intranet +connector_not_found  (\w+)$", told.stdout, re.MULTILINE)
    assert sorted(replays) == ["applied", "applied", "superseded", "superseded"]
    assert "support-tickets: applied, and the letter is closed." in told.stdout
    assert re.search(r"support-tickets +completed +- +\d\d:\d\d:00 +310 +-", told.stdout)
    assert re.search(r"old-intranet +completed +- +\d\d:\d\d:00 +9 +-", told.stdout)
    assert told.stdout.endswith("Still open: invalid_json, null_not_allowed.\n")


async def test_the_demo_fits_a_terminal_of_80_columns(told: Finished) -> None:
    assert max(map(len, told.stdout.splitlines())) <= 80
    assert not any(line != line.rstrip() for line in told.stdout.splitlines())

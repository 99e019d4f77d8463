"""Lines of the log: what is written at once looks like what is written one by one."""

import json
import logging

import pytest

from tests.hostile import STEERING, assert_harmless
from worker import logs

HOSTILE = '%a"}, {"id": "b\n\x1b[31m\u2028\ud800'


pytestmark = pytest.mark.usefixtures("logging_as_before")


def without_time(line: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(line)
    assert found.pop("timestamp")
    return found


def test_audit_lines_are_json_as_all_others_whatever_they_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info", "json")
    ids, connectors = [HOSTILE, "2", "}, {", "%s"], [None, HOSTILE, "}\n{", "\r\u2029%(id)s"]
    for one, other in zip(ids, connectors, strict=True):
        logs.get_logger("worker").info("dead_letter.resolved", by=HOSTILE, id=one, connector=other)
    logs.audit("dead_letter.resolved", {"id": ids, "connector": connectors}, by=HOSTILE)
    written = capsys.readouterr().err.splitlines()
    assert len(written) == 8
    assert [*map(without_time, written[4:])] == [*map(without_time, written[:4])]
    assert [*json.loads(written[4])] == [*json.loads(written[0])]  # in the same order


def test_audit_lines_are_pretty_and_harmless_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("error", "pretty")
    logs.audit("dead_letter.resolved", {"id": ["1", "\x1b[31m2"]}, by="me")
    written = capsys.readouterr().err.splitlines()
    assert len(written) == 2
    assert all("dead_letter.resolved" in line and "by=me" in line for line in written)
    assert "\x1b" not in "".join(written)


@pytest.mark.parametrize("form", ["pretty", "json"])
def test_a_traceback_has_neither_local_variables_nor_control_characters(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", form)
    try:
        fails(password="terces"[::-1])  # the source itself is shown
    except ValueError:
        logs.get_logger("worker").exception("worker.crashed", text=STEERING)
        logging.getLogger("aiokafka").exception("%s", STEERING)
    written = capsys.readouterr().err
    assert_harmless(written)
    assert written.count("in fails" if form == "pretty" else '"name": "fails"') == 2
    assert "secret" not in written


def fails(password: str) -> None:
    raise ValueError(f"{STEERING} of {len(password)} characters")

"""Histories and logs are read while they are written, and after their writer was killed."""

from pathlib import Path

from tests.chaos.history import History, Read

WHOLE = Read(connectors={"a": {"last_sync_status": "completed"}})


def test_half_a_line_at_the_end_is_not_yet_there(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.add([WHOLE, WHOLE])
    history.close()
    whole = path.read_bytes()
    end = whole.index(b"\n")
    for cut in range(end + 2, len(whole)):  # without its line feed, too
        path.write_bytes(whole[:cut])
        again = History(path)
        assert again.reads() == [WHOLE]
        again.close()


def test_the_last_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.add([WHOLE, WHOLE])
    assert history.reads() == [WHOLE, WHOLE]
    history.close()

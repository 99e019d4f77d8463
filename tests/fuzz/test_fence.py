"""Behind the fence nothing is reached, started, or written elsewhere."""

import socket
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.fuzz import fence


def test_a_server_that_is_there_refuses(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with fence.around(tmp_path), pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        socket.create_connection(address).close()


def test_no_name_is_asked_for_and_nobody_listens(tmp_path: Path) -> None:
    with fence.around(tmp_path):
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo("localhost", 80)
        with pytest.raises(OSError, match="fence"):
            socket.create_server(("127.0.0.1", 0))


def test_files_are_written_inside_alone(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    with fence.around(folder):
        (folder / "a").write_text("a")
        with pytest.raises(PermissionError):
            (folder / "a").rename(tmp_path / "a")
        (folder / "a").unlink()
        for outside in (tmp_path / "b", folder / ".." / "b", tmp_path / "inside-not"):
            with pytest.raises(PermissionError):
                outside.write_text("b")
        with pytest.raises(PermissionError):
            tmp_path.rename(tmp_path / "c")
        with pytest.raises(sqlite3.OperationalError), closing(sqlite3.connect(tmp_path / "d.db")):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_no_program_is_started(tmp_path: Path) -> None:
    with fence.around(tmp_path), pytest.raises(PermissionError):
        subprocess.run(["true"], check=True)

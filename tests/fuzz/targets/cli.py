"""Command lines: a documented exit code and a sentence, whatever was typed."""

import io
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import click

from tests.fuzz import fence
from tests.fuzz.inputs import SEPARATOR, Run, Target, joined, split
from tests.fuzz.mutations import TEXTS
from tests.fuzz.targets import decode
from worker import cli, options
from worker.stores import elasticsearch, postgresql, sqlite  # noqa: F401 - imported late by `cli`

EXIT_CODES = range(6)
UNFORESEEN = "an error that nobody foresaw"
FILES = {"events.ndjson": b"{}\n", "ids.txt": b"a\nb\n", "fixed.json": b"{}", "held": b"\xff"}


@contextmanager
def opened() -> Iterator[Run]:
    """In a directory of its own, behind a fence, and without anybody's settings."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as name, patch.dict(os.environ, clear=True):
        folder = Path(name)
        os.environ.update(HOME=name, TMPDIR=name, LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
        os.chdir(folder)
        try:
            with fence.around(folder):
                yield lambda data: run(folder, data)
        finally:
            os.chdir(home)


def run(folder: Path, data: bytes) -> None:
    stdin, *typed = [part or b"" for part in split(data)]
    typed = [each[:4096] for each in typed]
    arguments = [os.fsdecode(each.replace(b"\0", b"")) for each in typed]
    if arguments[:1] == ["demo"]:  # it takes seconds, and a broker in C that no fence holds
        return
    for path in set(folder.iterdir()) - {folder / each for each in FILES}:
        path.unlink()
    for each, content in FILES.items():
        (folder / each).write_bytes(content)
    code, said = ended(arguments, stdin)
    assert code in EXIT_CODES, (code, said)
    assert UNFORESEEN not in said, said
    assert "Traceback" not in said, said


def ended(arguments: list[str], stdin: bytes) -> tuple[object, str]:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", e) for e in ("strict", "backslashreplace"))
    given = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    typed = patch.multiple(sys, argv=[options.PROGRAM, *arguments], stdin=given)
    with typed, redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    err.flush()
    return code, err.buffer.getvalue().decode()


# Values that an option may be given; others are given a 1.
VALUES = {
    "--store": [
        *("sqlite:///last-sync.db", "sqlite:///x/y", "sqlite:////", "sqlite:///.", "memory://"),
        *("postgresql://u:p@127.0.0.1:1/d", "postgresql:///?host=/x&port=y", "postgres://[::1/%zz"),
        *("elasticsearch+http://127.0.0.1:1", "elasticsearch+https://u:p@[::1]:1/a?b#c"),
        *("elasticsearch+http://[", "elasticsearch+http://a:99999", "sqlite:///held", "mysql://a"),
        *("elasticsearch+http://a..b", "elasticsearch+http://127.1", f"sqlite:///{'a' * 300}"),
    ],
    "--bootstrap-servers": [
        "127.0.0.1:1",
        "[::1]:1",
        "a:b",
        ":",
        ",",
        "127.0.0.1:99999,x",
        "[::",
        "a..b",
    ],
    "--since": ["2h", "999999w", "2024-11-09T15:13:08Z", "0s"],
    "--until": ["3d"],
    "--rate": ["10/s", "0"],
    "--log-level": ["debug", "loud"],
    "--log-format": ["pretty", "json"],
    "--flood-share": ["0.5", "nan", "1e9"],
    "--connector": ["hr-*", "[", "[!"],
    "--file": ["fixed.json", "held", "-", "."],
    "--job-type": ["full"],
    "--port": ["0", "65536"],
    "--topic": ["t", "t.dlq", "é", "a" * 300],
    "--status": ["completed", "404"],
    "--occurred-at": ["2024-11-09T15:13:08Z"],
}
OTHERS = (
    *("-h", "--", "-", "--json", "--version", "sync-finished", "events.ndjson", "held", "2"),
    *("connector.sync-finished", "connector.sync-finished.dlq", "/", "..", "=", "--x=y"),
)
EVENTS = b"\n".join(data.split(SEPARATOR)[0] for data in decode.SEEDS)


FOUND = b"\xffconnectors\xffdelete\xff\x80\x07\xff--store\xffsqlite:///last-sync.db"


def examples() -> Iterator[list[str]]:
    for _, command in options.commands(cli.cli):
        *_, lines = (command.epilog or "").split("Example:\n")
        yield from (shlex.split(line)[1:] for line in lines.splitlines() if line.strip())


def whole() -> Iterator[list[str]]:
    """Each command with one of its options, in each way that it may be given."""
    for path, command in options.commands(cli.cli):
        for param in command.params:
            for typed in given(param):
                store = ["--store", VALUES["--store"][0]] if "store" not in str(param.name) else []
                needed = ["a"] if any(isinstance(p, click.Argument) for p in command.params) else []
                yield [*path, *typed, *needed, *(store if takes_store(command) else [])]


def takes_store(command: click.Command) -> bool:
    return any(param.name == "store_url" for param in command.params)


def given(param: click.Parameter) -> Iterator[list[str]]:
    name = param.opts[0]
    if isinstance(param, click.Option):
        flag = param.is_flag or param.count
        yield from [[name]] if flag else [[name, each] for each in VALUES.get(name, ["1"])]


def asking(typed: list[str]) -> bytes:
    reading = {"publish", "validate"} & set(typed)
    return joined([EVENTS if reading else b"a\nb", *map(str.encode, typed)])


def words() -> Iterator[bytes]:
    for path, command in options.commands(cli.cli):
        yield SEPARATOR.join(map(str.encode, path))
        for param in command.params:
            yield from (SEPARATOR.join(map(str.encode, some)) for some in given(param))
    for word in (*OTHERS, *FILES, *TEXTS):
        yield word.encode(errors="surrogatepass")
    yield b"\x80"  # what is no text to the program either


TARGET = Target(
    opened=opened,
    seeds=[FOUND, *(asking(typed) for typed in (*examples(), *whole()))],
    words=list(dict.fromkeys(words())),
)

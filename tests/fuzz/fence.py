"""What a process may no longer do: reach a network, listen, start programs, write elsewhere."""

import errno
import os
import socket
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = {
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move"),
}
FENCE = "there is a fence"
STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")


@contextmanager
def around(folder: Path) -> Iterator[None]:
    """Refuse it, with the errors of a host without a network and of a user without rights.

    Python's own calls are seen, those of a library in C are not.
    """
    inside, stands = (f"{folder.resolve()}/", "/dev/null"), True

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if stands:  # a hook cannot be taken away again
            refuse_talking(event, arguments)
            refuse_changing(event, arguments, inside)

    sys.addaudithook(look)
    try:
        yield
    finally:
        stands = False


def refuse_talking(event: str, arguments: tuple[Any, ...]) -> None:
    match event, arguments:
        case "socket.connect" | "socket.sendto" | "socket.sendmsg", _:
            raise ConnectionRefusedError(errno.ECONNREFUSED, FENCE)
        case "socket.bind", _:
            raise OSError(errno.EADDRINUSE, FENCE)
        case "socket.getaddrinfo", (str() | bytes() as host, *_) if not numeric(host):
            raise socket.gaierror(socket.EAI_NONAME, FENCE)


def refuse_changing(event: str, arguments: tuple[Any, ...], inside: tuple[str, ...]) -> None:
    match event, arguments:
        case "open", (path, _, int(flags)) if flags & WRITING and not allowed(path, inside):
            raise PermissionError(errno.EACCES, FENCE, path)
        case "sqlite3.connect", (path,) if path != ":memory:" and not allowed(path, inside):
            error = sqlite3.OperationalError(FENCE)
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error
        case _ if event in CHANGING and not all(allowed(each, inside) for each in arguments[:2]):
            raise PermissionError(errno.EACCES, FENCE, arguments[0])
        case _ if event in STARTING:
            raise PermissionError(errno.EACCES, FENCE)


def allowed(path: Any, inside: tuple[str, ...]) -> bool:
    """Whether it is inside; what is no path, such as an open file's number, is allowed."""
    named = isinstance(path, str | bytes | os.PathLike)
    return not named or os.path.realpath(os.fsdecode(path)).startswith(inside)


def numeric(host: str | bytes) -> bool:
    """Whether no server has to be asked for the address."""
    text = host.decode("latin-1") if isinstance(host, bytes) else host
    return set(text) <= set("0123456789abcdefABCDEF.:") and ("." in text or ":" in text)

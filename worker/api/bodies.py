"""Reading a request's body: no longer than the limit, no later than the deadline, decompressed."""

import asyncio
import zlib

from starlette.requests import Request

from worker.api.errors import ElasticError, illegal_argument

MAX_BODY = 1024 * 1024  # bytes, also after decompression
BODY_TIMEOUT = 30.0  # seconds

_LAST = {"Connection": "close"}


async def read(request: Request) -> bytes:
    """The body, decompressed. What is left unread of it, the server drops."""
    chunks, size = [], 0
    if int(request.headers.get("content-length", "0")) > MAX_BODY:
        raise _too_long(request)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_BODY:
                    raise _too_long(request)
    except TimeoutError:
        reason = f"the body did not arrive within {BODY_TIMEOUT:g} s"
        raise ElasticError(408, "timeout_exception", reason, headers=_LAST) from None
    return _decompressed(b"".join(chunks), request)


def _decompressed(body: bytes, request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "identity" or not body:
        return body
    if encoding != "gzip":
        raise ElasticError(
            415, "status_exception", f"Content-Encoding [{encoding}] is not supported"
        )
    reader = zlib.decompressobj(wbits=31)  # the format of gzip
    try:
        body = reader.decompress(body, MAX_BODY + 1)
    except zlib.error:
        raise _not_gzip() from None
    if len(body) > MAX_BODY:
        raise _too_long(request)
    if not reader.eof:
        raise _not_gzip()
    return body


def _not_gzip() -> ElasticError:
    return illegal_argument("the body is not gzip, as its Content-Encoding says")


def _too_long(request: Request) -> ElasticError:
    reason = f"the body is longer than {MAX_BODY} bytes"
    # A client that asked whether to send the body may do so or not: nothing can follow it.
    headers = _LAST if "expect" in request.headers else {}
    return ElasticError(413, "content_too_long_exception", reason, headers=headers)

"""Records, by the description of Kafka's format, and by code that worker/ shares nothing with."""

from dataclasses import dataclass

from schemas.dead_letter import Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A record, as the format's description has it."""

    delta: int
    later: int  # milliseconds after the first one's time
    key: bytes | None
    value: bytes | None
    headers: Headers


def described(records: bytes) -> list[Read] | None:
    """The records, or None where the bytes are not such."""
    found, at = [], 0
    try:
        while at < len(records):
            record, at = one(records, at)
            found.append(record)
    except (ValueError, IndexError):
        return None
    return found


def one(data: bytes, at: int) -> tuple[Read, int]:
    length, at = varint(data, at)
    end = at + length
    if not at <= end <= len(data) or data[at] > 0x7F:  # no byte of attributes
        raise ValueError
    later, at = varint(data, at + 1, 64)
    delta, at = varint(data, at)
    key, at = text(data, at, end)
    value, at = text(data, at, end)
    count, at = varint(data, at)
    if not 0 <= count <= end - at:
        raise ValueError
    headers = []
    for _ in range(count):
        name, at = text(data, at, end)
        content, at = text(data, at, end)
        headers.append((named(name), content))
    if at != end:
        raise ValueError
    read = Read(delta=delta, later=later, key=key, value=value, headers=tuple(headers))
    return read, at


def named(name: bytes | None) -> str:
    if name is None:
        raise ValueError
    return name.decode(errors="replace")


def text(data: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    length, at = varint(data, at)
    if length == -1:
        return None, at
    if not 0 <= length <= end - at:
        raise ValueError
    return data[at : at + length], at + length


def varint(data: bytes, at: int, bits: int = 32) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] <= 0x7F:  # the last byte of it
            break
    if value >= 2**bits or shift > bits + 6:
        raise ValueError
    return value >> 1 ^ -(value & 1), at


# Written


def body(delta: int, key: bytes | None, value: bytes | None, headers: Headers = ()) -> bytes:
    parts = [b"\0", number(0), number(delta), nullable(key), nullable(value), number(len(headers))]
    for name, content in headers:
        parts += [nullable(name.encode()), nullable(content)]
    return b"".join(parts)


def nullable(content: bytes | None) -> bytes:
    return number(-1) if content is None else number(len(content)) + content


def framed(record: bytes) -> bytes:
    return number(len(record)) + record


def number(value: int) -> bytes:
    rest, written = value << 1 ^ value >> 63, bytearray()  # zigzag
    while rest > 0x7F:
        written.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*written, rest])

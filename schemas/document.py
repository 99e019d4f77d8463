"""JSON text as the contract takes it: strict, and with a reason when it is refused."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from math import isfinite
from typing import Any, Final

import jiter

from schemas.reasons import REASONS, Invalid

MAX_DEPTH = 64  # the outermost object is 1
MAX_DIGITS = 4_300  # Python's own limit on text of integers, and so that of every JSON writer here
MAX_SHOWN = 60  # characters of an offending value that a message repeats
MAX_PATH = 200  # characters after which a path stops growing

_LIMIT: Final[int] = 10**MAX_DIGITS
_CONSTANTS: Final = (bool, type(None))
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_DEEPER: Final = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1}
_FLAT = bytes(set(range(256)) - _DEEPER.keys())
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _Members(list[tuple[str, Any]]):
    """A JSON object whose repeated names are still there."""


class _TooLong:
    """An integer that is longer than `MAX_DIGITS`."""


# Raises `ValueError`, whose text is not meant for people: `refusal` says what is wrong. What it
# accepts still has to be `storable`.
parse: Final[Callable[[bytes], Any]] = partial(
    jiter.from_json, catch_duplicate_keys=True, allow_inf_nan=False, cache_mode="keys"
)


def storable(document: Any) -> bool:
    """Tell whether a parsed document has only what every store can keep."""
    texts: list[str] = []
    nodes = [document]
    for room in range(MAX_DEPTH, -1, -1):
        inside: list[Any] = []
        for node in nodes:
            kind = type(node)
            if kind is str:
                texts.append(node)
            elif kind is dict and room:
                texts += node
                inside += node.values()
            elif kind is list and room:
                inside += node
            elif kind not in _CONSTANTS and not _storable_number(node):
                return False
        if not inside:
            break
        nodes = inside
    try:
        return storable_text("".join(texts))  # at once: one by one takes three times as long
    except TypeError:  # a name that is no text, in a cursor of Python's
        return False


def _storable_number(node: Any) -> bool:
    if type(node) is float:
        return isfinite(node)
    return type(node) is int and -_LIMIT < node < _LIMIT


def storable_text(text: str) -> bool:
    if text.isascii():  # and most are
        return "\0" not in text
    return not _UNSTORABLE.search(text)


def refusal(value: bytes) -> Invalid | None:
    """Find the first thing that is wrong with JSON text, or nothing.

    Encoding comes before nesting, nesting before syntax, syntax before what the text holds, in
    the order of the text.
    """
    if value.startswith(_MARKS):
        return _refused("byte_order_mark", "", "the value begins with a byte-order mark")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        found = f"the value has the byte 0x{value[error.start]:02x} at position {error.start}"
        return _refused("not_utf8", "", found)
    if _too_deep(value):
        return _refused("too_deep", "", f"the value is nested more than {MAX_DEPTH} deep")
    return _syntax_refusal(text)


def _syntax_refusal(text: str) -> Invalid | None:
    try:
        tree = json.loads(
            text, object_pairs_hook=_Members, parse_int=_integer, parse_constant=float
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        what = error.msg.removesuffix(" at")
        return _refused("invalid_json", "", f"the value is not JSON: {what} at {where}")
    return next(_faults(tree, ""), None)


def _too_deep(value: bytes) -> bool:
    if value.count(b"{") + value.count(b"[") <= MAX_DEPTH:
        return False
    brackets = _STRINGS.sub(b"", value).translate(None, _FLAT)
    return max(accumulate(map(_DEEPER.__getitem__, brackets)), default=0) > MAX_DEPTH


def _integer(digits: str) -> int | _TooLong:
    return int(digits) if len(digits.lstrip("-")) <= MAX_DIGITS else _TooLong()


def _faults(node: Any, path: str) -> Iterator[Invalid]:
    if isinstance(node, _Members):
        yield from _member_faults(node, path)
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _faults(item, joined(path, str(index)))
    elif isinstance(node, str):
        yield from _text_faults(node, path, named(path))
    elif isinstance(node, float) and not isfinite(node):
        yield _refused("not_finite", path, f"{named(path)} is {node}, or overflows to it")
    elif isinstance(node, _TooLong):
        yield _refused("number_too_long", path, f"{named(path)} is too long an integer")


def _member_faults(members: _Members, path: str) -> Iterator[Invalid]:
    seen = set()
    for name, node in members:
        here = joined(path, name)
        yield from _text_faults(name, here, f"the name {shown(name)}")
        if name in seen:
            yield _refused("duplicate_key", here, f"the name {shown(name)} stands twice")
        seen.add(name)
        yield from _faults(node, here)


def _text_faults(text: str, path: str, what: str) -> Iterator[Invalid]:
    if not storable_text(text):
        if "\0" in text:
            yield _refused("nul_character", path, f"{what} has the character U+0000")
        else:
            yield _refused("lone_surrogate", path, f"{what} has a lone surrogate")


def _refused(reason: str, path: str, found: str) -> Invalid:
    return Invalid(reason, path, f"{found}: {REASONS[reason].fix}")


def named(path: str) -> str:
    return path or "the value"


def joined(path: str, name: str) -> str:
    """Extend a path; a name that a publisher chose is shortened and escaped."""
    if len(path) > MAX_PATH:
        return path
    step = escaped(name)
    return f"{path}.{step}" if path else step


def shown(value: object) -> str:
    """Show an offending value: shortened, and without anything a terminal would act on."""
    if isinstance(value, str):
        return f'"{escaped(value)}"'
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else f"an integer of {len(str(abs(value)))} digits"
    return escaped(str(value))


def escaped(text: str) -> str:
    head = "".join(_escape(character) for character in text[:MAX_SHOWN])
    return head if len(text) <= MAX_SHOWN and len(head) <= MAX_SHOWN else f"{head[:MAX_SHOWN]}…"


def _escape(character: str) -> str:
    if character.isprintable() and character not in '"\\':
        return character
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"

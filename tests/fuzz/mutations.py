"""Changes that get behind a parser: of parts, of words, and of JSON as a tree."""

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from schemas import last_sync, sync_finished
from schemas.scalars import JOB_TYPES, STATUSES
from tests.fuzz.inputs import GROWN, NULL, SEPARATOR

NAMES = [
    *sync_finished.SyncFinished.model_fields,
    *last_sync.SyncJob.model_fields,
    *last_sync.LAST_SYNC_FIELDS,
    *("specversion", "id", "source", "type", "time", "subject", "data", "data_base64"),
    *("index_name", "name", "description", "service_type", "language", "is_native"),
    *("headers", "value", "value_text", "value_base64", "base64", "x"),
]
TIMES = [
    "2024-11-09T15:13:08.231Z",
    "2024-11-09t15:13:08z",
    "2024-11-09T15:13:08.1234567890+14:00",
    "2024-02-29T23:59:59-00:00",
    "2024-11-09T15",
    "2099-01-01T00:00:00Z",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-01:00",
    "1731165188231",
]
TEXTS = [
    *STATUSES,
    *JOB_TYPES,
    *TIMES,
    *("", ".", "..", "é", "\0", "\x1b[31m", "\x85", "\u2028", "\ud800", "\U0001f600", "*?"),
    *("COMPLETED", "İ", "true", "1.0", "9" * 30, "a" * 513, "content-x", "e\u0301" * 300, "/%"),
]
NUMBERS = [0, 1, -1, 2**31, 2**63 - 1, 2**63, 10**40, 10**4400, 1.0, 1e308, 1e-7, float("inf")]
VALUES: Sequence[Any] = [None, True, False, [], {}, [[]], *TEXTS, *NUMBERS]
DEEP = 70

Container = dict[str, Any] | list[Any]


def mutated(data: bytes, words: Sequence[bytes], chance: Random) -> bytes:
    """Another input, up to three steps away."""
    if chance.randint(0, 7):  # what is large takes long: seldom again
        data = data.replace(GROWN, b"")
    parts = data.split(SEPARATOR)
    for _ in range(chance.randint(1, 3)):
        documents = [i for i, part in enumerate(parts) if part[:1] in {b"{", b"["}]
        at = chance.choice([chance.randrange(len(parts)), *documents[:1]])
        changed = _document(parts[at], chance) if chance.random() < 0.7 else None
        if changed is None:
            chance.choice(_STEPS)(parts, at, words, chance)
        else:
            parts[at] = changed
    return SEPARATOR.join(parts)


# Parts

Step = Callable[[list[bytes], int, Sequence[bytes], Random], None]


def _replace(parts: list[bytes], at: int, words: Sequence[bytes], chance: Random) -> None:
    parts[at] = chance.choice(words)


def _insert(parts: list[bytes], at: int, words: Sequence[bytes], chance: Random) -> None:
    parts.insert(at + chance.randint(0, 1), chance.choice(words))


def _splice(parts: list[bytes], at: int, words: Sequence[bytes], chance: Random) -> None:
    part, place = parts[at], chance.randint(0, len(parts[at]))
    parts[at] = part[:place] + chance.choice(words) + part[place + chance.randint(0, 2) :]


def _cut(parts: list[bytes], at: int, _: Sequence[bytes], chance: Random) -> None:
    begin, end = sorted(chance.randint(0, len(parts[at])) for _ in range(2))
    parts[at] = parts[at][:begin] + parts[at][end:]


def _drop(parts: list[bytes], at: int, _: Sequence[bytes], __: Random) -> None:
    if len(parts) > 1:
        del parts[at]


def _double(parts: list[bytes], at: int, _: Sequence[bytes], __: Random) -> None:
    parts.append(parts[at])


def _null(parts: list[bytes], at: int, _: Sequence[bytes], __: Random) -> None:
    parts[at] = NULL


def _grow(parts: list[bytes], at: int, _: Sequence[bytes], chance: Random) -> None:
    if chance.randint(0, 7) == 0:  # as above
        begin = chance.randint(0, len(parts[at]))
        end = begin + chance.randint(1, 8)
        unit = parts[at][begin:end] or b"[\"'/\\{"[chance.randint(0, 6) :][:2]
        parts[at] = parts[at][:begin] + GROWN + unit + GROWN + parts[at][end:]


_STEPS: Sequence[Step] = (
    *(_replace, _replace, _insert, _splice, _splice, _cut, _drop, _double, _null, _grow),
)


# JSON


def _document(text: bytes, chance: Random) -> bytes | None:
    """The document with something else in it; None where it is none."""
    if text[:1] not in {b"{", b"["}:
        return None
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return None
    _change(chance.choice(list(_containers(tree))), chance)
    try:
        return _written(tree, chance)
    except (ValueError, RecursionError):  # an integer that Python refuses to write
        return None


def _containers(node: Any) -> Iterator[Container]:
    if isinstance(node, dict | list):
        yield node
        for each in node.values() if isinstance(node, dict) else node:
            yield from _containers(each)


def _change(node: Container, chance: Random) -> None:
    old = list(node.values()) if isinstance(node, dict) else list(node)
    value = chance.choice([chance.choice(VALUES), chance.choice([*old, ""]), _odd(chance)])
    names = list(node) if isinstance(node, dict) else [*range(len(node))]
    if names and chance.randint(0, 3) == 0:
        del node[chance.choice(names)]  # type: ignore[arg-type]
    elif isinstance(node, list):
        node.insert(chance.randint(0, len(node)), value)
    elif chance.randint(0, 1) and (texts := [name for name in node if type(node[name]) is str]):
        name = chance.choice(texts)
        node[name] = _touched(node[name], chance)
    else:
        node[chance.choice([*names, *names, *NAMES])] = value


def _touched(text: str, chance: Random) -> str:
    at = chance.randint(0, len(text))
    return text[:at] + chr(chance.randint(0, 0x7F)) + text[at + chance.randint(0, 1) :]


def _odd(chance: Random) -> Any:
    """Something that no list of values has."""
    deep: Any = 1
    for _ in range(chance.choice([1, 2, DEEP])):
        deep = [deep] if chance.randint(0, 1) else {chance.choice(NAMES): deep}
    long = chance.choice(TEXTS) * chance.choice([2, 90])
    return chance.choice([deep, long, chance.randint(-(10**12), 10**12)])


def _written(tree: Any, chance: Random) -> bytes:
    text = json.dumps(tree, ensure_ascii=chance.randint(0, 1) == 0)
    if chance.randint(0, 7) == 0:  # a name that stands twice, or one more
        again = f'{{"{chance.choice(NAMES)}": 1, '
        text = text.replace("{", again, 1)
    return text.encode(errors="surrogatepass")

"""A letter's value and original headers as one JSON document that a person can read and edit."""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from schemas.dead_letter import DeadLetter
from worker.errors import LastSyncError
from worker.replay import Edited
from worker.text import json_text

VALUES = ("value", "value_text", "value_base64")


@dataclass(frozen=True, slots=True)
class LetterDocument:
    """`{"headers": [[name, value], …], "value": …}`.

    The value stands as JSON under `value`; where it is none, as text under `value_text`, and where
    it is no text either, under `value_base64`. A header's value is a text, or `{"base64": …}`, or
    null.
    """

    document: Mapping[str, Any]

    @classmethod
    def of(cls, letter: DeadLetter) -> Self:
        headers = [[name, _shown(value)] for name, value in letter.headers]
        return cls({"headers": headers, **_value_shown(letter.value)})

    @classmethod
    def parsed(cls, text: str) -> Self:
        """Read an edited document. Raises LastSyncError, which says what is wrong."""
        try:
            document = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise LastSyncError(f"the edited document is not JSON: {error}") from None
        if not isinstance(document, dict) or sum(name in document for name in VALUES) != 1:
            raise LastSyncError(
                f"the edited document has to be an object with exactly one of {', '.join(VALUES)}"
            )
        if unknown := document.keys() - {"headers", *VALUES}:
            raise LastSyncError(f"the edited document has an unknown member {min(unknown)!r}")
        return cls(document)

    def text(self) -> str:
        return json_text(self.document, indent=2) + "\n"

    def edited(self) -> Edited:
        return Edited(value=self._value(), headers=tuple(map(_header, self._headers())))

    def _value(self) -> bytes:
        if "value" in self.document:
            return json_text(self.document["value"]).encode()
        if "value_text" in self.document:
            text = self.document["value_text"]
            if not isinstance(text, str):
                raise LastSyncError("value_text has to be a text; JSON stands under value")
            return text.encode(errors="surrogatepass")
        return _decoded(self.document["value_base64"])

    def _headers(self) -> list[Any]:
        headers = self.document.get("headers", [])
        if not isinstance(headers, list):
            raise LastSyncError("headers has to be a list of [name, value]")
        return headers


def _value_shown(value: bytes | None) -> dict[str, Any]:
    if value is None:
        return {"value_text": ""}
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refused, parse_float=_finite
        )
        json.dumps([value], indent=2)  # has less room for depth than reading
    except (ValueError, RecursionError):
        return {"value_text": text}
    return {"value": value}


def _shown(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _header(pair: Any) -> tuple[str, bytes | None]:
    match pair:
        case [str(name), None]:
            return name, None
        case [str(name), str(value)]:
            return name, value.encode(errors="surrogatepass")
        case [str(name), {"base64": str(encoded)}]:
            return name, _decoded(encoded)
    raise LastSyncError(f"the header {json.dumps(pair)[:80]} has to be [name, value]")


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise LastSyncError(f"{str(text)[:40]!r} is not base64: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """As JSON has it; a repeated key would be lost in an object."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is repeated")
    return found


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is too large to be written again")
    return number

"""What a fake Elasticsearch keeps, and the rules of its connector API and its indices.

Sources: the recorded answers in `tests/data/elasticsearch-9.5-recorded.jsonl`, which the fake is
checked against, and Elasticsearch's reference of the REST API.
"""

import copy
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

CONNECTOR_INDEX = ".elastic-connectors-v1"
ERRORS = ("last_access_control_sync_error", "last_sync_error")
STATUSES = ("last_access_control_sync_status", "last_sync_status")
COUNTS = ("last_deleted_document_count", "last_indexed_document_count")
TIMES = (
    "last_access_control_sync_scheduled_at",
    "last_incremental_sync_scheduled_at",
    "last_sync_scheduled_at",
    "last_synced",
)
KNOWN_STATUSES = (
    "canceling",
    "canceled",
    "completed",
    "error",
    "in_progress",
    "pending",
    "suspended",
)
PARSER = "[connector_update_last_sync_stats_request]"
MAX_ID = 512  # bytes
MAX_TERM = 32_766  # bytes
MAX_WINDOW = 10_000
TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?"
    r"(Z|[+-]\d\d:?(?:\d\d)?)?"
)


@dataclass
class ElasticError(Exception):
    """An answer that is an error."""

    status: int
    type: str
    reason: str
    caused_by: tuple[str, str] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        error: dict[str, Any] = {"type": self.type, "reason": self.reason, **self.more}
        error["root_cause"] = [dict(error)]
        if self.caused_by:
            error["caused_by"] = {"type": self.caused_by[0], "reason": self.caused_by[1]}
        return {"error": error, "status": self.status}


def bad_field(name: str, cause: str | None = None, kind: str = "illegal_argument_exception") -> Any:
    reason = f"[1:1] {PARSER} failed to parse field [{name}]"
    caused_by = (kind, cause) if cause else None
    return ElasticError(400, "x_content_parse_exception", reason, caused_by)


# The values of a request


def parsed(raw: bytes) -> Any:
    """Read JSON as leniently as Elasticsearch does: comments, and anything behind the value."""
    text = re.sub(r"/\*.*?\*/", "", raw.decode("utf-8", "surrogatepass"), flags=re.DOTALL).lstrip()
    if not text:
        raise ElasticError(400, "parse_exception", "request body is required")
    try:
        return json.JSONDecoder(object_pairs_hook=unique).raw_decode(text)[0]
    except json.JSONDecodeError as error:
        rest = text[error.pos :].lstrip().lstrip(",").lstrip()
        if not rest or error.msg.startswith("Unterminated"):
            raise ElasticError(
                400, "x_content_e_o_f_exception", "[1:1] Unexpected end of file"
            ) from None
        reason = (
            f"[1:1] Unexpected character ('{rest[0]}' (code {ord(rest[0])})):"
            " was expecting double-quote to start field name"
        )
        raise ElasticError(400, "x_content_parse_exception", reason) from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ElasticError(400, "x_content_parse_exception", "[1:1] Duplicate field")
    return found


def token(value: Any) -> str:
    if value is None:
        return "VALUE_NULL"
    if isinstance(value, bool):
        return "VALUE_BOOLEAN"
    kinds: dict[type, str] = {list: "START_ARRAY", dict: "START_OBJECT", str: "VALUE_STRING"}
    return kinds.get(type(value), "VALUE_NUMBER")


def last_sync(body: Any) -> dict[str, Any]:
    """The fields that a request sets, as they are stored; nulls are left out."""
    if not isinstance(body, dict):
        reason = f"[1:1] {PARSER} Expected START_OBJECT but was: {token(body)}"
        raise ElasticError(400, "x_content_parse_exception", reason)
    found = {}
    for name, value in body.items():
        rule = RULES.get(name)
        if rule is None:
            reason = f"[1:1] {PARSER} unknown field [{name}]"
            raise ElasticError(400, "x_content_parse_exception", reason)
        tokens, read = rule
        if token(value) not in tokens:
            reason = f"[1:1] {PARSER} {name} doesn't support values of type: {token(value)}"
            raise ElasticError(400, "x_content_parse_exception", reason)
        if value is not None:
            found[name] = read(name, value)
    return found


def status(name: str, value: str) -> str:
    if value.lower() not in KNOWN_STATUSES:
        raise bad_field(name, f"Unknown sync status [{value}].")
    return value.lower()


def count(name: str, value: Any) -> int:
    """A number, or a text of one, cut to an integer; it has to fit into 64 bits."""
    text = str(value)
    try:
        number = int(text) if re.fullmatch(r"-?\d+", text) else int(float(text))
    except (ValueError, OverflowError):
        raise bad_field(name, f'For input string: "{value}"') from None
    if not -(2**63) <= number < 2**63:
        raise bad_field(name, f"Value [{value}] is out of range for a long")
    return number


def moment(name: str, value: str) -> str:
    """`strict_date_optional_time||epoch_millis`, kept in UTC."""
    if re.fullmatch(r"-?\d{5,18}", value):
        found = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(value))
        return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    match = TIME.fullmatch(value)
    if not match:
        raise bad_field(name, f"failed to parse date field [{value}]", "date_time_parse_exception")
    *parts, fraction, zone = match.groups()
    year, month, day, hour, minute, second = (int(part or 0) for part in parts)
    try:
        local = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise bad_field(name, str(error), "date_time_parse_exception") from None
    found = local - offset(zone)
    digits = (fraction or "").rstrip("0")
    digits = digits.ljust(3 if len(digits) <= 3 else 6 if len(digits) <= 6 else 9, "0")
    return f"{found.replace(tzinfo=None).isoformat()}.{digits}Z"


def offset(zone: str | None) -> timedelta:
    if zone in (None, "Z"):
        return timedelta()
    assert zone is not None
    digits = zone[1:].replace(":", "").ljust(4, "0")
    found = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return -found if zone[0] == "-" else found


def same(_: str, value: Any) -> Any:
    return value


Rule = tuple[set[str], Callable[[str, Any], Any]]
RULES: dict[str, Rule] = {
    **dict.fromkeys(ERRORS, ({"VALUE_STRING", "VALUE_NULL"}, same)),
    **dict.fromkeys(STATUSES, ({"VALUE_STRING", "VALUE_NULL"}, status)),
    **dict.fromkeys(TIMES, ({"VALUE_STRING", "VALUE_NULL"}, moment)),
    **dict.fromkeys(COUNTS, ({"VALUE_STRING", "VALUE_NUMBER"}, count)),
    "sync_cursor": ({"START_OBJECT", "VALUE_NULL"}, same),
}


def merged(old: Any, new: Mapping[str, Any]) -> dict[str, Any]:
    """Objects are merged key by key, all else is replaced."""
    found = dict(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        found[key] = merged(found.get(key), value) if isinstance(value, dict) else value
    return found


# Documents


@dataclass
class Document:
    source: dict[str, Any]
    seq_no: int
    primary_term: int
    written: float  # monotonic seconds


@dataclass
class Index:
    """Documents by id; a search sees the copy of the last refresh."""

    name: str
    refresh_interval: float
    mappings: dict[str, Any] = field(default_factory=dict)
    uuid: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    documents: dict[str, Document] = field(default_factory=dict)
    found: dict[str, Document] = field(default_factory=dict)
    refreshed: float = field(default_factory=time.monotonic)
    next_seq_no: int = 0

    def write(self, id_: str, source: dict[str, Any]) -> Document:
        self._refresh_if_due()
        document = Document(source, self.next_seq_no, 1, time.monotonic())
        self.next_seq_no += 1
        self.documents[id_] = document
        return document

    def remove(self, id_: str) -> None:
        self._refresh_if_due()
        self.next_seq_no += 1
        del self.documents[id_]

    def refresh(self) -> None:
        self.found = dict(self.documents)
        self.refreshed = time.monotonic()

    def searched(self) -> dict[str, Document]:
        self._refresh_if_due()
        return self.found

    def _refresh_if_due(self) -> None:
        if time.monotonic() - self.refreshed >= self.refresh_interval:
            self.refresh()

    def put(
        self,
        id_: str,
        source: dict[str, Any],
        *,
        if_seq_no: int | None,
        if_primary_term: int | None,
        create: bool,
    ) -> tuple[Document, bool]:
        """Write under the conditions given; also says whether the document is new."""
        before = self.documents.get(id_)
        if create and before is not None:
            raise self.conflict(
                f"[{id_}]: version conflict, document already exists (current version [1])"
            )
        if if_seq_no is not None:
            wanted = f"required seqNo [{if_seq_no}], primary term [{if_primary_term}]."
            if before is None:
                raise self.conflict(
                    f"[{id_}]: version conflict, {wanted} but no document was found"
                )
            if (before.seq_no, before.primary_term) != (if_seq_no, if_primary_term):
                raise self.conflict(
                    f"[{id_}]: version conflict, {wanted} current document has seqNo"
                    f" [{before.seq_no}] and primary term [{before.primary_term}]"
                )
        return self.write(id_, source), before is None

    def conflict(self, reason: str) -> ElasticError:
        return ElasticError(
            409,
            "version_conflict_engine_exception",
            reason,
            more={"index_uuid": self.uuid, "shard": "0", "index": self.name},
        )


@dataclass
class Connectors:
    """The connector API's documents and rules."""

    index: Index
    soft_deletes: bool = True

    def get(self, id_: str) -> dict[str, Any]:
        document = self.index.documents.get(id_)
        if document is None or document.source.get("deleted"):
            raise self._unknown(id_)
        return document.source

    def page(self, start: int, size: int) -> dict[str, Any]:
        if start < 0 or size < 0:
            raise ElasticError(
                400, "illegal_argument_exception", "[from] and [size] must not be negative"
            )
        if start + size > MAX_WINDOW:
            reason = f"Result window is too large, from + size must be less than: [{MAX_WINDOW}]"
            raise ElasticError(400, "illegal_argument_exception", reason)
        live = [d.source for d in self.index.searched().values() if not d.source.get("deleted")]
        live.sort(key=lambda source: source["index_name"] or "")
        return {"count": len(live), "results": live[start : start + size]}

    def register(self, id_: str, body: Mapping[str, Any]) -> tuple[int, str]:
        check_id(id_)
        wanted = body.get("index_name")
        for other, document in self.index.documents.items():
            taken = document.source["index_name"] == wanted and not document.source.get("deleted")
            if wanted and other != id_ and taken:
                reason = f"Index name [{wanted}] is used by another connector."
                raise ElasticError(400, "status_exception", reason)
        known = id_ in self.index.documents
        self.index.write(id_, fresh(id_, body))
        return (200, "updated") if known else (201, "created")

    def delete(self, id_: str) -> None:
        source = self.get(id_)
        if self.soft_deletes:
            self.index.write(id_, {**source, "deleted": True})
        else:
            self.index.remove(id_)

    def update_last_sync(self, id_: str, fields: Mapping[str, Any]) -> str:
        check_id(id_)
        document = self.index.documents.get(id_)
        if document is None:
            raise ElasticError(
                404,
                "document_missing_exception",
                f"[{id_}]: document missing",
                more={"index_uuid": self.index.uuid, "shard": "0", "index": self.index.name},
            )
        for name in ERRORS:
            if len(str(fields.get(name, "")).encode("utf-8", "surrogatepass")) > MAX_TERM:
                reason = f'Document contains at least one immense term in field="{name}"'
                raise ElasticError(400, "document_parsing_exception", f"[1:1] {reason}")
        after = merged(document.source, copy.deepcopy(dict(fields)))
        if after == document.source:
            return "noop"
        self.index.write(id_, after)
        return "updated"

    @staticmethod
    def _unknown(id_: str) -> ElasticError:
        return ElasticError(404, "resource_not_found_exception", f"connector [{id_}] not found")


def check_id(id_: str) -> None:
    size = len(id_.encode())
    if size > MAX_ID:
        reason = (
            f"Validation Failed: 1: id [{id_}] is too long, must be no longer than {MAX_ID} bytes"
            f" but was: {size};"
        )
        raise ElasticError(400, "action_request_validation_exception", reason)


def fresh(id_: str, body: Mapping[str, Any]) -> dict[str, Any]:
    off = {"enabled": False, "interval": "0 0 0 * * ?"}
    return {
        "id": id_,
        "configuration": {},
        "custom_scheduling": {},
        "description": body.get("description"),
        "filtering": [{"domain": "DEFAULT", "active": {"rules": []}, "draft": {"rules": []}}],
        "index_name": body.get("index_name"),
        "is_native": body.get("is_native", False),
        "language": body.get("language"),
        "name": body.get("name"),
        "scheduling": {"access_control": off, "full": off, "incremental": off},
        "service_type": body.get("service_type"),
        "status": "created",
        "sync_now": False,
    }

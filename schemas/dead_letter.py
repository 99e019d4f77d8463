"""A dead letter and its record: the original bytes, and headers that say what is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Self

from schemas.last_sync import time_text

PREFIX = "__dlq.errors."


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that cannot be applied as it is, with the reason."""

    group: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    reason: str
    status: Literal[400, 404]
    message: str
    connector_id: str | None
    failed_at: datetime
    store: str

    @property
    def id(self) -> str:
        return f"{self.group}/{self.topic}/{self.partition}/{self.offset}@{self.timestamp_ms}"

    def to_record(self, max_bytes: int) -> tuple[bytes, bytes, list[tuple[str, bytes | None]]]:
        del max_bytes
        ours: dict[str, bytes] = {
            "topic": self.topic.encode(),
            "partition": str(self.partition).encode(),
            "offset": str(self.offset).encode(),
            "group": self.group.encode(),
            "delivery.count": b"1",
            "message": self.message.encode(),
            "reason": self.reason.encode(),
            "status": str(self.status).encode(),
            "timestamp": str(self.timestamp_ms).encode(),
            "failed_at": time_text(self.failed_at).encode(),
            "store": self.store.encode(),
        }
        if self.key is not None:
            ours["key"] = self.key
        if self.connector_id is not None:
            ours["connector_id"] = self.connector_id.encode()
        if self.value is None:
            ours["value_null"] = b"true"
        headers = [(PREFIX + name, value) for name, value in ours.items()]
        return self.id.encode(), self.value or b"", [*headers, *self.headers]

    @classmethod
    def from_record(
        cls,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
    ) -> Self:
        raise NotImplementedError(key, value, headers)


def resolution_headers(by: str, how: str, at: datetime, reason: str) -> list[tuple[str, bytes]]:
    """Headers of the tombstone that closes a letter."""
    values = {"by": by, "how": how, "at": time_text(at), "reason": reason}
    return [(f"__dlq.resolved.{name}", value.encode()) for name, value in values.items()]

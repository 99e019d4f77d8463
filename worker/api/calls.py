"""A request that has been read, and its parameters as Elasticsearch understands them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from worker.api.errors import illegal_argument, suggestion

EVERYWHERE = frozenset({"pretty", "human", "error_trace", "filter_path", "format"})
FLAGS = ("pretty", "human", "error_trace", "include_deleted", "hard", "delete_sync_jobs")

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")  # Python reads no longer one


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request; `path` and `query` are decoded."""

    path: str
    query: Mapping[str, str]
    body: bytes

    def flag(self, name: str) -> bool:
        value = self.query.get(name, "false")
        if value not in {"", "true", "false"}:
            raise illegal_argument(
                f"Failed to parse value [{value}] as only [true] or [false] are allowed."
            )
        return value != "false"

    def number(self, name: str, default: int) -> int:
        if name not in self.query:
            return default
        text = self.query[name]
        number = int(text) if _INTEGER.fullmatch(text) else 2**31
        if not -(2**31) <= number < 2**31:
            raise illegal_argument(
                f"Failed to parse int parameter [{name}] with value [{text}]",
                ("number_format_exception", f'For input string: "{text}"'),
            )
        if number < 0:
            raise illegal_argument(f"Parameter [{name}] cannot be negative but was [{number}]")
        return number

    def names(self, name: str) -> list[str]:
        return [each for each in self.query.get(name, "").split(",") if each]

    def refuse_unknown(self, *known: str) -> None:
        names = EVERYWHERE | set(known)
        unknown = sorted(set(self.query) - names)
        if unknown:
            listed = ", ".join(
                f"[{name}]" + suggestion(name, names).replace(" did", " -> did", 1)
                for name in unknown
            )
            plural = "s" if len(unknown) > 1 else ""
            raise illegal_argument(
                f"request [{self.path}] contains unrecognized parameter{plural}: {listed}"
            )
        for name in FLAGS:
            self.flag(name)

"""Errors in the shapes of Elasticsearch's answers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

NEAR = 0.5  # likeness above which a name is offered


@dataclass
class ElasticError(Exception):
    """An answer that is an error; `caused_by` is a type and a reason."""

    status: int
    type: str
    reason: str
    caused_by: tuple[str, str] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        said = {"type": self.type, "reason": self.reason, **self.more}
        error: dict[str, Any] = {"root_cause": [said], **said}
        if self.caused_by:
            error["caused_by"] = {"type": self.caused_by[0], "reason": self.caused_by[1]}
        return {"error": error, "status": self.status}


def illegal_argument(reason: str, caused_by: tuple[str, str] | None = None) -> ElasticError:
    return ElasticError(400, "illegal_argument_exception", reason, caused_by)


def unparsable(reason: str, caused_by: tuple[str, str] | None = None) -> ElasticError:
    return ElasticError(400, "x_content_parse_exception", reason, caused_by)


def not_valid(*reasons: str) -> ElasticError:
    numbered = "".join(f"{number}: {reason};" for number, reason in enumerate(reasons, 1))
    return ElasticError(
        400, "action_request_validation_exception", f"Validation Failed: {numbered}"
    )


def suggestion(word: str, known: Iterable[str]) -> str:
    """The names that may have been meant, as Elasticsearch offers them, or nothing.

    Of a name twice as long, or half, no more than half can be alike: a word of a megabyte would
    be compared for minutes.
    """
    comparable = [name for name in known if NEAR < len(name) / max(len(word), 1) < 1 / NEAR]
    scored = sorted(
        (-score, name) for name in comparable if (score := _likeness(word, name)) > NEAR
    )
    match [name for _, name in scored]:
        case []:
            return ""
        case [name]:
            return f" did you mean [{name}]?"
        case names:
            return f" did you mean any of [{', '.join(names)}]?"


def _likeness(one: str, other: str) -> float:
    """1 less the Levenshtein distance over the longer length, as Lucene counts it."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return 1 - row[-1] / max(len(one), len(other), 1)

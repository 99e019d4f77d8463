"""Write the JSON Schemas, the AsyncAPI document, and the list of reasons in the docs.

`python -m schemas.generate` writes them all; a test fails while any of them is stale.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas import json_schema
from schemas.asyncapi import asyncapi
from schemas.document import escaped
from schemas.reasons import REASONS, Headers, Reason

FILES: Mapping[str, str] = {
    "sync-finished": "sync-finished.schema.json",
    "last-sync": "last-sync.schema.json",
    "dead-letter": "dead-letter.schema.json",
    "asyncapi": "asyncapi.json",
}
DIRECTORY = Path(__file__).parent / "json"
EVENTS_PAGE = Path(__file__).parent.parent / "docs" / "events.md"
BEGIN = "<!-- reasons: written by `python -m schemas.generate` -->"
END = "<!-- end of reasons -->"
MAX_EXAMPLE = 220  # characters


def documents() -> dict[str, dict[str, Any]]:
    """Give every generated document by the name that `last-sync schema` takes."""
    return {
        "sync-finished": json_schema.sync_finished(),
        "last-sync": json_schema.last_sync(),
        "dead-letter": json_schema.dead_letter(),
        "asyncapi": asyncapi(),
    }


def text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def with_reasons(page: str) -> str:
    """Replace what stands between the marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    entries = "\n".join(_entry(code, reason) for code, reason in REASONS.items())
    return f"{before}{BEGIN}\n\n{entries}\n{END}{after}"


def _entry(code: str, reason: Reason) -> str:
    headers = f"Headers: {_headers(reason.headers)}\n\n" if reason.headers else ""
    return (
        f"### `{code}`\n\n{reason.meaning}\n\n{headers}"
        f"```text\n{_value(reason.value)}\n```\n\nFix: {reason.fix}.\n"
    )


def _headers(headers: Headers) -> str:
    shown = (
        f"`{name}` without a value" if value is None else f"`{name}: {_readable(value)}`"
        for name, value in headers
    )
    return ", ".join(shown)


def _value(value: bytes | None) -> str:
    if not value:
        return "(null)" if value is None else "(no bytes)"
    readable = _readable(value)
    return readable if len(readable) <= MAX_EXAMPLE else f"{readable[:MAX_EXAMPLE]}… (cut)"


def _readable(value: bytes) -> str:
    """Write bytes so that a page can show them; what is no text is escaped."""
    text = value.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else escaped(c) for c in text)


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for name, document in documents().items():
        (DIRECTORY / FILES[name]).write_text(text(document))
    if EVENTS_PAGE.exists():
        EVENTS_PAGE.write_text(with_reasons(EVENTS_PAGE.read_text()))


if __name__ == "__main__":
    main()

"""What a JSON Schema cannot say of the API's requests, for schemathesis."""

import re
from typing import Any
from uuid import uuid4

import schemathesis

MAX_WINDOW, PAGE_SIZE = 10_000, 100
LONGEST = 60  # characters of a text in the query, of which there are four
VALID = re.compile("content-[a-z0-9]{1,40}")


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Let no two connectors fill one index, no page end beyond the window, no line be too long."""
    if isinstance(case.body, dict) and VALID.fullmatch(str(case.body.get("index_name"))):
        case.body = {**case.body, "index_name": f"content-{uuid4().hex}"}
    start, size = whole(case.query.get("from", 0)), whole(case.query.get("size", PAGE_SIZE))
    if 0 <= start <= MAX_WINDOW and 0 <= size <= MAX_WINDOW < start + size:
        case.query = {**case.query, "from": 0}
    case.query = {
        name: value[:LONGEST] if isinstance(value, str) else value
        for name, value in case.query.items()
    }


def whole(value: Any) -> int:
    """The number that is asked for; -1 where that is none."""
    return int(value) if str(value).isdecimal() else -1

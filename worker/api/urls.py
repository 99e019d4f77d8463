"""Paths and query strings, decoded as Elasticsearch decodes them (its `RestUtils`)."""

import re

_ESCAPE = re.compile(rb"%(%|[0-9A-Fa-f]{2})?")


def decoded(text: bytes) -> str:
    """Percent-decode: `%%` is a percent sign, and what is no UTF-8 becomes U+FFFD.

    Raises ValueError for a percent sign that begins no escape.
    """

    def sign(match: re.Match[bytes]) -> bytes:
        if match[1] is None:
            raise ValueError(f"invalid escape sequence at index {match.start()} of: {shown}")
        return b"%" if match[1] == b"%" else bytes.fromhex(match[1].decode())

    shown = text.decode("ascii", "replace")
    return _ESCAPE.sub(sign, text).decode("utf-8", "replace")


def parameters(query: bytes) -> dict[str, str]:
    """The parameters of a query string, separated by `&` or `;`; of several values the last.

    Raises ValueError as `decoded` does.
    """
    found = {}
    for part in re.split(b"[&;]", query.replace(b"+", b" ")):
        name, _, value = part.partition(b"=")
        if name:
            found[decoded(name)] = decoded(value)
    return found

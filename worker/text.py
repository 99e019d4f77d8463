"""Text from outside, so written that no terminal acts on it."""

import json


def printable(text: str) -> str:
    """Free of control characters, which could steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def escaped(text: str) -> str:
    r"""With `\u001b` for what is not printable, so that it can be read, copied, and pasted."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def harmless(text: str) -> str:
    """`escaped`, but for the ends of its lines."""
    return "\n".join(map(escaped, text.split("\n")))


def json_text(document: object, indent: int | None = None) -> str:
    """The document as JSON for people: only what is not printable is escaped."""
    return harmless(json.dumps(document, indent=indent, ensure_ascii=False))

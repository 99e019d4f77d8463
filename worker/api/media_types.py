"""The media types of Elasticsearch's clients, and the versions that they ask for.

Rules: `RestCompatibleVersionHelper` and `RestController` of Elasticsearch.
"""

import re
from collections.abc import Mapping

from worker.api.errors import ElasticError

VERSIONS = ("8", "9")
JSON = "application/json"

_VERSIONED = re.compile(  # of several, as Elastic's JavaScript client sends them, the first counts
    r"\s*application/vnd\.elasticsearch\+(?P<format>[a-z-]+)\s*"
    r"(?:;.*?\bcompatible-with\s*=\s*\"?(?P<version>[^\s;,\"]*))?",
    re.IGNORECASE,
)
_JSON = {JSON, "application/x-ndjson"}
_VERSIONED_JSON = {"json", "x-ndjson"}


def answered(headers: Mapping[str, str]) -> str:
    """The media type of the answer. The version asked for must be known."""
    accept = _version(headers.get("accept", ""))
    if accept is None:
        return JSON
    if accept not in VERSIONS:
        raise _invalid(headers)
    return f"application/vnd.elasticsearch+json;compatible-with={accept}"


def refuse_disagreeing(headers: Mapping[str, str]) -> None:
    """A body and the answer to it must have one version, or both none."""
    accept, given = (_version(headers.get(name, "")) for name in ("accept", "content-type"))
    if accept != given:
        raise _invalid(headers)


def _invalid(headers: Mapping[str, str]) -> ElasticError:
    accept, given = (_version(headers.get(name, "")) for name in ("accept", "content-type"))
    return ElasticError(
        400,
        "media_type_header_exception",
        "Invalid media-type value on headers [Accept, Content-Type]",
        (
            "status_exception",
            (
                f"the versions on Accept ({accept or 'none'}) and Content-Type ({given or 'none'})"
                f" must be the same, and one of {', '.join(VERSIONS)}"
            ),
        ),
        headers={"content-type": JSON},
    )


def refuse_unreadable(headers: Mapping[str, str]) -> str | None:
    """Why a body of this type is not read; None where it is JSON."""
    given = headers.get("content-type")
    if given is None:
        return "Content-Type header is missing"
    if match := _VERSIONED.match(given):
        known = match["format"].lower() in _VERSIONED_JSON
    else:
        known = given.partition(";")[0].strip().lower() in _JSON
    return None if known else f"Content-Type header [{given}] is not supported"


def _version(header: str) -> str | None:
    match = _VERSIONED.match(header)
    return match["version"] if match else None

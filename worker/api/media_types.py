"""The media types of Elasticsearch's clients, and the versions that they ask for.

Rules: `ParsedMediaType`, `RestCompatibleVersionHelper` and `RestController` of Elasticsearch.
"""

import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from worker.api.errors import ElasticError

VERSIONS = ("8", "9")
JSON = "application/json"

_NAME = r"[a-z0-9!#$%&'*+.^_`|~\\-]+"
_TYPE = re.compile(rf"(?P<name>{_NAME}/{_NAME})(?P<parameters>(?:\s*;\s*(?:{_NAME}=[^;=]*)?)*)")
_VERSION = re.compile(r';\s*compatible-with="?([^";]*?)"?\s*(?:;|$)')
_ELASTIC = "application/vnd.elasticsearch+"
_READ = {JSON, "application/x-ndjson", f"{_ELASTIC}json", f"{_ELASTIC}x-ndjson"}


@dataclass(frozen=True, slots=True)
class MediaType:
    name: str
    version: str | None


def answered(headers: Headers) -> str:
    """The media type of the answer. Both headers must be well formed, the version known."""
    _parsed(headers, "Content-Type")
    version = _version(_parsed(headers, "Accept"))
    if version is None:
        return JSON
    if version not in VERSIONS:
        raise _disagreeing(headers)
    return f"{_ELASTIC}json;compatible-with={version}"


def refuse_disagreeing(headers: Headers) -> None:
    """A body and the answer to it must have one version, or both none."""
    if _version(_parsed(headers, "Accept")) != _version(_parsed(headers, "Content-Type")):
        raise _disagreeing(headers)


def refuse_unreadable(headers: Headers) -> str | None:
    """Why a body of this type is not read; None where it is JSON."""
    given = headers.get("content-type")
    if given is None:
        return "Content-Type header is missing"
    media_type = _parsed(headers, "Content-Type")
    known = media_type is not None and media_type.name in _READ
    return None if known else f"Content-Type header [{given}] is not supported"


def _parsed(headers: Headers, header: str) -> MediaType | None:
    """The header's type; None where there is none, or any of several will do."""
    values = headers.getlist(header)
    if not values:
        return None
    if len(values) > 1:
        raise _invalid(f"Incorrect header [{header}]. Only one value should be provided", header)
    text = values[0].strip().lower()
    if not text:
        raise _invalid(f"Header [{header}] cannot be empty.", header)
    # Of several, as Elastic's JavaScript client sends them, the first counts when it is Elastic's.
    first, comma, _ = text.partition(",")
    if text == "*/*" or (comma and not first.startswith(_ELASTIC)):
        return None
    match = _TYPE.fullmatch(first)
    if match is None:
        raise _invalid(f"invalid media-type [{values[0]}]", header)
    version = _VERSION.search(match["parameters"])
    return MediaType(match["name"], version[1] if version else None)


def _version(media_type: MediaType | None) -> str | None:
    is_elastic = media_type is not None and media_type.name.startswith(_ELASTIC)
    return media_type.version if media_type and is_elastic else None


def _disagreeing(headers: Headers) -> ElasticError:
    accept, given = (_version(_parsed(headers, name)) for name in ("Accept", "Content-Type"))
    reason = (
        f"the versions on Accept ({accept or 'none'}) and Content-Type ({given or 'none'})"
        f" must be the same, and one of {', '.join(VERSIONS)}"
    )
    return _invalid(reason, "Accept", "Content-Type", kind="status_exception")


def _invalid(reason: str, *names: str, kind: str = "illegal_argument_exception") -> ElasticError:
    return ElasticError(
        400,
        "media_type_header_exception",
        f"Invalid media-type value on headers [{', '.join(names)}]",
        (kind, reason),
        headers={"content-type": JSON},
    )

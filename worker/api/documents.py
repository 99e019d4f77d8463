"""A connector as Elasticsearch prints it."""

from pydantic import JsonValue

from schemas.last_sync import LAST_SYNC_TIMES
from worker.stores.base import Connector, Registration

_RULES: JsonValue = {
    "advanced_snippet": {"value": {}},
    "rules": [
        {
            "field": "_",
            "id": "DEFAULT",
            "order": 0,
            "policy": "include",
            "rule": "regex",
            "value": ".*",
        }
    ],
    "validation": {"errors": [], "state": "valid"},
}
_FILTERING: JsonValue = [{"domain": "DEFAULT", "active": _RULES, "draft": _RULES}]
_SCHEDULING: JsonValue = {
    kind: {"enabled": False, "interval": "0 0 0 * * ?"}
    for kind in ("access_control", "full", "incremental")
}


def document(connector: Connector, registration: Registration) -> dict[str, JsonValue]:
    """A connector as Elasticsearch prints it."""
    return {
        "id": connector.id,
        "configuration": {},
        "custom_scheduling": {},
        "description": registration.description,
        "filtering": _FILTERING,
        "index_name": registration.index_name,
        "is_native": bool(registration.is_native),
        "language": registration.language,
        "name": registration.name or "",
        "scheduling": _SCHEDULING,
        "service_type": registration.service_type,
        "status": "needs_configuration" if registration.is_native else "created",
        "sync_now": False,
        **{name: _printed(name, value) for name, value in sorted(connector.fields.items())},
    }


def _printed(name: str, value: JsonValue) -> JsonValue:
    """Times with three digits where that is all there is: `…08.231Z`."""
    if name in LAST_SYNC_TIMES and isinstance(value, str) and value.endswith("000Z"):
        return f"{value[:-4]}Z"
    return value

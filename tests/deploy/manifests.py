"""Kubernetes manifests, held against the schemas of its API and of the custom resources."""

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate

CRDS = Path(__file__).parents[1] / "data" / "crds"
VERSIONS = ("1.30", "1.34", "1.37")  # the oldest that has all fields, and newer ones

Manifest = dict[str, Any]


def validate(manifest: Manifest) -> None:
    """Raise jsonschema's ValidationError for what an API server would refuse, or silently drop."""
    if (schema := custom(manifest)) is not None:
        jsonschema.validate(manifest, schema)
        return
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def custom(manifest: Manifest) -> Any:
    group, _, version = manifest["apiVersion"].rpartition("/")
    for file in CRDS.glob("*.json"):
        crd = json.loads(file.read_text())
        if (crd["group"], crd["kind"]) == (group, manifest["kind"]):
            return closed(crd["versions"][version])
    return None


def closed(schema: Any) -> Any:
    """Refuse unknown fields, which an API server would drop."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        inner.setdefault("additionalProperties", False)
    return inner

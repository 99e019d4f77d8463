"""Keep which fields a stamp holds as bits instead of names, in a third of the space."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "last_sync_0003"
down_revision = "last_sync_0002"

NAMES = (
    "last_access_control_sync_error",
    "last_access_control_sync_scheduled_at",
    "last_access_control_sync_status",
    "last_deleted_document_count",
    "last_incremental_sync_scheduled_at",
    "last_indexed_document_count",
    "last_sync_error",
    "last_sync_scheduled_at",
    "last_sync_status",
    "last_synced",
    "sync_cursor",
)
COMMENT = (
    "which event set which field: [microseconds, rank, event id, digest, fields]; a bit a field,"
    f" in the order of their columns: 1 is {NAMES[0]}, {1 << len(NAMES) - 1} is {NAMES[-1]}"
)
RESET_RANK = 5
PAGE = 1_000

CONNECTORS = sa.table("connectors", sa.column("id"), sa.column("stamps", sa.Text))


def upgrade() -> None:
    connection = op.get_bind()
    columns = CONNECTORS.c
    page = sa.select(columns.id, sa.cast(columns.stamps, sa.Text)).order_by(columns.id).limit(PAGE)
    changed = sa.text(
        "UPDATE connectors SET stamps = CAST(:stamps AS JSON) WHERE id = :id"
        if connection.dialect.name == "postgresql"
        else "UPDATE connectors SET stamps = :stamps WHERE id = :id"
    )
    rows = connection.execute(page).all()
    while rows:
        connection.execute(changed, [{"id": id_, "stamps": _compact(text)} for id_, text in rows])
        rows = connection.execute(page.where(columns.id > rows[-1][0])).all()
    if connection.dialect.name == "postgresql":
        op.alter_column("connectors", "stamps", comment=COMMENT)


def _compact(text: str) -> str:
    kept = json.loads(text)
    absent = set(kept.get("absent", ()))
    return json.dumps([_group(group, absent) for group in kept["stamps"]], separators=(",", ":"))


def _group(group: list[Any], absent: set[str]) -> list[Any]:
    *stamp, names = group
    bare = absent & set(names) if stamp[1] < RESET_RANK else None
    return [*stamp, _bits(names), *([_bits(bare)] if bare else [])]


def _bits(names: Any) -> int:
    return sum(1 << NAMES.index(name) for name in names)

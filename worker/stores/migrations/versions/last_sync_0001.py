"""Keep connectors, and the id of the store."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "last_sync_0001"
down_revision = None

ID = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
JSON = sa.Text().with_variant(postgresql.JSON(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "connectors",
        sa.Column("id", ID, primary_key=True, comment="the connector's id, sorted by code point"),
        sa.Column(
            "last_access_control_sync_error",
            sa.Text,
            comment="why the last sync of permissions failed; NULL: it did not",
        ),
        sa.Column(
            "last_access_control_sync_scheduled_at",
            TIME,
            comment="when the last sync of permissions was due",
        ),
        sa.Column(
            "last_access_control_sync_status",
            sa.Text,
            comment="pending, in_progress, suspended, canceling, canceled, completed or error",
        ),
        sa.Column(
            "last_deleted_document_count",
            sa.BigInteger,
            comment="documents that the last sync deleted",
        ),
        sa.Column(
            "last_incremental_sync_scheduled_at",
            TIME,
            comment="when the last incremental sync was due",
        ),
        sa.Column(
            "last_indexed_document_count",
            sa.BigInteger,
            comment="documents that the last sync indexed",
        ),
        sa.Column("last_sync_error", sa.Text, comment="why the last sync failed; NULL: it did not"),
        sa.Column("last_sync_scheduled_at", TIME, comment="when the last full sync was due"),
        sa.Column(
            "last_sync_status",
            sa.Text,
            comment="pending, in_progress, suspended, canceling, canceled, completed or error",
        ),
        sa.Column("last_synced", TIME, comment="when a sync last completed"),
        sa.Column("sync_cursor", JSON, comment="where the next incremental sync continues"),
        sa.Column(
            "stamps",
            JSON,
            nullable=False,
            comment="which event set which field: [microseconds, rank, event id, digest, fields]",
        ),
        sa.Column(
            "deleted_at",
            TIME,
            comment="when the connector was deleted; its row stays, so that late events lose",
        ),
        comment="connectors and their last-sync stats; NULL: never set, or cleared",
    )
    store = op.create_table(
        "connector_store",
        sa.Column(
            "id", sa.Text, primary_key=True, comment="a UUID; dead letters name it as their store"
        ),
        comment="one row: the identity of this connector store",
    )
    op.bulk_insert(store, [{"id": str(uuid4())}])
    if op.get_bind().dialect.name == "postgresql":  # an embedded store has no dashboards
        op.create_index("connectors_last_synced", "connectors", ["last_synced"])

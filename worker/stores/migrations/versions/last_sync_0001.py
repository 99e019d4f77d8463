"""Keep connectors, and the id of the store."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "last_sync_0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "connectors",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("last_access_control_sync_error", sa.Text),
        sa.Column("last_access_control_sync_scheduled_at", sa.Text),
        sa.Column("last_access_control_sync_status", sa.Text),
        sa.Column("last_deleted_document_count", sa.BigInteger),
        sa.Column("last_incremental_sync_scheduled_at", sa.Text),
        sa.Column("last_indexed_document_count", sa.BigInteger),
        sa.Column("last_sync_error", sa.Text),
        sa.Column("last_sync_scheduled_at", sa.Text),
        sa.Column("last_sync_status", sa.Text),
        sa.Column("last_synced", sa.Text),
        sa.Column("sync_cursor", sa.Text),
        sa.Column("stamps", sa.Text, nullable=False),
        sa.Column("deleted_at", sa.Text),
    )
    store = op.create_table("store", sa.Column("id", sa.Text, primary_key=True))
    op.bulk_insert(store, [{"id": str(uuid4())}])

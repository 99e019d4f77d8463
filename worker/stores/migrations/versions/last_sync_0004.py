"""Drop the index that every event wrote to, and that kept its row from being updated in place."""

from alembic import op

revision = "last_sync_0004"
down_revision = "last_sync_0003"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("connectors_last_synced", "connectors", if_exists=True)

"""Keep what a registration through the connector API says of a connector."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "last_sync_0002"
down_revision = "last_sync_0001"

TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    for name, comment in {
        "index_name": "the index that the connector fills",
        "name": "the connector's name, for people",
        "description": "what the connector is for",
        "service_type": "the kind of source, such as sharepoint",
        "language": "the analyzer of its index",
    }.items():
        op.add_column("connectors", sa.Column(name, TEXT, comment=comment))
    op.add_column(
        "connectors", sa.Column("is_native", sa.Boolean, comment="does Elastic run the connector?")
    )

"""Leave room in PostgreSQL's pages for the next versions of their rows.

With room a row is updated in its page (HOT): no index is written, and what is dead is cleared away
by whoever comes next. It is for pages that are written from now on.
"""

from alembic import op

revision = "last_sync_0005"
down_revision = "last_sync_0004"

HALF = 50  # percent that inserted rows may fill; an event makes a row ten times as long as an `add`


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE connectors SET (fillfactor = {HALF})")

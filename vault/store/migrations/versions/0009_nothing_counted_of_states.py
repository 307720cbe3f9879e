"""PostgreSQL counts no more how many grants and one-time keys are open.

They live for minutes. Counted in a quiet hour there are none, and until it counts again PostgreSQL would read all that
are open to find one, because it expects none. Without a count it expects a fixed part of the table, and looks by key.
A server of the release before works on.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE grants ALTER COLUMN state SET STATISTICS 0")
        op.execute("ALTER TABLE once_keys ALTER COLUMN state SET STATISTICS 0")

"""SQLite drops the index of fingerprints by version: every new card changed one more page for a count made on recovery.

A server of the release before works on.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP INDEX ix_card_secrets_fingerprint_version")

"""When a card was last used, and an index by which old grants are found.

A server of the release before works on: it leaves the new column null, and null counts as the time of first storing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "cards",
        sa.Column(
            "last_used_at",
            sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql"),
            comment="when the card was last stored or released, to the hour; null: when it was first stored",
        ),
    )
    op.execute("UPDATE cards SET last_used_at = created_at")
    op.create_index("ix_grants_expires_at", "grants", ["expires_at", "state"])

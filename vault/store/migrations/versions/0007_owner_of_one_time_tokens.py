"""Whose card a one-time token holds, where the shop said so: only so can its owner be told who got it.

A server of the release before works on: it leaves the new column null, as for a shop that did not say.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "once_keys",
        sa.Column(
            "customer_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            comment="customer whose card it is; null if the shop did not say",
        ),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column(
            "grants",
            "customer_id",
            comment="customer whose card it is; null for a one-time token of which the shop did not say",
        )

"""What a customer's own view of the ledger and a look for a withdrawal need: two indexes.

A server of the release before works on: it reads and writes the same columns.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_consents_customer", "consents", ["tenant_id", "customer_id", "recorded_at", "consent_id"])
    op.create_index(
        "ix_consents_withdrawals",
        "consents",
        ["tenant_id", "withdraws_consent_id"],
        sqlite_where=sa.text("withdraws_consent_id IS NOT NULL"),
        postgresql_where=sa.text("withdraws_consent_id IS NOT NULL"),
    )

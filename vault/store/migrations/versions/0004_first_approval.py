"""First approval: outcomes of payments, the scheme's id of the first one approved, and indexes by customer.

A server of the release before works on: the new columns are null unless set. But it knows nothing of pending cards
being paid with, so every server must run this release before one is configured to store cards as pending.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _identifier() -> sa.types.TypeEngine[Any]:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _time() -> sa.types.TypeEngine[Any]:
    """Microseconds since 1970 on SQLite."""
    return sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_index("ix_consents_customer", "consents", ["customer_id", "tenant_id", "recorded_at"])
    _create_partial_index(
        "ix_consents_withdrawals", "consents", ["tenant_id", "withdraws_consent_id"], "withdraws_consent_id IS NOT NULL"
    )
    op.add_column(
        "cards",
        sa.Column(
            "network_transaction_id", sa.Text(), comment="the scheme's id of the first approved payment that had one"
        ),
    )
    op.add_column(
        "once_keys",
        sa.Column("token", _identifier(), comment="card that was stored in the same call; null if none was"),
    )
    op.add_column(
        "grants",
        sa.Column("outcome", sa.SmallInteger(), comment="1 approved, 2 declined; null until the processor has said so"),
    )
    op.add_column("grants", sa.Column("outcome_at", _time(), comment="when it said so"))
    _create_partial_index(
        "ix_audit_events_releases",
        "audit_events",
        ["tenant_id", "customer_id", "occurred_at", "event_id"],
        "event = 'card.released' AND outcome = 'ok'",
    )


def _create_partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)

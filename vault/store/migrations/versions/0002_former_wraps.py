"""Former wraps beside the current ones, and indexes by which rotation walks and counts.

A server of the release before works on: the new columns are null unless set, and the index that goes is a prefix of
one that comes. But its `reseal_cards` does not know the former wrap and leaves that of another data key behind, so
every server must run this release before the first wraps are exchanged.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "card_secrets",
        sa.Column("previous_wrapped_key", sa.Text(), comment="the same data key under its former wrap; null if none"),
    )
    op.add_column(
        "card_secrets",
        sa.Column("previous_kek_version", sa.BigInteger(), comment="version of the transit key of the former wrap"),
    )
    op.add_column(
        "card_secrets",
        sa.Column(
            "data_key_version",
            sa.BigInteger(),
            nullable=False,
            server_default=sa.text("0"),
            comment="version of the transit key under which this data key was made, however often it was rewrapped",
        ),
    )
    op.execute("UPDATE card_secrets SET data_key_version = kek_version")
    op.create_index("ix_card_secrets_wraps", "card_secrets", ["kek_version", "tenant_id", "token"])
    op.create_index(
        "ix_card_secrets_previous_wraps",
        "card_secrets",
        ["kek_version", "previous_kek_version"],
        sqlite_where=sa.text("previous_kek_version IS NOT NULL"),
        postgresql_where=sa.text("previous_kek_version IS NOT NULL"),
    )
    op.create_index("ix_card_secrets_fingerprint_version", "card_secrets", ["fingerprint_version"])
    op.drop_index("ix_card_secrets_kek_version", "card_secrets")

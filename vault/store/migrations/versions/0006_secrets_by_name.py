"""SQLite keeps the cards' secrets in the order of the cards' names instead of the order of their arrival.

Every walk over all cards, such as a rewrap, goes by name. With tokens drawn at random each card of a walk was on a page
of its own; now a page holds several that follow each other, and their primary key is not stored twice. Not so what is
shown of cards: it is looked for by customer, and SQLite would then read all cards of a shop in the order of names.

A server of the release before works on, but cannot write while the rows are copied: half a minute for a million cards.
The file grows by what they take, and uses that place again; `VACUUM` gives it back. PostgreSQL is not concerned.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_SECRETS = """
    CREATE TABLE card_secrets (
        tenant_id TEXT NOT NULL,
        token TEXT NOT NULL,
        wrapped_key TEXT NOT NULL,
        kek_version BIGINT NOT NULL,
        ciphertext BLOB NOT NULL,
        record_version BIGINT NOT NULL,
        fingerprint BLOB NOT NULL,
        fingerprint_version BIGINT NOT NULL,
        previous_wrapped_key TEXT,
        previous_kek_version BIGINT,
        data_key_version BIGINT DEFAULT 0 NOT NULL,
        CONSTRAINT pk_card_secrets PRIMARY KEY (tenant_id, token),
        CONSTRAINT fk_card_secrets_cards FOREIGN KEY (tenant_id, token) REFERENCES cards (tenant_id, token)
            DEFERRABLE INITIALLY DEFERRED,
        CONSTRAINT uq_card_secrets_tenant_id_fingerprint UNIQUE (tenant_id, fingerprint)
    ) WITHOUT ROWID
"""
_COLUMNS = (
    "tenant_id, token, wrapped_key, kek_version, ciphertext, record_version, fingerprint, fingerprint_version, "
    "previous_wrapped_key, previous_kek_version, data_key_version"
)
_INDEXES = {
    "ix_card_secrets_wraps": "card_secrets (kek_version, tenant_id, token)",
    "ix_card_secrets_previous_wraps": (
        "card_secrets (kek_version, previous_kek_version) WHERE previous_kek_version IS NOT NULL"
    ),
    "ix_card_secrets_fingerprint_version": "card_secrets (fingerprint_version)",
}


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    # The former one steps aside first. No other table has a foreign key that leads here.
    op.execute("ALTER TABLE card_secrets RENAME TO former_card_secrets")
    for name in _INDEXES:
        op.execute(f"DROP INDEX {name}")
    op.execute(_SECRETS)
    op.execute(
        f"INSERT INTO card_secrets ({_COLUMNS}) "  # noqa: S608 - constants
        f"SELECT {_COLUMNS} FROM former_card_secrets ORDER BY tenant_id, token"
    )
    for name, what in _INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON {what}")
    op.execute("DROP TABLE former_card_secrets")

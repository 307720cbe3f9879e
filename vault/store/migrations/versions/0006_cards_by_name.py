"""SQLite keeps cards and their secrets in the order of their names instead of the order of their arrival.

Every walk over all cards, such as a rewrap, goes by name. With tokens drawn at random each card of a walk was on a page
of its own; now a page holds several that follow each other, and their primary key is not stored twice.

A server of the release before works on, but cannot write while the rows are copied: half a minute for a million cards.
The file grows by what they take, and uses that place again; `VACUUM` gives it back. PostgreSQL is not concerned.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_CARDS = """
    CREATE TABLE cards (
        tenant_id TEXT NOT NULL,
        token TEXT NOT NULL,
        customer_id TEXT NOT NULL,
        brand SMALLINT NOT NULL,
        last4 TEXT NOT NULL,
        expiry_year SMALLINT NOT NULL,
        expiry_month SMALLINT NOT NULL,
        state SMALLINT NOT NULL,
        default_rank BIGINT NOT NULL,
        consent_id TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        network_transaction_id TEXT,
        last_used_at BIGINT,
        CONSTRAINT pk_cards PRIMARY KEY (tenant_id, token),
        CONSTRAINT fk_cards_consents FOREIGN KEY (tenant_id, consent_id) REFERENCES consents (tenant_id, consent_id),
        CONSTRAINT ck_cards_last4 CHECK (length(last4) = 4)
    ) WITHOUT ROWID
"""
_COLUMNS_OF_CARDS = (
    "tenant_id, token, customer_id, brand, last4, expiry_year, expiry_month, state, default_rank, consent_id, "
    "created_at, network_transaction_id, last_used_at"
)
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
_COLUMNS_OF_SECRETS = (
    "tenant_id, token, wrapped_key, kek_version, ciphertext, record_version, fingerprint, fingerprint_version, "
    "previous_wrapped_key, previous_kek_version, data_key_version"
)
_INDEXES = {
    "ix_cards_customer": "cards (tenant_id, customer_id, created_at, token)",
    "ix_card_secrets_wraps": "card_secrets (kek_version, tenant_id, token)",
    "ix_card_secrets_previous_wraps": (
        "card_secrets (kek_version, previous_kek_version) WHERE previous_kek_version IS NOT NULL"
    ),
    "ix_card_secrets_fingerprint_version": "card_secrets (fingerprint_version)",
}


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    # The former ones step aside first: then no foreign key ever leads to a table that is being dropped.
    op.execute("ALTER TABLE card_secrets RENAME TO former_card_secrets")
    op.execute("ALTER TABLE cards RENAME TO former_cards")
    for name in _INDEXES:
        op.execute(f"DROP INDEX {name}")
    for create, name, columns in (
        (_CARDS, "cards", _COLUMNS_OF_CARDS),
        (_SECRETS, "card_secrets", _COLUMNS_OF_SECRETS),
    ):
        op.execute(create)
        op.execute(
            f"INSERT INTO {name} ({columns}) SELECT {columns} FROM former_{name} ORDER BY tenant_id, token"  # noqa: S608
        )
    for name, what in _INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON {what}")
    op.execute("DROP TABLE former_card_secrets")
    op.execute("DROP TABLE former_cards")

"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_APPEND_ONLY = ("consents", "audit_events")


def upgrade() -> None:
    _create_consents()
    _create_cards()
    _create_card_secrets()
    _create_once_keys()
    _create_grants()
    _create_idempotency()
    _create_audit_events()
    _create_erasures()
    _create_settings()
    for table in _APPEND_ONLY:
        _refuse_changes(table)


def _identifier() -> sa.types.TypeEngine[Any]:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _time() -> sa.types.TypeEngine[Any]:
    """Microseconds since 1970 on SQLite."""
    return sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")


def _refuse_changes(table: str) -> None:
    """Rows of this table can be added and nothing else, whoever asks."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only' USING ERRCODE = 'restrict_violation'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
    )


def _create_consents() -> None:
    op.create_table(
        "consents",
        sa.Column("tenant_id", _identifier(), nullable=False, comment="shop or partner portal that owns the row"),
        sa.Column("consent_id", _identifier(), nullable=False, comment="name of this ledger entry"),
        sa.Column("kind", sa.Text(), nullable=False, comment="given or withdrawn"),
        sa.Column("withdraws_consent_id", _identifier(), comment="for a withdrawal: the consent that it ends"),
        sa.Column("customer_id", _identifier(), nullable=False, comment="customer whose consent it is"),
        sa.Column("token", _identifier(), nullable=False, comment="stored card that the consent is about"),
        sa.Column("terms_version", sa.Text(), comment="version of the terms that were shown; null for a withdrawal"),
        sa.Column(
            "terms_sha256", sa.LargeBinary(), comment="SHA-256 of the terms that were shown; null for a withdrawal"
        ),
        sa.Column("uses", sa.Text(), comment="uses agreed to, as numbers joined by commas; null for a withdrawal"),
        sa.Column("channel", sa.SmallInteger(), comment="where the customer agreed; null for a withdrawal"),
        sa.Column("locale", sa.Text(), comment="language of the terms (BCP 47); null for a withdrawal"),
        sa.Column("agreed_until", _time(), comment="end of the consent; null if it has none"),
        sa.Column("recorded_at", _time(), nullable=False, comment="when the customer agreed or withdrew"),
        sa.Column("recorded_by", sa.Text(), comment="identity that reported the consent; null for a withdrawal"),
        sa.Column("event_id", _identifier(), comment="for a withdrawal: the audit event that says who asked for it"),
        sa.PrimaryKeyConstraint("tenant_id", "consent_id"),
        sa.CheckConstraint(
            "(kind = 'given' AND withdraws_consent_id IS NULL AND terms_version IS NOT NULL "
            "AND terms_sha256 IS NOT NULL AND uses IS NOT NULL AND channel IS NOT NULL "
            "AND locale IS NOT NULL AND recorded_by IS NOT NULL) "
            "OR (kind = 'withdrawn' AND withdraws_consent_id IS NOT NULL AND event_id IS NOT NULL)",
            name="kind",
        ),
        comment="Append-only ledger of customers' opt-ins and withdrawals",
    )


def _create_cards() -> None:
    op.create_table(
        "cards",
        sa.Column("tenant_id", _identifier(), nullable=False, comment="shop or partner portal that owns the row"),
        sa.Column("token", _identifier(), nullable=False, comment="random name of the card, all that shops ever see"),
        sa.Column("customer_id", _identifier(), nullable=False, comment="customer who owns the card"),
        sa.Column("brand", sa.SmallInteger(), nullable=False, comment="card scheme"),
        sa.Column("last4", sa.Text(), nullable=False, comment="last four digits, for display"),
        sa.Column("expiry_year", sa.SmallInteger(), nullable=False, comment="year of expiry, for display"),
        sa.Column("expiry_month", sa.SmallInteger(), nullable=False, comment="month of expiry, for display"),
        sa.Column("state", sa.SmallInteger(), nullable=False, comment="1 active, 2 pending until the first approval"),
        sa.Column(
            "default_rank",
            sa.BigInteger(),
            nullable=False,
            comment="the customer's highest is the default card; 0: never set",
        ),
        sa.Column("consent_id", _identifier(), nullable=False, comment="consent under which the card is kept"),
        sa.Column("created_at", _time(), nullable=False, comment="when the card was first stored"),
        sa.PrimaryKeyConstraint("tenant_id", "token"),
        sa.ForeignKeyConstraint(["tenant_id", "consent_id"], ["consents.tenant_id", "consents.consent_id"]),
        sa.CheckConstraint("length(last4) = 4", name="last4"),
        comment="Stored cards as they may be shown",
    )
    op.create_index("ix_cards_customer", "cards", ["tenant_id", "customer_id", "created_at", "token"])


def _create_card_secrets() -> None:
    op.create_table(
        "card_secrets",
        sa.Column("tenant_id", _identifier(), nullable=False, comment="shop or partner portal that owns the row"),
        sa.Column("token", _identifier(), nullable=False, comment="the card"),
        sa.Column("wrapped_key", sa.Text(), nullable=False, comment="data key of this card, wrapped by transit"),
        sa.Column("kek_version", sa.BigInteger(), nullable=False, comment="version of the transit key that wrapped it"),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False, comment="the sealed card"),
        sa.Column(
            "record_version",
            sa.BigInteger(),
            nullable=False,
            comment="grows with each new sealing; bound into the seal",
        ),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False, comment="keyed hash that finds the card again"),
        sa.Column(
            "fingerprint_version", sa.BigInteger(), nullable=False, comment="version of the transit key that made it"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "token"),
        # Deferred, so that the fingerprint can decide who may insert before anything else of the card is written.
        sa.ForeignKeyConstraint(
            ["tenant_id", "token"], ["cards.tenant_id", "cards.token"], deferrable=True, initially="DEFERRED"
        ),
        sa.UniqueConstraint("tenant_id", "fingerprint"),
        comment="What opens a stored card; a table of its own, so that it can have a privilege of its own",
    )
    op.create_index("ix_card_secrets_kek_version", "card_secrets", ["kek_version"])


def _create_once_keys() -> None:
    op.create_table(
        "once_keys",
        sa.Column("tenant_id", _identifier(), nullable=False, comment="shop or partner portal that owns the row"),
        sa.Column(
            "once_id",
            _identifier(),
            nullable=False,
            comment="name of the one-time token, whose text only the caller has",
        ),
        sa.Column("order_id", _identifier(), nullable=False, comment="order that it is for"),
        sa.Column("state", sa.Text(), nullable=False, comment="open or spent"),
        sa.Column("wrapped_key", sa.Text(), comment="data key, wrapped by transit; null once spent"),
        sa.Column("kek_version", sa.BigInteger(), nullable=False, comment="version of the transit key that wrapped it"),
        sa.Column("created_at", _time(), nullable=False, comment="when it was issued"),
        sa.Column("expires_at", _time(), nullable=False, comment="from when on it is refused"),
        sa.PrimaryKeyConstraint("tenant_id", "once_id"),
        sa.CheckConstraint(
            "(state = 'open' AND wrapped_key IS NOT NULL) OR (state = 'spent' AND wrapped_key IS NULL)", name="state"
        ),
        comment="Wrapped data keys of one-time tokens",
    )
    op.create_index("ix_once_keys_expires_at", "once_keys", ["state", "expires_at"])


def _create_grants() -> None:
    op.create_table(
        "grants",
        sa.Column("tenant_id", _identifier(), nullable=False, comment="shop or partner portal that owns the row"),
        sa.Column(
            "grant_sha256",
            sa.LargeBinary(),
            nullable=False,
            comment="SHA-256 of the grant, whose text only the caller has",
        ),
        sa.Column("customer_id", _identifier(), comment="customer of the stored card; null for a one-time token"),
        sa.Column("token", _identifier(), comment="stored card that it releases; null for a one-time token"),
        sa.Column("once_id", _identifier(), comment="one-time token that it releases; null for a stored card"),
        sa.Column("subject", _identifier(), nullable=False, comment="token or one-time token's id, whichever is set"),
        sa.Column("order_id", _identifier(), nullable=False, comment="order that it is for"),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False, comment="amount in the currency's smallest unit"),
        sa.Column("currency", sa.Text(), nullable=False, comment="ISO 4217 code of the amount"),
        sa.Column("purpose", sa.SmallInteger(), nullable=False, comment="use of the card that it allows"),
        sa.Column("processor", sa.Text(), nullable=False, comment="payment processor that may redeem it"),
        sa.Column("state", sa.Text(), nullable=False, comment="open, used or revoked"),
        sa.Column("issued_at", _time(), nullable=False, comment="when it was issued"),
        sa.Column("expires_at", _time(), nullable=False, comment="from when on it is refused"),
        sa.Column("issued_by", sa.Text(), nullable=False, comment="identity that asked for it"),
        sa.Column(
            "closed_at",
            _time(),
            comment="when it was used or revoked; null while open, and where its one-time token was voided",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "grant_sha256"),
        sa.CheckConstraint("state IN ('open', 'used', 'revoked')", name="state"),
        sa.CheckConstraint(
            "(token IS NOT NULL AND once_id IS NULL AND subject = token) "
            "OR (token IS NULL AND once_id IS NOT NULL AND subject = once_id)",
            name="subject",
        ),
        comment="Rights to one card number each, for one order",
    )
    op.create_index(
        "uq_grants_open",
        "grants",
        ["tenant_id", "subject", "order_id"],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )


def _create_idempotency() -> None:
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", _identifier(), nullable=False, comment="shop or partner portal that owns the row"),
        sa.Column("method", _identifier(), nullable=False, comment="RPC that was called"),
        sa.Column(
            "idempotency_key", _identifier(), nullable=False, comment="the caller's name for the intended effect"
        ),
        sa.Column(
            "request_sha256", sa.LargeBinary(), nullable=False, comment="digest of the request; empty once erased"
        ),
        sa.Column(
            "fingerprint_version",
            sa.BigInteger(),
            nullable=False,
            comment="version of the fingerprint in the digest; 0: none",
        ),
        sa.Column("answer", sa.Text(), nullable=False, comment="what must be known to answer again; nothing secret"),
        sa.Column("customer_id", _identifier(), comment="customer that the answer speaks of"),
        sa.Column("token", _identifier(), comment="stored card that the answer speaks of"),
        sa.Column("created_at", _time(), nullable=False, comment="when the request was first answered"),
        sa.Column("expires_at", _time(), nullable=False, comment="from when on the key is free again"),
        sa.Column("erased", sa.Boolean(), nullable=False, comment="whether the card was erased since"),
        sa.PrimaryKeyConstraint("tenant_id", "method", "idempotency_key"),
        comment="Requests that were answered, so that a repeat gets the same answer",
    )
    op.create_index("ix_idempotency_token", "idempotency", ["tenant_id", "token"])
    op.create_index("ix_idempotency_expires_at", "idempotency", ["expires_at"])


def _create_audit_events() -> None:
    op.create_table(
        "audit_events",
        sa.Column("tenant_id", _identifier(), nullable=False, comment="shop or partner portal that owns the row"),
        sa.Column("event_id", _identifier(), nullable=False, comment="name of the event"),
        sa.Column("occurred_at", _time(), nullable=False, comment="when it happened"),
        sa.Column("event", sa.Text(), nullable=False, comment="what happened"),
        sa.Column("outcome", sa.Text(), nullable=False, comment="ok, refused or error"),
        sa.Column("reason", sa.Text(), nullable=False, comment="internal code of a refusal; empty for ok"),
        sa.Column("actor", sa.Text(), nullable=False, comment="identity that asked"),
        sa.Column("actor_certificate", sa.Text(), nullable=False, comment="SHA-256 of its certificate, hex"),
        sa.Column("role", sa.Text(), nullable=False, comment="role that the identity acted in"),
        sa.Column("peer", sa.Text(), nullable=False, comment="network address it came from"),
        sa.Column("request_id", _identifier(), nullable=False, comment="the call"),
        sa.Column("customer_id", _identifier(), nullable=False, comment="customer concerned, or empty"),
        sa.Column(
            "target", _identifier(), nullable=False, comment="token, one-time token's id, consent or key concerned"
        ),
        sa.Column("order_id", _identifier(), nullable=False, comment="order concerned, or empty"),
        sa.Column("processor", sa.Text(), nullable=False, comment="payment processor concerned, or empty"),
        sa.Column("grant_sha256", sa.LargeBinary(), comment="SHA-256 of the grant concerned"),
        sa.Column("details", sa.Text(), nullable=False, comment="further facts as canonical JSON"),
        sa.PrimaryKeyConstraint("tenant_id", "event_id"),
        comment="Append-only audit log, written in the transaction of each effect",
    )
    op.create_index("ix_audit_events_occurred_at", "audit_events", ["occurred_at"])
    op.create_index(
        "uq_audit_events_released",
        "audit_events",
        ["tenant_id", "grant_sha256"],
        unique=True,
        sqlite_where=sa.text("event = 'card.released' AND outcome = 'ok'"),
        postgresql_where=sa.text("event = 'card.released' AND outcome = 'ok'"),
    )


def _create_erasures() -> None:
    op.create_table(
        "erasures",
        sa.Column("tenant_id", _identifier(), nullable=False, comment="shop or partner portal that owns the row"),
        sa.Column("token", _identifier(), nullable=False, comment="card that was erased"),
        sa.Column("customer_id", _identifier(), nullable=False, comment="customer who owned it"),
        sa.Column("erased_at", _time(), nullable=False, comment="when it was erased"),
        sa.Column("event_id", _identifier(), nullable=False, comment="audit event that says who asked for it"),
        sa.PrimaryKeyConstraint("tenant_id", "token"),
        comment="Tombstones: a restored backup must not bring these cards back",
    )


def _create_settings() -> None:
    op.create_table(
        "settings",
        sa.Column("name", _identifier(), nullable=False, comment="name of the fact"),
        sa.Column("value", sa.Text(), nullable=False, comment="the fact"),
        sa.PrimaryKeyConstraint("name"),
        comment="Facts about this database, such as its environment label",
    )

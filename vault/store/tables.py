"""The tables. None has a column for a card number, a name, a security code or the first digits of a card.

`tenant_id` leads every primary key, so that a larger shop can partition by it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from vault.store.columns import CanonicalJson, UtcTime, identifier

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


ONLY_ON = "only_on"
"""In the `info` of an index: the one database that has it."""


def _tenant() -> Column[Any]:
    return Column("tenant_id", identifier(), nullable=False, comment="shop or partner portal that owns the row")


consents = Table(
    "consents",
    metadata,
    _tenant(),
    Column("consent_id", identifier(), nullable=False, comment="name of this ledger entry"),
    Column("kind", Text, nullable=False, comment="given or withdrawn"),
    Column("withdraws_consent_id", identifier(), comment="for a withdrawal: the consent that it ends"),
    Column("customer_id", identifier(), nullable=False, comment="customer whose consent it is"),
    Column("token", identifier(), nullable=False, comment="stored card that the consent is about"),
    Column("terms_version", Text, comment="version of the terms that were shown; null for a withdrawal"),
    Column("terms_sha256", LargeBinary, comment="SHA-256 of the terms that were shown; null for a withdrawal"),
    Column("uses", Text, comment="uses agreed to, as numbers joined by commas; null for a withdrawal"),
    Column("channel", SmallInteger, comment="where the customer agreed; null for a withdrawal"),
    Column("locale", Text, comment="language of the terms (BCP 47); null for a withdrawal"),
    Column("agreed_until", UtcTime, comment="end of the consent; null if it has none"),
    Column("recorded_at", UtcTime, nullable=False, comment="when the customer agreed or withdrew"),
    Column("recorded_by", Text, comment="identity that reported the consent; null for a withdrawal"),
    Column("event_id", identifier(), comment="for a withdrawal: the audit event that says who asked for it"),
    PrimaryKeyConstraint("tenant_id", "consent_id"),
    CheckConstraint(
        "(kind = 'given' AND withdraws_consent_id IS NULL AND terms_version IS NOT NULL "
        "AND terms_sha256 IS NOT NULL AND uses IS NOT NULL AND channel IS NOT NULL "
        "AND locale IS NOT NULL AND recorded_by IS NOT NULL) "
        "OR (kind = 'withdrawn' AND withdraws_consent_id IS NOT NULL AND event_id IS NOT NULL)",
        name="kind",
    ),
    # The customer first: while the table is new, PostgreSQL would look for one consent of a tenant by this index, too.
    Index("ix_consents_customer", "customer_id", "tenant_id", "recorded_at"),
    comment="Append-only ledger of customers' opt-ins and withdrawals",
)
Index(
    "ix_consents_withdrawals",
    consents.c.tenant_id,
    consents.c.withdraws_consent_id,
    sqlite_where=consents.c.withdraws_consent_id.is_not(None),
    postgresql_where=consents.c.withdraws_consent_id.is_not(None),
)

cards = Table(
    "cards",
    metadata,
    _tenant(),
    Column("token", identifier(), nullable=False, comment="random name of the card, all that shops ever see"),
    Column("customer_id", identifier(), nullable=False, comment="customer who owns the card"),
    Column("brand", SmallInteger, nullable=False, comment="card scheme"),
    Column("last4", Text, nullable=False, comment="last four digits, for display"),
    Column("expiry_year", SmallInteger, nullable=False, comment="year of expiry, for display"),
    Column("expiry_month", SmallInteger, nullable=False, comment="month of expiry, for display"),
    Column("state", SmallInteger, nullable=False, comment="1 active, 2 pending until the first approval"),
    Column(
        "default_rank", BigInteger, nullable=False, comment="the customer's highest is the default card; 0: never set"
    ),
    Column("consent_id", identifier(), nullable=False, comment="consent under which the card is kept"),
    Column("created_at", UtcTime, nullable=False, comment="when the card was first stored"),
    Column(
        "last_used_at",
        UtcTime,
        comment="when the card was last stored or released, to the hour; null: when it was first stored",
    ),
    Column("network_transaction_id", Text, comment="the scheme's id of the first approved payment that had one"),
    PrimaryKeyConstraint("tenant_id", "token"),
    ForeignKeyConstraint(["tenant_id", "consent_id"], ["consents.tenant_id", "consents.consent_id"]),
    CheckConstraint("length(last4) = 4", name="last4"),
    Index("ix_cards_customer", "tenant_id", "customer_id", "created_at", "token"),
    comment="Stored cards as they may be shown",
)

card_secrets = Table(
    "card_secrets",
    metadata,
    _tenant(),
    Column("token", identifier(), nullable=False, comment="the card"),
    Column("wrapped_key", Text, nullable=False, comment="data key of this card, wrapped by transit"),
    Column("kek_version", BigInteger, nullable=False, comment="version of the transit key that wrapped it"),
    Column("ciphertext", LargeBinary, nullable=False, comment="the sealed card"),
    Column("record_version", BigInteger, nullable=False, comment="grows with each new sealing; bound into the seal"),
    Column("fingerprint", LargeBinary, nullable=False, comment="keyed hash that finds the card again"),
    Column("fingerprint_version", BigInteger, nullable=False, comment="version of the transit key that made it"),
    Column("previous_wrapped_key", Text, comment="the same data key under its former wrap; null if none"),
    Column("previous_kek_version", BigInteger, comment="version of the transit key of the former wrap"),
    Column(
        "data_key_version",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="version of the transit key under which this data key was made, however often it was rewrapped",
    ),
    PrimaryKeyConstraint("tenant_id", "token"),
    # Deferred, so that the fingerprint can decide who may insert before anything else of the card is written.
    ForeignKeyConstraint(
        ["tenant_id", "token"], ["cards.tenant_id", "cards.token"], deferrable=True, initially="DEFERRED"
    ),
    UniqueConstraint("tenant_id", "fingerprint"),
    Index("ix_card_secrets_wraps", "kek_version", "tenant_id", "token"),
    # On SQLite each entry would end in the token, and so be on a page of its own; the rare count reads all rows there.
    Index("ix_card_secrets_fingerprint_version", "fingerprint_version", info={ONLY_ON: "postgresql"}),
    comment="What opens a stored card; a table of its own, so that it can have a privilege of its own",
    sqlite_with_rowid=False,  # kept in the order that every walk goes by
)
Index(
    "ix_card_secrets_previous_wraps",
    card_secrets.c.kek_version,
    card_secrets.c.previous_kek_version,
    sqlite_where=card_secrets.c.previous_kek_version.is_not(None),
    postgresql_where=card_secrets.c.previous_kek_version.is_not(None),
)

once_keys = Table(
    "once_keys",
    metadata,
    _tenant(),
    Column(
        "once_id", identifier(), nullable=False, comment="name of the one-time token, whose text only the caller has"
    ),
    Column("order_id", identifier(), nullable=False, comment="order that it is for"),
    Column("state", Text, nullable=False, comment="open or spent"),
    Column("wrapped_key", Text, comment="data key, wrapped by transit; null once spent"),
    Column("kek_version", BigInteger, nullable=False, comment="version of the transit key that wrapped it"),
    Column("created_at", UtcTime, nullable=False, comment="when it was issued"),
    Column("expires_at", UtcTime, nullable=False, comment="from when on it is refused"),
    Column("token", identifier(), comment="card that was stored in the same call; null if none was"),
    Column("customer_id", identifier(), comment="customer whose card it is; null if the shop did not say"),
    PrimaryKeyConstraint("tenant_id", "once_id"),
    CheckConstraint(
        "(state = 'open' AND wrapped_key IS NOT NULL) OR (state = 'spent' AND wrapped_key IS NULL)", name="state"
    ),
    Index("ix_once_keys_expires_at", "state", "expires_at"),
    comment="Wrapped data keys of one-time tokens",
)

grants = Table(
    "grants",
    metadata,
    _tenant(),
    Column("grant_sha256", LargeBinary, nullable=False, comment="SHA-256 of the grant, whose text only the caller has"),
    Column(
        "customer_id",
        identifier(),
        comment="customer whose card it is; null for a one-time token of which the shop did not say",
    ),
    Column("token", identifier(), comment="stored card that it releases; null for a one-time token"),
    Column("once_id", identifier(), comment="one-time token that it releases; null for a stored card"),
    Column("subject", identifier(), nullable=False, comment="token or one-time token's id, whichever is set"),
    Column("order_id", identifier(), nullable=False, comment="order that it is for"),
    Column("amount_minor", BigInteger, nullable=False, comment="amount in the currency's smallest unit"),
    Column("currency", Text, nullable=False, comment="ISO 4217 code of the amount"),
    Column("purpose", SmallInteger, nullable=False, comment="use of the card that it allows"),
    Column("processor", Text, nullable=False, comment="payment processor that may redeem it"),
    Column("state", Text, nullable=False, comment="open, used or revoked"),
    Column("issued_at", UtcTime, nullable=False, comment="when it was issued"),
    Column("expires_at", UtcTime, nullable=False, comment="from when on it is refused"),
    Column("issued_by", Text, nullable=False, comment="identity that asked for it"),
    Column(
        "closed_at",
        UtcTime,
        comment="when it was used or revoked; null while open, and where its one-time token was voided",
    ),
    Column("outcome", SmallInteger, comment="1 approved, 2 declined; null until the processor has said so"),
    Column("outcome_at", UtcTime, comment="when it said so"),
    PrimaryKeyConstraint("tenant_id", "grant_sha256"),
    CheckConstraint("state IN ('open', 'used', 'revoked')", name="state"),
    CheckConstraint(
        "(token IS NOT NULL AND once_id IS NULL AND subject = token) "
        "OR (token IS NULL AND once_id IS NOT NULL AND subject = once_id)",
        name="subject",
    ),
    Index("ix_grants_expires_at", "expires_at", "state"),
    comment="Rights to one card number each, for one order",
)
one_open_grant = Index(
    "uq_grants_open",
    grants.c.tenant_id,
    grants.c.subject,
    grants.c.order_id,
    unique=True,
    sqlite_where=grants.c.state == "open",
    postgresql_where=grants.c.state == "open",
)

idempotency = Table(
    "idempotency",
    metadata,
    _tenant(),
    Column("method", identifier(), nullable=False, comment="RPC that was called"),
    Column("idempotency_key", identifier(), nullable=False, comment="the caller's name for the intended effect"),
    Column("request_sha256", LargeBinary, nullable=False, comment="digest of the request; empty once erased"),
    Column(
        "fingerprint_version", BigInteger, nullable=False, comment="version of the fingerprint in the digest; 0: none"
    ),
    Column("answer", CanonicalJson, nullable=False, comment="what must be known to answer again; nothing secret"),
    Column("customer_id", identifier(), comment="customer that the answer speaks of"),
    Column("token", identifier(), comment="stored card that the answer speaks of"),
    Column("created_at", UtcTime, nullable=False, comment="when the request was first answered"),
    Column("expires_at", UtcTime, nullable=False, comment="from when on the key is free again"),
    Column("erased", Boolean(create_constraint=False), nullable=False, comment="whether the card was erased since"),
    PrimaryKeyConstraint("tenant_id", "method", "idempotency_key"),
    Index("ix_idempotency_token", "tenant_id", "token"),
    Index("ix_idempotency_expires_at", "expires_at"),
    comment="Requests that were answered, so that a repeat gets the same answer",
)

audit_events = Table(
    "audit_events",
    metadata,
    _tenant(),
    Column("event_id", identifier(), nullable=False, comment="name of the event"),
    Column("occurred_at", UtcTime, nullable=False, comment="when it happened"),
    Column("event", Text, nullable=False, comment="what happened"),
    Column("outcome", Text, nullable=False, comment="ok, refused or error"),
    Column("reason", Text, nullable=False, comment="internal code of a refusal; empty for ok"),
    Column("actor", Text, nullable=False, comment="identity that asked"),
    Column("actor_certificate", Text, nullable=False, comment="SHA-256 of its certificate, hex"),
    Column("role", Text, nullable=False, comment="role that the identity acted in"),
    Column("peer", Text, nullable=False, comment="network address it came from"),
    Column("request_id", identifier(), nullable=False, comment="the call"),
    Column("customer_id", identifier(), nullable=False, comment="customer concerned, or empty"),
    Column("target", identifier(), nullable=False, comment="token, one-time token's id, consent or key concerned"),
    Column("order_id", identifier(), nullable=False, comment="order concerned, or empty"),
    Column("processor", Text, nullable=False, comment="payment processor concerned, or empty"),
    Column("grant_sha256", LargeBinary, comment="SHA-256 of the grant concerned"),
    Column("details", CanonicalJson, nullable=False, comment="further facts as canonical JSON"),
    PrimaryKeyConstraint("tenant_id", "event_id"),
    Index("ix_audit_events_occurred_at", "occurred_at"),
    comment="Append-only audit log, written in the transaction of each effect",
)
_released = (audit_events.c.event == "card.released") & (audit_events.c.outcome == "ok")
Index(
    "uq_audit_events_released",
    audit_events.c.tenant_id,
    audit_events.c.grant_sha256,
    unique=True,
    sqlite_where=_released,
    postgresql_where=_released,
)
Index(
    "ix_audit_events_releases",
    audit_events.c.tenant_id,
    audit_events.c.customer_id,
    audit_events.c.occurred_at,
    audit_events.c.event_id,
    sqlite_where=_released,
    postgresql_where=_released,
)

# The log is one for all tenants, so that nobody can drop a tenant's part of it unseen: its keys begin with no tenant.
audit_queue = Table(
    "audit_queue",
    metadata,
    Column(
        "arrival",
        BigInteger().with_variant(Integer(), "sqlite"),
        nullable=False,
        comment="order of arrival",
    ),
    _tenant(),
    Column("event_id", identifier(), nullable=False, comment="event that waits for its place in the log"),
    PrimaryKeyConstraint("arrival"),
    comment="Events that are committed and not yet in the log; a trigger adds each",
)

audit_leaves = Table(
    "audit_leaves",
    metadata,
    Column("leaf_index", BigInteger, nullable=False, autoincrement=False, comment="place in the log, from 0"),
    _tenant(),
    Column("event_id", identifier(), nullable=False, comment="event at this place"),
    Column("leaf_hash", LargeBinary, nullable=False, comment="RFC 6962 hash of the event's canonical form"),
    PrimaryKeyConstraint("leaf_index"),
    UniqueConstraint("tenant_id", "event_id"),
    comment="The log's order; append-only",
)

audit_nodes = Table(
    "audit_nodes",
    metadata,
    Column("level", SmallInteger, nullable=False, autoincrement=False, comment="8, 16, 24: leaves below are 2^level"),
    Column("node_index", BigInteger, nullable=False, autoincrement=False, comment="place in the level, from 0"),
    Column("node_hash", LargeBinary, nullable=False, comment="RFC 6962 hash over the leaves below"),
    PrimaryKeyConstraint("level", "node_index"),
    comment="Hashes over complete parts of the log, so that proofs are quick; append-only",
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", SmallInteger, nullable=False, autoincrement=False, comment="1: there is one row"),
    Column("size", BigInteger, nullable=False, comment="how many events are in the log"),
    Column("frontier", LargeBinary, nullable=False, comment="hashes of the complete parts at its right edge"),
    PrimaryKeyConstraint("id"),
    CheckConstraint("id = 1", name="one"),
    comment="Where the log ends; each append is decided by this row",
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("size", BigInteger, nullable=False, autoincrement=False, comment="how many events it covers"),
    Column("root", LargeBinary, nullable=False, comment="Merkle tree hash of them"),
    Column("note", Text, nullable=False, comment="the signed checkpoint (C2SP signed-note)"),
    Column("signed_at", UtcTime, nullable=False, comment="when it was signed"),
    PrimaryKeyConstraint("size"),
    comment="Signed statements of the log's size and root; append-only",
)

erasures = Table(
    "erasures",
    metadata,
    _tenant(),
    Column("token", identifier(), nullable=False, comment="card that was erased"),
    Column("customer_id", identifier(), nullable=False, comment="customer who owned it"),
    Column("erased_at", UtcTime, nullable=False, comment="when it was erased"),
    Column("event_id", identifier(), nullable=False, comment="audit event that says who asked for it"),
    PrimaryKeyConstraint("tenant_id", "token"),
    comment="Tombstones: a restored backup must not bring these cards back",
)

settings = Table(
    "settings",
    metadata,
    Column("name", identifier(), nullable=False, comment="name of the fact"),
    Column("value", Text, nullable=False, comment="the fact"),
    PrimaryKeyConstraint("name"),
    comment="Facts about this database, such as its environment label",
)

"""What every column of the database holds, whether it is about a person, and what ends it (PCI DSS 3.2.1, 12.5.2).

A test holds this beside the tables: a column that is missing here, and a line whose column is gone, both fail it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DataClass(StrEnum):
    """What sort of data a column holds. None is a card number, a name or a security code in clear."""

    IDENTIFIER = "identifier"
    """Names something: a tenant, a token, an order. A customer's is the shop's own reference."""
    DISPLAY = "display data"
    """What may be shown of a card (PCI DSS 3.4.1)."""
    SEALED_CARD = "sealed card data"
    """Number and name, AES-256-GCM under a data key of their own (PCI DSS 3.5.1)."""
    WRAPPED_KEY = "wrapped key"
    """A data key that only Vault can unwrap (PCI DSS 3.6.1.2)."""
    KEYED_HASH = "keyed hash"
    """HMAC under a key that never leaves Vault (PCI DSS 3.5.1.1)."""
    DIGEST = "digest"
    """SHA-256 of what the caller holds, such as a grant."""
    CONSENT = "consent evidence"
    AUDIT = "audit evidence"
    PAYMENT = "payment scope"
    """Order, amount, processor: what a grant is for."""
    OPERATIONAL = "operational"


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    table: str
    name: str
    data_class: DataClass
    personal: bool
    """Whether it is, alone or with its row, about a person (GDPR article 4)."""
    longest_life: str
    ended_by: str
    """The rule or act that ends it."""


_LIVES: dict[str, tuple[str, str]] = {
    "cards": (
        "30 days after the expiry month, 395 days unused, the consent's end or 24 hours pending, whichever is first",
        "DeleteCard, EraseCustomer, tenants erase, retention",
    ),
    "card_secrets": ("as the card, in the same transaction", "DeleteCard, EraseCustomer, tenants erase, retention"),
    "once_keys": ("the key: 15 minutes or first use; the row: a day more", "Detokenize, retention"),
    "grants": ("30 days after expiry (at most 90)", "retention"),
    "idempotency": ("24 hours; content goes with its card", "retention; DeleteCard, EraseCustomer empty it"),
    "consents": ("as long as the database: proof of what was agreed to and withdrawn", "nothing: append-only"),
    "audit_events": ("as long as the database; at least 12 months (PCI DSS 10.5.1)", "nothing: append-only"),
    "audit_queue": ("seconds: until the event has its place in the log", "the sequencer"),
    "audit_leaves": ("as long as the database", "nothing: append-only"),
    "audit_nodes": ("as long as the database", "nothing: append-only"),
    "audit_head": ("as long as the database", "the next event"),
    "audit_checkpoints": ("as long as the database", "nothing: append-only"),
    "erasures": ("as long as the database: a restored backup must not bring the card back", "nothing"),
    "settings": ("as long as the database", "the next value"),
}
"""How long a row of each table may live at most, and what ends it."""

_I, _O, _A = DataClass.IDENTIFIER, DataClass.OPERATIONAL, DataClass.AUDIT
_C, _P = DataClass.CONSENT, DataClass.PAYMENT

_COLUMNS: dict[str, dict[str, tuple[DataClass, bool]]] = {
    "consents": {
        "tenant_id": (_I, False),
        "consent_id": (_I, True),
        "kind": (_C, True),
        "withdraws_consent_id": (_I, True),
        "customer_id": (_I, True),
        "token": (_I, True),
        "terms_version": (_C, True),
        "terms_sha256": (_C, True),
        "uses": (_C, True),
        "channel": (_C, True),
        "locale": (_C, True),
        "agreed_until": (_C, True),
        "recorded_at": (_C, True),
        "recorded_by": (_C, False),
        "event_id": (_I, True),
    },
    "cards": {
        "tenant_id": (_I, False),
        "token": (_I, True),
        "customer_id": (_I, True),
        "brand": (DataClass.DISPLAY, True),
        "last4": (DataClass.DISPLAY, True),
        "expiry_year": (DataClass.DISPLAY, True),
        "expiry_month": (DataClass.DISPLAY, True),
        "state": (_O, True),
        "default_rank": (_O, True),
        "consent_id": (_I, True),
        "created_at": (_O, True),
        "last_used_at": (_O, True),
        "network_transaction_id": (_P, True),
    },
    "card_secrets": {
        "tenant_id": (_I, False),
        "token": (_I, True),
        "wrapped_key": (DataClass.WRAPPED_KEY, True),
        "kek_version": (_O, False),
        "ciphertext": (DataClass.SEALED_CARD, True),
        "record_version": (_O, False),
        "fingerprint": (DataClass.KEYED_HASH, True),
        "fingerprint_version": (_O, False),
        "previous_wrapped_key": (DataClass.WRAPPED_KEY, True),
        "previous_kek_version": (_O, False),
        "data_key_version": (_O, False),
    },
    "once_keys": {
        "tenant_id": (_I, False),
        "once_id": (_I, True),
        "order_id": (_I, True),
        "state": (_O, False),
        "wrapped_key": (DataClass.WRAPPED_KEY, True),
        "kek_version": (_O, False),
        "created_at": (_O, True),
        "expires_at": (_O, False),
        "token": (_I, True),
        "customer_id": (_I, True),
    },
    "grants": {
        "tenant_id": (_I, False),
        "grant_sha256": (DataClass.DIGEST, True),
        "customer_id": (_I, True),
        "token": (_I, True),
        "once_id": (_I, True),
        "subject": (_I, True),
        "order_id": (_I, True),
        "amount_minor": (_P, True),
        "currency": (_P, True),
        "purpose": (_P, True),
        "processor": (_P, True),
        "state": (_O, True),
        "issued_at": (_O, True),
        "expires_at": (_O, False),
        "issued_by": (_A, False),
        "closed_at": (_O, True),
        "outcome": (_P, True),
        "outcome_at": (_P, True),
    },
    "idempotency": {
        "tenant_id": (_I, False),
        "method": (_O, False),
        "idempotency_key": (_I, True),
        "request_sha256": (DataClass.DIGEST, True),
        "fingerprint_version": (_O, False),
        "answer": (_O, True),
        "customer_id": (_I, True),
        "token": (_I, True),
        "created_at": (_O, True),
        "expires_at": (_O, False),
        "erased": (_O, False),
    },
    "audit_events": {
        "tenant_id": (_I, False),
        "event_id": (_I, True),
        "occurred_at": (_A, True),
        "event": (_A, True),
        "outcome": (_A, True),
        "reason": (_A, True),
        "actor": (_A, True),  # an operator's login, a client's URI
        "actor_certificate": (_A, False),
        "role": (_A, False),
        "peer": (_A, True),
        "request_id": (_I, True),
        "customer_id": (_I, True),
        "target": (_I, True),
        "order_id": (_I, True),
        "processor": (_A, True),
        "grant_sha256": (DataClass.DIGEST, True),
        "details": (_A, True),
    },
    "audit_queue": {
        "arrival": (_O, False),
        "tenant_id": (_I, False),
        "event_id": (_I, True),
    },
    "audit_leaves": {
        "leaf_index": (_A, False),
        "tenant_id": (_I, False),
        "event_id": (_I, True),
        "leaf_hash": (DataClass.DIGEST, False),
    },
    "audit_nodes": {
        "level": (_A, False),
        "node_index": (_A, False),
        "node_hash": (DataClass.DIGEST, False),
    },
    "audit_head": {
        "id": (_O, False),
        "size": (_A, False),
        "frontier": (DataClass.DIGEST, False),
    },
    "audit_checkpoints": {
        "size": (_A, False),
        "root": (DataClass.DIGEST, False),
        "note": (_A, False),
        "signed_at": (_A, False),
    },
    "erasures": {
        "tenant_id": (_I, False),
        "token": (_I, True),
        "customer_id": (_I, True),
        "erased_at": (_A, True),
        "event_id": (_I, True),
    },
    "settings": {
        "name": (_O, False),
        "value": (_O, False),
    },
}
"""Class of each column, and whether it is personal."""

DATA_MAP: tuple[Column, ...] = tuple(
    Column(table, name, data_class, personal, *_LIVES[table])
    for table, columns in _COLUMNS.items()
    for name, (data_class, personal) in columns.items()
)

"""Database rows as domain values, and the columns that each value needs, by name."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement

from vault.domain.brand import Brand
from vault.domain.card import CardState, Expiry, StoredCard
from vault.domain.consent import CardUse, Consent, ConsentChannel, ConsentEntry
from vault.domain.grant import Grant, GrantState, Money, Redeemable, RedeemableOnce, RedeemableStoredCard, SealedKey
from vault.domain.ids import (
    ConsentId,
    CustomerId,
    IdempotencyKey,
    NetworkTransactionId,
    OnceId,
    OrderId,
    ProcessorName,
    TenantId,
    Token,
)
from vault.domain.outcome import PaymentOutcome
from vault.ports import IdempotencyId, IdempotencyRecord, NewCard, OnceKey
from vault.store.tables import card_secrets, cards, consents, grants, idempotency, once_keys

GIVEN = "given"
WITHDRAWN = "withdrawn"
OPEN = "open"
SPENT = "spent"

CONSENT_COLUMNS: tuple[ColumnElement[Any], ...] = (
    consents.c.consent_id,
    consents.c.customer_id.label("consent_customer_id"),
    consents.c.token.label("consent_token"),
    consents.c.terms_version,
    consents.c.terms_sha256,
    consents.c.uses,
    consents.c.channel,
    consents.c.locale,
    consents.c.agreed_until,
    consents.c.recorded_at.label("agreed_at"),
    consents.c.recorded_by,
)

CARD_COLUMNS: tuple[ColumnElement[Any], ...] = (
    cards.c.tenant_id,
    cards.c.customer_id,
    cards.c.token,
    cards.c.brand,
    cards.c.last4,
    cards.c.expiry_year,
    cards.c.expiry_month,
    cards.c.state,
    cards.c.created_at,
    *CONSENT_COLUMNS,
)

GRANT_COLUMNS: tuple[ColumnElement[Any], ...] = (
    grants.c.tenant_id,
    grants.c.grant_sha256,
    grants.c.customer_id,
    grants.c.token,
    grants.c.once_id,
    grants.c.order_id,
    grants.c.amount_minor,
    grants.c.currency,
    grants.c.purpose,
    grants.c.processor,
    grants.c.state,
    grants.c.issued_at,
    grants.c.expires_at,
    grants.c.issued_by,
    grants.c.outcome,
)

TARGET_COLUMNS: tuple[ColumnElement[Any], ...] = (
    cards.c.customer_id.label("card_customer_id"),
    cards.c.state.label("card_state"),
    cards.c.expiry_year,
    cards.c.expiry_month,
    cards.c.network_transaction_id,
    card_secrets.c.wrapped_key.label("card_wrapped_key"),
    card_secrets.c.ciphertext,
    card_secrets.c.record_version,
    once_keys.c.order_id.label("once_order_id"),
    once_keys.c.wrapped_key.label("once_wrapped_key"),
    once_keys.c.expires_at.label("once_expires_at"),
    once_keys.c.token.label("once_token"),
    *CONSENT_COLUMNS,
)

ONCE_COLUMNS: tuple[ColumnElement[Any], ...] = (
    once_keys.c.tenant_id,
    once_keys.c.once_id,
    once_keys.c.order_id,
    once_keys.c.wrapped_key,
    once_keys.c.created_at,
    once_keys.c.expires_at,
    once_keys.c.token,
    once_keys.c.customer_id,
)

IDEMPOTENCY_COLUMNS: tuple[ColumnElement[Any], ...] = tuple(idempotency.columns)


def uses_text(consent: Consent) -> str:
    """The uses as they are stored."""
    return ",".join(str(int(use)) for use in consent.uses)


def consent_values(entry: ConsentEntry) -> dict[str, Any]:
    """A given consent as a row of the ledger."""
    consent = entry.consent
    return {
        "tenant_id": entry.tenant,
        "consent_id": entry.consent_id,
        "kind": GIVEN,
        "customer_id": entry.customer,
        "token": entry.token,
        "terms_version": consent.terms_version,
        "terms_sha256": consent.terms_sha256,
        "uses": uses_text(consent),
        "channel": int(consent.channel),
        "locale": consent.locale,
        "agreed_until": consent.agreed_until,
        "recorded_at": entry.agreed_at,
        "recorded_by": entry.recorded_by,
    }


def card_values(card: NewCard) -> dict[str, Any]:
    """A card's display row."""
    return {
        "tenant_id": card.tenant,
        "token": card.token,
        "customer_id": card.customer,
        "brand": int(card.brand),
        "last4": card.last4,
        "expiry_year": card.expiry.year,
        "expiry_month": card.expiry.month,
        "state": int(card.state),
        "default_rank": 0,
        "consent_id": card.consent.consent_id,
        "created_at": card.stored_at,
        "last_used_at": card.stored_at,
    }


def secret_values(card: NewCard) -> dict[str, Any]:
    """What opens a card."""
    return {
        "tenant_id": card.tenant,
        "token": card.token,
        "wrapped_key": card.sealed.key.wrapped,
        "kek_version": card.sealed.key.kek_version,
        "data_key_version": card.sealed.key.kek_version,
        "ciphertext": card.sealed.ciphertext,
        "record_version": card.sealed.record_version,
        "fingerprint": card.fingerprint.value,
        "fingerprint_version": card.fingerprint.version,
    }


@lru_cache(maxsize=64)
def uses_of(text: str) -> tuple[CardUse, ...]:
    """What `uses_text` wrote."""
    return tuple(CardUse(int(use)) for use in text.split(","))


def consent_entry(row: Any, tenant: TenantId) -> ConsentEntry:
    """From `CONSENT_COLUMNS`."""
    return ConsentEntry(
        tenant=tenant,
        consent_id=ConsentId(row.consent_id),
        customer=CustomerId(row.consent_customer_id),
        token=Token(row.consent_token),
        consent=Consent(
            terms_version=row.terms_version,
            terms_sha256=row.terms_sha256,
            uses=uses_of(row.uses),
            channel=ConsentChannel(row.channel),
            locale=row.locale,
            agreed_until=row.agreed_until,
        ),
        agreed_at=row.agreed_at,
        recorded_by=row.recorded_by,
    )


def stored_card(row: Any) -> StoredCard:
    """From `CARD_COLUMNS` and `is_default`."""
    tenant = TenantId(row.tenant_id)
    return StoredCard(
        tenant=tenant,
        customer=CustomerId(row.customer_id),
        token=Token(row.token),
        brand=Brand(row.brand),
        last4=row.last4,
        expiry=Expiry(row.expiry_year, row.expiry_month),
        state=CardState(row.state),
        is_default=bool(row.is_default),
        created_at=row.created_at,
        consent=consent_entry(row, tenant),
    )


def grant(row: Any) -> Grant:
    """From `GRANT_COLUMNS`."""
    return Grant(
        tenant=TenantId(row.tenant_id),
        grant_sha256=row.grant_sha256,
        customer=None if row.customer_id is None else CustomerId(row.customer_id),
        token=None if row.token is None else Token(row.token),
        once_id=None if row.once_id is None else OnceId(row.once_id),
        order=OrderId(row.order_id),
        amount=Money(row.amount_minor, row.currency),
        purpose=CardUse(row.purpose),
        processor=ProcessorName(row.processor),
        state=GrantState(row.state),
        issued_at=row.issued_at,
        expires_at=row.expires_at,
        issued_by=row.issued_by,
        outcome=None if row.outcome is None else PaymentOutcome(row.outcome),
    )


def redeemable(row: Any) -> Redeemable:
    """From `GRANT_COLUMNS` and `TARGET_COLUMNS`."""
    found = grant(row)
    target: RedeemableStoredCard | RedeemableOnce | None = None
    # Without its ledger entry a card is not there: no card without consent, also where somebody removed the entry.
    if found.token is not None and row.card_wrapped_key is not None and row.consent_token is not None:
        target = RedeemableStoredCard(
            token=found.token,
            customer=CustomerId(row.card_customer_id),
            key=SealedKey(row.card_wrapped_key),
            ciphertext=row.ciphertext,
            record_version=row.record_version,
            expiry=Expiry(row.expiry_year, row.expiry_month),
            is_active=row.card_state == CardState.ACTIVE,
            consent=consent_entry(row, found.tenant),
            network_transaction_id=None
            if row.network_transaction_id is None
            else NetworkTransactionId(row.network_transaction_id),
        )
    elif found.once_id is not None and row.once_wrapped_key is not None:
        target = RedeemableOnce(
            once_id=found.once_id,
            order=OrderId(row.once_order_id),
            key=SealedKey(row.once_wrapped_key),
            expires_at=row.once_expires_at,
            token=None if row.once_token is None else Token(row.once_token),
        )
    return Redeemable(found, target)


def once_key(row: Any) -> OnceKey:
    """From `ONCE_COLUMNS`."""
    return OnceKey(
        tenant=TenantId(row.tenant_id),
        once_id=OnceId(row.once_id),
        order=OrderId(row.order_id),
        key=SealedKey(row.wrapped_key),
        created_at=row.created_at,
        expires_at=row.expires_at,
        token=None if row.token is None else Token(row.token),
        customer=None if row.customer_id is None else CustomerId(row.customer_id),
    )


def idempotency_record(row: Any) -> IdempotencyRecord:
    """From `IDEMPOTENCY_COLUMNS`."""
    return IdempotencyRecord(
        id=IdempotencyId(TenantId(row.tenant_id), row.method, IdempotencyKey(row.idempotency_key)),
        request_sha256=row.request_sha256,
        fingerprint_version=row.fingerprint_version,
        answer=row.answer,
        customer=None if row.customer_id is None else CustomerId(row.customer_id),
        token=None if row.token is None else Token(row.token),
        created_at=row.created_at,
        expires_at=row.expires_at,
        erased=bool(row.erased),
    )

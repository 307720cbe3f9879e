"""Rows for the store's tests: made of random ids, so that two tests never mean the same thing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

from tests.support.world import CUSTOMER, NOW, ORDER, PROCESSOR, TENANT, consent, new_token
from vault.domain.audit import RELEASED, AuditEvent, Outcome
from vault.domain.brand import Brand
from vault.domain.card import CardState, Expiry
from vault.domain.consent import CardUse, Consent, ConsentEntry
from vault.domain.errors import CardVaultError
from vault.domain.grant import Grant, GrantState, Money, SealedKey
from vault.domain.ids import (
    ConsentId,
    CustomerId,
    EventId,
    IdempotencyKey,
    OnceId,
    OrderId,
    ProcessorName,
    RequestId,
    TenantId,
    Token,
)
from vault.domain.outcome import PaymentOutcome
from vault.ports import (
    CardRef,
    CardsOf,
    Claim,
    Fingerprint,
    GrantKey,
    IdempotencyId,
    IdempotencyRecord,
    NewCard,
    OnceKey,
    OutcomeReport,
    SealedCard,
    Store,
    Writer,
)
from vault.ports_operator import CardKey, OperatorStore, OperatorWriter, RekeyedCard, WrapReplacement

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


def sealed_key(version: int = 1) -> SealedKey:
    """As transit would answer, of random letters."""
    return SealedKey(f"vault:v{version}:{os.urandom(45).hex()}")


def event(*, name: str = "test.done", grant: bytes | None = None, tenant: TenantId = TENANT) -> AuditEvent:
    """Evidence."""
    return AuditEvent(
        event_id=EventId.from_random(os.urandom(16)),
        occurred_at=NOW,
        event=name,
        outcome=Outcome.OK,
        reason="",
        actor="spiffe://example.test/checkout",
        actor_certificate="ab" * 32,
        role="checkout",
        peer="127.0.0.1",
        request_id=RequestId.from_random(os.urandom(16)),
        tenant=tenant,
        grant_sha256=grant,
        details={"n": 1, "a": "ü"},
    )


def released(grant: bytes, tenant: TenantId = TENANT) -> AuditEvent:
    """A redeemed grant."""
    return event(name=RELEASED, grant=grant, tenant=tenant)


def card(
    *,
    tenant: TenantId = TENANT,
    customer: CustomerId = CUSTOMER,
    token: Token | None = None,
    fingerprint: bytes | None = None,
    state: CardState = CardState.ACTIVE,
    agreed: Consent | None = None,
    stored_at: datetime = NOW,
    last4: str = "0000",
) -> NewCard:
    """A new card."""
    token = token or new_token()
    return NewCard(
        tenant=tenant,
        customer=customer,
        token=token,
        brand=Brand.VISA,
        last4=last4,
        expiry=Expiry(2031, 7),
        state=state,
        consent=ConsentEntry(
            tenant=tenant,
            consent_id=ConsentId.from_random(os.urandom(16)),
            customer=customer,
            token=token,
            consent=agreed or consent(uses=(CardUse.CUSTOMER_INITIATED, CardUse.RECURRING), agreed_until=NOW + DAY),
            agreed_at=stored_at,
            recorded_by="spiffe://example.test/checkout",
        ),
        fingerprint=Fingerprint(1, fingerprint or os.urandom(32)),
        sealed=SealedCard(sealed_key(), os.urandom(120), 1),
        stored_at=stored_at,
    )


def sealed_again(old: NewCard) -> NewCard:
    """The same card, sealed once more under a new consent."""
    fresh = card(tenant=old.tenant, customer=old.customer, token=old.token, fingerprint=old.fingerprint.value)
    return replace(
        fresh,
        expiry=Expiry(2034, 1),
        sealed=SealedCard(sealed_key(2), os.urandom(120), old.sealed.record_version + 1),
    )


def key_of(new: NewCard) -> CardKey:
    """Its name, as operator commands say it."""
    return CardKey(new.tenant, new.token)


def rewrapped(new: NewCard, *, version: int = 2) -> WrapReplacement:
    """Its data key under another wrap."""
    return WrapReplacement(key_of(new), new.sealed.key, sealed_key(version))


def rekeyed(new: NewCard, *, fingerprint: bytes | None = None, version: int = 2) -> RekeyedCard:
    """The same card under another data key."""
    return RekeyedCard(
        card=key_of(new),
        from_record_version=new.sealed.record_version,
        sealed=SealedCard(sealed_key(version), os.urandom(120), new.sealed.record_version + 1),
        fingerprint=Fingerprint(version, fingerprint or os.urandom(32)),
    )


def ref(new: NewCard) -> CardRef:
    """Its name."""
    return CardRef(new.tenant, new.customer, new.token)


def grant_for(
    subject: Token | OnceId,
    *,
    tenant: TenantId = TENANT,
    order: OrderId = ORDER,
    expires_at: datetime = NOW + 2 * MINUTE,
) -> Grant:
    """An open grant."""
    return Grant(
        tenant=tenant,
        grant_sha256=os.urandom(32),
        customer=CUSTOMER if isinstance(subject, Token) else None,
        token=subject if isinstance(subject, Token) else None,
        once_id=subject if isinstance(subject, OnceId) else None,
        order=order,
        amount=Money(12_345_678_901, "EUR"),
        purpose=CardUse.CUSTOMER_INITIATED,
        processor=PROCESSOR,
        state=GrantState.OPEN,
        issued_at=NOW,
        expires_at=expires_at,
        issued_by="spiffe://example.test/checkout",
    )


def claim_of(grant: Grant, *, record_version: int = 1) -> Claim:
    """An attempt to use it up."""
    return Claim(
        tenant=grant.tenant,
        grant_sha256=grant.grant_sha256,
        token=grant.token,
        record_version=record_version if grant.token is not None else 0,
        once_id=grant.once_id,
    )


def outcome_of(
    grant: Grant,
    outcome: PaymentOutcome = PaymentOutcome.APPROVED,
    *,
    processor: ProcessorName = PROCESSOR,
    order: OrderId | None = None,
    tenant: TenantId = TENANT,
) -> OutcomeReport:
    """What became of its payment."""
    return OutcomeReport(GrantKey((tenant,), grant.grant_sha256), processor, order or grant.order, outcome)


def once_key(*, tenant: TenantId = TENANT, order: OrderId = ORDER, expires_at: datetime = NOW + 15 * MINUTE) -> OnceKey:
    """The wrapped key of a one-time token."""
    return OnceKey(tenant, OnceId.from_random(os.urandom(16)), order, sealed_key(), NOW, expires_at)


def record(
    *,
    key: str | None = None,
    tenant: TenantId = TENANT,
    method: str = "Tokenize",
    answer: Mapping[str, str | int] | None = None,
    token: Token | None = None,
    created_at: datetime = NOW,
) -> IdempotencyRecord:
    """An answered request, good for a day."""
    return IdempotencyRecord(
        id=IdempotencyId(tenant, method, IdempotencyKey(key or os.urandom(8).hex())),
        request_sha256=os.urandom(32),
        fingerprint_version=1,
        answer=answer or {"n": 7, "text": "ü"},
        customer=CUSTOMER,
        token=token,
        created_at=created_at,
        expires_at=created_at + DAY,
    )


@contextmanager
def writing(store: Store) -> Iterator[Writer]:
    """A transaction that leaves evidence."""
    with store.writing() as tx:
        yield tx
        tx.append_events([event()])


@contextmanager
def operating(store: OperatorStore) -> Iterator[OperatorWriter]:
    """The same for operator commands."""
    with store.writing() as tx:
        yield tx
        tx.append_events([event()])


def stored(store: Store, *new: NewCard) -> None:
    """Put cards there."""
    with writing(store) as tx:
        assert tx.insert_new_cards(new) == {each.token for each in new}


def granted(store: Store, *new: Grant) -> None:
    """Put grants there."""
    with writing(store) as tx:
        assert tx.insert_grants(new) == {each.grant_sha256 for each in new}


def kept(store: Store, *keys: OnceKey) -> None:
    """Put keys of one-time tokens there."""
    with writing(store) as tx:
        tx.insert_once_keys(keys)


def claimed(store: Store, *grants: Grant, now: datetime = NOW, record_version: int = 1) -> frozenset[bytes]:
    """Try to use grants up."""
    with writing(store) as tx:
        return tx.claim_grants([claim_of(each, record_version=record_version) for each in grants], now=now)


def reason_of(outcome: object) -> str:
    """Why a call came to nothing."""
    return outcome.reason if isinstance(outcome, CardVaultError) else repr(outcome)


def listed(store: Store, customer: CustomerId = CUSTOMER, tenant: TenantId = TENANT) -> Sequence[Token]:
    """The customer's tokens, in the order of the list."""
    with store.reading() as tx:
        return [each.token for each in tx.list_cards([CardsOf(tenant, customer, None, 100)])[0]]

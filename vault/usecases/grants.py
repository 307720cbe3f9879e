"""Issues and revokes the right to one card number. Needs no key: it works while Vault is sealed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from vault.domain.audit import AuditEvent, event_by
from vault.domain.caller import Caller
from vault.domain.card import CardState, StoredCard
from vault.domain.consent import CardUse
from vault.domain.errors import (
    CardVaultError,
    ConsentRequired,
    IdempotencyConflict,
    InvalidField,
    NotAvailable,
    PreconditionFailed,
)
from vault.domain.grant import Grant, GrantState, GrantText, Money, OneTimeToken
from vault.domain.ids import RANDOM_BYTES, CustomerId, IdempotencyKey, OnceId, OrderId, ProcessorName, TenantId, Token
from vault.ports import CardRef, GrantKey, IdempotencyRecord, OnceKey, Writer
from vault.usecases.batch import Attempt, Journal, RollBack, World, run_rounds
from vault.usecases.idempotency import Request, Settled, digest, settle

ISSUED = "grant.issued"
REVOKED = "grant.revoked"


@dataclass(frozen=True, slots=True)
class StoredCardSubject:
    """A stored card with its owner: a token alone is not enough to spend it."""

    customer: CustomerId
    token: Token


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueGrantCommand:
    """The scope of one release."""

    caller: Caller
    idempotency_key: IdempotencyKey | None
    subject: StoredCardSubject | OneTimeToken
    order: OrderId
    amount: Money
    purpose: CardUse
    processor: ProcessorName
    lifetime: timedelta


@dataclass(frozen=True, slots=True)
class IssuedGrant:
    """The grant, for the caller's eyes only."""

    grant: GrantText
    expires_at: datetime


@dataclass(slots=True)
class _Issuing(Attempt[IssueGrantCommand, IssuedGrant]):
    text: GrantText | None = None
    grant: Grant | None = None

    @property
    def tenant(self) -> TenantId:
        return self.caller.known.tenant

    @property
    def card_ref(self) -> CardRef | None:
        subject = self.command.subject
        return None if isinstance(subject, OneTimeToken) else CardRef(self.tenant, subject.customer, subject.token)

    @property
    def once_ref(self) -> tuple[TenantId, OnceId] | None:
        subject = self.command.subject
        return (self.tenant, subject.once_id) if isinstance(subject, OneTimeToken) else None


class IssueGrant:
    """The use case; call it with a batch. `processors` says which processor serves which tenants."""

    def __init__(self, *, world: World, processors: Mapping[ProcessorName, frozenset[TenantId]]) -> None:
        self._world = world
        self._processors = processors

    def __call__(self, commands: Sequence[IssueGrantCommand]) -> Sequence[IssuedGrant | CardVaultError]:
        """One outcome for each command, in their order."""
        attempts = [_Issuing(command, command.caller) for command in commands]
        run_rounds(attempts, self._round)
        return [attempt.outcome() for attempt in attempts]

    def _round(self, attempts: Sequence[_Issuing]) -> None:
        now = self._world.clock.now()
        for a in attempts:
            self._draw(a, now)
        journal = Journal(self._world, ISSUED)
        with self._world.store.writing() as tx:
            self._write(tx, attempts, journal, now)
            if not journal.events:
                raise RollBack
            tx.append_events(journal.events)
        journal.committed()

    def _draw(self, a: _Issuing, now: datetime) -> None:
        command, subject = a.command, a.command.subject
        once = subject if isinstance(subject, OneTimeToken) else None
        stored = subject if isinstance(subject, StoredCardSubject) else None
        a.text = GrantText.draw(self._world.entropy.bytes(RANDOM_BYTES), once)
        a.grant = Grant(
            tenant=a.tenant,
            grant_sha256=a.text.sha256(),
            customer=stored.customer if stored else None,
            token=stored.token if stored else None,
            once_id=once.once_id if once else None,
            order=command.order,
            amount=command.amount,
            purpose=command.purpose,
            processor=command.processor,
            state=GrantState.OPEN,
            issued_at=now,
            expires_at=now + command.lifetime,
            issued_by=a.caller.known.uri,
        )

    def _write(self, tx: Writer, attempts: Sequence[_Issuing], journal: Journal, now: datetime) -> None:
        requests = [_idempotency_of(a) for a in attempts if a.command.idempotency_key is not None]
        without_key = [a for a in attempts if a.command.idempotency_key is None]
        settled: Settled[_Issuing] = settle(tx, requests, without_key=without_key, journal=journal, now=now)
        mine = [a for a in attempts if id(a) in settled.claimed]
        again = [(a, settled.repeats[id(a)]) for a in attempts if id(a) in settled.repeats]
        mine += [a for a, record in again if self._void_former(tx, a, record, journal, now)]
        allowed = self._allowed(tx, mine, journal, now)
        grants = [a.grant for a in allowed if a.grant is not None]
        tx.revoke_open_grants([(g.tenant, g.subject, g.order) for g in grants], now=now)
        inserted = tx.insert_grants(grants)
        for a in allowed:
            if a.grant is not None and a.text is not None and a.grant.grant_sha256 in inserted:
                a.result = IssuedGrant(a.text, a.grant.expires_at)
                journal.events.append(self._event(a, a.grant, now))
        failed = {id(a) for a in mine if a.result is None}
        tx.release_idempotency([r.id for r in requests if id(r.attempt) in failed & settled.claimed])

    def _void_former(self, tx: Writer, a: _Issuing, record: IdempotencyRecord, journal: Journal, now: datetime) -> bool:
        """A repeat voids the unused first grant; one that was used stays the only answer there will ever be."""
        former = bytes.fromhex(str(record.answer["grant_sha256"]))
        tx.revoke_grants([(a.tenant, former)], now=now)
        known = tx.grants([GrantKey((a.tenant,), former)]).get(former)
        if known is not None and known.state is GrantState.USED:
            journal.refuse(a, IdempotencyConflict("grant_used"), grant_sha256=former)
            return False
        assert a.grant is not None, "drawn before the transaction"
        tx.replace_answers({record.id: {"grant_sha256": a.grant.grant_sha256.hex()}})
        return True

    def _allowed(self, tx: Writer, attempts: Sequence[_Issuing], journal: Journal, now: datetime) -> Sequence[_Issuing]:
        cards = tx.cards([ref for a in attempts if (ref := a.card_ref) is not None])
        once = tx.once_keys([named for a in attempts if (named := a.once_ref) is not None])
        allowed: list[_Issuing] = []
        for a in attempts:
            card = cards.get(a.card_ref) if a.card_ref is not None else None
            key = once.get(a.once_ref) if a.once_ref is not None else None
            error = self._objection(a, card, key, now)
            if error is None:
                if key is not None and a.grant is not None:
                    a.grant = replace(a.grant, customer=key.customer)
                allowed.append(a)
                continue
            command = a.command
            customer = a.card_ref.customer if a.card_ref is not None else key.customer if key is not None else None
            journal.refuse(
                a,
                error,
                customer=customer or "",
                target=a.card_ref.token if a.card_ref else a.once_ref[1] if a.once_ref else "",
                order=command.order,
                processor=command.processor,
            )
        return allowed

    def _objection(
        self, a: _Issuing, card: StoredCard | None, key: OnceKey | None, now: datetime
    ) -> CardVaultError | None:
        """Why the grant may not be issued, or None."""
        command = a.command
        if a.tenant not in self._processors.get(command.processor, frozenset()):
            return InvalidField("processor", "is not a processor of this shop")
        if a.once_ref is not None:
            if key is None or key.order != command.order or now >= key.expires_at:
                return NotAvailable("one_time_token_gone" if key is None else "one_time_token_unfit")
            if command.purpose is not CardUse.CUSTOMER_INITIATED:
                return ConsentRequired("one_time_token_for_merchant")
            return None
        if card is None:
            return NotAvailable("card_gone")
        # A payment that the customer starts may be the first one approved, for which a pending card waits.
        if card.state is not CardState.ACTIVE and command.purpose is not CardUse.CUSTOMER_INITIATED:
            return NotAvailable("card_pending")
        if card.expiry.is_past(now):
            return NotAvailable("card_expired")
        if not card.consent.covers(command.purpose, now=now):
            return ConsentRequired("consent_not_covering")
        return None

    def _event(self, a: _Issuing, grant: Grant, now: datetime) -> AuditEvent:
        return event_by(
            a.caller,
            event_id=self._world.new_event_id(now),
            now=now,
            event=ISSUED,
            customer=grant.customer or "",
            target=grant.subject,
            order=grant.order,
            processor=grant.processor,
            grant_sha256=grant.grant_sha256,
            details={
                "purpose": grant.purpose.name.lower(),
                "minor_units": grant.amount.minor_units,
                "currency": grant.amount.currency,
            },
        )


def _idempotency_of(a: _Issuing) -> Request[_Issuing]:
    command, subject = a.command, a.command.subject
    assert command.idempotency_key is not None, "only asked for requests with a key"
    assert a.grant is not None, "drawn before the transaction"
    if isinstance(subject, OneTimeToken):
        named = hashlib.sha256(subject.reveal_text().encode()).hexdigest()
    else:
        named = f"{subject.customer}/{subject.token}"
    fields = {
        "subject": named,
        "order": command.order,
        "amount": (command.amount.minor_units, command.amount.currency),
        "purpose": command.purpose,
        "processor": command.processor,
        "lifetime": command.lifetime.total_seconds(),
    }
    return Request(
        attempt=a,
        tenant=a.tenant,
        method="IssueGrant",
        key=command.idempotency_key,
        digests={0: digest(fields)},
        answer={"grant_sha256": a.grant.grant_sha256.hex()},
        customer=a.grant.customer,
        token=a.grant.token,
        voids_former=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeGrantCommand:
    """A grant to be taken back."""

    caller: Caller
    grant: GrantText


@dataclass(frozen=True, slots=True)
class RevokedGrant:
    """It releases nothing any more."""


@dataclass(slots=True)
class _Revoking(Attempt[RevokeGrantCommand, RevokedGrant]):
    pass


class RevokeGrant:
    """The use case; call it with a batch."""

    def __init__(self, *, world: World) -> None:
        self._world = world

    def __call__(self, commands: Sequence[RevokeGrantCommand]) -> Sequence[RevokedGrant | CardVaultError]:
        """One outcome for each command, in their order."""
        attempts = [_Revoking(command, command.caller) for command in commands]
        run_rounds(attempts, self._round)
        return [attempt.outcome() for attempt in attempts]

    def _round(self, attempts: Sequence[_Revoking]) -> None:
        now = self._world.clock.now()
        journal = Journal(self._world, REVOKED)
        with self._world.store.writing() as tx:
            named = {id(a): (a.caller.known.tenant, a.command.grant.sha256()) for a in attempts}
            tx.revoke_grants(sorted(set(named.values())), now=now)
            known = tx.grants([GrantKey((tenant,), sha256) for tenant, sha256 in set(named.values())])
            for a in attempts:
                grant = known.get(named[id(a)][1])
                if grant is None or grant.tenant != a.caller.known.tenant:
                    journal.refuse(a, NotAvailable("unknown_grant"))
                elif grant.state is GrantState.USED:
                    error = PreconditionFailed("grant_used", message="grant already used")
                    journal.refuse(a, error, target=grant.subject, grant_sha256=grant.grant_sha256)
                else:
                    a.result = RevokedGrant()
                    journal.events.append(
                        event_by(
                            a.caller,
                            event_id=self._world.new_event_id(now),
                            now=now,
                            event=REVOKED,
                            customer=grant.customer or "",
                            target=grant.subject,
                            order=grant.order,
                            processor=grant.processor,
                            grant_sha256=grant.grant_sha256,
                        )
                    )
            tx.append_events(journal.events)
        journal.committed()

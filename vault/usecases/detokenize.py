"""Turns a grant into a card number, once.

The order of the steps is the promise: check the grant, unwrap its one data key in Vault, claim the grant and record
the release in one transaction, and only after that is durable open the card. Trouble before the commit leaves the
grant good; trouble after it burns the grant, never the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_never

from vault.cleanroom import OpenedCard, open_sealed
from vault.domain.audit import OPEN_FAILED, RELEASED, Outcome, event_by
from vault.domain.binding import Binding, one_time_binding, stored_card_binding
from vault.domain.caller import Caller
from vault.domain.card import Expiry
from vault.domain.consent import CardUse
from vault.domain.errors import (
    BrokenSeal,
    CardVaultError,
    KeyRefused,
    KeyRingUnavailable,
    Refused,
    StoreUnavailable,
    Unavailable,
)
from vault.domain.grant import (
    Allowed,
    Denied,
    Grant,
    GrantText,
    Money,
    RedeemableOnce,
    RedeemableStoredCard,
    decide_redemption,
)
from vault.domain.ids import NetworkTransactionId, OrderId
from vault.ports import Claim, GrantKey, KeyName, KeyToUnwrap, ReleaseKeys
from vault.usecases.batch import Attempt, Journal, World, run_rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenizeCommand:
    """A grant with what it must have been issued for."""

    caller: Caller
    grant: GrantText
    order: OrderId
    amount: Money
    deadline: datetime | None = None
    """When the caller stops waiting; a grant is not used up for an answer that nobody takes."""


@dataclass(frozen=True, slots=True)
class ReleasedCard:
    """The card, for the processor alone."""

    card: OpenedCard
    expiry: Expiry
    purpose: CardUse
    network_transaction_id: NetworkTransactionId | None
    """Of the card's first approved payment; for merchant-initiated purposes alone, which must refer to it."""


@dataclass(slots=True)
class _Attempt(Attempt[DetokenizeCommand, ReleasedCard]):
    grant: Grant | None = None
    target: RedeemableStoredCard | RedeemableOnce | None = None
    binding: Binding | None = None
    data_key: bytes | None = None
    denied: str = ""

    @property
    def sha256(self) -> bytes:
        return self.command.grant.sha256()


class Detokenize:
    """The use case; call it with a batch."""

    def __init__(self, *, world: World, keys: ReleaseKeys) -> None:
        self._world = world
        self._keys = keys

    def __call__(self, commands: Sequence[DetokenizeCommand]) -> Sequence[ReleasedCard | CardVaultError]:
        """One outcome for each command, in their order."""
        attempts = [_Attempt(command, command.caller) for command in commands]
        run_rounds(attempts, self._round)
        return [attempt.outcome() for attempt in attempts]

    def _round(self, attempts: Sequence[_Attempt]) -> None:
        self._check(attempts)
        self._unwrap([a for a in attempts if a.target is not None])
        self._claim([a for a in attempts if a.is_open])
        # Commit before opening: the audit event must outlive us.
        self._open([a for a in attempts if a.is_open and a.data_key is not None])

    def _check(self, attempts: Sequence[_Attempt]) -> None:
        now = self._world.clock.now()
        keys = {GrantKey(a.caller.known.tenants, a.sha256) for a in attempts}
        with self._world.store.reading() as tx:
            found = tx.redeemables(list(keys))
        seen: set[bytes] = set()
        for a in attempts:
            a.grant = a.target = a.data_key = None
            a.denied = ""
            redeemable = found.get(a.sha256)
            decision = decide_redemption(
                redeemable,
                identity=a.caller.known,
                order=a.command.order,
                amount=a.command.amount,
                now=now,
            )
            a.grant = redeemable.grant if redeemable is not None else None
            match decision:
                case Denied(reason):
                    a.denied = reason
                case Allowed() if a.sha256 in seen:
                    pass  # the next round shows what became of the first
                case Allowed(_, target):
                    a.target = target
                    a.binding = self._binding_of(decision.redeemable.grant, target)
                    seen.add(a.sha256)
                case _:
                    assert_never(decision)

    def _binding_of(self, grant: Grant, target: RedeemableStoredCard | RedeemableOnce) -> Binding:
        environment = self._world.environment
        if isinstance(target, RedeemableOnce):
            return one_time_binding(
                environment=environment,
                tenant=grant.tenant,
                once_id=target.once_id,
                order=target.order,
                expires_at=target.expires_at,
            )
        return stored_card_binding(
            environment=environment,
            tenant=grant.tenant,
            customer=target.customer,
            token=target.token,
            consent=target.consent.consent_id,
            record_version=target.record_version,
        )

    def _unwrap(self, attempts: Sequence[_Attempt]) -> None:
        if not attempts:
            return
        items = [
            KeyToUnwrap(
                name=KeyName.ONCE if isinstance(a.target, RedeemableOnce) else KeyName.CARDS,
                key=a.target.key,
                context=a.binding.wrap_context(),
            )
            for a in attempts
            if a.target is not None and a.binding is not None
        ]
        for a, answer in zip(attempts, self._keys.unwrap(items), strict=True):
            match answer:
                case KeyRefused():
                    a.target = None
                    a.denied = "key_refused"
                case KeyRingUnavailable():
                    a.error = answer
                case _:
                    a.data_key = answer

    def _claim(self, attempts: Sequence[_Attempt]) -> None:
        """Decide in the database who redeems, and record every release and every refusal with it."""
        for a in attempts:
            if a.data_key is not None and self._is_too_late(a):
                a.data_key = None
                a.error = Unavailable("deadline_before_claim")
        decided = [a for a in attempts if a.data_key is not None or a.denied]
        if not decided:
            return
        journal = Journal(self._world, RELEASED)
        with self._world.store.writing() as tx:
            now = self._world.clock.now()
            claims = {a.sha256: _claim_of(a.grant, a.target) for a in decided if a.data_key is not None and a.grant}
            won = tx.claim_grants(list(claims.values()), now=now) if claims else frozenset()
            for a in decided:
                if a.data_key is not None and a.sha256 not in won:
                    # Somebody redeemed it, revoked it, or sealed or erased the card meanwhile: look again.
                    a.data_key = None
                elif a.data_key is not None:
                    journal.events.append(
                        event_by(
                            a.caller,
                            event_id=self._world.new_event_id(now),
                            now=now,
                            event=RELEASED,
                            details=_stored_with(a.target),
                            **_what(a),
                        )
                    )
                else:
                    altered = a.denied == "key_refused"
                    journal.refuse(
                        a,
                        Refused(a.denied),
                        event=OPEN_FAILED if altered else RELEASED,
                        outcome=Outcome.ERROR if altered else Outcome.REFUSED,
                        **_what(a),
                    )
            tx.append_events(journal.events)
        journal.committed()

    def _is_too_late(self, a: _Attempt) -> bool:
        deadline = a.command.deadline
        return deadline is not None and self._world.clock.now() >= deadline

    def _open(self, attempts: Sequence[_Attempt]) -> None:
        broken: list[_Attempt] = []
        for a in attempts:
            assert a.grant is not None, "claimed before"
            assert a.target is not None, "claimed before"
            assert a.binding is not None, "claimed before"
            assert a.data_key is not None, "claimed before"
            try:
                card = open_sealed(_ciphertext(a), data_key=a.data_key, binding=a.binding)
            except (BrokenSeal, OverflowError):  # the latter: a record version that no sealing ever had
                broken.append(a)
                continue
            finally:
                a.data_key = None
            expiry = a.target.expiry if isinstance(a.target, RedeemableStoredCard) else card.expiry
            assert expiry is not None, "a one-time token carries its expiry"
            a.result = ReleasedCard(card, expiry, a.grant.purpose, _reference_of(a.grant, a.target))
        if not broken:
            return
        journal = Journal(self._world, OPEN_FAILED)
        for a in broken:
            journal.refuse(a, Refused("seal_broken"), outcome=Outcome.ERROR, **_what(a))
        try:
            with self._world.store.writing() as tx:
                tx.append_events(journal.events)
        except StoreUnavailable as trouble:
            # The others of this batch have their cards already; only these learn of the trouble.
            for a in broken:
                a.error = trouble
            return
        journal.committed()


def _reference_of(grant: Grant, target: RedeemableStoredCard | RedeemableOnce) -> NetworkTransactionId | None:
    if grant.purpose is CardUse.CUSTOMER_INITIATED or isinstance(target, RedeemableOnce):
        return None
    return target.network_transaction_id


def _stored_with(target: RedeemableStoredCard | RedeemableOnce | None) -> dict[str, str | int]:
    """The card that was stored in the call that made this one-time token: its owner may ask who got it."""
    return {"token": target.token} if isinstance(target, RedeemableOnce) and target.token is not None else {}


def _ciphertext(a: _Attempt) -> bytes:
    if isinstance(a.target, RedeemableStoredCard):
        return a.target.ciphertext
    once = a.command.grant.one_time_token
    if once is None:
        raise BrokenSeal("a grant for a one-time token carries it")
    return once.sealed


def _claim_of(grant: Grant, target: RedeemableStoredCard | RedeemableOnce | None) -> Claim:
    stored = target if isinstance(target, RedeemableStoredCard) else None
    return Claim(
        tenant=grant.tenant,
        grant_sha256=grant.grant_sha256,
        token=stored.token if stored else None,
        record_version=stored.record_version if stored else 0,
        once_id=target.once_id if isinstance(target, RedeemableOnce) else None,
    )


def _what(a: _Attempt) -> dict[str, Any]:
    """What an event about this redemption says; of an unknown grant only its digest."""
    grant = a.grant
    if grant is None or grant.tenant not in a.caller.known.tenants:
        return {"order": a.command.order, "grant_sha256": a.sha256}
    return {
        "tenant": grant.tenant,
        "customer": grant.customer or "",
        "target": grant.subject,
        "order": grant.order,
        "processor": a.caller.known.processor or "",
        "grant_sha256": grant.grant_sha256,
    }

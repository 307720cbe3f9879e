"""What became of a payment: the first outcome of a redeemed grant stands, and decides what becomes of a pending card.

Approved, it becomes active; declined, it is erased in the same transaction: a card whose first payment the issuer
refused must not be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vault.domain.audit import event_by
from vault.domain.caller import Caller
from vault.domain.errors import CardVaultError, Refused
from vault.domain.grant import Grant, GrantText, why_no_outcome
from vault.domain.ids import NetworkTransactionId, OrderId, ProcessorName
from vault.domain.outcome import PaymentOutcome
from vault.ports import Approval, CardRef, GrantKey, OutcomeReport, Writer
from vault.usecases.batch import Attempt, Journal, World, run_rounds

REPORTED = "outcome.reported"
ACTIVATED = "activated"
ERASED = "card.erased"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOutcomeCommand:
    """What became of the payment that a grant was redeemed for."""

    caller: Caller
    grant: GrantText
    order: OrderId
    outcome: PaymentOutcome
    network_transaction_id: NetworkTransactionId | None

    @property
    def processor(self) -> ProcessorName:
        """Who says so."""
        processor = self.caller.known.processor
        assert processor is not None, "the door lets processors in alone"
        return processor

    @property
    def key(self) -> GrantKey:
        """Where the grant may be looked for."""
        return GrantKey(self.caller.known.tenants, self.grant.sha256())


@dataclass(frozen=True, slots=True)
class OutcomeNoted:
    """It is on record, now or since the first report."""


@dataclass(slots=True)
class _Attempt(Attempt[ReportOutcomeCommand, OutcomeNoted]):
    pass


class ReportOutcome:
    """The use case; call it with a batch. Needs no key."""

    def __init__(self, *, world: World) -> None:
        self._world = world

    def __call__(self, commands: Sequence[ReportOutcomeCommand]) -> Sequence[OutcomeNoted | CardVaultError]:
        """One outcome for each command, in their order."""
        attempts = [_Attempt(command, command.caller) for command in commands]
        run_rounds(attempts, self._round)
        return [attempt.outcome() for attempt in attempts]

    def _round(self, attempts: Sequence[_Attempt]) -> None:
        now = self._world.clock.now()
        # Of several about one grant the first has its turn; the next round shows the others what stands.
        first: dict[bytes, _Attempt] = {}
        for a in attempts:
            first.setdefault(a.command.key.grant_sha256, a)
        turn = list(first.values())
        journal = Journal(self._world, REPORTED)
        with self._world.store.writing() as tx:
            recorded = tx.record_outcomes([_report_of(a) for a in turn], now=now)
            known = tx.grants([a.command.key for a in turn])
            won = [a for a in turn if a.command.key.grant_sha256 in recorded]
            effects = self._carry_out(tx, won, recorded, journal, now)
            for a in turn:
                sha256 = a.command.key.grant_sha256
                self._settle(a, known.get(sha256), recorded.get(sha256), effects.get(id(a)), journal, now)
            tx.append_events(journal.events)
        journal.committed()

    def _carry_out(
        self,
        tx: Writer,
        won: Sequence[_Attempt],
        recorded: Mapping[bytes, CardRef | None],
        journal: Journal,
        now: datetime,
    ) -> dict[int, str]:
        """What each first outcome did to its card, in a word, by `id()` of the attempt."""
        about = {id(a): recorded[a.command.key.grant_sha256] for a in won}
        approved = [
            (a, card)
            for a in won
            if a.command.outcome is PaymentOutcome.APPROVED and (card := about[id(a)]) is not None
        ]
        declined = [
            (a, card)
            for a in won
            if a.command.outcome is PaymentOutcome.DECLINED and (card := about[id(a)]) is not None
        ]
        activated = tx.approve_cards([Approval(card, a.command.network_transaction_id) for a, card in approved])
        effects = {id(a): "none" for a in won}
        effects |= {id(a): ACTIVATED if card.token in activated else "unchanged" for a, card in approved}
        # After the approvals: a card that one payment of this batch made active is not erased for another's sake.
        for a, card in sorted(declined, key=lambda pair: (pair[1].tenant, pair[1].token)):
            effects[id(a)] = "erased" if self._erase(tx, a, card, journal, now) else "unchanged"
        return effects

    def _erase(self, tx: Writer, a: _Attempt, card: CardRef, journal: Journal, now: datetime) -> bool:
        """Erase a card that is still pending, as its owner would; False if it is not."""
        event_id = self._world.new_event_id(now)
        erased = tx.erase_cards(card.tenant, card.customer, card.token, event_id=event_id, now=now, only_pending=True)
        if erased.cards == 0:
            return False
        journal.events.append(
            event_by(
                a.caller,
                event_id=event_id,
                now=now,
                event=ERASED,
                tenant=card.tenant,
                customer=card.customer,
                target=card.token,
                order=a.command.order,
                details={"cards": erased.cards, "grants_revoked": erased.grants_revoked, "because": "declined"},
            )
        )
        return True

    def _settle(
        self,
        a: _Attempt,
        grant: Grant | None,
        card: CardRef | None,
        effect: str | None,
        journal: Journal,
        now: datetime,
    ) -> None:
        command = a.command
        if effect is None:
            reason = why_no_outcome(grant, processor=command.processor, order=command.order, outcome=command.outcome)
            if reason is not None:
                journal.refuse(a, Refused(reason), **_what(a, grant))
                return
        details: dict[str, str | int] = {"outcome": command.outcome.name.lower()}
        details |= {"repeat": 1} if effect is None else {"card": effect}
        what = _what(a, grant)
        if card is not None and effect is not None:
            # Also where the grant was for a one-time token: a restored database learns from it what became of the card.
            what["customer"] = card.customer
            details["token"] = card.token
        if effect is not None and command.network_transaction_id is not None:
            details["network_transaction_id"] = command.network_transaction_id
        a.result = OutcomeNoted()
        journal.events.append(
            event_by(
                a.caller,
                event_id=self._world.new_event_id(now),
                now=now,
                event=REPORTED,
                details=details,
                **what,
            )
        )


def _report_of(a: _Attempt) -> OutcomeReport:
    command = a.command
    return OutcomeReport(command.key, command.processor, command.order, command.outcome)


def _what(a: _Attempt, grant: Grant | None) -> dict[str, Any]:
    """What an event about this report says; of an unknown grant only its digest."""
    if grant is None:
        return {"order": a.command.order, "grant_sha256": a.command.key.grant_sha256}
    return {
        "tenant": grant.tenant,
        "customer": grant.customer or "",
        "target": grant.subject,
        "order": grant.order,
        "grant_sha256": grant.grant_sha256,
    }

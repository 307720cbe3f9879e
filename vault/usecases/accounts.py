"""The account page: what is stored, changed and erased. Display columns only, so it works while Vault is sealed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from vault.domain.audit import AuditEvent, InclusionProof, event_by
from vault.domain.caller import Caller
from vault.domain.card import Expiry, StoredCard
from vault.domain.errors import CardVaultError, NotAvailable, StoreUnavailable
from vault.domain.ids import CustomerId, EventId, IdempotencyKey, TenantId, Token
from vault.ports import CardRef, CardsOf, Erased, PageCursor, Writer
from vault.usecases.batch import ONE_ROW_S_TROUBLE, Attempt, Journal, RollBack, World, run_rounds
from vault.usecases.idempotency import Request, Settled, digest, settle

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListCardsQuery:
    """One page of a customer's cards."""

    caller: Caller
    customer: CustomerId
    after: PageCursor | None
    limit: int


@dataclass(frozen=True, slots=True)
class CardPage:
    """Cards, oldest first, and where the next page begins if there is one."""

    cards: Sequence[StoredCard]
    next: PageCursor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardCommand:
    """Something about one card of one customer."""

    caller: Caller
    customer: CustomerId
    token: Token
    idempotency_key: IdempotencyKey | None = None

    @property
    def ref(self) -> CardRef:
        """Whose card."""
        return CardRef(self.caller.known.tenant, self.customer, self.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCardCommand(CardCommand):
    """A new expiry date."""

    expiry: Expiry


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseCommand:
    """Erase one card, or with `token` None all cards of the customer."""

    caller: Caller
    customer: CustomerId
    token: Token | None
    idempotency_key: IdempotencyKey | None


@dataclass(frozen=True, slots=True)
class ErasureReceipt:
    """What was erased, and the event that says so."""

    event_id: EventId
    erased_at: datetime
    erased: Erased
    proof: InclusionProof | None = None
    """That the event is in the signed log; None until a checkpoint covers it."""


ProveEvent = Callable[[EventId, TenantId], InclusionProof | None]
"""The proof of a tenant's event, once there is one. Raises `StoreUnavailable`."""


class ListCards:
    """The use case."""

    def __init__(self, *, world: World) -> None:
        self._world = world

    def __call__(self, queries: Sequence[ListCardsQuery]) -> Sequence[CardPage | CardVaultError]:
        """One page for each. An unknown customer has an empty one."""
        return _each_its_own(self._pages, queries)

    def _pages(self, queries: Sequence[ListCardsQuery]) -> Sequence[CardPage]:
        wanted = [CardsOf(q.caller.known.tenant, q.customer, q.after, q.limit + 1) for q in queries]
        with self._world.store.reading() as tx:
            found = tx.list_cards(wanted)
        return [_page_of(cards, query.limit) for cards, query in zip(found, queries, strict=True)]


def _each_its_own(read: Callable[[Sequence[Q]], Sequence[R]], queries: Sequence[Q]) -> Sequence[R | StoreUnavailable]:
    """All at once. Where a row cannot be read, as one of a newer release, that is its own customer's trouble alone."""
    try:
        return read(queries)
    except StoreUnavailable as trouble:
        # A driver refuses a time that Python has not, or text that is no UTF-8, and with it all rows beside it.
        if trouble.reason not in ONE_ROW_S_TROUBLE:
            raise
        if len(queries) == 1:
            return [trouble]
    return [found for query in queries for found in _each_its_own(read, [query])]


def _page_of(cards: Sequence[StoredCard], limit: int) -> CardPage:
    page = cards[:limit]
    return CardPage(page, PageCursor(page[-1].created_at, page[-1].token) if len(cards) > limit else None)


class GetCard:
    """The use case."""

    def __init__(self, *, world: World) -> None:
        self._world = world

    def __call__(self, queries: Sequence[CardCommand]) -> Sequence[StoredCard | CardVaultError]:
        """The card of each, or `NotAvailable`."""
        return _each_its_own(self._cards, queries)

    def _cards(self, queries: Sequence[CardCommand]) -> Sequence[StoredCard | CardVaultError]:
        with self._world.store.reading() as tx:
            found = tx.cards([query.ref for query in queries])
        return [found.get(query.ref) or NotAvailable("card_gone") for query in queries]


@dataclass(slots=True)
class _Changing(Attempt[CardCommand, StoredCard]):
    pass


class _ChangeCard(ABC):
    """Shape of the calls that change a display column: claim, change, read back, record."""

    event: str
    method: str

    def __init__(self, *, world: World) -> None:
        self._world = world

    @abstractmethod
    def _change(self, tx: Writer, command: CardCommand) -> bool:
        """Change the column; False if there is no such card."""

    def _fields(self, command: CardCommand) -> dict[str, object]:
        return {"customer": command.customer, "token": command.token}

    def __call__(self, commands: Sequence[CardCommand]) -> Sequence[StoredCard | CardVaultError]:
        """One outcome for each command, in their order."""
        attempts = [_Changing(command, command.caller) for command in commands]
        run_rounds(attempts, self._round)
        return [attempt.outcome() for attempt in attempts]

    def _round(self, attempts: Sequence[_Changing]) -> None:
        now = self._world.clock.now()
        journal = Journal(self._world, self.event)
        with self._world.store.writing() as tx:
            requests = [
                Request(
                    attempt=a,
                    tenant=a.caller.known.tenant,
                    method=self.method,
                    key=a.command.idempotency_key,
                    digests={0: digest(self._fields(a.command))},
                    answer={"token": a.command.token},
                    customer=a.command.customer,
                    token=a.command.token,
                )
                for a in attempts
                if a.command.idempotency_key is not None
            ]
            without_key = [a for a in attempts if a.command.idempotency_key is None]
            settled: Settled[_Changing] = settle(tx, requests, without_key=without_key, journal=journal, now=now)
            turn = sorted(
                (a for a in attempts if id(a) in settled.claimed or id(a) in settled.repeats),
                key=lambda a: a.command.ref.token,
            )
            changed = {id(a) for a in turn if id(a) in settled.repeats or self._change(tx, a.command)}
            cards = tx.cards([a.command.ref for a in turn])
            for a in turn:
                card = cards.get(a.command.ref)
                if id(a) not in changed or card is None:
                    journal.refuse(a, NotAvailable("card_gone"), customer=a.command.customer, target=a.command.token)
                    continue
                a.result = card
                journal.events.append(
                    event_by(
                        a.caller,
                        event_id=self._world.new_event_id(now),
                        now=now,
                        event=self.event,
                        customer=a.command.customer,
                        target=a.command.token,
                        details={"repeat": 1} if id(a) in settled.repeats else {},
                    )
                )
            failed = {id(a) for a in turn if a.result is None} & settled.claimed
            tx.release_idempotency([r.id for r in requests if id(r.attempt) in failed])
            if not journal.events:
                raise RollBack
            tx.append_events(journal.events)
        journal.committed()


class UpdateCard(_ChangeCard):
    """The use case: a new expiry date; the number is neither needed nor touched."""

    event = "card.updated"
    method = "UpdateCard"

    def _change(self, tx: Writer, command: CardCommand) -> bool:
        assert isinstance(command, UpdateCardCommand), "this use case takes these commands only"
        return tx.update_expiry(command.ref, command.expiry)

    def _fields(self, command: CardCommand) -> dict[str, object]:
        assert isinstance(command, UpdateCardCommand), "this use case takes these commands only"
        expiry = (command.expiry.year, command.expiry.month)
        return {"customer": command.customer, "token": command.token, "expiry": expiry}


class SetDefaultCard(_ChangeCard):
    """The use case: make a card the customer's default."""

    event = "card.default_set"
    method = "SetDefaultCard"

    def _change(self, tx: Writer, command: CardCommand) -> bool:
        return tx.set_default(command.ref)


@dataclass(slots=True)
class _Erasing(Attempt[EraseCommand, ErasureReceipt]):
    event_id: EventId | None = None


class Erase:
    """The use case behind DeleteCard and EraseCustomer: withdraws consent; nothing opens afterwards."""

    def __init__(self, *, world: World, prove: ProveEvent) -> None:
        self._world = world
        self._prove = prove

    def __call__(self, commands: Sequence[EraseCommand]) -> Sequence[ErasureReceipt | CardVaultError]:
        """One outcome for each command, in their order."""
        attempts = [_Erasing(command, command.caller) for command in commands]
        run_rounds(attempts, self._round)
        return [self._proven(attempt) for attempt in attempts]

    def _proven(self, attempt: _Erasing) -> ErasureReceipt | CardVaultError:
        """Only what was erased earlier can be in the log already. Without its proof a receipt is good all the same."""
        receipt = attempt.outcome()
        if isinstance(receipt, CardVaultError) or receipt.event_id == attempt.event_id:
            return receipt
        with suppress(StoreUnavailable):
            return replace(receipt, proof=self._prove(receipt.event_id, attempt.caller.known.tenant))
        return receipt

    def _round(self, attempts: Sequence[_Erasing]) -> None:
        now = self._world.clock.now()
        journal = Journal(self._world, "card.erased")
        with self._world.store.writing() as tx:
            for a in attempts:
                a.event_id = self._world.new_event_id(now)
            requests = [_erasure_request(a, now) for a in attempts if a.command.idempotency_key is not None]
            without_key = [a for a in attempts if a.command.idempotency_key is None]
            settled: Settled[_Erasing] = settle(tx, requests, without_key=without_key, journal=journal, now=now)
            for a in attempts:
                record = settled.repeats.get(id(a))
                if record is not None:
                    a.result = _receipt_of(record.answer)
                    journal.events.append(self._event(a, a.result, now, repeated=True))
            mine = [a for a in attempts if id(a) in settled.claimed]
            for a in sorted(mine, key=lambda a: (a.command.customer, a.command.token or "")):
                self._erase(tx, a, journal, now)
            for request in requests:
                result = request.attempt.result
                if id(request.attempt) not in settled.claimed:
                    continue
                if result is None:
                    tx.release_idempotency([request.id])
                else:
                    tx.replace_answers({request.id: _answer_of(result)})
            if not journal.events:
                raise RollBack
            tx.append_events(journal.events)
        journal.committed()

    def _erase(self, tx: Writer, a: _Erasing, journal: Journal, now: datetime) -> None:
        command = a.command
        assert a.event_id is not None, "drawn at the start of the round"
        erased = tx.erase_cards(
            command.caller.known.tenant, command.customer, command.token, event_id=a.event_id, now=now
        )
        if command.token is not None and erased.cards == 0:
            journal.refuse(a, NotAvailable("card_gone"), customer=command.customer, target=command.token)
            return
        a.result = ErasureReceipt(a.event_id, now, erased)
        journal.events.append(self._event(a, a.result, now, repeated=False))

    def _event(self, a: _Erasing, receipt: ErasureReceipt, now: datetime, *, repeated: bool) -> AuditEvent:
        return event_by(
            a.caller,
            event_id=self._world.new_event_id(now) if repeated else receipt.event_id,
            now=now,
            event="card.erased" if a.command.token is not None else "customer.erased",
            customer=a.command.customer,
            target=a.command.token or "",
            details={"repeat_of": receipt.event_id}
            if repeated
            else {"cards": receipt.erased.cards, "grants_revoked": receipt.erased.grants_revoked},
        )


def _erasure_request(a: _Erasing, now: datetime) -> Request[_Erasing]:
    command = a.command
    assert command.idempotency_key is not None, "only asked for requests with a key"
    assert a.event_id is not None, "drawn at the start of the round"
    return Request(
        attempt=a,
        tenant=command.caller.known.tenant,
        method="DeleteCard" if command.token is not None else "EraseCustomer",
        key=command.idempotency_key,
        digests={0: digest({"customer": command.customer, "token": command.token})},
        answer=_answer_of(ErasureReceipt(a.event_id, now, Erased(0, 0))),
        # Names no card: the receipt must outlive what it is about.
        customer=None,
        token=None,
    )


def _answer_of(receipt: ErasureReceipt) -> dict[str, str | int]:
    return {
        "event_id": receipt.event_id,
        "erased_at": receipt.erased_at.isoformat(),
        "cards": receipt.erased.cards,
        "grants_revoked": receipt.erased.grants_revoked,
    }


def _receipt_of(answer: object) -> ErasureReceipt:
    assert isinstance(answer, dict), "answers are objects"
    return ErasureReceipt(
        EventId(str(answer["event_id"])),
        datetime.fromisoformat(str(answer["erased_at"])).astimezone(UTC),
        Erased(int(answer["cards"]), int(answer["grants_revoked"])),
    )

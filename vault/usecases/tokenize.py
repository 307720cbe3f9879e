"""Takes cards in: stores those with consent, and makes one-time tokens for orders.

One trip to Vault for a whole batch, one transaction for a whole batch. A token is drawn before it is known whether
the card is stored already; only a card that turns out to be so costs a second wrap, under its existing token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vault.cleanroom import DataKey, fingerprint_message
from vault.domain.audit import event_by
from vault.domain.binding import Binding, one_time_binding, stored_card_binding
from vault.domain.caller import Caller
from vault.domain.card import CardDetails, CardState, StoredCard
from vault.domain.consent import Consent, ConsentEntry
from vault.domain.errors import CardVaultError, ConsentRequired, IdempotencyConflict, NotAvailable
from vault.domain.grant import ONE_TIME_LIFETIME, OneTimeToken, SealedKey
from vault.domain.ids import (
    DATED_RANDOM_BYTES,
    RANDOM_BYTES,
    SHARED_BYTES,
    ConsentId,
    CustomerId,
    IdempotencyKey,
    OnceId,
    OrderId,
    TenantId,
    Token,
)
from vault.ports import (
    CardRef,
    Fingerprint,
    IdempotencyRecord,
    IntakeKeys,
    KeyToWrap,
    KnownCard,
    NewCard,
    OnceKey,
    Protected,
    SealedCard,
    Writer,
)
from vault.usecases.batch import Attempt, Journal, RollBack, World, run_rounds
from vault.usecases.idempotency import Request, Settled, digest, settle

EVENT = "card.tokenized"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeCommand:
    """One card with what may be done with it: `consent` (then also `customer`), `order`, or both."""

    caller: Caller
    idempotency_key: IdempotencyKey | None
    customer: CustomerId | None
    card: CardDetails
    consent: Consent | None
    order: OrderId | None


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What became of it: the stored card, a one-time token, or both."""

    card: CardDetails
    stored: StoredCard | None
    one_time_token: OneTimeToken | None
    one_time_expires_at: datetime | None


@dataclass(slots=True)
class _Storing:
    """The stored half of one attempt in one round."""

    customer: CustomerId
    entry: ConsentEntry
    key: DataKey
    binding: Binding
    record_version: int
    fingerprints: tuple[Fingerprint, ...] = ()
    new_card: NewCard | None = None


@dataclass(slots=True)
class _Once:
    """The one-time half of one attempt in one round."""

    once_id: OnceId
    order: OrderId
    expires_at: datetime
    key: DataKey
    binding: Binding
    token: OneTimeToken | None = None
    row: OnceKey | None = None


@dataclass(slots=True)
class _Attempt(Attempt[TokenizeCommand, Tokenized]):
    known: KnownCard | None = None
    known_by: Fingerprint | None = None
    storing: _Storing | None = None
    once: _Once | None = None

    @property
    def tenant(self) -> TenantId:
        return self.caller.known.tenant


class Tokenize:
    """The use case; call it with a batch. `first_state` is that of cards stored for the first time."""

    def __init__(self, *, world: World, keys: IntakeKeys, first_state: CardState = CardState.ACTIVE) -> None:
        self._world = world
        self._keys = keys
        self._first_state = first_state

    def __call__(self, commands: Sequence[TokenizeCommand]) -> Sequence[Tokenized | CardVaultError]:
        """One outcome for each command, in their order."""
        attempts = [_Attempt(command, command.caller) for command in commands]
        run_rounds(attempts, self._round)
        return [attempt.outcome() for attempt in attempts]

    def _round(self, attempts: Sequence[_Attempt]) -> None:
        now = self._world.clock.now()
        shared = self._world.entropy.bytes(SHARED_BYTES)
        for attempt, record_version in zip(attempts, _record_versions(attempts), strict=True):
            self._draw(attempt, record_version, now, shared)
        self._seal(attempts, now)
        journal = Journal(self._world, EVENT)
        # Before the transaction: where there is one writer, others wait for what is done in it.
        requests = [_idempotency_of(a) for a in attempts if a.command.idempotency_key is not None]
        with self._world.store.writing() as tx:
            self._write(tx, attempts, requests, journal, now)
            if not journal.events:
                raise RollBack
            tx.append_events(journal.events)
        journal.committed()

    # --- before the transaction -------------------------------------------------------------------------------------

    def _draw(self, attempt: _Attempt, record_version: int, now: datetime, shared: bytes) -> None:
        """Draw ids and data keys for one attempt in this round."""
        world, command = self._world, attempt.command
        attempt.storing = attempt.once = None
        if command.consent is not None:
            assert command.customer is not None, "consent is given by a customer"
            known = attempt.known
            token = known.token if known else Token.drawn(shared, world.entropy.bytes(RANDOM_BYTES))
            entry = ConsentEntry(
                tenant=attempt.tenant,
                consent_id=ConsentId.drawn(now, world.entropy.bytes(DATED_RANDOM_BYTES)),
                customer=command.customer,
                token=token,
                consent=command.consent,
                agreed_at=now,
                recorded_by=attempt.caller.known.uri,
            )
            attempt.storing = _Storing(
                customer=command.customer,
                entry=entry,
                key=DataKey(world.entropy),
                binding=stored_card_binding(
                    environment=world.environment,
                    tenant=attempt.tenant,
                    customer=command.customer,
                    token=token,
                    consent=entry.consent_id,
                    record_version=record_version,
                ),
                record_version=record_version,
            )
        if command.order is not None:
            once_id = OnceId.from_random(world.entropy.bytes(RANDOM_BYTES))
            expires_at = now + ONE_TIME_LIFETIME
            attempt.once = _Once(
                once_id=once_id,
                order=command.order,
                expires_at=expires_at,
                key=DataKey(world.entropy),
                binding=one_time_binding(
                    environment=world.environment,
                    tenant=attempt.tenant,
                    once_id=once_id,
                    order=command.order,
                    expires_at=expires_at,
                ),
            )

    def _seal(self, attempts: Sequence[_Attempt], now: datetime) -> None:
        """Have all data keys wrapped and all cards fingerprinted, side by side; then seal here."""
        storing = [(a, a.storing) for a in attempts if a.storing is not None]
        once = [(a, a.once) for a in attempts if a.once is not None]
        answers: Protected = self._keys.protect(
            cards=[KeyToWrap(s.key.for_wrapping(), s.binding.wrap_context()) for _, s in storing],
            once=[KeyToWrap(o.key.for_wrapping(), o.binding.wrap_context()) for _, o in once],
            fingerprints=[
                fingerprint_message(
                    a.command.card.pan,
                    environment=self._world.environment,
                    tenant=a.tenant,
                    customer=s.customer,
                )
                for a, s in storing
            ],
        )
        for (a, s), key, fingerprints in zip(storing, answers.cards, answers.fingerprints, strict=True):
            self._seal_stored(a, s, key, fingerprints, now)
        for (a, o), key in zip(once, answers.once, strict=True):
            sealed = o.key.seal_once(a.command.card, o.binding, self._world.entropy)
            o.token = OneTimeToken(o.once_id, sealed)
            o.row = OnceKey(
                tenant=a.tenant,
                once_id=o.once_id,
                order=o.order,
                key=key,
                created_at=now,
                expires_at=o.expires_at,
                customer=a.command.customer,
            )

    def _seal_stored(
        self, a: _Attempt, s: _Storing, key: SealedKey, fingerprints: tuple[Fingerprint, ...], now: datetime
    ) -> None:
        card = a.command.card
        s.fingerprints = fingerprints
        s.new_card = NewCard(
            tenant=a.tenant,
            customer=s.customer,
            token=s.entry.token,
            brand=card.pan.brand,
            last4=card.pan.last4(),
            expiry=card.expiry,
            state=self._first_state,
            consent=s.entry,
            fingerprint=a.known_by or fingerprints[0],
            sealed=SealedCard(
                key=key,
                ciphertext=s.key.seal_stored(card, s.binding, self._world.entropy),
                record_version=s.record_version,
            ),
            stored_at=now,
        )

    # --- inside the transaction -------------------------------------------------------------------------------------

    def _write(
        self,
        tx: Writer,
        attempts: Sequence[_Attempt],
        requests: Sequence[Request[_Attempt]],
        journal: Journal,
        now: datetime,
    ) -> None:
        without_key = [a for a in attempts if a.command.idempotency_key is None]
        settled: Settled[_Attempt] = settle(tx, requests, without_key=without_key, journal=journal, now=now)
        mine = [a for a in attempts if id(a) in settled.claimed]
        self._refuse_ended(mine, journal)
        written = self._store(tx, [a for a in mine if a.is_open])
        lost = [a for a in mine if id(a) not in written]
        tx.release_idempotency([request.id for request in requests if any(request.attempt is a for a in lost)])
        done = [a for a in mine if id(a) in written]
        again = [(a, settled.repeats[id(a)]) for a in attempts if id(a) in settled.repeats]
        repeated = [a for a, record in again if self._repeat(tx, a, record, journal, now)]
        tx.insert_once_keys(
            [
                replace(a.once.row, token=_token_of(a, settled.repeats.get(id(a))))
                for a in (*done, *repeated)
                if a.once is not None and a.once.row is not None
            ]
        )
        self._answer(tx, done, repeated, settled, journal, now)

    def _refuse_ended(self, attempts: Sequence[_Attempt], journal: Journal) -> None:
        """A consent may end between the check of the request and here; then nothing is stored under it."""
        now = self._world.clock.now()
        for a in attempts:
            consent = a.command.consent
            if consent is not None and consent.has_ended(now):
                error = ConsentRequired("consent_ended")
                journal.refuse(a, error, customer=a.command.customer or "", order=a.command.order or "")

    def _store(self, tx: Writer, attempts: Sequence[_Attempt]) -> set[int]:
        """Insert or re-seal; returns `id()` of the attempts that went through. The others learn what is known now."""
        storing = [(a, a.storing, a.storing.new_card) for a in attempts if a.storing and a.storing.new_card]
        through = {id(a) for a in attempts if a.storing is None}
        older = [(a.tenant, f) for a, s, _ in storing if a.known is None for f in s.fingerprints[1:]]
        known_before = tx.known_cards(older) if older else {}
        fresh = [
            (a, card)
            for a, s, card in storing
            if a.known is None and not any((a.tenant, f) in known_before for f in s.fingerprints[1:])
        ]
        again = [(a, card) for a, _, card in storing if a.known is not None]
        inserted = tx.insert_new_cards([card for _, card in fresh]) if fresh else frozenset()
        through |= {id(a) for a, card in fresh if card.token in inserted}
        through |= _reseal(tx, again)
        losers = [(a, s) for a, s, _ in storing if id(a) not in through]
        if losers:
            known = tx.known_cards([(a.tenant, f) for a, s in losers for f in s.fingerprints])
            for a, s in losers:
                found = [(f, known[a.tenant, f]) for f in s.fingerprints if (a.tenant, f) in known]
                a.known_by, a.known = found[0] if found else (None, None)
        return through

    def _repeat(self, tx: Writer, a: _Attempt, record: IdempotencyRecord, journal: Journal, now: datetime) -> bool:
        """Prepare the answer to a repeat; False if it was refused. A repeat voids the unused first one-time token."""
        if a.once is None:
            return True
        former = OnceId(str(record.answer["once_id"]))
        voided = tx.void_once_keys([(a.tenant, former)])
        if former not in voided and now < record.created_at + ONE_TIME_LIFETIME:
            journal.refuse(a, IdempotencyConflict("one_time_token_used"), target=former)
            return False
        tx.replace_answers({record.id: {**record.answer, "once_id": a.once.once_id}})
        return True

    def _answer(
        self,
        tx: Writer,
        done: Sequence[_Attempt],
        repeated: Sequence[_Attempt],
        settled: Settled[_Attempt],
        journal: Journal,
        now: datetime,
    ) -> None:
        """Set results and record one event for each."""
        again = [a for a in (*done, *repeated) if a.storing is not None and not _is_new(a, settled)]
        refs = {id(a): _ref_of(a, settled.repeats.get(id(a))) for a in again}
        stored = tx.cards(list(refs.values())) if refs else {}
        new = [(a, a.storing.new_card) for a in done if a.storing and a.storing.new_card and _is_new(a, settled)]
        # Of what this transaction has just written only this is not known here.
        defaults = tx.default_cards([(card.tenant, card.customer) for _, card in new]) if new else {}
        shown = {id(a): _shown(card, default=defaults.get((card.tenant, card.customer))) for a, card in new}
        for a in (*done, *repeated):
            ref = refs.get(id(a))
            card = shown.get(id(a)) if ref is None else stored.get(ref)
            if ref is not None and card is None:
                journal.refuse(a, NotAvailable("card_gone"), target=ref.token)
                continue
            a.result = Tokenized(
                card=a.command.card,
                stored=card,
                one_time_token=a.once.token if a.once else None,
                one_time_expires_at=a.once.expires_at if a.once else None,
            )
            journal.events.append(
                event_by(
                    a.caller,
                    event_id=self._world.new_event_id(now),
                    now=now,
                    event=EVENT,
                    customer=a.command.customer or "",
                    target=card.token if card is not None else a.once.once_id if a.once else "",
                    order=a.command.order or "",
                    details=_details(a, repeated=id(a) in settled.repeats),
                )
            )


def _token_of(a: _Attempt, repeated: IdempotencyRecord | None) -> Token | None:
    """The card stored in this call, or in the first one that it repeats."""
    if a.storing is None:
        return None
    return Token(str(repeated.answer["token"])) if repeated is not None else a.storing.entry.token


def _is_new(a: _Attempt, settled: Settled[_Attempt]) -> bool:
    """Whether this very round stored the card for the first time."""
    return a.known is None and id(a) not in settled.repeats


def _ref_of(a: _Attempt, repeated: IdempotencyRecord | None) -> CardRef:
    token = _token_of(a, repeated)
    assert a.storing is not None, "only stored cards are asked for"
    assert token is not None, "it was stored"
    return CardRef(a.tenant, a.storing.customer, token)


def _shown(card: NewCard, *, default: Token | None) -> StoredCard:
    """As the database would show what was just inserted."""
    return StoredCard(
        tenant=card.tenant,
        customer=card.customer,
        token=card.token,
        brand=card.brand,
        last4=card.last4,
        expiry=card.expiry,
        state=card.state,
        is_default=card.token == default,
        created_at=card.stored_at,
        consent=card.consent,
    )


def _reseal(tx: Writer, again: Sequence[tuple[_Attempt, NewCard]]) -> set[int]:
    """Seal stored cards anew; returns `id()` of the attempts that went through.

    One statement takes a card once: which of two sealings it kept would be open, and its consent another's. So of
    several for one card each has a turn, and the last one stays.
    """
    through: set[int] = set()
    turns: list[dict[tuple[TenantId, Token], tuple[_Attempt, NewCard]]] = []
    for a, card in again:
        for turn in turns:
            if turn.setdefault((card.tenant, card.token), (a, card))[0] is a:
                break
        else:
            turns.append({(card.tenant, card.token): (a, card)})
    for turn in turns:
        resealed = tx.reseal_cards([card for _, card in turn.values()])
        through |= {id(a) for a, card in turn.values() if card.token in resealed}
    return through


def _details(a: _Attempt, *, repeated: bool) -> dict[str, str | int]:
    details: dict[str, str | int] = {}
    if repeated:
        details["repeat"] = 1
    elif a.storing is not None:
        details |= {"consent": a.storing.entry.consent_id, "record_version": a.storing.record_version}
    if a.once is not None:
        details["once_id"] = a.once.once_id
    return details


def _idempotency_of(a: _Attempt) -> Request[_Attempt]:
    """The request's digest holds a consented card through its fingerprint alone, an unconsented one not at all."""
    command = a.command
    assert command.idempotency_key is not None, "only asked for requests with a key"
    fields: dict[str, object] = {"order": command.order, "customer": command.customer}
    answer: dict[str, str | int] = {}
    if command.consent is not None and a.storing is not None:
        consent = command.consent
        fields |= {
            "expiry": (command.card.expiry.year, command.card.expiry.month),
            "consent": (
                consent.terms_version,
                consent.terms_sha256.hex(),
                consent.uses,
                consent.channel,
                consent.locale,
                consent.agreed_until,
            ),
        }
        digests = {f.version: digest({**fields, "card": f.value.hex()}) for f in a.storing.fingerprints}
        answer["token"] = a.storing.entry.token
    else:
        digests = {0: digest(fields)}
    if a.once is not None:
        answer["once_id"] = a.once.once_id
    return Request(
        attempt=a,
        tenant=a.tenant,
        method="Tokenize",
        key=command.idempotency_key,
        digests=digests,
        answer=answer,
        customer=command.customer,
        token=a.storing.entry.token if a.storing else None,
        voids_former=a.once is not None,
    )


def _record_versions(attempts: Sequence[_Attempt]) -> list[int]:
    """The record version that each attempt seals: those for one stored card follow upon each other."""
    latest: dict[tuple[TenantId, Token], int] = {}
    for a in attempts:
        if a.known is not None:
            card = (a.tenant, a.known.token)
            latest[card] = max(latest.get(card, 0), a.known.record_version)
    versions: list[int] = []
    for a in attempts:
        if a.known is None:
            versions.append(1)
            continue
        latest[a.tenant, a.known.token] += 1
        versions.append(latest[a.tenant, a.known.token])
    return versions

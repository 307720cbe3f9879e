"""Subject access: what is kept about a customer, page by page, and every page an audit event. Never a card number.

Display columns, ledger and audit log only, so it works while Vault is sealed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vault.domain.audit import event_by
from vault.domain.caller import Caller
from vault.domain.card import StoredCard
from vault.domain.consent import GivenConsent
from vault.domain.errors import CardVaultError
from vault.domain.ids import CustomerId
from vault.ports import CardsOf, ConsentCursor, PageCursor, Reader, Release, ReleaseCursor
from vault.usecases.batch import Attempt, World, run_rounds

EXPORTED = "customer.exported"

ExportCursor = PageCursor | ConsentCursor | ReleaseCursor
"""The last item of a page: what comes next is the rest of its kind, then the kinds behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuery:
    """One page of what is kept about a customer."""

    caller: Caller
    customer: CustomerId
    after: ExportCursor | None
    limit: int
    """Items of all kinds together."""


@dataclass(frozen=True, slots=True)
class ExportPage:
    """Cards, then consents, then releases, each oldest first; and where the next page begins if there is one."""

    cards: Sequence[StoredCard]
    consents: Sequence[GivenConsent]
    releases: Sequence[Release]
    next: ExportCursor | None


@dataclass(slots=True)
class _Exporting(Attempt[ExportQuery, ExportPage]):
    pass


class ExportCustomer:
    """The use case; call it with a batch."""

    def __init__(self, *, world: World) -> None:
        self._world = world

    def __call__(self, queries: Sequence[ExportQuery]) -> Sequence[ExportPage | CardVaultError]:
        """One outcome for each query, in their order. An unknown customer has an empty page."""
        attempts = [_Exporting(query, query.caller) for query in queries]
        run_rounds(attempts, self._round)
        return [attempt.outcome() for attempt in attempts]

    def _round(self, attempts: Sequence[_Exporting]) -> None:
        now = self._world.clock.now()
        with self._world.store.reading() as tx:
            pages = [_page(tx, a.command) for a in attempts]
        events = [
            event_by(
                a.caller,
                event_id=self._world.new_event_id(now),
                now=now,
                event=EXPORTED,
                customer=a.command.customer,
                details={"cards": len(page.cards), "consents": len(page.consents), "releases": len(page.releases)},
            )
            for a, page in zip(attempts, pages, strict=True)
        ]
        # Answered only once it is on record who looked.
        with self._world.store.writing() as tx:
            tx.append_events(events)
        for a, page in zip(attempts, pages, strict=True):
            a.result = page


def _page(tx: Reader, query: ExportQuery) -> ExportPage:
    tenant, customer, after = query.caller.known.tenant, query.customer, query.after
    room = query.limit + 1  # one more than is shown, to know whether there is more
    cards: Sequence[StoredCard] = ()
    consents: Sequence[GivenConsent] = ()
    releases: Sequence[Release] = ()
    if after is None or isinstance(after, PageCursor):
        (cards,) = tx.list_cards([CardsOf(tenant, customer, after, room)])
    if not isinstance(after, ReleaseCursor) and len(cards) < room:
        begin = after if isinstance(after, ConsentCursor) else None
        consents = tx.consents_given(tenant, customer, after=begin, limit=room - len(cards))
    if len(cards) + len(consents) < room:
        begin_releases = after if isinstance(after, ReleaseCursor) else None
        left = room - len(cards) - len(consents)
        releases = tx.releases(tenant, customer, after=begin_releases, limit=left)
    if len(cards) + len(consents) + len(releases) < room:
        return ExportPage(cards, consents, releases, None)
    if releases:
        releases = releases[:-1]
    elif consents:
        consents = consents[:-1]
    else:
        cards = cards[:-1]
    return ExportPage(cards, consents, releases, _last_of(cards, consents, releases))


def _last_of(
    cards: Sequence[StoredCard], consents: Sequence[GivenConsent], releases: Sequence[Release]
) -> ExportCursor:
    if releases:
        return ReleaseCursor(releases[-1].released_at, releases[-1].event)
    if consents:
        return ConsentCursor(consents[-1].entry.agreed_at, consents[-1].entry.consent_id)
    return PageCursor(cards[-1].created_at, cards[-1].token)

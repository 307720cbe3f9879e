"""Rows of a newer release: while servers of two releases run side by side, they trouble only who asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

from tests.contract.store.make import card, event, grant_for, granted, reason_of, ref, stored
from tests.support.raw import execute
from tests.support.world import (
    CUSTOMER,
    PROCESSOR,
    TENANT,
    SystemEntropy,
    caller,
    checkout_identity,
    consent,
    processor_identity,
)
from vault.domain.consent import CardUse
from vault.domain.errors import CardVaultError, KeyRefused, StoreUnavailable
from vault.domain.grant import Grant, Money
from vault.domain.ids import OrderId
from vault.ports import CardsOf, GrantKey, KeyToUnwrap, NewCard, Reader
from vault.store import SqlStore
from vault.store.columns import Engine
from vault.system import SystemClock
from vault.usecases.batch import World
from vault.usecases.detokenize import Detokenize, DetokenizeCommand
from vault.usecases.grants import IssuedGrant, IssueGrant, IssueGrantCommand, StoredCardSubject

AMOUNT = Money(1_999, "EUR")
WORKS: dict[str, tuple[str, Callable[[Reader, NewCard, Grant], object]]] = {
    "list_cards": ("cards SET brand", lambda tx, new, _: tx.list_cards([CardsOf(TENANT, CUSTOMER, None, 20)])),
    "cards": ("cards SET state", lambda tx, new, _: tx.cards([ref(new)])),
    "grants": ("grants SET purpose", lambda tx, _, grant: tx.grants([_key(grant)])),
    "redeemables": ("grants SET purpose", lambda tx, _, grant: tx.redeemables([_key(grant)])),
    "a grant's consent": ("consents SET channel", lambda tx, _, grant: tx.redeemables([_key(grant)])),
    "consents_given": (
        "consents SET channel",
        lambda tx, new, _: tx.consents_given(TENANT, CUSTOMER, after=None, limit=9),
    ),
}
"""What is changed, and who reads it."""


class Refusing:
    """Release keys that belong to other cards."""

    def unwrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[bytes | KeyRefused]:
        """None of them."""
        return [KeyRefused() for _ in items]

    def check(self, canary: KeyToUnwrap | None) -> None:
        """Always ready."""


@pytest.mark.parametrize("name", WORKS)
def test_a_row_that_this_release_cannot_read_is_told_as_such(store: SqlStore, name: str) -> None:
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)
    change, read = WORKS[name]
    _write_as_a_newer_release(store, change)

    with store.reading() as tx, pytest.raises(StoreUnavailable) as caught:
        read(tx, new, grant)

    assert caught.value.reason == "row_unreadable"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_a_transaction_that_swallowed_it_is_rolled_back(store: SqlStore) -> None:
    stored(store, card())
    _write_as_a_newer_release(store, "cards SET brand")

    def swallow() -> None:
        with store.writing() as tx:
            tx.append_events([event()])
            tx.put_setting("any", "thing")
            with pytest.raises(StoreUnavailable):
                tx.list_cards([CardsOf(TENANT, CUSTOMER, None, 20)])

    with pytest.raises(StoreUnavailable):
        swallow()

    with store.reading() as tx:
        assert tx.setting("any") is None


def test_who_pays_with_another_card_of_the_same_batch_gets_a_grant(store: SqlStore) -> None:
    ours, newer = card(agreed=consent()), card(agreed=consent())
    stored(store, ours, newer)
    _write_as_a_newer_release(store, "cards SET brand", newer)

    refused, issued = _issue(store, newer, ours)

    assert reason_of(refused) == "row_unreadable"
    assert isinstance(issued, IssuedGrant)


def test_who_redeems_another_grant_of_the_same_batch_gets_an_answer(store: SqlStore) -> None:
    ours, newer = card(agreed=consent()), card(agreed=consent())
    stored(store, ours, newer)
    grants = [issued.grant for issued in _issue(store, newer, ours) if isinstance(issued, IssuedGrant)]
    assert len(grants) == 2
    _write_as_a_newer_release(store, "grants SET purpose", newer)
    processor = caller(processor_identity())

    unread, read = Detokenize(world=_world(store), keys=Refusing())(
        [DetokenizeCommand(caller=processor, grant=each, order=OrderId("o"), amount=AMOUNT) for each in grants]
    )

    assert reason_of(unread) == "row_unreadable"
    assert reason_of(read) == "key_refused", "Vault was asked"


def _issue(store: SqlStore, *cards: NewCard) -> Sequence[IssuedGrant | CardVaultError]:
    us = caller(checkout_identity())
    issue = IssueGrant(world=_world(store), processors={PROCESSOR: frozenset({TENANT})})
    return issue(
        [
            IssueGrantCommand(
                caller=us,
                idempotency_key=None,
                subject=StoredCardSubject(customer=each.customer, token=each.token),
                order=OrderId("o"),
                amount=AMOUNT,
                purpose=CardUse.CUSTOMER_INITIATED,
                processor=PROCESSOR,
                lifetime=timedelta(minutes=2),
            )
            for each in cards
        ]
    )


def _world(store: SqlStore) -> World:
    return World(environment="test", store=store, clock=SystemClock(), entropy=SystemEntropy())


def _write_as_a_newer_release(store: SqlStore, change: str, of: NewCard | None = None) -> None:
    """Give every row, or those of one card, a value that this release does not know."""
    where = "" if of is None else f" WHERE token = '{of.token}'"
    if store.kind is Engine.SQLITE:
        open_ledger = "DROP TRIGGER IF EXISTS consents_no_update"
    else:
        open_ledger = "ALTER TABLE consents DISABLE TRIGGER USER"
    execute(store._url, open_ledger, f"UPDATE {change} = 99{where}")


def _key(grant: Grant) -> GrantKey:
    return GrantKey((TENANT,), grant.grant_sha256)

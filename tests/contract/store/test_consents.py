"""The ledger of consents as it is read: every entry in order, within one customer of one tenant."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from tests.contract.store.make import card, event, sealed_again, stored, writing
from tests.support.world import CUSTOMER, NOW, OTHER_TENANT, TENANT, consent
from vault.domain.consent import ConsentEntry, LedgerEntry, Standing, Withdrawal, standings
from vault.domain.ids import CustomerId, TenantId
from vault.ports import NewCard
from vault.store import SqlStore

LATER = NOW + timedelta(hours=1)
SOMEONE_ELSE = CustomerId("customer-2")


def ledger(store: SqlStore, customer: CustomerId = CUSTOMER, tenant: TenantId = TENANT) -> list[LedgerEntry]:
    with store.reading() as tx:
        return list(tx.consent_ledger(tenant, customer))


def how(entries: list[LedgerEntry], *, hours: int = 2) -> list[Standing]:
    return list(standings(entries, now=NOW + timedelta(hours=hours)))


def replaced(store: SqlStore, old: NewCard) -> NewCard:
    fresh = sealed_again(old)
    fresh = replace(fresh, consent=replace(fresh.consent, agreed_at=LATER))
    with writing(store) as tx:
        assert tx.reseal_cards([fresh])
    return fresh


def test_every_entry_is_read_back_as_it_was_recorded(store: SqlStore) -> None:
    first = card(agreed=consent(agreed_until=NOW + timedelta(hours=3)))
    stored(store, first)
    second = replaced(store, first)

    found = ledger(store)

    assert [entry.what for entry in found] == [first.consent, second.consent]
    assert [entry.is_of_card for entry in found] == [False, True]
    assert [(entry.token, entry.customer) for entry in found] == [(first.token, CUSTOMER)] * 2
    assert [entry.recorded_at for entry in found] == [NOW, LATER]
    assert how(found) == [Standing.REPLACED, Standing.IN_FORCE]


def test_a_withdrawal_says_who_asked_for_it(store: SqlStore) -> None:
    new, why = card(), event(name="card.erased")
    stored(store, new)
    with store.writing() as tx:
        tx.erase_cards(TENANT, CUSTOMER, new.token, event_id=why.event_id, now=LATER)
        tx.append_events([why])

    given, withdrawn = ledger(store)

    assert isinstance(given.what, ConsentEntry)
    assert withdrawn.what == Withdrawal(new.consent.consent_id, why.event_id, why.actor)
    assert (withdrawn.recorded_at, withdrawn.token) == (LATER, new.token)
    assert how([given, withdrawn]) == [Standing.WITHDRAWN, Standing.WITHDRAWAL]


def test_an_end_that_has_come_and_a_card_that_is_gone_are_told_apart(store: SqlStore) -> None:
    new = card(agreed=consent(agreed_until=LATER))
    stored(store, new)

    (entry,) = ledger(store)

    assert how([entry], hours=0) == [Standing.IN_FORCE]
    assert how([entry], hours=1) == [Standing.ENDED]
    assert how([replace(entry, is_of_card=False)], hours=0) == [Standing.NO_CARD]


def test_entries_of_others_are_not_shown(store: SqlStore) -> None:
    mine, neighbour, foreign = card(), card(customer=SOMEONE_ELSE), card(tenant=OTHER_TENANT)
    stored(store, mine, neighbour, foreign)

    assert [entry.token for entry in ledger(store)] == [mine.token]
    assert [entry.token for entry in ledger(store, SOMEONE_ELSE)] == [neighbour.token]
    assert [entry.token for entry in ledger(store, tenant=OTHER_TENANT)] == [foreign.token]
    assert ledger(store, CustomerId("nobody")) == []

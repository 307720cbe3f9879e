"""Stored cards: inserted once for each fingerprint, sealed anew, listed, changed."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.contract.store.make import card, event, listed, reason_of, ref, sealed_again, sealed_key, stored, writing
from tests.support.raw import execute
from tests.support.world import CUSTOMER, NOW, OTHER_TENANT, TENANT, caller, checkout_identity, consent
from vault.domain.card import CardState, Expiry, StoredCard
from vault.domain.errors import StoreUnavailable
from vault.domain.ids import CustomerId, Token
from vault.ports import CardRef, CardsOf, Fingerprint, KnownCard, PageCursor, SealedCard
from vault.store import SqlStore
from vault.store.columns import Engine
from vault.system import SystemClock, SystemEntropy
from vault.usecases.accounts import CardCommand, CardPage, GetCard, ListCards, ListCardsQuery
from vault.usecases.batch import World
from vault.usecases.export import ExportCustomer, ExportPage, ExportQuery

SOMEONE_ELSE = CustomerId("customer-2")


def test_a_stored_card_is_read_back_as_it_was_stored(store: SqlStore) -> None:
    new = card(state=CardState.PENDING, last4="0042")
    stored(store, new)

    with store.reading() as tx:
        found = tx.cards([ref(new)])[ref(new)]

    assert (found.tenant, found.customer, found.token) == (new.tenant, new.customer, new.token)
    assert (found.brand, found.last4, found.expiry) == (new.brand, new.last4, new.expiry)
    assert (found.state, found.created_at, found.consent) == (new.state, new.stored_at, new.consent)
    assert found.is_default


def test_a_consent_without_an_end_is_read_back_without_one(store: SqlStore) -> None:
    new = card(agreed=consent())
    stored(store, new)

    with store.reading() as tx:
        found = tx.cards([ref(new)])[ref(new)]

    assert found.consent.consent.agreed_until is None


def test_microseconds_survive(store: SqlStore) -> None:
    new = card(stored_at=NOW + timedelta(microseconds=123_457))
    stored(store, new)

    with store.reading() as tx:
        found = tx.cards([ref(new)])[ref(new)]

    assert found.created_at == new.stored_at
    assert found.created_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("setting", ["bytea_output=escape", "timezone=Africa/Monrovia", "timezone=Asia/Kolkata"])
def test_a_page_is_the_same_however_postgresql_is_set_to_write_bytes_and_times(
    postgresql_url: str, setting: str
) -> None:
    new = card(
        agreed=replace(consent(agreed_until=NOW), terms_sha256=os.urandom(32)),
        stored_at=datetime(1971, 5, 5, 1, 1, 1, 7, tzinfo=UTC),
    )

    with closing(SqlStore(f"{postgresql_url}&options=-c%20{setting}")) as store:
        stored(store, new)
        with store.reading() as tx:
            [found] = tx.list_cards([CardsOf(TENANT, CUSTOMER, None, 10)])[0]

    assert (found.token, found.created_at, found.consent) == (new.token, new.stored_at, new.consent)
    assert found.created_at.utcoffset() == timedelta(0)


def test_two_hundred_cards_are_stored_at_once(store: SqlStore) -> None:
    new = [card() for _ in range(200)]

    stored(store, *new)

    with store.reading() as tx:
        assert len(tx.cards([ref(each) for each in new])) == 200
        assert len(tx.list_cards([CardsOf(TENANT, CUSTOMER, None, 500)])[0]) == 200


def test_an_empty_batch_asks_and_changes_nothing(store: SqlStore) -> None:
    with store.writing() as tx:
        assert tx.insert_new_cards([]) == frozenset()
        assert tx.reseal_cards([]) == frozenset()
        assert tx.cards([]) == {}
        assert tx.known_cards([]) == {}


def test_of_a_fingerprint_that_is_stored_already_nothing_is_stored(store: SqlStore) -> None:
    first = card()
    stored(store, first)
    second = card(fingerprint=first.fingerprint.value)

    with writing(store) as tx:
        inserted = tx.insert_new_cards([second])

    assert inserted == frozenset()
    assert listed(store) == [first.token]


def test_of_many_cards_only_those_that_are_stored_already_are_passed_over(store: SqlStore) -> None:
    first, fresh = card(), [card() for _ in range(12)]
    stored(store, first)
    again = card(fingerprint=first.fingerprint.value)

    with writing(store) as tx:
        inserted = tx.insert_new_cards([*fresh[:6], again, *fresh[6:]])

    assert inserted == {each.token for each in fresh}
    assert set(listed(store)) == {first.token, *inserted}


def test_of_two_with_one_fingerprint_in_one_call_one_is_stored(store: SqlStore) -> None:
    first = card()
    second = card(fingerprint=first.fingerprint.value)
    other = card()

    with writing(store) as tx:
        inserted = tx.insert_new_cards([first, second, other])

    assert other.token in inserted
    assert len(inserted & {first.token, second.token}) == 1
    assert set(listed(store)) == inserted


def test_the_same_fingerprint_in_another_tenant_is_another_card(store: SqlStore) -> None:
    ours = card()
    theirs = card(tenant=OTHER_TENANT, fingerprint=ours.fingerprint.value)

    stored(store, ours)
    stored(store, theirs)

    assert listed(store) == [ours.token]
    assert listed(store, tenant=OTHER_TENANT) == [theirs.token]


def test_a_token_that_exists_is_refused_and_nothing_of_the_call_remains(store: SqlStore) -> None:
    first, other = card(), card()
    stored(store, first)

    with pytest.raises(StoreUnavailable, match="database_error"), writing(store) as tx:
        tx.insert_new_cards([other, card(token=first.token)])

    assert listed(store) == [first.token]


def test_known_cards_are_found_by_fingerprint_within_their_tenant_alone(store: SqlStore) -> None:
    ours = card()
    stored(store, ours)
    unknown = Fingerprint(1, bytes(32))

    with store.reading() as tx:
        found = tx.known_cards([(TENANT, ours.fingerprint), (OTHER_TENANT, ours.fingerprint), (TENANT, unknown)])

    assert found == {(TENANT, ours.fingerprint): KnownCard(ours.token, 1)}


def test_a_card_sealed_anew_has_the_new_expiry_consent_and_state(store: SqlStore) -> None:
    first = card(state=CardState.PENDING)
    stored(store, first)
    second = sealed_again(first)

    with writing(store) as tx:
        changed = tx.reseal_cards([second])

    with store.reading() as tx:
        found = tx.cards([ref(first)])[ref(first)]
        known = tx.known_cards([(TENANT, first.fingerprint)])
    assert changed == {first.token}
    assert (found.expiry, found.state, found.consent) == (second.expiry, CardState.ACTIVE, second.consent)
    assert found.created_at == first.stored_at
    assert known[TENANT, first.fingerprint].record_version == 2


@pytest.mark.parametrize(
    ("before", "given", "after"),
    [(1, 1, 1), (1, 2, 1), (2, 2, 2), (2, 1, 1)],
    ids=["active", "active stays", "pending stays", "pending is activated"],
)
def test_a_card_sealed_anew_never_falls_back_to_pending(store: SqlStore, before: int, given: int, after: int) -> None:
    first = card(state=CardState(before))
    stored(store, first)

    with writing(store) as tx:
        assert tx.reseal_cards([replace(sealed_again(first), state=CardState(given))])

    with store.reading() as tx:
        assert tx.cards([ref(first)])[ref(first)].state is CardState(after)


def test_only_the_next_record_version_can_replace_a_card(store: SqlStore) -> None:
    first = card()
    stored(store, first)
    late = replace(sealed_again(first), sealed=SealedCard(sealed_key(), b"late", 1))
    early = replace(sealed_again(first), sealed=SealedCard(sealed_key(), b"early", 3))

    with writing(store) as tx:
        assert tx.reseal_cards([late]) == frozenset()
        assert tx.reseal_cards([early]) == frozenset()

    with store.reading() as tx:
        assert tx.cards([ref(first)])[ref(first)].consent == first.consent


@pytest.mark.parametrize("foreign", ["tenant", "customer", "token", "fingerprint"])
def test_a_card_is_not_replaced_where_anything_of_it_differs(store: SqlStore, foreign: str) -> None:
    first = card()
    stored(store, first)
    attempt = {
        "tenant": replace(sealed_again(first), tenant=OTHER_TENANT),
        "customer": replace(sealed_again(first), customer=SOMEONE_ELSE),
        "token": replace(sealed_again(first), token=card().token),
        "fingerprint": replace(sealed_again(first), fingerprint=Fingerprint(1, b"f" * 32)),
    }[foreign]

    with writing(store) as tx:
        changed = tx.reseal_cards([attempt])

    with store.reading() as tx:
        assert tx.cards([ref(first)])[ref(first)].consent == first.consent
    assert changed == frozenset()


def test_pages_follow_each_other_from_the_oldest_without_gap_or_overlap(store: SqlStore) -> None:
    cards = [card(stored_at=NOW + timedelta(microseconds=i // 2)) for i in range(7)]
    stored(store, *cards)
    expected = [each.token for each in sorted(cards, key=lambda each: (each.stored_at, each.token))]

    seen, after = [], None
    with store.reading() as tx:
        while page := tx.list_cards([CardsOf(TENANT, CUSTOMER, after, 3)])[0]:
            seen += [each.token for each in page]
            after = PageCursor(page[-1].created_at, page[-1].token)

    assert seen == expected


def test_pages_of_many_customers_are_read_at_once_and_never_mixed(store: SqlStore) -> None:
    ours = [card(stored_at=NOW + timedelta(seconds=i)) for i in range(4)]
    neighbours = [card(customer=SOMEONE_ELSE, stored_at=NOW + timedelta(seconds=i)) for i in range(3)]
    theirs = card(tenant=OTHER_TENANT)
    stored(store, *ours, *neighbours, theirs)
    with writing(store) as tx:
        assert tx.set_default(ref(neighbours[2]))

    with store.reading() as tx:
        pages = tx.list_cards(
            [
                CardsOf(TENANT, CUSTOMER, None, 2),
                CardsOf(TENANT, SOMEONE_ELSE, None, 100),
                CardsOf(TENANT, CustomerId("nobody"), None, 100),
                CardsOf(OTHER_TENANT, CUSTOMER, None, 100),
                CardsOf(TENANT, CUSTOMER, PageCursor(ours[1].stored_at, ours[1].token), 100),
                CardsOf(TENANT, CUSTOMER, None, 100),
            ]
        )
        alone = tx.cards([ref(each) for each in (*ours, *neighbours, theirs)])

    shown = [[ref(each) for each in cards] for cards in (ours[:2], neighbours, [], [theirs], ours[2:], ours)]
    assert [[CardRef(each.tenant, each.customer, each.token) for each in page] for page in pages] == shown
    assert [[each.is_default for each in page] for page in pages] == [
        [True, False],
        [False, False, True],
        [],
        [True],
        [False, False],
        [True, False, False, False],
    ]
    assert [each for page in pages for each in page] == [alone[one] for page in shown for one in page]


def test_cards_of_others_are_in_no_answer(store: SqlStore) -> None:
    ours, neighbours, theirs = card(), card(customer=SOMEONE_ELSE), card(tenant=OTHER_TENANT)
    stored(store, ours, neighbours, theirs)
    wrong = [
        CardRef(OTHER_TENANT, CUSTOMER, ours.token),
        CardRef(TENANT, SOMEONE_ELSE, ours.token),
        CardRef(TENANT, CUSTOMER, neighbours.token),
        CardRef(TENANT, CUSTOMER, theirs.token),
    ]

    with writing(store) as tx:
        assert tx.cards(wrong) == {}
        assert not any(tx.update_expiry(each, Expiry(2040, 1)) for each in wrong)
        assert not any(tx.set_default(each) for each in wrong)

    assert listed(store) == [ours.token]


def test_the_expiry_shown_can_be_changed(store: SqlStore) -> None:
    new = card()
    stored(store, new)

    with writing(store) as tx:
        changed = tx.update_expiry(ref(new), Expiry(2039, 12))

    with store.reading() as tx:
        assert tx.cards([ref(new)])[ref(new)].expiry == Expiry(2039, 12)
    assert changed


def _default(store: SqlStore, *, page_size: int = 100) -> list[Token]:
    defaults, after = [], None
    with store.reading() as tx:
        while page := tx.list_cards([CardsOf(TENANT, CUSTOMER, after, page_size)])[0]:
            defaults += [each.token for each in page if each.is_default]
            after = PageCursor(page[-1].created_at, page[-1].token)
    return defaults


def test_the_oldest_card_is_the_default_until_another_is_made_it(store: SqlStore) -> None:
    cards = [card(stored_at=NOW + timedelta(seconds=i)) for i in range(3)]
    stored(store, *cards)
    assert _default(store) == [cards[0].token]

    with writing(store) as tx:
        assert tx.set_default(ref(cards[2]))

    assert _default(store) == [cards[2].token]


def test_the_default_of_many_customers_is_asked_for_at_once(store: SqlStore) -> None:
    first, second = card(), card(stored_at=NOW + timedelta(seconds=1))
    theirs, elsewhere = card(customer=SOMEONE_ELSE), card(tenant=OTHER_TENANT)
    stored(store, second, first, theirs, elsewhere)

    with writing(store) as tx:
        oldest = tx.default_cards([(TENANT, CUSTOMER)])
        tx.set_default(ref(second))
        defaults = tx.default_cards(
            [(TENANT, CUSTOMER), (TENANT, SOMEONE_ELSE), (OTHER_TENANT, CUSTOMER), (OTHER_TENANT, SOMEONE_ELSE)]
        )

    assert oldest == {(TENANT, CUSTOMER): first.token}
    assert defaults == {
        (TENANT, CUSTOMER): second.token,
        (TENANT, SOMEONE_ELSE): theirs.token,
        (OTHER_TENANT, CUSTOMER): elsewhere.token,
    }


def test_the_card_made_default_last_is_the_one_default_on_all_pages(store: SqlStore) -> None:
    cards = [card(stored_at=NOW + timedelta(seconds=i)) for i in range(3)]
    stored(store, *cards, card(customer=SOMEONE_ELSE))

    with writing(store) as tx:
        for each in (cards[2], cards[1], cards[2], cards[1]):
            tx.set_default(ref(each))

    with store.reading() as tx:
        single = tx.cards([ref(each) for each in cards])
    assert _default(store, page_size=1) == [cards[1].token]
    assert [single[ref(each)].is_default for each in cards] == [False, True, False]


def test_when_the_default_card_goes_the_one_before_it_is_default_again(store: SqlStore) -> None:
    cards = [card(stored_at=NOW + timedelta(seconds=i)) for i in range(3)]
    stored(store, *cards)
    with writing(store) as tx:
        tx.set_default(ref(cards[1]))
        tx.set_default(ref(cards[2]))

    with writing(store) as tx:
        tx.erase_cards(TENANT, CUSTOMER, cards[2].token, event_id=event().event_id, now=NOW)

    assert _default(store) == [cards[1].token]


def test_a_row_that_cannot_be_read_is_its_own_customer_s_trouble_alone(store: SqlStore) -> None:
    other = CustomerId("customer-2")
    ours, unreadable = card(), card(tenant=OTHER_TENANT, customer=other)
    stored(store, ours, unreadable)
    # As a newer release would write it, whose schemes are more than ours.
    execute(store._url, f"UPDATE cards SET brand = 99 WHERE customer_id = '{other}'")
    world = World(environment="test", store=store, clock=SystemClock(), entropy=SystemEntropy())
    us, them = caller(checkout_identity(TENANT)), caller(checkout_identity(OTHER_TENANT))

    pages = ListCards(world=world)(
        [
            ListCardsQuery(caller=them, customer=other, after=None, limit=10),
            ListCardsQuery(caller=us, customer=CUSTOMER, after=None, limit=10),
        ]
    )
    found = GetCard(world=world)(
        [
            CardCommand(caller=them, customer=other, token=unreadable.token),
            CardCommand(caller=us, customer=CUSTOMER, token=ours.token),
        ]
    )

    assert reason_of(pages[0]) == "row_unreadable"
    assert isinstance(pages[1], CardPage)
    assert [each.token for each in pages[1].cards] == [ours.token]
    assert reason_of(found[0]) == "row_unreadable"
    assert isinstance(found[1], StoredCard)


def test_a_card_of_a_time_that_no_calendar_has_leaves_other_customers_their_pages(store: SqlStore) -> None:
    other = CustomerId("customer-2")
    ours, unreadable = card(), card(customer=other)
    stored(store, ours, unreadable)
    never = "9223372036854775807" if store.kind is Engine.SQLITE else "'infinity'"
    execute(store._url, f"UPDATE cards SET created_at = {never} WHERE customer_id = '{other}'")
    world = World(environment="test", store=store, clock=SystemClock(), entropy=SystemEntropy())
    us = caller(checkout_identity(TENANT))

    theirs, mine = ListCards(world=world)(
        [ListCardsQuery(caller=us, customer=each, after=None, limit=10) for each in (other, CUSTOMER)]
    )

    assert reason_of(theirs) == "row_unreadable"
    assert isinstance(mine, CardPage)
    assert [each.token for each in mine.cards] == [ours.token]

    unread, found = GetCard(world=world)(
        [CardCommand(caller=us, customer=each.customer, token=each.token) for each in (unreadable, ours)]
    )

    assert isinstance(unread, StoreUnavailable) == (store.kind is Engine.POSTGRESQL)
    assert isinstance(found, StoredCard)
    assert found.token == ours.token

    unexported, exported = ExportCustomer(world=world)(
        [ExportQuery(caller=us, customer=each, after=None, limit=10) for each in (other, CUSTOMER)]
    )

    assert isinstance(unexported, StoreUnavailable)
    assert isinstance(exported, ExportPage)
    assert [each.token for each in exported.cards] == [ours.token]


def test_text_that_is_no_utf8_leaves_other_customers_their_pages(sqlite_url: str) -> None:
    other = CustomerId("customer-2")
    ours = card()
    us = caller(checkout_identity(TENANT))
    with closing(SqlStore(sqlite_url)) as store:
        stored(store, ours, card(customer=other))
        execute(sqlite_url, f"UPDATE cards SET last4 = CAST(x'ff414141' AS TEXT) WHERE customer_id = '{other}'")
        world = World(environment="test", store=store, clock=SystemClock(), entropy=SystemEntropy())

        theirs, mine = ListCards(world=world)(
            [ListCardsQuery(caller=us, customer=each, after=None, limit=10) for each in (other, CUSTOMER)]
        )

    assert isinstance(theirs, StoreUnavailable)
    assert isinstance(mine, CardPage)
    assert [each.token for each in mine.cards] == [ours.token]


@pytest.mark.parametrize("odd", ["x'1722'", "x'ff00'", "x'00'"])
def test_bytes_where_a_token_belongs_spoil_no_neighbours_answer(sqlite_url: str, odd: str) -> None:
    """SQLite would take some of them for JSON that needs no quoting, and refuse the others for every row."""
    store = SqlStore(sqlite_url)
    ours, theirs = card(), card(customer=SOMEONE_ELSE)
    stored(store, ours, theirs)
    columns = "brand, last4, expiry_year, expiry_month, state, consent_id, created_at"
    execute(
        sqlite_url,
        f"INSERT INTO cards (tenant_id, token, customer_id, default_rank, {columns}) "
        f"SELECT tenant_id, {odd}, customer_id, 9, {columns} FROM cards WHERE customer_id = '{SOMEONE_ELSE}'",
    )

    with store.reading() as tx:
        defaults = tx.default_cards([(TENANT, SOMEONE_ELSE), (TENANT, CUSTOMER)])
        pages = tx.list_cards([CardsOf(TENANT, SOMEONE_ELSE, None, 9), CardsOf(TENANT, CUSTOMER, None, 9)])

    store.close()
    assert defaults == {(TENANT, CUSTOMER): ours.token}
    assert [each.token for each in pages[1]] == [ours.token]

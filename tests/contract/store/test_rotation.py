"""What operator commands ask of the store: counts, walks, and exchanges that undo nothing that others did."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.contract.store.make import (
    DAY,
    MINUTE,
    card,
    claim_of,
    event,
    grant_for,
    granted,
    kept,
    key_of,
    listed,
    once_key,
    operating,
    ref,
    rekeyed,
    rewrapped,
    sealed_again,
    sealed_key,
    stored,
    writing,
)
from tests.contract.store.test_retention import CHANGES as RETENTION_CHANGES
from tests.support.raw import execute
from tests.support.world import CUSTOMER, NOW, OTHER_TENANT, TENANT
from vault.domain.errors import StoreUnavailable
from vault.domain.grant import SealedKey
from vault.domain.ids import CustomerId, TenantId, Token
from vault.ports import Fingerprint, GrantKey, KnownCard, NewCard, SealedCard, Store
from vault.ports_operator import (
    CardKey,
    OperatorReader,
    OperatorStore,
    OperatorWriter,
    Selection,
    StoredSecret,
    StoredWrap,
    WrapReplacement,
)
from vault.store import Limits, SqlStore
from vault.store.operators import SqlOperatorReader
from vault.usecases.sample import _tenants

INSTANT = timedelta(microseconds=1)
EVERYTHING = Selection()


def sealed_under(version: int, *, tenant: TenantId = TENANT) -> NewCard:
    new = card(tenant=tenant)
    return replace(new, sealed=replace(new.sealed, key=sealed_key(version)))


def wrap_of(new: NewCard) -> StoredWrap:
    return StoredWrap(key_of(new), new.customer, new.consent.consent_id, new.sealed.record_version, new.sealed.key)


def secret_of(new: NewCard) -> StoredSecret:
    return StoredSecret(wrap_of(new), new.sealed.ciphertext, new.fingerprint, new.brand, new.last4, new.stored_at)


def in_order(cards: Sequence[NewCard]) -> list[NewCard]:
    return sorted(cards, key=lambda each: (each.tenant, each.token))


def wraps(store: OperatorStore, *, below: int = 1000) -> dict[CardKey, SealedKey]:
    with store.reading() as tx:
        return {each.card: each.key for each in tx.wraps_below(below, after=None, limit=1000)}


def secrets(store: OperatorStore, selection: Selection = EVERYTHING) -> dict[CardKey, StoredSecret]:
    with store.reading() as tx:
        return {each.wrap.card: each for each in tx.secrets(selection, after=None, limit=1000)}


def former(store: OperatorStore) -> dict[int, int]:
    with store.reading() as tx:
        return dict(tx.count_previous_wraps())


def exchanged(store: OperatorStore, *replacements: WrapReplacement) -> frozenset[CardKey]:
    with operating(store) as tx:
        return tx.replace_wraps(replacements)


def erase(store: Store, new: NewCard) -> None:
    with writing(store) as tx:
        tx.erase_cards(new.tenant, new.customer, new.token, event_id=event().event_id, now=NOW)


def test_one_store_is_both_of_the_ports(store: SqlStore) -> None:
    for_servers: Store = store
    for_operators: OperatorStore = store

    with for_servers.reading(), for_operators.reading() as found:
        reader: OperatorReader = found
    with for_operators.writing() as tx:
        writer: OperatorWriter = tx

    assert reader is not writer


def test_a_reader_has_nothing_that_exchanges_or_forgets(store: SqlStore) -> None:
    changing = {name for name in vars(OperatorWriter) if not name.startswith("_")}

    with store.reading() as tx:
        assert "replace_wraps" in changing
        assert not [name for name in changing if hasattr(tx, name)]


# --- counts ----------------------------------------------------------------------------------------------------------


def test_an_empty_database_counts_nothing(store: SqlStore) -> None:
    with store.reading() as tx:
        counts = (
            tx.count_wraps(),
            tx.count_previous_wraps(),
            tx.count_once_wraps(now=NOW),
            tx.count_fingerprints(),
            tx.count_secrets(EVERYTHING),
            tx.wraps_below(9, after=None, limit=5),
            tx.secrets(EVERYTHING, after=None, limit=5),
        )

    assert counts == ({}, {}, {}, {}, 0, (), ())


def test_wraps_and_fingerprints_are_counted_by_version_across_tenants(store: SqlStore) -> None:
    with_mark = replace(sealed_under(3), fingerprint=Fingerprint(7, os.urandom(32)))
    stored(store, sealed_under(1), sealed_under(1, tenant=OTHER_TENANT), with_mark)

    with store.reading() as tx:
        assert tx.count_wraps() == {1: 2, 3: 1}
        assert tx.count_fingerprints() == {1: 2, 7: 1}


def test_only_one_time_tokens_that_still_work_are_counted(store: SqlStore) -> None:
    spent, open_one = once_key(), once_key(tenant=OTHER_TENANT)
    expired, last_moment = once_key(expires_at=NOW), once_key(expires_at=NOW + INSTANT)
    newer = replace(once_key(), key=sealed_key(2))
    kept(store, spent, open_one, expired, last_moment, newer)
    with writing(store) as tx:
        tx.void_once_keys([(TENANT, spent.once_id)])

    with store.reading() as tx:
        assert tx.count_once_wraps(now=NOW) == {1: 2, 2: 1}
        assert tx.count_once_wraps(now=NOW + 15 * MINUTE) == {}


# --- walks -----------------------------------------------------------------------------------------------------------


def test_wraps_under_older_versions_are_walked_in_order_across_versions_and_tenants(store: SqlStore) -> None:
    old = in_order([sealed_under(1 + i % 3, tenant=OTHER_TENANT if i % 2 else TENANT) for i in range(23)])
    stored(store, *old, sealed_under(4), sealed_under(9))

    walked: list[StoredWrap] = []
    with store.reading() as tx:
        while page := tx.wraps_below(4, after=walked[-1].card if walked else None, limit=5):
            assert len(page) <= 5
            walked += page

    assert walked == [wrap_of(each) for each in old]


def test_a_walk_that_exchanges_as_it_goes_meets_every_card_once(store: SqlStore) -> None:
    cards = [sealed_under(1 + i % 2) for i in range(12)]
    stored(store, *cards)

    after, met = None, []
    while True:
        with store.reading() as tx:
            page = tx.wraps_below(3, after=after, limit=5)
        if not page:
            break
        met += [each.card for each in page]
        exchanged(store, *(WrapReplacement(each.card, each.key, sealed_key(3)) for each in page))
        after = page[-1].card

    assert sorted(met, key=lambda each: each.token) == [key_of(each) for each in in_order(cards)]
    with store.reading() as tx:
        assert tx.count_wraps() == {3: 12}


def test_secrets_are_walked_with_all_that_opens_and_names_them(store: SqlStore) -> None:
    cards = in_order([card(tenant=OTHER_TENANT if i % 3 else TENANT, last4=f"{i:04}") for i in range(11)])
    stored(store, *cards)

    walked: list[StoredSecret] = []
    with store.reading() as tx:
        while page := tx.secrets(EVERYTHING, after=walked[-1].wrap.card if walked else None, limit=4):
            walked += page

    assert walked == [secret_of(each) for each in cards]


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_selection_of_one_tenant_meets_no_card_of_another(store: SqlStore, limit: int) -> None:
    mine = in_order([card(tenant=OTHER_TENANT) for _ in range(7)])
    before, behind = TenantId("a-first"), TenantId("z-last")
    stored(store, *mine, card(), card(tenant=before), card(tenant=behind))
    selection = Selection(tenant=OTHER_TENANT)

    walked: list[StoredSecret] = []
    with store.reading() as tx:
        while page := tx.secrets(selection, after=walked[-1].wrap.card if walked else None, limit=limit):
            walked += page
        beginning = tx.secrets(selection, after=CardKey(before, mine[-1].token), limit=1)
        beyond = tx.secrets(selection, after=CardKey(behind, mine[0].token), limit=1)
        count = tx.count_secrets(selection)
        unknown = tx.count_secrets(Selection(tenant=TenantId("nobody")))

    assert walked == [secret_of(each) for each in mine]
    assert [each.wrap.card for each in beginning] == [key_of(mine[0])]
    assert beyond == ()
    assert (count, unknown) == (7, 0)


def test_every_shop_is_met_once_also_where_somebody_named_a_card_beyond_all_tokens(store: SqlStore) -> None:
    stored(store, card(), card(), *(card(tenant=OTHER_TENANT) for _ in range(2)))
    moved = [
        f"UPDATE {table} SET token = 'zzz' || token WHERE tenant_id = '{TENANT}'" for table in ("cards", "card_secrets")
    ]
    execute(store._url, "BEGIN", *moved, "COMMIT")
    asked = 0

    class Watched(SqlOperatorReader):
        def secrets(self, selection: Selection, *, after: CardKey | None, limit: int) -> Sequence[StoredSecret]:
            nonlocal asked
            asked += 1
            assert asked < 10, "it goes in a circle"
            return super().secrets(selection, after=after, limit=limit)

    with store.reading() as tx:
        assert _tenants(Watched(tx._link)) == [TENANT, OTHER_TENANT]


@pytest.mark.parametrize("limit", [3, 100])
def test_a_look_by_fingerprint_meets_the_cards_of_one_tenant_from_there_on(store: SqlStore, limit: int) -> None:
    mine = sorted((card(tenant=OTHER_TENANT) for _ in range(9)), key=lambda each: each.fingerprint.value)
    stored(store, *mine, *(card() for _ in range(9)))
    gone, place = mine[5], mine[3].fingerprint.value
    erase(store, gone)

    with store.reading() as tx:
        found = tx.secrets_by_fingerprint(OTHER_TENANT, least=place, limit=limit)
        beyond = tx.secrets_by_fingerprint(OTHER_TENANT, least=mine[-1].fingerprint.value + b"\0", limit=limit)
        nobodys = tx.secrets_by_fingerprint(TenantId("nobody"), least=b"", limit=limit)

    assert list(found) == [secret_of(each) for each in mine[3:] if each is not gone][:limit]
    assert (beyond, nobodys) == ((), ())


@pytest.mark.parametrize(
    ("since", "until", "met"),
    [
        (NOW, None, {1, 2}),
        (NOW + INSTANT, None, {2}),
        (None, NOW, {0}),
        (None, NOW + INSTANT, {0, 1}),
        (NOW, NOW + INSTANT, {1}),
        (NOW, NOW, set()),
        (NOW + DAY, NOW, set()),
    ],
)
@pytest.mark.parametrize("tenant", [None, TENANT])
def test_since_is_inside_and_until_outside(
    store: SqlStore, since: object, until: object, met: set[int], tenant: TenantId | None
) -> None:
    cards = [card(stored_at=NOW + i * INSTANT * 10) for i in (-1, 0, 1)]
    stored(store, *cards)
    selection = Selection(tenant, since, until)  # type: ignore[arg-type]

    found = secrets(store, selection)

    assert set(found) == {key_of(cards[i]) for i in met}
    with store.reading() as tx:
        assert tx.count_secrets(selection) == len(met)
        if len(found) > 1:
            first, last = (
                tx.secrets(selection, after=None, limit=1)[0].wrap.card,
                sorted(found, key=lambda k: k.token)[1],
            )
            assert [each.wrap.card for each in tx.secrets(selection, after=first, limit=9)] == [last]


def test_a_card_sealed_anew_keeps_the_time_it_was_first_stored(store: SqlStore) -> None:
    new = card(stored_at=NOW - DAY)
    stored(store, new)
    with writing(store) as tx:
        tx.reseal_cards([sealed_again(new)])

    assert secrets(store)[key_of(new)].stored_at == NOW - DAY


def test_a_card_whose_secret_someone_removed_shortens_no_page(store: SqlStore) -> None:
    cards = in_order([card() for _ in range(6)])
    stored(store, *cards)
    with operating(store) as tx:
        for gone in cards[:3]:
            tx._link.rows(  # type: ignore[attr-defined]
                text("DELETE FROM card_secrets WHERE token = :gone RETURNING 1"), {"gone": gone.token}
            )

    with store.reading() as tx:
        page = tx.secrets(EVERYTHING, after=None, limit=2)
        count = tx.count_secrets(EVERYTHING)

    assert [each.wrap.card for each in page] == [key_of(each) for each in cards[3:5]]
    assert count == 6


def test_secrets_are_found_by_name_as_far_as_they_exist(store: SqlStore) -> None:
    first, second, absent = card(), card(tenant=OTHER_TENANT), card()
    stored(store, first, second)
    wanted = [key_of(first), key_of(first), key_of(second), key_of(absent), CardKey(OTHER_TENANT, first.token)]

    with store.reading() as tx:
        found = tx.secrets_of(wanted)
        nothing = tx.secrets_of([])

    assert found == {key_of(first): secret_of(first), key_of(second): secret_of(second)}
    assert nothing == {}


# --- exchanging wraps ------------------------------------------------------------------------------------------------


def test_a_wrap_is_exchanged_and_the_former_one_kept(store: SqlStore) -> None:
    new, other = card(), card()
    stored(store, new, other)
    exchange = rewrapped(new)

    changed = exchanged(store, exchange)

    assert changed == {key_of(new)}
    assert wraps(store) == {key_of(new): exchange.new, key_of(other): other.sealed.key}
    assert former(store) == {1: 1}
    with store.reading() as tx:
        assert tx.count_wraps() == {1: 1, 2: 1}
        assert tx.known_cards([(TENANT, new.fingerprint)]) == {(TENANT, new.fingerprint): KnownCard(new.token, 1)}


def test_two_hundred_wraps_of_two_tenants_are_exchanged_in_one_call(store: SqlStore) -> None:
    cards = [card(tenant=OTHER_TENANT if i % 2 else TENANT) for i in range(200)]
    stored(store, *cards)
    exchanges = [rewrapped(each) for each in cards]

    changed = exchanged(store, *exchanges)

    assert changed == {key_of(each) for each in cards}
    assert wraps(store) == {each.card: each.new for each in exchanges}


def test_no_exchange_for_nothing(store: SqlStore) -> None:
    with store.writing() as tx:
        assert tx.replace_wraps([]) == frozenset()
        assert tx.rekey_cards([]) == frozenset()
        assert tx.forget_previous_wraps(below=1000, limit=10) == 0
        assert tx.restore_previous_wraps(above=0, limit=10) == 0


def test_a_wrap_that_is_not_the_expected_one_stays(store: SqlStore) -> None:
    stale, erased, resealed, foreign, good = (card() for _ in range(5))
    stored(store, stale, erased, resealed, foreign, good)
    erase(store, erased)
    again = sealed_again(resealed)
    with writing(store) as tx:
        tx.reseal_cards([again])
    exchanges = [rewrapped(each) for each in (erased, resealed, good)]
    exchanges.append(replace(rewrapped(stale), old=sealed_key()))
    exchanges.append(replace(rewrapped(foreign), card=CardKey(OTHER_TENANT, foreign.token)))

    changed = exchanged(store, *exchanges)

    assert changed == {key_of(good)}
    assert wraps(store) == {
        key_of(stale): stale.sealed.key,
        key_of(resealed): again.sealed.key,
        key_of(foreign): foreign.sealed.key,
        key_of(good): exchanges[2].new,
    }
    assert former(store) == {1: 1}


def test_the_same_exchange_again_changes_nothing(store: SqlStore) -> None:
    new = card()
    stored(store, new)
    exchange = rewrapped(new)
    exchanged(store, exchange)

    assert exchanged(store, exchange) == frozenset()
    assert former(store) == {1: 1}


def test_a_new_sealing_drops_the_former_wrap(store: SqlStore) -> None:
    new = card()
    stored(store, new)
    exchanged(store, rewrapped(new))

    with writing(store) as tx:
        tx.reseal_cards([sealed_again(new)])

    assert former(store) == {}


def test_an_erasure_takes_the_former_wrap_with_it(store: SqlStore) -> None:
    new = card()
    stored(store, new)
    exchanged(store, rewrapped(new))

    erase(store, new)

    assert former(store) == {}
    assert wraps(store) == {}


# --- former wraps ----------------------------------------------------------------------------------------------------


def test_former_wraps_are_forgotten_in_portions_until_none_is_left(store: SqlStore) -> None:
    cards = [card() for _ in range(7)]
    stored(store, *cards)
    exchanges = [rewrapped(each) for each in cards]
    exchanged(store, *exchanges)

    portions = []
    for _ in range(4):
        with operating(store) as tx:
            portions.append(tx.forget_previous_wraps(below=1000, limit=3))

    assert portions == [3, 3, 1, 0]
    assert former(store) == {}
    assert wraps(store) == {each.card: each.new for each in exchanges}


def test_only_former_wraps_under_older_versions_are_forgotten(store: SqlStore) -> None:
    old, new = sealed_under(1), sealed_under(2)
    stored(store, old, new)
    exchanged(store, rewrapped(old, version=3), rewrapped(new, version=3))

    with operating(store) as tx:
        assert tx.forget_previous_wraps(below=2, limit=10) == 1
        assert tx.forget_previous_wraps(below=2, limit=10) == 0

    assert former(store) == {2: 1}
    with operating(store) as tx:
        assert tx.restore_previous_wraps(above=2, limit=10) == 1
    assert wraps(store)[key_of(new)] == new.sealed.key


def test_a_forgotten_wrap_leaves_the_files_of_sqlite(sqlite_url: str) -> None:
    store = SqlStore(sqlite_url)
    new = card()
    stored(store, new)
    exchanged(store, rewrapped(new))
    trace = new.sealed.key.wrapped.encode()

    assert _is_in_files(sqlite_url, trace)
    with operating(store) as tx:
        tx.forget_previous_wraps(below=1000, limit=10)

    assert not _is_in_files(sqlite_url, trace)
    store.close()


def test_a_data_key_that_was_replaced_leaves_the_files_of_sqlite(sqlite_url: str) -> None:
    store = SqlStore(sqlite_url)
    new = card()
    stored(store, new)

    with operating(store) as tx:
        tx.rekey_cards([rekeyed(new)])

    assert not _is_in_files(sqlite_url, new.sealed.key.wrapped.encode())
    assert not _is_in_files(sqlite_url, new.sealed.ciphertext)
    store.close()


def test_former_wraps_are_restored_where_the_current_one_is_too_new(store: SqlStore) -> None:
    cards = [card() for _ in range(5)]
    untouched = sealed_under(9)
    stored(store, *cards, untouched)
    exchanged(store, *(rewrapped(each, version=4) for each in cards[:4]))
    fine = rewrapped(cards[4], version=3)
    exchanged(store, fine)

    portions = []
    for _ in range(3):
        with operating(store) as tx:
            portions.append(tx.restore_previous_wraps(above=3, limit=3))

    assert portions == [3, 1, 0]
    assert former(store) == {1: 1, 4: 4}
    assert wraps(store) == {key_of(each): each.sealed.key for each in [*cards[:4], untouched]} | {fine.card: fine.new}
    with store.reading() as tx:
        assert tx.count_wraps() == {1: 4, 3: 1, 9: 1}


def test_wraps_that_were_put_back_are_exchanged_again_when_the_newer_version_is_there_again(store: SqlStore) -> None:
    new = card()
    stored(store, new)
    exchange = rewrapped(new, version=2)
    exchanged(store, exchange)

    with operating(store) as tx:
        assert tx.restore_previous_wraps(above=1, limit=10) == 1
    assert wraps(store) == {key_of(new): new.sealed.key}
    with operating(store) as tx:
        assert tx.restore_previous_wraps(above=2, below=2, limit=10) == 1
        assert tx.restore_previous_wraps(above=2, below=2, limit=10) == 0

    assert wraps(store) == {key_of(new): exchange.new}
    assert former(store) == {1: 1}


def test_a_former_wrap_that_is_too_new_itself_is_not_restored(store: SqlStore) -> None:
    new = sealed_under(4)
    stored(store, new)
    exchange = rewrapped(new, version=5)
    exchanged(store, exchange)

    with store.writing() as tx:
        assert tx.restore_previous_wraps(above=3, limit=10) == 0

    assert wraps(store) == {key_of(new): exchange.new}
    assert former(store) == {4: 1}


# --- other data keys -------------------------------------------------------------------------------------------------


def test_a_card_gets_another_data_key_and_keeps_token_consent_and_display(store: SqlStore) -> None:
    new, other = card(), card()
    grant = grant_for(new.token)
    stored(store, new, other)
    granted(store, grant)
    exchanged(store, first := rewrapped(new))
    change = rekeyed(new)
    with store.reading() as tx:
        before = tx.cards([ref(new)])

    with operating(store) as tx:
        changed = tx.rekey_cards([change])

    expected = replace(secret_of(new), ciphertext=change.sealed.ciphertext, fingerprint=change.fingerprint)
    expected = replace(expected, wrap=replace(expected.wrap, key=change.sealed.key, record_version=2))
    assert changed == {key_of(new)}
    assert first.new != change.sealed.key
    assert secrets(store) == {key_of(new): expected, key_of(other): secret_of(other)}
    assert former(store) == {}
    with store.reading() as tx:
        assert tx.cards([ref(new)]) == before
        assert tx.known_cards([(TENANT, new.fingerprint)]) == {}
        assert list(tx.known_cards([(TENANT, change.fingerprint)]).values()) == [KnownCard(new.token, 2)]
        assert tx.redeemables([GrantKey((TENANT,), grant.grant_sha256)])[grant.grant_sha256].grant == grant


def test_a_card_that_is_not_the_expected_one_keeps_its_data_key(store: SqlStore) -> None:
    erased, resealed, foreign, good = (card() for _ in range(4))
    stored(store, erased, resealed, foreign, good)
    erase(store, erased)
    again = sealed_again(resealed)
    with writing(store) as tx:
        tx.reseal_cards([again])
    changes = [rekeyed(each) for each in (erased, resealed, good)]
    changes.append(replace(rekeyed(foreign), card=CardKey(OTHER_TENANT, foreign.token)))

    with operating(store) as tx:
        changed = tx.rekey_cards(changes)

    assert changed == {key_of(good)}
    found = secrets(store)
    assert found[key_of(resealed)].wrap.key == again.sealed.key
    assert found[key_of(foreign)] == secret_of(foreign)
    assert key_of(erased) not in found


def test_a_new_sealing_must_have_the_next_record_version(store: SqlStore) -> None:
    new = card()
    stored(store, new)
    change = rekeyed(new)

    with store.writing() as tx, pytest.raises(ValueError, match="record version"):
        tx.rekey_cards([replace(change, sealed=replace(change.sealed, record_version=3))])

    assert secrets(store) == {key_of(new): secret_of(new)}


def test_a_fingerprint_that_another_card_has_is_not_taken_over_and_stops_no_neighbour(store: SqlStore) -> None:
    owner, blocked, free, elsewhere = card(), card(), card(), card(tenant=OTHER_TENANT)
    stored(store, owner, blocked, free, elsewhere)
    changes = [
        rekeyed(blocked, fingerprint=owner.fingerprint.value),
        rekeyed(free),
        rekeyed(elsewhere, fingerprint=owner.fingerprint.value),
    ]

    with operating(store) as tx:
        changed = tx.rekey_cards(changes)

    found = secrets(store)
    assert changed == {key_of(each) for each in (blocked, free, elsewhere)}
    assert found[key_of(owner)] == secret_of(owner)
    assert found[key_of(blocked)].wrap.key == changes[0].sealed.key
    assert found[key_of(blocked)].ciphertext == changes[0].sealed.ciphertext
    assert found[key_of(blocked)].fingerprint == blocked.fingerprint
    assert found[key_of(free)].fingerprint == changes[1].fingerprint
    assert found[key_of(elsewhere)].fingerprint == changes[2].fingerprint


def test_of_two_cards_that_would_get_one_fingerprint_one_gets_it(store: SqlStore) -> None:
    first, second = card(), card()
    stored(store, first, second)
    same = os.urandom(32)

    with operating(store) as tx:
        changed = tx.rekey_cards([rekeyed(first, fingerprint=same), rekeyed(second, fingerprint=same)])

    assert changed == {key_of(first), key_of(second)}
    with store.reading() as tx:
        assert tx.count_fingerprints() == {1: 1, 2: 1}


def test_a_card_keeps_its_own_fingerprint_under_a_newer_version(store: SqlStore) -> None:
    new = card()
    stored(store, new)

    with operating(store) as tx:
        tx.rekey_cards([rekeyed(new, fingerprint=new.fingerprint.value)])

    assert secrets(store)[key_of(new)].fingerprint == Fingerprint(2, new.fingerprint.value)


def test_a_card_that_is_being_inserted_with_the_same_fingerprint_stops_no_batch(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url)
    new, neighbour = card(), card()
    stored(store, new, neighbour)
    rival = card()

    def rekey() -> frozenset[CardKey]:
        with operating(store) as tx:
            return tx.rekey_cards([rekeyed(new, fingerprint=rival.fingerprint.value), rekeyed(neighbour)])

    with ThreadPoolExecutor(1) as pool:
        with writing(store) as tx:
            tx.insert_new_cards([rival])
            attempt = pool.submit(rekey)
            with pytest.raises(TimeoutError):
                attempt.result(timeout=0.2)

        assert attempt.result(timeout=10) == {key_of(new), key_of(neighbour)}
    found = secrets(store)
    assert found[key_of(new)].fingerprint == new.fingerprint
    assert found[key_of(rival)].fingerprint == rival.fingerprint
    assert found[key_of(neighbour)].fingerprint.version == 2
    store.close()


# --- the fence ------------------------------------------------------------------------------------------------------

_OLD_WRAPS: dict[str, Callable[[OperatorWriter, NewCard], object]] = {
    "insert_new_cards": lambda tx, _: tx.insert_new_cards([sealed_under(3), sealed_under(1)]),
    "reseal_cards": lambda tx, new: tx.reseal_cards([sealed_again(new)]),
    "rekey_cards": lambda tx, new: tx.rekey_cards([rekeyed(new)]),
    "replace_wraps": lambda tx, new: tx.replace_wraps([rewrapped(new)]),
    "insert_once_keys": lambda tx, _: tx.insert_once_keys([once_key()]),
}


def fence(store: OperatorStore, oldest: int) -> None:
    with store.writing() as tx:
        for name in ("cardvault-cards", "cardvault-once"):
            tx.put_setting(f"oldest.{name}", str(oldest))


@pytest.mark.parametrize("method", sorted(_OLD_WRAPS))
def test_a_wrap_under_a_retired_version_is_refused_with_all_that_its_transaction_did(
    store: SqlStore, method: str
) -> None:
    new = card()
    stored(store, new)
    fence(store, 3)

    def write() -> None:
        with operating(store) as tx:
            tx.put_setting("beside", "it")
            _OLD_WRAPS[method](tx, new)

    with pytest.raises(StoreUnavailable) as refused:
        write()

    assert refused.value.reason == "key_version_retired"
    assert wraps(store) == {key_of(new): new.sealed.key}
    with store.reading() as reader:
        assert reader.setting("beside") is None
    fence(store, 1)
    write()


@pytest.mark.parametrize("before", [0, 8], ids=["first", "prepared"])
def test_a_fence_waits_for_wraps_under_way_and_is_seen_by_all_that_follow(postgresql_url: str, before: int) -> None:
    store = SqlStore(postgresql_url, limits=Limits(pool_size=3))
    for _ in range(before):  # the driver prepares a statement at its sixth use of a connection
        with writing(store) as one, writing(store) as two, writing(store) as three:
            for tx in (one, two, three):
                tx.insert_new_cards([card()])

    with ThreadPoolExecutor(2) as pool:
        with writing(store) as tx:
            tx.insert_new_cards([card()])
            raising = pool.submit(fence, store, 2)
            with pytest.raises(TimeoutError):
                raising.result(timeout=0.2)
            late = pool.submit(stored, store, card())
            with pytest.raises(TimeoutError):
                late.result(timeout=0.2)
        raising.result(timeout=10)
        with pytest.raises(StoreUnavailable):
            late.result(timeout=10)

    assert len(wraps(store)) == 3 * before + 1
    store.close()


# --- facts -----------------------------------------------------------------------------------------------------------


def test_facts_are_found_by_the_beginning_of_their_name_and_forgotten(store: SqlStore) -> None:
    with store.writing() as tx:
        for name in ("rotation.cards", "rotation.once", "rotationx", "Rotation.cards", "rot%", "a"):
            tx.put_setting(name, name.upper())

    with store.reading() as tx:
        assert tx.settings("rotation.") == {
            "rotation.cards": "ROTATION.CARDS",
            "rotation.once": "ROTATION.ONCE",
        }
        assert tx.settings("rot%") == {"rot%": "ROT%"}
        assert len(tx.settings("")) == 6
        assert tx.settings("none") == {}
    with store.writing() as tx:
        tx.delete_setting("rotation.cards")
        tx.delete_setting("never there")
    with store.reading() as tx:
        assert tx.setting("rotation.cards") is None
        assert tx.setting("rotation.once") == "ROTATION.ONCE"


# --- evidence --------------------------------------------------------------------------------------------------------

_CURRENT = sealed_key(2)
_CHANGES: dict[str, Callable[[OperatorWriter, NewCard], object]] = {
    "replace_wraps": lambda tx, new: tx.replace_wraps([replace(rewrapped(new), old=_CURRENT)]),
    "forget_previous_wraps": lambda tx, _: tx.forget_previous_wraps(below=1000, limit=1),
    "restore_previous_wraps": lambda tx, _: tx.restore_previous_wraps(above=1, limit=1),
    "rekey_cards": lambda tx, new: tx.rekey_cards([rekeyed(new)]),
}


@pytest.mark.parametrize("name", sorted(_CHANGES))
def test_no_exchange_is_committed_without_an_event(store: SqlStore, name: str) -> None:
    new = card()
    stored(store, new)
    exchanged(store, WrapReplacement(key_of(new), new.sealed.key, _CURRENT))

    with pytest.raises(AssertionError, match="audit event"), store.writing() as tx:
        assert _CHANGES[name](tx, new)

    assert wraps(store) == {key_of(new): _CURRENT}
    assert former(store) == {1: 1}


def test_every_change_of_an_operator_is_known_to_the_test_above() -> None:
    changes = {name for name in vars(OperatorWriter) if not name.startswith("_")}

    assert changes - {"delete_setting", "note_compacted"} == {*_CHANGES, *RETENTION_CHANGES}


# --- many at once ----------------------------------------------------------------------------------------------------


def test_of_an_exchange_and_a_new_sealing_at_once_the_new_sealing_stays(store: SqlStore) -> None:
    cards = [card() for _ in range(30)]
    stored(store, *cards)
    again = [sealed_again(each) for each in cards]
    gate = threading.Barrier(3)

    def rewrap() -> int:
        gate.wait()
        return sum(len(exchanged(store, *(rewrapped(each) for each in cards[i : i + 5]))) for i in range(0, 30, 5))

    def reseal() -> int:
        gate.wait()
        done = 0
        for i in reversed(range(0, 30, 3)):
            with writing(store) as tx:
                done += len(tx.reseal_cards(again[i : i + 3][::-1]))
        return done

    with ThreadPoolExecutor(3) as pool:
        rewraps = [pool.submit(rewrap) for _ in range(2)]
        reseals = pool.submit(reseal)

    assert reseals.result() == 30
    assert sum(each.result() for each in rewraps) <= 30
    assert former(store) == {}
    found = secrets(store)
    for each in again:
        assert found[key_of(each)].wrap.key == each.sealed.key
        assert found[key_of(each)].ciphertext == each.sealed.ciphertext


@pytest.mark.parametrize("seed", range(5))
def test_exchanges_beside_erasures_and_new_sealings_lose_nothing_and_bring_nothing_back(
    store: SqlStore, seed: int
) -> None:
    customers = [CustomerId(f"customer-{seed}-{i}") for i in range(6)]
    cards = [card(customer=customers[i % 6]) for i in range(36)]
    stored(store, *cards)
    by_customer = {each: [c for c in cards if c.customer == each] for each in customers}
    gate = threading.Barrier(5)
    resealed: dict[Token, SealedCard] = {}

    def rewrap(*, backwards: bool) -> None:
        gate.wait()
        mine = cards[::-1] if backwards else cards
        for i in range(0, 36, 9):
            exchanged(store, *(rewrapped(each) for each in mine[i : i + 9]))

    def erase_all(customer: CustomerId) -> None:
        gate.wait()
        with writing(store) as tx:
            tx.erase_cards(TENANT, customer, None, event_id=event().event_id, now=NOW)

    def reseal(customer: CustomerId) -> None:
        gate.wait()
        again = [sealed_again(each) for each in by_customer[customer]]
        with writing(store) as tx:
            assert len(tx.reseal_cards(again)) == 6
        resealed.update({each.token: each.sealed for each in again})

    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(rewrap, backwards=backwards) for backwards in (False, True)]
        jobs += [pool.submit(erase_all, each) for each in customers[:2]]
        jobs.append(pool.submit(reseal, customers[2]))
    for job in jobs:
        job.result()

    found = secrets(store)
    with store.reading() as tx:
        versions = tx.count_wraps()
        kept_former = tx.count_previous_wraps()
    assert set(found) == {key_of(each) for each in cards if each.customer not in customers[:2]}
    assert {
        token: SealedCard(s.wrap.key, s.ciphertext, s.wrap.record_version)
        for token, s in ((key.token, s) for key, s in found.items() if key.token in resealed)
    } == resealed
    assert versions == {2: 24}
    assert kept_former == {1: 18}


def test_an_exchange_waits_for_an_erasure_under_way_and_then_brings_nothing_back(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url)
    new = card()
    stored(store, new)

    with ThreadPoolExecutor(1) as pool:
        with writing(store) as tx:
            tx.erase_cards(TENANT, CUSTOMER, new.token, event_id=event().event_id, now=NOW)
            attempt = pool.submit(exchanged, store, rewrapped(new))
            with pytest.raises(TimeoutError):
                attempt.result(timeout=0.2)

        assert attempt.result(timeout=10) == frozenset()
    assert listed(store) == []
    assert wraps(store) == {}
    store.close()


def test_a_redemption_does_not_wait_for_an_exchange_under_way(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url, limits=Limits(lock_timeout=timedelta(milliseconds=200)))
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)

    with operating(store) as tx:
        tx.replace_wraps([rewrapped(new)])
        with writing(store) as redemption:
            won = redemption.claim_grants([claim_of(grant)], now=NOW)

    assert won == {grant.grant_sha256}
    store.close()


def test_every_statement_of_an_operator_still_works_once_postgresql_has_prepared_it(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url, limits=Limits(pool_size=1))

    for _ in range(8):
        new = card()
        stored(store, new)
        with operating(store) as tx:
            assert [each.card for each in tx.wraps_below(2, after=None, limit=5)] == [key_of(new)]
            assert len(tx.replace_wraps([rewrapped(new)])) == 1
            assert tx.restore_previous_wraps(above=1, limit=5) == 1
            assert len(tx.replace_wraps([rewrapped(new)])) == 1
            assert tx.forget_previous_wraps(below=1000, limit=5) == 1
            assert len(tx.rekey_cards([rekeyed(new)])) == 1
            selection = Selection(TENANT, NOW, NOW + DAY)
            assert tx.count_secrets(selection) == len(tx.secrets(selection, after=None, limit=5)) == 1
            tx.erase_cards(TENANT, CUSTOMER, None, event_id=event().event_id, now=NOW)

    store.close()


def _is_in_files(url: str, trace: bytes) -> bool:
    path = Path(url.removeprefix("sqlite:///"))
    return any(trace in each.read_bytes() for each in path.parent.glob(path.name + "*"))

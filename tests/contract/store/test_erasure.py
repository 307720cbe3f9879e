"""Erasure: nothing that opens a card is left, not even in free pages, and the ledger and a tombstone say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.contract.store.make import (
    card,
    claimed,
    event,
    grant_for,
    granted,
    kept,
    listed,
    once_key,
    record,
    ref,
    sealed_again,
    stored,
    writing,
)
from tests.support.world import CUSTOMER, NOW, OTHER_TENANT, TENANT
from vault.domain.grant import GrantState
from vault.domain.ids import CustomerId, Token
from vault.ports import Erased, GrantKey, NewCard
from vault.store import SqlStore, sql_store
from vault.store.engine import Limits, open_engines
from vault.store.tables import card_secrets, consents, erasures

SOMEONE_ELSE = CustomerId("customer-2")


def erased(store: SqlStore, token: Token | None, customer: CustomerId = CUSTOMER) -> Erased:
    with writing(store) as tx:
        return tx.erase_cards(TENANT, customer, token, event_id=event().event_id, now=NOW)


def test_one_card_is_erased_with_everything_that_leads_to_it(store: SqlStore) -> None:
    new, other = card(), card()
    grant, other_grant = grant_for(new.token), grant_for(other.token)
    stored(store, new, other)
    granted(store, grant, other_grant)

    outcome = erased(store, new.token)

    with store.reading() as tx:
        grants = tx.redeemables([GrantKey((TENANT,), each.grant_sha256) for each in (grant, other_grant)])
        assert tx.cards([ref(new)]) == {}
        assert tx.known_cards([(TENANT, new.fingerprint)]) == {}
    assert outcome == Erased(cards=1, grants_revoked=1)
    assert listed(store) == [other.token]
    assert grants[grant.grant_sha256].grant.state is GrantState.REVOKED
    assert grants[other_grant.grant_sha256].grant.state is GrantState.OPEN


def test_all_cards_of_a_customer_are_erased_and_no_others(store: SqlStore) -> None:
    mine = [card() for _ in range(3)]
    neighbour, foreign = card(customer=SOMEONE_ELSE), card(tenant=OTHER_TENANT)
    stored(store, *mine, neighbour, foreign)

    outcome = erased(store, None)

    assert outcome == Erased(cards=3, grants_revoked=0)
    assert listed(store) == []
    assert listed(store, customer=SOMEONE_ELSE) == [neighbour.token]
    assert listed(store, tenant=OTHER_TENANT) == [foreign.token]


def test_a_card_of_someone_else_is_not_erased(store: SqlStore) -> None:
    theirs = card(customer=SOMEONE_ELSE)
    stored(store, theirs)

    assert erased(store, theirs.token) == Erased(0, 0)

    assert listed(store, customer=SOMEONE_ELSE) == [theirs.token]


def test_a_used_grant_stays_used(store: SqlStore) -> None:
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)
    claimed(store, grant)

    assert erased(store, new.token) == Erased(cards=1, grants_revoked=0)

    with store.reading() as tx:
        assert tx.grants([GrantKey((TENANT,), grant.grant_sha256)])[grant.grant_sha256].state is GrantState.USED


def test_answers_that_speak_of_the_card_are_emptied_and_stay_so(store: SqlStore) -> None:
    new = card()
    about, other = record(token=new.token), record()
    stored(store, new)
    with writing(store) as tx:
        tx.claim_idempotency([about, other], now=NOW)

    erased(store, new.token)
    with writing(store) as tx:
        tx.replace_answers({about.id: {"token": new.token}})

    with store.reading() as tx:
        found = tx.idempotency([about.id, other.id])
    assert found[about.id] == replace(about, request_sha256=b"", answer={}, erased=True)
    assert found[other.id] == other


def test_the_ledger_records_the_withdrawal_and_a_tombstone_remains(store: SqlStore, database_url: str) -> None:
    new = card()
    stored(store, new)
    why = event()

    with store.writing() as tx:
        tx.erase_cards(TENANT, CUSTOMER, new.token, event_id=why.event_id, now=NOW)
        tx.append_events([why])

    engines = open_engines(database_url, Limits())
    with engines.reader.connect() as connection:
        ledger = connection.execute(
            select(consents.c.kind, consents.c.withdraws_consent_id, consents.c.event_id, consents.c.recorded_at)
            .where(consents.c.token == new.token)
            .order_by(consents.c.kind)
        ).all()
        tombstones = connection.execute(
            select(erasures.c.tenant_id, erasures.c.token, erasures.c.customer_id, erasures.c.event_id)
        ).all()
        secrets = connection.execute(select(card_secrets.c.token)).all()
    engines.dispose()
    assert [tuple(entry)[:3] for entry in ledger] == [
        ("given", None, None),
        ("withdrawn", new.consent.consent_id, why.event_id),
    ]
    assert ledger[1].recorded_at == NOW
    assert [tuple(each) for each in tombstones] == [(TENANT, new.token, CUSTOMER, why.event_id)]
    assert secrets == []


def test_a_card_that_a_restored_backup_brought_back_can_be_erased_again(store: SqlStore) -> None:
    new = card()
    stored(store, new)
    erased(store, new.token)
    revived = replace(card(token=new.token), fingerprint=new.fingerprint)
    stored(store, revived)

    assert erased(store, new.token).cards == 1
    assert listed(store) == []


def test_the_same_card_can_be_stored_again_after_erasure(store: SqlStore) -> None:
    new = card()
    stored(store, new)
    erased(store, new.token)
    again = card(fingerprint=new.fingerprint.value)

    stored(store, again)

    assert listed(store) == [again.token]


def _left_in_files(directory: Path, secret: bytes) -> list[str]:
    return [path.name for path in directory.iterdir() if path.is_file() and secret in path.read_bytes()]


def _secrets_of(new: NewCard) -> list[bytes]:
    # The last: columns of the display row that stand side by side, up to the last four digits.
    shown = f"{new.token}{new.customer}{new.last4}".encode()
    return [new.sealed.ciphertext, new.sealed.key.wrapped.encode(), new.fingerprint.value, shown]


def test_the_bytes_of_an_erased_card_are_in_no_file_of_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    store = SqlStore(sqlite_url)
    cards = [card() for _ in range(60)]
    stored(store, *cards)
    resealed = [sealed_again(each) for each in cards[:20]]
    with writing(store) as tx:
        tx.reseal_cards(resealed)
    goes = [*resealed, *cards[20:40]]
    assert all(_left_in_files(tmp_path, secret) for secret in _secrets_of(goes[0])), "the search finds what is there"

    for each in goes:
        erased(store, each.token)

    gone = [secret for each in [*goes, *cards[:20]] for secret in _secrets_of(each)]
    # SQLite may leave a copy of a row where it stood before its page was split.
    assert len([secret for secret in gone if _left_in_files(tmp_path, secret)]) <= len(gone) // 50
    assert store.compact()
    left = [secret for secret in gone if _left_in_files(tmp_path, secret)]
    store.close()
    assert left == []


def test_a_small_database_is_compacted_by_tidying_once_an_hour(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies that rows leave behind are many where many rows come and go."""
    clock = 1.0
    monkeypatch.setattr(sql_store, "monotonic", lambda: clock)
    store = SqlStore(sqlite_url)

    def come_and_go() -> list[bytes]:
        cards = [card() for _ in range(300)]
        for start in range(0, 300, 20):
            stored(store, *cards[start : start + 20])
        for each in cards[::2]:
            erased(store, each.token)
        return [secret for each in cards[::2] for secret in _secrets_of(each)]

    first = come_and_go()
    store.tidy()
    assert [secret for secret in first if _left_in_files(tmp_path, secret)] == []

    come_and_go()
    size = (tmp_path / "vault.db").stat().st_size
    store.tidy()
    assert (tmp_path / "vault.db").stat().st_size == size, "not again within the hour"
    clock += sql_store.COMPACTED_EVERY
    store.tidy()
    assert (tmp_path / "vault.db").stat().st_size < size
    store.close()


def test_beside_a_long_reader_a_database_is_written_anew_once(sqlite_url: str, tmp_path: Path) -> None:
    store, elsewhere = SqlStore(sqlite_url), SqlStore(sqlite_url)
    cards = [card() for _ in range(60)]
    stored(store, *cards)
    with elsewhere.reading() as reader:
        reader.cards([ref(cards[0])])
        for each in cards[1:]:
            erased(store, each.token)
        store.tidy()
        grown = (tmp_path / "vault.db-wal").stat().st_size
        store.tidy()
        assert (tmp_path / "vault.db-wal").stat().st_size == grown
    store.tidy()

    left = [secret for each in cards[1:] for secret in _secrets_of(each) if _left_in_files(tmp_path, secret)]
    store.close()
    elsewhere.close()
    assert left == []


def test_the_bytes_of_a_whole_customer_are_in_no_file_of_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    store = SqlStore(sqlite_url)
    mine, theirs = [card() for _ in range(40)], [card(customer=SOMEONE_ELSE) for _ in range(10)]
    stored(store, *mine, *theirs)
    secrets = [secret for each in mine for secret in _secrets_of(each)]
    assert all(_left_in_files(tmp_path, secret) for secret in secrets), "the search finds what is there"

    assert erased(store, None).cards == 40

    assert store.compact()
    left = [secret for secret in secrets if _left_in_files(tmp_path, secret)]
    store.close()
    assert left == []


def test_after_a_long_reader_ended_tidying_clears_the_log(sqlite_url: str, tmp_path: Path) -> None:
    store, elsewhere = SqlStore(sqlite_url), SqlStore(sqlite_url)
    new, other = card(), card()
    stored(store, new, other)
    with elsewhere.reading() as reader:
        reader.cards([ref(other)])
        erased(store, new.token)
        store.tidy()
        assert _left_in_files(tmp_path, new.sealed.ciphertext), "the reader's snapshot still needs it"

    store.tidy()

    left = [secret for secret in _secrets_of(new) if _left_in_files(tmp_path, secret)]
    store.close()
    elsewhere.close()
    assert left == []


def test_a_reader_in_the_way_delays_the_clearing_of_the_log_to_a_later_write(sqlite_url: str, tmp_path: Path) -> None:
    store = SqlStore(sqlite_url)
    new, other = card(), card()
    stored(store, new, other)
    with store.reading() as reader:
        reader.cards([ref(other)])
        erased(store, new.token)
        assert _left_in_files(tmp_path, new.sealed.ciphertext), "the reader's snapshot still needs it"

    kept(store, once_key())

    left = _left_in_files(tmp_path, new.sealed.ciphertext)
    store.close()
    assert left == []


def test_a_spent_one_time_key_leaves_the_table_file_of_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    store = SqlStore(sqlite_url)
    once = once_key()
    grant = grant_for(once.once_id)
    kept(store, once)
    granted(store, grant)
    claimed(store, grant)

    store.close()

    assert _left_in_files(tmp_path, once.key.wrapped.encode()) == []


def test_the_key_of_a_redeemed_one_time_token_is_in_no_file_of_sqlite_after_tidying(
    sqlite_url: str, tmp_path: Path
) -> None:
    store = SqlStore(sqlite_url)
    keys = [once_key() for _ in range(20)]
    kept(store, *keys)
    assert _left_in_files(tmp_path, keys[0].key.wrapped.encode()), "the search finds what is there"
    with writing(store) as tx:
        tx.void_once_keys([(key.tenant, key.once_id) for key in keys])

    store.tidy()

    left = [key for key in keys if _left_in_files(tmp_path, key.key.wrapped.encode())]
    store.close()
    assert left == []

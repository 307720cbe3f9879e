"""Idempotency records: whoever inserts the key does the work."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.contract.store.make import DAY, record, writing
from tests.support.world import NOW, OTHER_TENANT, new_token
from vault.ports import IdempotencyId, IdempotencyRecord
from vault.store import SqlStore


def _found(store: SqlStore, wanted: IdempotencyId) -> IdempotencyRecord | None:
    with store.reading() as tx:
        return tx.idempotency([wanted]).get(wanted)


def test_a_free_key_is_claimed_and_its_record_read_back(store: SqlStore) -> None:
    new = record(token=new_token())

    with writing(store) as tx:
        claimed = tx.claim_idempotency([new], now=NOW)

    assert claimed == {new.id}
    assert _found(store, new.id) == new


@pytest.mark.parametrize("beside", [0, 12])
def test_a_taken_key_is_not_claimed_and_keeps_its_answer(store: SqlStore, beside: int) -> None:
    others = [record() for _ in range(beside)]
    first = record()
    second = record(key=first.id.key, answer={"other": 1})
    free = record()
    with writing(store) as tx:
        tx.claim_idempotency([first], now=NOW)

    with writing(store) as tx:
        claimed = tx.claim_idempotency([second, free, *others], now=NOW + DAY - timedelta(microseconds=1))

    assert claimed == {each.id for each in (free, *others)}
    assert _found(store, first.id) == first
    assert all(_found(store, each.id) == each for each in others)


@pytest.mark.parametrize("beside", [0, 12])
def test_an_expired_key_is_free_again(store: SqlStore, beside: int) -> None:
    others = [record(created_at=NOW + DAY) for _ in range(beside)]
    first = record(token=new_token())
    second = replace(record(key=first.id.key, created_at=NOW + DAY), customer=None)
    with writing(store) as tx:
        tx.claim_idempotency([first], now=NOW)

    with writing(store) as tx:
        claimed = tx.claim_idempotency([second, *others], now=NOW + DAY)

    assert claimed == {each.id for each in (second, *others)}
    assert _found(store, first.id) == second


def test_a_key_is_unique_within_tenant_and_method_alone(store: SqlStore) -> None:
    ours = record()
    theirs = record(key=ours.id.key, tenant=OTHER_TENANT)
    other_method = record(key=ours.id.key, method="IssueGrant")

    with writing(store) as tx:
        claimed = tx.claim_idempotency([ours, theirs, other_method], now=NOW)

    assert claimed == {ours.id, theirs.id, other_method.id}
    assert _found(store, theirs.id) == theirs


def test_a_claim_taken_back_leaves_the_key_free(store: SqlStore) -> None:
    new, kept = record(), record()

    with writing(store) as tx:
        tx.claim_idempotency([new, kept], now=NOW)
        tx.release_idempotency([new.id])

    assert _found(store, new.id) is None
    assert _found(store, kept.id) == kept


def test_answers_are_replaced(store: SqlStore) -> None:
    new, other = record(), record()
    with writing(store) as tx:
        tx.claim_idempotency([new, other], now=NOW)

    with writing(store) as tx:
        tx.replace_answers({new.id: {"grant": "ab", "n": 2}})

    assert _found(store, new.id) == replace(new, answer={"grant": "ab", "n": 2})
    assert _found(store, other.id) == other


def test_two_hundred_keys_are_claimed_in_one_call(store: SqlStore) -> None:
    records = [record() for _ in range(200)]

    with writing(store) as tx:
        claimed = tx.claim_idempotency(records, now=NOW)

    with store.reading() as tx:
        assert len(tx.idempotency([each.id for each in records])) == 200
    assert claimed == {each.id for each in records}

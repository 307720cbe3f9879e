"""Grants and one-time keys: one open for each order, used at most once, and only for what was unwrapped."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.contract.store.make import (
    DAY,
    MINUTE,
    card,
    claim_of,
    claimed,
    event,
    grant_for,
    granted,
    kept,
    once_key,
    ref,
    sealed_again,
    stored,
    writing,
)
from tests.support.world import CUSTOMER, NOW, ORDER, OTHER_TENANT, TENANT, consent, new_token
from vault.domain.card import CardState
from vault.domain.consent import CardUse
from vault.domain.grant import Grant, GrantState, RedeemableOnce, RedeemableStoredCard
from vault.domain.ids import OrderId
from vault.ports import GrantKey, NewCard
from vault.store import SqlStore, write_cards
from vault.store.given import row_of
from vault.store.rows import card_values, secret_values
from vault.store.tables import card_secrets, cards


def key(grant: Grant) -> GrantKey:
    return GrantKey((TENANT, OTHER_TENANT), grant.grant_sha256)


def state_of(store: SqlStore, grant: Grant) -> GrantState:
    with store.reading() as tx:
        return tx.grants([key(grant)])[grant.grant_sha256].state


def test_a_grant_is_read_back_as_it_was_issued(store: SqlStore) -> None:
    grant = grant_for(new_token())
    granted(store, grant)

    with store.reading() as tx:
        assert tx.grants([key(grant)]) == {grant.grant_sha256: grant}


def test_a_grant_is_found_only_in_the_tenants_named(store: SqlStore) -> None:
    grant = grant_for(new_token())
    granted(store, grant)

    with store.reading() as tx:
        assert tx.grants([GrantKey((OTHER_TENANT,), grant.grant_sha256)]) == {}
        assert tx.redeemables([GrantKey((OTHER_TENANT,), grant.grant_sha256)]) == {}
        assert tx.grants([GrantKey((), grant.grant_sha256)]) == {}


@pytest.mark.parametrize("beside", [0, 12])
def test_a_second_open_grant_for_the_same_subject_and_order_is_not_inserted(store: SqlStore, beside: int) -> None:
    others = [grant_for(new_token()) for _ in range(beside)]
    first = grant_for(new_token())
    assert first.token is not None
    granted(store, first)
    second = replace(grant_for(first.token), issued_by="someone else")
    elsewhere = grant_for(first.token, order=OrderId("order-2"))

    with writing(store) as tx:
        inserted = tx.insert_grants([second, elsewhere, *others])

    assert inserted == {each.grant_sha256 for each in (elsewhere, *others)}
    with store.reading() as tx:
        assert tx.grants([GrantKey((TENANT,), second.grant_sha256)]) == {}


def test_after_revoking_another_grant_can_be_issued(store: SqlStore) -> None:
    token = new_token()
    first, second = grant_for(token), grant_for(token)
    granted(store, first)

    with writing(store) as tx:
        revoked = tx.revoke_open_grants([(TENANT, token, ORDER), (TENANT, new_token(), ORDER)], now=NOW)
        inserted = tx.insert_grants([second])

    assert revoked == 1
    assert inserted == {second.grant_sha256}
    assert state_of(store, first) is GrantState.REVOKED


def test_only_open_grants_of_the_own_tenant_are_revoked(store: SqlStore) -> None:
    one, two = grant_for(new_token()), grant_for(new_token())
    granted(store, one, two)

    with writing(store) as tx:
        first = tx.revoke_grants([(TENANT, one.grant_sha256), (OTHER_TENANT, two.grant_sha256)], now=NOW)
        again = tx.revoke_grants([(TENANT, one.grant_sha256)], now=NOW)

    assert first == {one.grant_sha256}
    assert again == frozenset()
    assert state_of(store, two) is GrantState.OPEN


def test_a_redeemable_carries_what_opens_the_stored_card(store: SqlStore) -> None:
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)

    with store.reading() as tx:
        found = tx.redeemables([key(grant)])[grant.grant_sha256]

    assert found.grant == grant
    assert found.target == RedeemableStoredCard(
        token=new.token,
        customer=CUSTOMER,
        key=new.sealed.key,
        ciphertext=new.sealed.ciphertext,
        record_version=1,
        expiry=new.expiry,
        is_active=True,
        consent=new.consent,
    )


def test_a_redeemable_for_a_one_time_token_carries_its_key_until_it_is_spent(store: SqlStore) -> None:
    once = once_key()
    grant = grant_for(once.once_id)
    kept(store, once)
    granted(store, grant)

    with store.reading() as tx:
        before = tx.redeemables([key(grant)])[grant.grant_sha256]
    claimed(store, grant)
    with store.reading() as tx:
        after = tx.redeemables([key(grant)])[grant.grant_sha256]

    assert before.target == RedeemableOnce(once.once_id, once.order, once.key, once.expires_at)
    assert (after.target, after.grant.state) == (None, GrantState.USED)


def test_a_one_time_token_keeps_its_owner_and_the_card_that_was_stored_with_it(store: SqlStore) -> None:
    once = replace(once_key(), customer=CUSTOMER, token=new_token())
    grant = grant_for(once.once_id)
    kept(store, once)
    granted(store, grant)

    with store.reading() as tx:
        found = tx.once_keys([(once.tenant, once.once_id)])
        target = tx.redeemables([key(grant)])[grant.grant_sha256].target

    assert found == {(once.tenant, once.once_id): once}
    assert isinstance(target, RedeemableOnce)
    assert target.token == once.token


def test_a_redeemable_without_its_card_has_no_target(store: SqlStore) -> None:
    grant = grant_for(new_token())
    granted(store, grant)

    with store.reading() as tx:
        assert tx.redeemables([key(grant)])[grant.grant_sha256].target is None


def test_a_grant_is_claimed_once(store: SqlStore) -> None:
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)

    assert claimed(store, grant) == {grant.grant_sha256}
    assert claimed(store, grant) == frozenset()
    assert state_of(store, grant) is GrantState.USED


def test_in_one_call_each_grant_stands_for_itself(store: SqlStore) -> None:
    cards = [card() for _ in range(3)]
    stored(store, *cards)
    grants = [grant_for(each.token) for each in cards]
    granted(store, *grants)
    with writing(store) as tx:
        tx.revoke_grants([(TENANT, grants[1].grant_sha256)], now=NOW)

    won = claimed(store, *grants, *grants)

    assert won == {grants[0].grant_sha256, grants[2].grant_sha256}


def test_a_grant_at_its_expiry_is_not_claimed(store: SqlStore) -> None:
    new = card()
    grant = grant_for(new.token, expires_at=NOW + MINUTE)
    stored(store, new)
    granted(store, grant)

    assert claimed(store, grant, now=NOW + MINUTE) == frozenset()
    assert claimed(store, grant, now=NOW + MINUTE - timedelta(microseconds=1)) == {grant.grant_sha256}


def test_a_claim_of_another_tenant_wins_nothing(store: SqlStore) -> None:
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)

    with writing(store) as tx:
        won = tx.claim_grants([replace(claim_of(grant), tenant=OTHER_TENANT)], now=NOW)

    assert won == frozenset()
    assert state_of(store, grant) is GrantState.OPEN


def test_a_claim_for_another_card_than_the_grants_wins_nothing(store: SqlStore) -> None:
    new, other = card(), card()
    grant = grant_for(new.token)
    stored(store, new, other)
    granted(store, grant)

    with writing(store) as tx:
        won = tx.claim_grants([replace(claim_of(grant), token=other.token)], now=NOW)

    assert won == frozenset()


def test_a_card_sealed_anew_since_it_was_unwrapped_is_not_released(store: SqlStore) -> None:
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)
    with writing(store) as tx:
        tx.reseal_cards([sealed_again(new)])

    assert claimed(store, grant, record_version=1) == frozenset()
    assert claimed(store, grant, record_version=2) == {grant.grant_sha256}


def test_a_pending_card_is_released_for_a_payment_that_the_customer_starts_alone(store: SqlStore) -> None:
    new = card(state=CardState.PENDING)
    mine = grant_for(new.token)
    theirs = [
        replace(grant_for(new.token, order=OrderId(f"order-{use}")), purpose=use)
        for use in CardUse
        if use is not CardUse.CUSTOMER_INITIATED
    ]
    stored(store, new)
    granted(store, mine, *theirs)

    assert claimed(store, mine, *theirs) == {mine.grant_sha256}


def test_a_card_whose_consent_has_ended_is_not_released(store: SqlStore) -> None:
    new = card(agreed=consent(agreed_until=NOW + MINUTE))
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)

    assert claimed(store, grant, now=NOW + MINUTE) == frozenset()
    assert claimed(store, grant, now=NOW) == {grant.grant_sha256}


def test_a_card_whose_consent_the_ledger_says_is_withdrawn_is_not_released(store: SqlStore) -> None:
    new, again = card(), card()
    grant, other = grant_for(new.token), grant_for(again.token)
    stored(store, new, again)
    with writing(store) as tx:
        tx.erase_cards(TENANT, CUSTOMER, new.token, event_id=event().event_id, now=NOW)
    # A part of a backup that was put back: the card is there again, and so is its consent's withdrawal.
    _put_back(store, new)
    granted(store, grant, other)

    with store.reading() as tx:
        found = tx.redeemables([key(grant), key(other)])
    won = claimed(store, grant, other)

    assert found[grant.grant_sha256].target is None
    assert found[other.grant_sha256].target is not None
    assert won == {other.grant_sha256}


def _put_back(store: SqlStore, old: NewCard) -> None:
    with store.writing() as tx:
        tx._link.batch_inserted(write_cards._insert_secrets(store.kind), [row_of(card_secrets, secret_values(old))])
        tx._link.batch_count(write_cards._insert_cards(store.kind), [row_of(cards, card_values(old))])


def test_an_erased_card_is_not_released(store: SqlStore) -> None:
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)
    with writing(store) as tx:
        tx.erase_cards(TENANT, CUSTOMER, new.token, event_id=event().event_id, now=NOW)
        late = grant_for(new.token)
        tx.insert_grants([late])

    assert claimed(store, grant, late) == frozenset()


def test_a_claimed_one_time_token_loses_its_key(store: SqlStore) -> None:
    once = once_key()
    grant = grant_for(once.once_id)
    kept(store, once)
    granted(store, grant)

    assert claimed(store, grant) == {grant.grant_sha256}

    with store.reading() as tx:
        assert tx.once_keys([(TENANT, once.once_id)]) == {}


def test_two_grants_for_one_one_time_token_release_it_once(store: SqlStore) -> None:
    once = once_key()
    grants = [grant_for(once.once_id), grant_for(once.once_id, order=OrderId("order-2"))]
    kept(store, once)
    granted(store, *grants)

    assert len(claimed(store, *grants)) == 1
    assert claimed(store, *grants) == frozenset()


def test_a_one_time_token_at_its_expiry_is_not_released(store: SqlStore) -> None:
    once = once_key(expires_at=NOW + MINUTE)
    grant = grant_for(once.once_id, expires_at=NOW + DAY)
    kept(store, once)
    granted(store, grant)

    assert claimed(store, grant, now=NOW + MINUTE) == frozenset()
    assert claimed(store, grant, now=NOW) == {grant.grant_sha256}


def test_one_time_keys_are_read_back_within_their_tenant_alone(store: SqlStore) -> None:
    once = once_key()
    kept(store, once)

    with store.reading() as tx:
        found = tx.once_keys([(TENANT, once.once_id), (OTHER_TENANT, once.once_id)])

    assert found == {(TENANT, once.once_id): once}


def test_voiding_a_one_time_token_destroys_its_key_and_revokes_its_grant(store: SqlStore) -> None:
    once, other = once_key(), once_key()
    grant = grant_for(once.once_id)
    kept(store, once, other)
    granted(store, grant)

    with writing(store) as tx:
        first = tx.void_once_keys([(TENANT, once.once_id), (OTHER_TENANT, other.once_id)])
        again = tx.void_once_keys([(TENANT, once.once_id)])

    with store.reading() as tx:
        assert list(tx.once_keys([(TENANT, once.once_id), (TENANT, other.once_id)])) == [(TENANT, other.once_id)]
    assert (first, again) == (frozenset({once.once_id}), frozenset())
    assert state_of(store, grant) is GrantState.REVOKED


def test_overdue_one_time_keys_are_destroyed_at_once_and_forgotten_after_a_day(store: SqlStore) -> None:
    overdue = [once_key(expires_at=NOW + MINUTE) for _ in range(3)]
    fresh = once_key(expires_at=NOW + 3 * DAY)
    kept(store, *overdue, fresh)

    with writing(store) as tx:
        first = tx.expire_once_keys(now=NOW + MINUTE, limit=2)
        second = tx.expire_once_keys(now=NOW + MINUTE, limit=2)
        third = tx.expire_once_keys(now=NOW + MINUTE, limit=2)
    with store.reading() as tx:
        left = tx.once_keys([(TENANT, each.once_id) for each in (*overdue, fresh)])
    with writing(store) as tx:
        fourth = tx.expire_once_keys(now=NOW + MINUTE + DAY, limit=100)
        # The rows are gone, so that their names could be used again.
        tx.insert_once_keys([replace(each, expires_at=NOW + 3 * DAY) for each in overdue])

    assert (first, second, third, fourth) == (2, 1, 0, 0)
    assert list(left) == [(TENANT, fresh.once_id)]


@pytest.mark.parametrize("count", [1, 200])
def test_batches_of_any_size_are_claimed_in_one_call(store: SqlStore, count: int) -> None:
    cards = [card() for _ in range(count)]
    stored(store, *cards)
    grants = [grant_for(each.token) for each in cards]
    granted(store, *grants)

    assert len(claimed(store, *grants)) == count
    with store.reading() as tx:
        assert len(tx.redeemables([key(each) for each in grants])) == count
        assert len(tx.cards([ref(each) for each in cards])) == count

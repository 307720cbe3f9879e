"""Outcomes: the first one stands, whoever comes after; approval makes a pending card active, once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.contract.store.make import (
    card,
    claimed,
    event,
    grant_for,
    granted,
    kept,
    listed,
    once_key,
    outcome_of,
    ref,
    sealed_again,
    stored,
    writing,
)
from tests.support.world import CUSTOMER, NOW, ORDER, OTHER_TENANT, TENANT, new_token
from vault.domain.card import CardState
from vault.domain.grant import Grant
from vault.domain.ids import NetworkTransactionId, OrderId, ProcessorName
from vault.domain.outcome import PaymentOutcome
from vault.ports import Approval, CardRef, Erased, GrantKey, NewCard, OutcomeReport
from vault.store import SqlStore

APPROVED, DECLINED = PaymentOutcome.APPROVED, PaymentOutcome.DECLINED
FIRST, SECOND = NetworkTransactionId("MCC-1:a.b_c"), NetworkTransactionId("MCC-2")


def recorded(store: SqlStore, *reports: OutcomeReport) -> dict[bytes, CardRef | None]:
    with writing(store) as tx:
        return dict(tx.record_outcomes(reports, now=NOW))


def outcome_kept(store: SqlStore, grant: Grant) -> PaymentOutcome | None:
    with store.reading() as tx:
        return tx.grants([GrantKey((TENANT,), grant.grant_sha256)])[grant.grant_sha256].outcome


def state_of(store: SqlStore, new: NewCard) -> CardState:
    with store.reading() as tx:
        return tx.cards([ref(new)])[ref(new)].state


def reference_of(store: SqlStore, new: NewCard) -> str | None:
    grant = grant_for(new.token, order=OrderId("order-to-look"))
    granted(store, grant)
    with store.reading() as tx:
        target = tx.redeemables([GrantKey((TENANT,), grant.grant_sha256)])[grant.grant_sha256].target
    with writing(store) as tx:
        tx.revoke_grants([(TENANT, grant.grant_sha256)], now=NOW)
    return getattr(target, "network_transaction_id", None)


def paid(store: SqlStore, new: NewCard) -> Grant:
    """A grant for it that was redeemed."""
    grant = grant_for(new.token)
    granted(store, grant)
    assert claimed(store, grant)
    return grant


def waiting(store: SqlStore) -> tuple[NewCard, Grant]:
    """A pending card whose first payment is under way."""
    new = card(state=CardState.PENDING)
    stored(store, new)
    return new, paid(store, new)


def test_the_first_outcome_is_recorded_and_stands(store: SqlStore) -> None:
    new, grant = waiting(store)

    first = recorded(store, outcome_of(grant, DECLINED))
    again = recorded(store, outcome_of(grant, DECLINED))
    other = recorded(store, outcome_of(grant, APPROVED))

    assert first == {grant.grant_sha256: ref(new)}
    assert (again, other) == ({}, {})
    assert outcome_kept(store, grant) is DECLINED


def test_an_outcome_is_taken_from_nobody_else_and_for_nothing_else(store: SqlStore) -> None:
    _, grant = waiting(store)
    other_card = card()
    stored(store, other_card)
    unused = grant_for(other_card.token)
    granted(store, unused)

    for wrong in (
        outcome_of(grant, processor=ProcessorName("other-pay")),
        outcome_of(grant, order=OrderId("order-2")),
        outcome_of(grant, tenant=OTHER_TENANT),
        outcome_of(unused),
        outcome_of(grant_for(new_token())),
    ):
        assert recorded(store, wrong) == {}

    assert outcome_kept(store, grant) is None
    assert outcome_kept(store, unused) is None


def test_a_revoked_grant_has_no_outcome(store: SqlStore) -> None:
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)
    with writing(store) as tx:
        tx.revoke_grants([(TENANT, grant.grant_sha256)], now=NOW)

    assert recorded(store, outcome_of(grant)) == {}


def test_each_report_of_a_call_stands_for_itself(store: SqlStore) -> None:
    pairs = [waiting(store) for _ in range(20)]
    recorded(store, outcome_of(pairs[3][1], DECLINED))

    found = recorded(store, *(outcome_of(grant) for _, grant in pairs))

    assert found == {grant.grant_sha256: ref(new) for n, (new, grant) in enumerate(pairs) if n != 3}


def test_an_outcome_is_recorded_though_the_card_is_gone(store: SqlStore) -> None:
    new, grant = waiting(store)
    with writing(store) as tx:
        tx.erase_cards(TENANT, CUSTOMER, new.token, event_id=event().event_id, now=NOW)

    assert recorded(store, outcome_of(grant)) == {grant.grant_sha256: None}


def test_a_one_time_token_leads_to_the_card_that_was_stored_with_it_or_to_none(store: SqlStore) -> None:
    new = card(state=CardState.PENDING)
    stored(store, new)
    both, alone = replace(once_key(), token=new.token), once_key(order=OrderId("order-2"))
    grants = [grant_for(both.once_id), grant_for(alone.once_id, order=alone.order)]
    kept(store, both, alone)
    granted(store, *grants)
    assert len(claimed(store, *grants)) == 2

    found = recorded(store, *(outcome_of(grant) for grant in grants))

    assert found == {grants[0].grant_sha256: ref(new), grants[1].grant_sha256: None}


def test_approval_makes_a_pending_card_active_once(store: SqlStore) -> None:
    new, other = card(state=CardState.PENDING), card(state=CardState.PENDING)
    stored(store, new, other)

    with writing(store) as tx:
        first = tx.approve_cards([Approval(ref(new), FIRST), Approval(ref(new), SECOND)])
        again = tx.approve_cards([Approval(ref(new), SECOND)])

    assert (first, again) == (frozenset({new.token}), frozenset())
    assert (state_of(store, new), state_of(store, other)) == (CardState.ACTIVE, CardState.PENDING)
    assert reference_of(store, new) == FIRST
    assert reference_of(store, other) is None


def test_the_first_reference_that_an_approval_brings_is_kept_through_another_sealing(store: SqlStore) -> None:
    new = card()
    stored(store, new)

    with writing(store) as tx:
        tx.approve_cards([Approval(ref(new), None)])
        tx.approve_cards([Approval(ref(new), FIRST)])
        tx.approve_cards([Approval(ref(new), SECOND)])
        tx.reseal_cards([sealed_again(new)])

    assert reference_of(store, new) == FIRST


def test_an_approval_in_another_tenant_changes_nothing(store: SqlStore) -> None:
    new = card(state=CardState.PENDING)
    stored(store, new)

    with writing(store) as tx:
        assert tx.approve_cards([Approval(replace(ref(new), tenant=OTHER_TENANT), FIRST)]) == frozenset()

    assert state_of(store, new) is CardState.PENDING
    assert reference_of(store, new) is None


def test_only_a_pending_card_is_erased_where_only_those_are_meant(store: SqlStore) -> None:
    active, pending = card(), card(state=CardState.PENDING)
    stored(store, active, pending)

    with writing(store) as tx:
        outcomes = [
            tx.erase_cards(TENANT, CUSTOMER, token, event_id=event().event_id, now=NOW, only_pending=True)
            for token in (active.token, pending.token)
        ]

    assert outcomes == [Erased(0, 0), Erased(1, 0)]
    assert listed(store) == [active.token]


@pytest.mark.parametrize("outcomes", [(APPROVED, DECLINED), (APPROVED,), (DECLINED,)])
def test_of_twenty_reports_at_once_the_database_takes_one(
    store: SqlStore, outcomes: tuple[PaymentOutcome, ...]
) -> None:
    new, grant = waiting(store)

    def report(number: int) -> tuple[PaymentOutcome, bool]:
        outcome = outcomes[number % len(outcomes)]
        with store.writing() as tx:
            won = tx.record_outcomes([outcome_of(grant, outcome)], now=NOW)
            if won and outcome is APPROVED:
                assert tx.approve_cards([Approval(ref(new), FIRST)]) == {new.token}
            elif won:
                erased = tx.erase_cards(
                    TENANT, CUSTOMER, new.token, event_id=event().event_id, now=NOW, only_pending=True
                )
                assert erased.cards == 1
            if won:
                tx.append_events([event()])
        return outcome, bool(won)

    with ThreadPoolExecutor(20) as pool:
        taken = [outcome for outcome, won in pool.map(report, range(20)) if won]

    assert len(taken) == 1
    assert outcome_kept(store, grant) is taken[0]
    assert listed(store) == ([new.token] if taken == [APPROVED] else [])


def test_of_approval_and_decline_of_two_payments_of_one_card_at_once_one_decides(store: SqlStore) -> None:
    for _ in range(6):
        new = card(state=CardState.PENDING)
        stored(store, new)
        grants = [grant_for(new.token, order=OrderId(f"order-{n}")) for n in range(6)]
        granted(store, *grants)
        assert len(claimed(store, *grants)) == 6

        def report(number: int, new: NewCard = new, grants: list[Grant] = grants) -> str:
            outcome = APPROVED if number % 2 else DECLINED
            effect = ""
            with store.writing() as tx:
                found = tx.record_outcomes([outcome_of(grants[number], outcome)], now=NOW)
                about = found[grants[number].grant_sha256]
                if about is not None and outcome is APPROVED:
                    effect = "activated" if tx.approve_cards([Approval(about, None)]) else ""
                elif about is not None:
                    erased = tx.erase_cards(
                        TENANT, CUSTOMER, new.token, event_id=event().event_id, now=NOW, only_pending=True
                    )
                    effect = "erased" if erased.cards else ""
                tx.append_events([event()])
            return effect

        with ThreadPoolExecutor(6) as pool:
            effects = [effect for effect in pool.map(report, range(6)) if effect]

        assert len(effects) == 1
        assert (listed(store) == [new.token]) == (effects == ["activated"])
        with writing(store) as tx:
            tx.erase_cards(TENANT, CUSTOMER, None, event_id=event().event_id, now=NOW)


def test_the_outcome_is_read_back_with_the_grant(store: SqlStore) -> None:
    _, grant = waiting(store)
    recorded(store, outcome_of(grant, APPROVED))

    assert grant.order == ORDER
    assert outcome_kept(store, grant) is APPROVED

"""Cards that become active with their first approved payment, and outcomes of payments, through real servers.

On PostgreSQL there are two servers, on SQLite one; both store new cards as pending.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fixtures_db import execute_as_admin, postgresql_url_of, sqlite_url_of
from tests.integration.rpc.conftest import Shop
from tests.support.answers import refusal_of, rows_of
from tests.support.cards import TypedCard, fresh_typed_card
from tests.support.installation import ACQUIRER, SECOND_ACQUIRER, installed
from tests.support.raw import rows as raw_rows
from tests.support.requests import (
    TIMEOUT,
    consent,
    grant_request,
    new_customer,
    new_key,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from vault.embedded.openbao import OpenBao
from vault.v1 import account_pb2, cards_pb2, processor_pb2

APPROVED, DECLINED = processor_pb2.OUTCOME_APPROVED, processor_pb2.OUTCOME_DECLINED
ACTIVE, PENDING = cards_pb2.CARD_STATE_ACTIVE, cards_pb2.CARD_STATE_PENDING
RECURRING = cards_pb2.CARD_USE_RECURRING
ALL_USES = tuple(use for use in cards_pb2.CardUse.values() if use)
REFUSED, NOT_FOUND = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND


def _opened(installation: Any, servers: int) -> Shop:
    for _ in range(servers):
        installation.serve(cards__activate_on="first_approval")
    return Shop(installation, *(installation.client(name) for name in ("checkout", "account", "processor")))


@pytest.fixture(scope="module")
def sqlite_first(tmp_path_factory: pytest.TempPathFactory, openbao: OpenBao, sqlite_template: Path) -> Iterator[Shop]:
    directory = tmp_path_factory.mktemp("first-sqlite")
    shutil.copy(sqlite_template, directory / "vault.db")
    with installed(directory, openbao, sqlite_url_of(directory / "vault.db")) as installation:
        yield _opened(installation, 1)


@pytest.fixture(scope="module")
def postgresql_first(
    tmp_path_factory: pytest.TempPathFactory, openbao: OpenBao, postgresql_server: str, postgresql_template: str
) -> Iterator[Shop]:
    execute_as_admin(postgresql_server, f"CREATE DATABASE first_approval TEMPLATE {postgresql_template}")
    url = postgresql_url_of(postgresql_server, "first_approval")
    with installed(tmp_path_factory.mktemp("first-postgresql"), openbao, url) as installation:
        yield _opened(installation, 2)


@pytest.fixture(params=["sqlite", "postgresql"])
def first(request: pytest.FixtureRequest) -> Shop:
    """A shop whose new cards wait for their first approval."""
    found: Shop = request.getfixturevalue(f"{request.param}_first")
    return found


@dataclass(frozen=True, slots=True)
class Purchase:
    """A customer's card and the payments made with it."""

    shop: Shop
    card: TypedCard
    customer: str
    token: str

    @property
    def url(self) -> str:
        return self.shop.installation.database_url

    def grant(self, order: str, **changes: Any) -> str:
        request = grant_request(order=order, customer=self.customer, token=self.token, **changes)
        return self.shop.checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant

    def redeem(self, grant: str, order: str) -> processor_pb2.DetokenizeResponse:
        return self.shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)

    def pay(self, **changes: Any) -> tuple[str, str]:
        """Grant and order of a redeemed grant."""
        order = new_order()
        grant = self.grant(order, **changes)
        assert self.redeem(grant, order).pan == self.card.pan
        return grant, order

    def shown(self) -> list[cards_pb2.Card]:
        request = account_pb2.ListCardsRequest(customer_id=self.customer)
        return list(self.shop.account.account.ListCards(request, timeout=TIMEOUT).cards)

    def state(self) -> int | None:
        found = self.shown()
        return found[0].state if found else None

    def store_again(self, **changes: Any) -> cards_pb2.Card:
        request = store_request(self.card, self.customer, **changes)
        return self.shop.checkout.checkout.Tokenize(request, timeout=TIMEOUT).card


def purchase(shop: Shop) -> Purchase:
    card, customer = fresh_typed_card(with_security_code=True), new_customer()
    request = store_request(card, customer, consent=consent(*ALL_USES))
    token = shop.checkout.checkout.Tokenize(request, timeout=TIMEOUT).card.token
    return Purchase(shop, card, customer, token)


def report(shop: Shop, grant: str, order: str, outcome: int = APPROVED, *, client: Any = None, **more: Any) -> None:
    request = processor_pb2.ReportOutcomeRequest(
        grant=grant, order_id=order, outcome=processor_pb2.Outcome.ValueType(outcome), **more
    )
    (client or shop.processor).processor.ReportOutcome(request, timeout=TIMEOUT)


def events_of(shop: Shop, customer: str) -> list[tuple[Any, ...]]:
    return raw_rows(
        shop.installation.database_url,
        f"SELECT event, outcome, reason, target, order_id, processor, details FROM audit_events "
        f"WHERE customer_id = '{customer}' ORDER BY occurred_at, event_id",
    )


# --- the life of a pending card -------------------------------------------------------------------------------------


def test_a_new_card_is_pending_until_its_first_payment_is_approved(first: Shop) -> None:
    bought = purchase(first)
    assert bought.state() == PENDING

    grant, order = bought.pay()
    assert bought.state() == PENDING
    report(first, grant, order, network_transaction_id="MCC:1-a.b_c")

    assert bought.state() == ACTIVE
    again, later = bought.pay()
    report(first, again, later, DECLINED)
    assert bought.state() == ACTIVE
    assert bought.shown()[0].token == bought.token


def test_a_card_whose_first_payment_is_declined_is_erased_as_if_it_were_deleted(first: Shop) -> None:
    bought = purchase(first)
    key = new_key()
    bought.store_again(idempotency_key=key)
    grant, order = bought.pay()
    open_order = new_order()
    open_grant = bought.grant(open_order)

    report(first, grant, order, DECLINED)

    assert bought.shown() == []
    late = refusal_of(lambda: bought.redeem(open_grant, open_order))
    repeated = refusal_of(lambda: bought.store_again(idempotency_key=key))
    assert late is not None
    assert repeated is not None
    assert (late.code, repeated.code) == (REFUSED, NOT_FOUND)
    counts = {
        table: raw_rows(bought.url, f"SELECT count(*) FROM {table} WHERE token = '{bought.token}'")[0][0]
        for table in ("cards", "card_secrets", "erasures")
    }
    assert counts == {"cards": 0, "card_secrets": 0, "erasures": 1}
    found = events_of(first, bought.customer)
    erased = next(row for row in found if row[0] == "card.erased")
    reported = next(row for row in found if row[0] == "outcome.reported")
    assert erased[1:6] == ("ok", "", bought.token, order, ACQUIRER)
    assert erased[6] == '{"because":"declined","cards":1,"grants_revoked":1}'
    assert reported[1:6] == ("ok", "", bought.token, order, ACQUIRER)
    assert reported[6] == f'{{"card":"erased","outcome":"declined","token":"{bought.token}"}}'
    (ledger,) = raw_rows(
        bought.url,
        "SELECT c.event_id = e.event_id FROM consents c JOIN audit_events e ON e.event_id = c.event_id "
        f"WHERE c.token = '{bought.token}' AND c.kind = 'withdrawn' AND e.event = 'card.erased'",
    )
    assert ledger[0]


def test_only_the_customer_can_start_a_payment_with_a_pending_card(first: Shop) -> None:
    bought = purchase(first)

    for purpose in ALL_USES[1:]:
        refused = refusal_of(partial(bought.grant, new_order(), purpose=purpose))
        assert refused is not None
        assert (refused.code, refused.text) == (NOT_FOUND, "not available")
        with rows_of(bought.url) as rows:
            assert [event["reason"] for event in rows.events(refused.error_id)] == ["card_pending"]
    grant, order = bought.pay()
    report(first, grant, order)

    assert bought.pay(purpose=RECURRING)


def test_storing_a_pending_card_again_leaves_it_pending_and_an_active_one_active(first: Shop) -> None:
    bought = purchase(first)

    assert bought.store_again().state == PENDING
    grant, order = bought.pay()
    report(first, grant, order)

    again = bought.store_again()
    assert (again.state, again.token) == (ACTIVE, bought.token)


def test_without_the_setting_a_new_card_is_active(shop: Shop) -> None:
    bought = purchase(shop)

    assert bought.state() == ACTIVE
    grant, order = bought.pay()
    report(shop, grant, order, DECLINED)
    assert bought.state() == ACTIVE


# --- paid with the one-time token of the same call -------------------------------------------------------------------


def paid_once(shop: Shop, *, repeated: bool) -> tuple[Purchase, str, str]:
    """A card stored together with a one-time token, which pays the first order: with the security code."""
    card, customer, order = fresh_typed_card(with_security_code=True), new_customer(), new_order()
    request = store_request(card, customer, order_id=order, consent=consent(*ALL_USES), idempotency_key=new_key())
    request.card.security_code = card.security_code
    answer = shop.checkout.checkout.Tokenize(request, timeout=TIMEOUT)
    if repeated:
        answer = shop.checkout.checkout.Tokenize(request, timeout=TIMEOUT)
    grant = shop.checkout.checkout.IssueGrant(
        grant_request(order=order, one_time_token=answer.one_time_token), timeout=TIMEOUT
    ).grant
    released = shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    assert released.security_code == card.security_code
    return Purchase(shop, card, customer, answer.card.token), grant, order


@pytest.mark.parametrize("repeated", [False, True], ids=["one call", "one call, repeated"])
def test_a_first_payment_with_the_one_time_token_counts_for_the_card(first: Shop, *, repeated: bool) -> None:
    bought, grant, order = paid_once(first, repeated=repeated)
    refused, other, later = paid_once(first, repeated=repeated)

    report(first, grant, order, network_transaction_id="ID-1")
    report(first, other, later, DECLINED)

    assert bought.state() == ACTIVE
    assert refused.shown() == []
    charged = new_order()
    grant = bought.grant(charged, purpose=RECURRING)
    assert bought.redeem(grant, charged).network_transaction_id == "ID-1"


def test_an_outcome_for_a_card_that_was_never_stored_is_put_on_record(first: Shop) -> None:
    card, order = fresh_typed_card(), new_order()
    checkout = first.checkout.checkout
    once = checkout.Tokenize(once_request(card, order, security_code=False), timeout=TIMEOUT).one_time_token
    grant = checkout.IssueGrant(grant_request(order=order, one_time_token=once), timeout=TIMEOUT).grant
    first.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)

    report(first, grant, order, DECLINED, network_transaction_id="ID-2")

    found = raw_rows(
        first.installation.database_url,
        f"SELECT outcome, details FROM audit_events WHERE event = 'outcome.reported' AND order_id = '{order}'",
    )
    assert found == [("ok", '{"card":"none","network_transaction_id":"ID-2","outcome":"declined"}')]


# --- the network transaction id -------------------------------------------------------------------------------------


def test_the_reference_of_the_first_approval_comes_with_what_the_shop_charges_later(first: Shop) -> None:
    bought = purchase(first)
    grant, order = bought.pay()
    report(first, grant, order, network_transaction_id="FIRST")
    again, later = bought.pay()
    report(first, again, later, network_transaction_id="SECOND")

    answers = {}
    for purpose in ALL_USES:
        charged = new_order()
        answers[purpose] = bought.redeem(bought.grant(charged, purpose=purpose), charged).network_transaction_id

    assert answers == {1: "", 2: "FIRST", 3: "FIRST", 4: "FIRST"}


def test_a_card_that_was_active_at_once_keeps_its_first_reference_too(shop: Shop) -> None:
    bought = purchase(shop)
    charged, later = new_order(), new_order()
    before = bought.redeem(bought.grant(charged, purpose=RECURRING), charged)
    grant, order = bought.pay()

    report(shop, grant, order, network_transaction_id="FIRST")

    after = bought.redeem(bought.grant(later, purpose=RECURRING), later)
    assert (before.network_transaction_id, after.network_transaction_id) == ("", "FIRST")


# --- who may report, and what stands --------------------------------------------------------------------------------


def test_a_repeat_answers_alike_and_another_outcome_is_refused(first: Shop) -> None:
    bought = purchase(first)
    grant, order = bought.pay()

    report(first, grant, order, network_transaction_id="FIRST")
    report(first, grant, order)
    other = refusal_of(lambda: report(first, grant, order, DECLINED))

    assert other is not None
    assert (other.code, other.text) == (REFUSED, "refused")
    assert bought.state() == ACTIVE
    details = [(row[1], row[2], row[6]) for row in events_of(first, bought.customer) if row[0] == "outcome.reported"]
    assert details == [
        (
            "ok",
            "",
            f'{{"card":"activated","network_transaction_id":"FIRST","outcome":"approved","token":"{bought.token}"}}',
        ),
        ("ok", "", '{"outcome":"approved","repeat":1}'),
        ("refused", "other_outcome", "{}"),
    ]


REFUSALS: dict[str, str] = {
    "another processor": "wrong_processor",
    "another order": "wrong_order",
    "not redeemed": "grant_unused",
    "revoked": "grant_revoked",
    "of a shop it does not serve": "unknown_grant",
    "mistyped": "malformed_grant",
    "checkout": "role",
    "account": "role",
}


@pytest.mark.parametrize("cause", REFUSALS)
def test_every_refused_report_has_one_answer_and_changes_nothing(first: Shop, cause: str) -> None:
    bought = purchase(first)
    order = new_order()
    grant = bought.grant(order)
    client, asked_order = first.processor, order
    if cause not in ("not redeemed", "revoked"):
        bought.redeem(grant, order)
    match cause:
        case "another processor":
            client = first.installation.client("second-processor")
        case "another order":
            asked_order = new_order()
        case "revoked":
            bought.grant(order)
        case "of a shop it does not serve":
            client = first.installation.client("second-processor")
            grant = purchase_elsewhere(first, order)
        case "mistyped":
            grant = grant[:-1] + ("b" if grant[-1] != "b" else "c")
        case "checkout" | "account":
            client = first.installation.client(cause)

    refused = refusal_of(lambda: report(first, grant, asked_order, DECLINED, client=client))

    assert refused is not None
    assert (refused.code, refused.text, refused.fields) == (REFUSED, "refused", ())
    assert set(refused.metadata) == {"cardvault-error-id"}
    with rows_of(bought.url) as rows:
        (event,) = rows.events(refused.error_id)
    assert (event["event"], event["outcome"], event["reason"]) == ("outcome.reported", "refused", REFUSALS[cause])
    assert bought.state() == PENDING


def purchase_elsewhere(first: Shop, order: str) -> str:
    """A redeemed grant of the other shop, which the second processor does not serve."""
    card, customer = fresh_typed_card(), new_customer()
    checkout = first.installation.client("other-checkout").checkout
    token = checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT).card.token
    grant = checkout.IssueGrant(grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT).grant
    first.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    return grant


def test_each_processor_reports_on_its_own_grants(first: Shop) -> None:
    bought = purchase(first)
    order = new_order()
    grant = bought.grant(order, processor=SECOND_ACQUIRER)
    second = first.installation.client("second-processor")
    second.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)

    refused = refusal_of(lambda: report(first, grant, order))
    report(first, grant, order, client=second)

    assert refused is not None
    assert bought.state() == ACTIVE


# --- many at once ---------------------------------------------------------------------------------------------------


def all_at_once(first: Shop, asked: list[tuple[Any, processor_pb2.ReportOutcomeRequest]]) -> list[grpc.StatusCode]:
    futures = [client.processor.ReportOutcome.future(request, timeout=TIMEOUT) for client, request in asked]
    return [future.code() for future in futures]


@pytest.mark.parametrize("outcomes", [(APPROVED,), (DECLINED,), (APPROVED, DECLINED)], ids=["yes", "no", "both"])
def test_of_twenty_reports_at_once_one_decides_and_its_repeats_agree(first: Shop, outcomes: tuple[int, ...]) -> None:
    clients = [first.installation.client("processor", server) for server in first.installation.servers * 2]
    for _ in range(4):
        bought = purchase(first)
        grant, order = bought.pay()
        asked = [
            processor_pb2.ReportOutcomeRequest(
                grant=grant,
                order_id=order,
                outcome=processor_pb2.Outcome.ValueType(outcomes[n % len(outcomes)]),
                network_transaction_id=f"ID-{n}",
            )
            for n in range(20)
        ]

        codes = all_at_once(first, [(clients[n % len(clients)], request) for n, request in enumerate(asked)])

        agreed = {request.outcome for code, request in zip(codes, asked, strict=True) if code is grpc.StatusCode.OK}
        assert len(agreed) == 1
        assert Counter(codes) == Counter(
            grpc.StatusCode.OK if request.outcome in agreed else REFUSED for request in asked
        )
        assert bought.state() == (ACTIVE if agreed == {APPROVED} else None)
        reported = [row[6] for row in events_of(first, bought.customer) if row[0] == "outcome.reported"]
        assert len(reported) == 20
        assert len([details for details in reported if '"card"' in details]) == 1
        erased = [row for row in events_of(first, bought.customer) if row[0] == "card.erased"]
        assert len(erased) == (1 if agreed == {DECLINED} else 0)


def test_a_report_of_another_processor_at_the_same_moment_counts_for_nothing(first: Shop) -> None:
    mine, theirs = first.processor, first.installation.client("second-processor")
    for _ in range(4):
        bought = purchase(first)
        grant, order = bought.pay()
        forged, true = (
            processor_pb2.ReportOutcomeRequest(grant=grant, order_id=order, outcome=outcome)
            for outcome in (DECLINED, APPROVED)
        )

        codes = all_at_once(first, [(theirs, forged), (mine, true)] * 10)

        assert codes == [REFUSED, grpc.StatusCode.OK] * 10
        assert bought.state() == ACTIVE


def test_outcomes_of_many_payments_of_one_pending_card_at_once_leave_no_half_card(first: Shop) -> None:
    clients = [first.installation.client("processor", server) for server in first.installation.servers * 2]
    for _ in range(4):
        bought = purchase(first)
        paid = [bought.pay() for _ in range(8)]
        asked = [
            processor_pb2.ReportOutcomeRequest(
                grant=grant, order_id=order, outcome=processor_pb2.Outcome.ValueType((APPROVED, DECLINED)[n % 2])
            )
            for n, (grant, order) in enumerate(paid)
        ]

        codes = all_at_once(first, [(clients[n % len(clients)], request) for n, request in enumerate(asked)])

        assert set(codes) == {grpc.StatusCode.OK}
        effects = Counter(
            word
            for row in events_of(first, bought.customer)
            if row[0] == "outcome.reported"
            for word in ("activated", "erased")
            if word in row[6]
        )
        assert len(effects) == 1
        assert bought.state() == (ACTIVE if "activated" in effects else None)
        left = raw_rows(
            bought.url,
            f"SELECT (SELECT count(*) FROM cards WHERE token = '{bought.token}'), "
            f"(SELECT count(*) FROM card_secrets WHERE token = '{bought.token}')",
        )
        assert left == [(1, 1) if "activated" in effects else (0, 0)]

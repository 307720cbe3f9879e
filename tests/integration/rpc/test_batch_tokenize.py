"""Many cards in one call: each has its own fate, as if it had come by itself."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fixtures_db import sqlite_url_of
from tests.integration.rpc.conftest import Shop
from tests.support.answers import refusal_of, rows_of
from tests.support.cards import TypedCard, fresh_digits, fresh_typed_card
from tests.support.installation import eventually, installed
from tests.support.raw import execute, fail_events_about, rows
from tests.support.requests import (
    TIMEOUT,
    card_input,
    consent,
    grant_request,
    new_customer,
    new_key,
    new_order,
    redeem_request,
    store_request,
)
from tests.support.seal import seal
from vault.embedded.openbao import OpenBao
from vault.v1 import account_pb2, cards_pb2, checkout_pb2

OK, INVALID, TAKEN, UNAVAILABLE = (
    0,
    grpc.StatusCode.INVALID_ARGUMENT.value[0],
    grpc.StatusCode.ALREADY_EXISTS.value[0],
    grpc.StatusCode.UNAVAILABLE.value[0],
)
Item = checkout_pb2.BatchTokenizeItem
Result = checkout_pb2.BatchTokenizeResult


def item(typed: TypedCard, customer: str, **changes: Any) -> Item:
    """A card with consent."""
    facts: dict[str, Any] = {"customer_id": customer, "card": card_input(typed), "consent": consent()}
    return Item(**{**facts, **changes})


def batch(shop: Shop, *items: Item, client: Any = None) -> list[Result]:
    request = checkout_pb2.BatchTokenizeRequest(items=items)
    return list((client or shop.checkout).checkout.BatchTokenize(request, timeout=TIMEOUT).results)


def codes(results: list[Result]) -> list[int]:
    return [result.failure.code for result in results]


def pay(shop: Shop, customer: str, token: str) -> str:
    order = new_order()
    request = grant_request(order=order, customer=customer, token=token)
    grant = shop.checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant
    return str(shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT).pan)


def cards_of(shop: Shop, customer: str) -> list[cards_pb2.Card]:
    request = account_pb2.ListCardsRequest(customer_id=customer)
    return list(shop.account.account.ListCards(request, timeout=TIMEOUT).cards)


def test_every_card_is_stored_and_opens_to_its_own_number(shop: Shop) -> None:
    cards = [(fresh_typed_card(), new_customer()) for _ in range(20)]

    results = batch(shop, *(item(card, customer) for card, customer in cards))

    for (card, customer), result in zip(cards, results, strict=True):
        assert (result.card.last4, result.card.consent.terms_version) == (card.last4, "2026-01")
        assert [each.token for each in cards_of(shop, customer)] == [result.card.token]
        assert pay(shop, customer, result.card.token) == card.pan


def test_tokens_of_one_call_begin_alike_and_of_another_call_otherwise(shop: Shop) -> None:
    calls = [
        [result.card.token for result in batch(shop, *(item(fresh_typed_card(), new_customer()) for _ in range(20)))]
        for _ in range(3)
    ]

    beginnings = [{token.removeprefix("tok_")[:8] for token in tokens} for tokens in calls]
    assert [len(each) for each in beginnings] == [1, 1, 1]
    assert len(set.union(*beginnings)) == 3
    assert len({token[12:20] for tokens in calls for token in tokens}) == 60


def test_each_card_is_kept_under_its_own_consent(shop: Shop) -> None:
    uses = cards_pb2.CardUse.values()[1:]
    agreed = [consent(use, terms_version=f"v{use}") for use in uses]
    customers = [new_customer() for _ in agreed]

    results = batch(
        shop, *(item(fresh_typed_card(), who, consent=each) for who, each in zip(customers, agreed, strict=True))
    )

    assert [(list(r.card.consent.uses), r.card.consent.terms_version) for r in results] == [
        ([use], f"v{use}") for use in uses
    ]


BAD: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no consent": (lambda: {"consent": None}, "consent"),
    "an empty consent": (lambda: {"consent": cards_pb2.Consent()}, "consent.terms_version"),
    "no uses": (lambda: {"consent": consent(uses=[])}, "consent.uses"),
    "no customer": (lambda: {"customer_id": ""}, "customer_id"),
    "a number as customer": (lambda: {"customer_id": fresh_digits()}, "customer_id"),
    "a number as key": (lambda: {"idempotency_key": fresh_digits()}, "idempotency_key"),
    "a number as terms": (lambda: {"consent": consent(terms_version=fresh_digits())}, "consent.terms_version"),
    "a number as name": (
        lambda: {"card": cards_pb2.CardInput(**_card_facts(), holder_name=fresh_digits())},
        "card.holder_name",
    ),
    "no card": (lambda: {"card": None}, "card.pan"),
    "a wrong digit": (lambda: {"card": cards_pb2.CardInput(**_card_facts() | {"pan": _wrong()})}, "card.pan"),
    "a security code": (
        lambda: {"card": cards_pb2.CardInput(**_card_facts(), security_code="123")},
        "card.security_code",
    ),
    "a past expiry": (
        lambda: {"card": cards_pb2.CardInput(**_card_facts() | {"expiry": cards_pb2.Expiry(month=1, year=2020)})},
        "card.expiry",
    ),
}


def _card_facts() -> dict[str, Any]:
    card = fresh_typed_card()
    return {"pan": card.pan, "expiry": cards_pb2.Expiry(month=card.month, year=card.year)}


def _wrong() -> str:
    pan = fresh_digits()
    return pan[:-1] + str((int(pan[-1]) + 1) % 10)


@pytest.mark.parametrize("what", sorted(BAD))
def test_a_bad_item_fails_alone_and_leaves_one_event_and_no_digits(shop: Shop, what: str) -> None:
    changes, field = BAD[what]
    good = [(fresh_typed_card(), new_customer()) for _ in range(2)]
    bad = item(fresh_typed_card(), new_customer(), **changes())

    first, failed, last = batch(shop, item(*good[0]), bad, item(*good[1]))

    assert [first.card.last4, last.card.last4] == [card.last4 for card, _ in good]
    assert (failed.failure.code, failed.failure.field) == (INVALID, field)
    for secret in (bad.card.pan, bad.customer_id):
        assert not secret or secret not in str(failed)
    with rows_of(shop.installation.database_url) as eyes:
        events = eyes.events(failed.failure.error_id)
    assert Counter((e["event"], e["outcome"], e["reason"]) for e in events) == {
        ("card.tokenized", "ok", ""): 2,
        ("card.tokenized", "refused", "invalid_field"): 1,
    }
    [refused] = [e for e in events if e["outcome"] == "refused"]
    assert dict(refused["details"]) == {"method": "BatchTokenize", "field": field}


@pytest.mark.parametrize("count", [0, 201])
def test_no_items_and_too_many_are_refused_as_a_whole_with_one_event(shop: Shop, count: int) -> None:
    request = checkout_pb2.BatchTokenizeRequest(items=[Item()] * count)

    refusal = refusal_of(lambda: shop.checkout.checkout.BatchTokenize(request, timeout=TIMEOUT))

    assert refusal is not None
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ("items",))
    with rows_of(shop.installation.database_url) as eyes:
        [event] = eyes.events(refusal.error_id)
    assert (event["event"], event["outcome"]) == ("card.batch_tokenized", "refused")


def test_two_hundred_items_fit_into_a_message(shop: Shop) -> None:
    run = new_key()
    items = [item(fresh_typed_card(), f"{run}-c{n}", idempotency_key=f"{run}-line{n}") for n in range(200)]

    results = batch(shop, *items)

    assert checkout_pb2.BatchTokenizeRequest(items=items).ByteSize() < 64 * 1024
    assert len({result.card.token for result in results}) == 200


def test_eighty_items_of_the_longest_kind_fit_into_a_message(shop: Shop) -> None:
    def longest(number: int) -> Item:
        card = fresh_typed_card(with_name=False)
        facts = card_input(card)
        facts.holder_name = "é" * 64
        agreed = consent(
            *cards_pb2.CardUse.values()[1:], terms_version="t" * 64, locale="en-abcdefgh-abcdefgh-abcdefgh-abcde"
        )
        agreed.agreed_until.FromJsonString("2099-12-31T23:59:59.123456789Z")
        name = f"n{number}-"
        return Item(idempotency_key=name.ljust(64, "k"), customer_id=name.ljust(128, "c"), card=facts, consent=agreed)

    results = batch(shop, *map(longest, range(80)))

    assert codes(results) == [OK] * 80


# --- once and again -------------------------------------------------------------------------------------------------


def test_a_repeated_batch_is_answered_the_same_and_stores_nothing_twice(shop: Shop) -> None:
    items = [item(fresh_typed_card(), new_customer(), idempotency_key=new_key()) for _ in range(10)]
    first = batch(shop, *items)

    again = batch(shop, *items, client=shop.installation.client("checkout", shop.installation.servers[-1]))

    assert again == first
    for each in items:
        where = f"WHERE customer_id = '{each.customer_id}'"
        assert rows(shop.installation.database_url, f"SELECT count(*) FROM consents {where}") == [(1,)]


def test_a_key_serves_one_request_also_between_the_two_calls(shop: Shop) -> None:
    card, customer, key = fresh_typed_card(), new_customer(), new_key()
    request = store_request(card, customer, idempotency_key=key)
    stored = shop.checkout.checkout.Tokenize(request, timeout=TIMEOUT).card

    same, other = batch(
        shop,
        item(card, customer, idempotency_key=key),
        item(fresh_typed_card(), customer, idempotency_key=key),
    )

    assert same.card == stored
    assert (other.failure.code, other.failure.reason) == (TAKEN, "IDEMPOTENCY_KEY_REUSED")
    assert [each.token for each in cards_of(shop, customer)] == [stored.token]


def test_the_same_line_many_times_in_one_call_is_one_card(shop: Shop) -> None:
    card, customer, key = fresh_typed_card(), new_customer(), new_key()

    results = batch(shop, *[item(card, customer, idempotency_key=key)] * 20, *[item(card, customer)] * 20)

    assert codes(results) == [OK] * 40
    assert len({result.card.token for result in results}) == 1
    assert len(cards_of(shop, customer)) == 1
    assert pay(shop, customer, results[0].card.token) == card.pan


def test_races_with_single_calls_of_the_same_cards_end_in_one_token_for_each(shop: Shop) -> None:
    cards = [(fresh_typed_card(), new_customer()) for _ in range(25)]
    servers = shop.installation.servers
    clients = [shop.installation.client("checkout", server) for server in servers * 2]
    request = checkout_pb2.BatchTokenizeRequest(items=[item(*each) for each in cards])
    backwards = checkout_pb2.BatchTokenizeRequest(items=[item(*each) for each in reversed(cards)])

    batches = [
        client.checkout.BatchTokenize.future(each, timeout=TIMEOUT)
        for client in clients
        for each in (request, backwards)
    ]
    single = [
        clients[n % len(clients)].checkout.Tokenize.future(store_request(*each), timeout=TIMEOUT)
        for each in cards
        for n in range(3)
    ]

    by_last: dict[str, set[str]] = {customer: set() for _, customer in cards}
    for number, future in enumerate(batches):
        results = list(future.result().results)
        assert codes(results) == [OK] * 25
        for (_, customer), result in zip(cards if number % 2 == 0 else cards[::-1], results, strict=True):
            by_last[customer].add(result.card.token)
    for number, one in enumerate(single):
        by_last[cards[number // 3][1]].add(one.result().card.token)
    for card, customer in cards:
        [token] = by_last[customer]
        assert [each.token for each in cards_of(shop, customer)] == [token]
        assert pay(shop, customer, token) == card.pan


def test_the_same_key_in_many_batches_at_once_is_one_effect(shop: Shop) -> None:
    items = [item(fresh_typed_card(), new_customer(), idempotency_key=new_key()) for _ in range(15)]
    clients = [shop.installation.client("checkout", server) for server in shop.installation.servers * 2]
    request = checkout_pb2.BatchTokenizeRequest(items=items)

    answers = [client.checkout.BatchTokenize.future(request, timeout=TIMEOUT) for client in clients * 2]

    tokens = {tuple(result.card.token for result in answer.result().results) for answer in answers}
    assert len(tokens) == 1
    url = shop.installation.database_url
    for each in items:
        assert rows(url, f"SELECT count(*) FROM consents WHERE customer_id = '{each.customer_id}'") == [(1,)]


# --- trouble --------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_shop(tmp_path: Path, openbao: OpenBao, database_url: str) -> Any:
    """An installation that the test may spoil."""
    with installed(tmp_path / "own", openbao, database_url) as installation:
        installation.serve()
        yield Shop(
            installation,
            installation.client("checkout"),
            installation.client("account"),
            installation.client("processor"),
        )


def test_an_item_whose_event_cannot_be_written_is_not_stored_and_its_neighbours_are(own_shop: Shop) -> None:
    good, poisoned = (fresh_typed_card(), new_customer()), (fresh_typed_card(), new_customer())
    fail_events_about(own_shop.installation.database_url, poisoned[1])

    results = batch(own_shop, item(*good), item(*poisoned))

    assert codes(results) == [OK, UNAVAILABLE]
    assert len(cards_of(own_shop, good[1])) == 1
    assert cards_of(own_shop, poisoned[1]) == []


def test_a_refusal_that_cannot_be_recorded_is_no_definite_answer(own_shop: Shop) -> None:
    url = own_shop.installation.database_url
    good = (fresh_typed_card(), new_customer())
    if url.startswith("sqlite"):
        execute(
            url,
            "CREATE TRIGGER poison BEFORE INSERT ON audit_events "
            "WHEN NEW.outcome = 'refused' BEGIN SELECT RAISE(ABORT, 'poison'); END",
        )
    else:
        execute(
            url,
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF NEW.outcome = 'refused' THEN RAISE 'poison'; END IF; RETURN NEW; END $$",
            "CREATE TRIGGER poison BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION poison()",
        )

    results = batch(own_shop, item(*good), item(fresh_typed_card(), ""))

    assert codes(results) == [OK, UNAVAILABLE]
    assert results[1].failure.field == ""


def test_while_vault_is_sealed_every_item_is_unknown_and_afterwards_the_same_keys_store_it(
    tmp_path: Path, sqlite_template: Path
) -> None:
    shutil.copy(sqlite_template, tmp_path / "vault.db")
    openbao = OpenBao(tmp_path / "openbao", storage="inmem", keep_root_token=True, log_raw=True)
    openbao.start()
    try:
        with installed(tmp_path / "shop", openbao, sqlite_url_of(tmp_path / "vault.db")) as installation:
            installation.serve()
            checkout = installation.client("checkout")
            shop = Shop(installation, checkout, installation.client("account"), installation.client("processor"))
            items = [item(fresh_typed_card(), new_customer(), idempotency_key=new_key()) for _ in range(3)]
            items.append(item(fresh_typed_card(), ""))

            seal(openbao)
            away = batch(shop, *items)
            openbao.unseal()
            back: list[Result] = []

            def stored() -> bool:
                back[:] = batch(shop, *items)
                return codes(back) == [OK, OK, OK, INVALID]

            eventually(stored)

            assert codes(away) == [UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, INVALID]
            assert [len(cards_of(shop, each.customer_id)) for each in items[:3]] == [1, 1, 1]
    finally:
        openbao.stop()


def test_single_calls_are_answered_while_batches_keep_coming(shop: Shop) -> None:
    run = new_key()
    clients = [shop.installation.client("checkout") for _ in range(4)]
    requests = [
        checkout_pb2.BatchTokenizeRequest(items=[item(fresh_typed_card(), f"{run}-{n}-c{i}") for i in range(200)])
        for n in range(8)
    ]

    batches = [clients[n % 4].checkout.BatchTokenize.future(each, timeout=25) for n, each in enumerate(requests)]
    answered_meanwhile = 0
    while not all(each.done() for each in batches):
        shop.checkout.checkout.Tokenize(store_request(fresh_typed_card(), new_customer()), timeout=TIMEOUT)
        answered_meanwhile += sum(1 for each in batches if not each.done()) > 0

    assert answered_meanwhile >= len(requests) // 4
    assert [codes(list(each.result().results)) for each in batches] == [[OK] * 200] * 8

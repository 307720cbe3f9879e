"""The shop when something is away, comes twice, or is not what it seems."""

from __future__ import annotations

import http.client
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from examples.storefront.processor import KEY_FILE
from tests.examples.conftest import Street
from tests.examples.shopper import Page, Shopper, typed
from tests.support.cards import fresh_typed_card
from vault.client import Account, Checkout, Money, StoredCard, TlsFiles

Leaks = Callable[..., list[str]]
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


UNPAID = "UPDATE orders SET state = 'placed', trouble = 'processor' WHERE id = ?"


def _payments(street: Street, order: str) -> list[str]:
    found = _sql(street, "processor", "SELECT outcome FROM payments WHERE order_id = ?", order)
    return [str(row[0]) for row in found]


def _sql(street: Street, name: str, statement: str, *values: str) -> list[Any]:
    """One statement, on a connection that is closed again: one left open would keep what the file was."""
    with closing(sqlite3.connect(street.storefront.state / f"{name}.sqlite", isolation_level=None)) as database:
        return database.execute(statement, values).fetchall()


def _order(page: Page) -> str:
    return page.path.split("/")[2]


def test_while_the_vault_is_away_nothing_is_charged_and_the_same_order_goes_on_afterwards(
    street: Street, leaks: Leaks
) -> None:
    shopper = street.shopper("Patient")
    card = fresh_typed_card(with_security_code=True)
    form = shopper.choose().form("/checkout", holding="number")

    with street.vault.server_away():
        away = shopper.submit(form, **typed(card))
        account = shopper.get("/account")
        history = shopper.get("/orders")
    again = away.form("/checkout", holding="number")
    paid = shopper.submit(again, **typed(card))

    assert "does not answer right now. Nothing was charged." in away.text
    assert again.fields["order"] == form.fields["order"]
    assert again.fields["number"] == again.fields["code"] == ""
    assert account.status == 503
    assert "Your cards are safe" in account.text
    assert "cannot show when it gave out your card" in history.text
    assert "is paid" in paid.text
    assert _payments(street, form.fields["order"]) == ["approved"]
    assert leaks(*shopper.seen) == []


@pytest.mark.parametrize("keep", [False, True])
def test_while_the_processor_is_away_an_order_waits_and_is_paid_once(street: Street, keep: bool) -> None:
    shopper = street.shopper("Waiting")
    street.storefront.processor.stop()
    try:
        waiting = shopper.pay(fresh_typed_card(with_security_code=True), keep=keep)
        still = shopper.submit(waiting.form(f"{waiting.path}/again"))
    finally:
        street.storefront.processor.start()

    paid = still
    for _ in range(10):  # the shop's connection to the processor may take a moment to come back
        paid = shopper.submit(paid.form(f"{waiting.path}/again"))
        if "Not paid yet" not in paid.text:
            break
        time.sleep(0.3)

    assert "The payment processor did not answer" in waiting.text
    assert "Not paid yet" in still.text
    assert "Thank you" in paid.text
    assert _payments(street, _order(paid)) == ["approved"]


@pytest.mark.parametrize("keep", [False, True])
def test_a_paid_order_whose_answer_was_lost_is_found_and_not_paid_again(street: Street, keep: bool) -> None:
    shopper = street.shopper("Lost")
    paid = shopper.pay(fresh_typed_card(with_security_code=True), keep=keep)
    _sql(street, "shop", UNPAID, _order(paid))

    again = shopper.submit(shopper.get(paid.path).form(f"{paid.path}/again"))

    assert "is paid" in again.text
    assert _payments(street, _order(paid)) == ["approved"]


def test_a_grant_that_was_used_up_for_nothing_is_replaced(street: Street) -> None:
    shopper = street.shopper("Burnt")
    paid = shopper.pay(fresh_typed_card(with_security_code=True), keep=True)
    second = shopper.submit(shopper.choose().form("/checkout", holding="token"))
    # As if the processor had died between the release and its own note of it.
    _sql(street, "processor", "DELETE FROM payments WHERE order_id = ?", _order(second))
    _sql(street, "shop", UNPAID, _order(second))

    again = shopper.submit(shopper.get(second.path).form(f"{second.path}/again"))

    assert "is paid" in again.text
    assert _payments(street, _order(paid)) == _payments(street, _order(second)) == ["approved"]


def test_a_card_typed_for_an_order_that_the_shop_forgot_is_typed_again(street: Street) -> None:
    shopper = street.shopper("Forgotten")
    street.storefront.processor.stop()
    try:
        waiting = shopper.pay(fresh_typed_card(with_security_code=True))
        street.storefront.shop.stop()
        street.storefront.shop.start()
    finally:
        street.storefront.processor.start()
    stuck = shopper.submit(waiting.form(f"{waiting.path}/again"))
    anew = shopper.submit(stuck.form(f"{waiting.path}/anew"))
    paid = shopper.submit(anew.form("/checkout", holding="number"), **typed(fresh_typed_card(with_security_code=True)))

    assert "This card can no longer be used for this order." in stuck.text
    assert "is paid" in paid.text
    assert _payments(street, _order(waiting)) == ["cancelled"]
    assert "was given up" in shopper.get(waiting.path).text


def test_ten_clicks_on_one_page_are_one_order_and_one_payment(street: Street) -> None:
    shopper = street.shopper("Impatient")
    card = fresh_typed_card(with_security_code=True)
    form = shopper.choose().form("/checkout", holding="number")
    barrier = threading.Barrier(10)

    def click(_: int) -> Page:
        each = Shopper(street.storefront.shop.address)
        each.cookie = shopper.cookie
        barrier.wait()
        return each.submit(form, **typed(card))

    with ThreadPoolExecutor(10) as clicks:
        pages = list(clicks.map(click, range(10)))

    assert {page.path for page in pages} == {f"/orders/{form.fields['order']}"}
    assert all("is paid" in page.text for page in pages)
    assert _payments(street, form.fields["order"]) == ["approved"]
    assert shopper.get("/orders").text.count("approved by your bank") == 1


@pytest.mark.parametrize("path", ["/basket", "/sign-in", "/sign-out", "/checkout", "/account/erase"])
def test_a_form_that_is_not_from_our_page_is_refused(street: Street, path: str) -> None:
    shopper = street.shopper("Victim")
    shopper.pay(fresh_typed_card(with_security_code=True), keep=True)
    foreign = street.shopper("Attacker").get("/sign-in").form("/sign-in").fields["csrf"]

    without = shopper.post(path, {"name": "attacker", "sku": "cups"})
    others = shopper.post(path, {"name": "attacker", "sku": "cups", "csrf": foreign})

    assert (without.status, others.status) == (403, 403)
    assert shopper.get("/account").has_form("/account/remove")
    assert shopper.get("/account").has_form("/sign-out")


def test_a_cookie_that_the_shop_did_not_sign_is_nobodys(street: Street) -> None:
    shopper = street.shopper("Signed")
    name, _, seal = shopper.cookie.partition("=")[2].partition(".")
    forged = Shopper(street.storefront.shop.address)
    forged.cookie = f"visit={name}.{seal[::-1]}"

    assert shopper.get("/account").path == "/account"
    assert forged.get("/account").path.startswith("/sign-in")


def test_signing_in_changes_the_cookie_and_signing_out_ends_it(street: Street) -> None:
    shopper = street.shopper()
    shopper.get("/")
    before = shopper.cookie
    shopper.sign_in("Changing")
    during = shopper.cookie

    shopper.submit(shopper.get("/").form("/sign-out"))
    stolen = Shopper(street.storefront.shop.address)
    stolen.cookie = during

    assert len({before, during, shopper.cookie}) == 3
    assert stolen.get("/account").path.startswith("/sign-in")


def test_the_cookie_is_for_http_alone_and_this_site(street: Street) -> None:
    shopper = street.shopper()

    shopper.get("/")

    headers = shopper.seen[-1].decode().lower()
    assert "httponly" in headers
    assert "samesite=lax" in headers


def test_every_page_has_its_headers_and_no_script(street: Street) -> None:
    shopper = street.shopper("Careful")
    pages = [shopper.pay(fresh_typed_card(with_security_code=True), keep=True), shopper.choose()]

    pages += [shopper.get(path) for path in ("/", "/basket", "/orders", "/account", "/terms", "/sign-in", "/nowhere")]

    for page in pages:
        assert {name: page.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS, page.path
        assert "script" not in {tag for tag, _ in page.tags}
        assert not [name for _, told in page.tags for name in told if name.startswith("on") or name == "style"]
    assert "max-age" in shopper.get("/static/style.css").headers["cache-control"]


def test_fields_of_the_card_form_are_labelled_and_say_what_browsers_fill_in(street: Street) -> None:
    page = street.shopper("Filler").choose()

    inputs = page.form("/checkout", holding="number").inputs
    labels = {told.get("for") for tag, told in page.tags if tag == "label"}

    assert {name: inputs[name]["autocomplete"] for name in ("number", "expiry", "name", "code")} == {
        "number": "cc-number",
        "expiry": "cc-exp",
        "name": "cc-name",
        "code": "cc-csc",
    }
    assert {inputs[name]["inputmode"] for name in ("number", "expiry", "code")} == {"numeric"}
    assert {"number", "expiry", "name", "code"} <= labels


def test_a_foreign_host_name_a_long_body_and_a_multipart_body_are_refused(street: Street) -> None:
    shopper = street.shopper("Odd")

    assert shopper.get("/", Host="shop.attacker.example").status == 400
    assert shopper.post("/basket", {"sku": "x" * 40_000}).status == 413
    assert shopper.post("/basket", {}, **{"Content-Type": "multipart/form-data; boundary=x"}).status == 415


def test_signing_in_leads_nowhere_but_into_the_shop(street: Street) -> None:
    for elsewhere in ("//attacker.example/", "https://attacker.example/", "/\\attacker.example"):
        shopper = street.shopper()
        form = shopper.get("/sign-in").form("/sign-in")

        assert shopper.submit(form, name="Guest", next=elsewhere).path == "/account"


def test_what_stands_in_an_address_is_shown_as_text(street: Street) -> None:
    page = street.shopper().get("/sign-in?next=%22%3E%3Cb%20id=planted%3E&notice=%3Cb%3E")

    assert page.form("/sign-in").fields["next"] == '"><b id=planted>'
    assert "b" not in {tag for tag, _ in page.tags}


def test_the_account_page_changes_expiry_and_default_and_erases_all(street: Street) -> None:
    shopper = street.shopper("Tidy")
    first, second = (fresh_typed_card(with_security_code=True) for _ in range(2))
    shopper.pay(first, keep=True)
    shopper.pay(second, keep=True)

    changed = shopper.submit(shopper.get("/account").form("/account/expiry"), expiry="11/39")
    mistyped = shopper.submit(changed.form("/account/expiry"), expiry="13/39")
    defaulted = shopper.submit(mistyped.form("/account/default"))
    erased = shopper.submit(defaulted.form("/account/erase"))

    assert f"•••• {first.last4} Expires 11/39" in changed.text
    assert "This date is past" in mistyped.text
    assert f"Default •••• {second.last4}" in defaulted.text
    assert "All cards erased on" in erased.text
    assert "2 cards" in erased.text
    assert "No card is kept for you." in erased.text


def test_the_receipt_gets_its_proof_from_the_signed_log(street: Street) -> None:
    shopper = street.shopper("Sceptic")
    shopper.pay(fresh_typed_card(with_security_code=True), keep=True)
    page = shopper.submit(shopper.get("/account").form("/account/remove"))

    for _ in range(60):
        if not page.has_form("/account/proof"):
            break
        threading.Event().wait(0.5)
        page = shopper.submit(page.form("/account/proof"))

    assert "proved in the vault's signed log: entry" in page.text


def _tls(street: Street, role: str) -> TlsFiles:
    pki = street.vault.directory / "pki"
    return TlsFiles(ca=pki / "ca.pem", certificate=pki / f"{role}.pem", private_key=pki / f"{role}.key")


def test_the_processor_takes_the_card_for_an_order_once_whatever_grant_it_is_shown(street: Street) -> None:
    key = (street.storefront.state / KEY_FILE).read_text().strip()
    street.shopper("Twice").pay(fresh_typed_card(with_security_code=True), keep=True)
    amount = Money(minor_units=100, currency="EUR")
    payment: dict[str, object] = {"order": "order-twice", "minor_units": 100, "currency": "EUR"}

    with (
        Checkout(street.vault.address, _tls(street, "checkout")) as checkout,
        Account(street.vault.address, _tls(street, "account")) as account,
    ):
        card = StoredCard("twice", next(iter(account.list_cards("twice"))).token)
        statuses = []
        for _ in range(2):
            grant = checkout.issue_grant(card, order="order-twice", amount=amount, processor="acquirer")
            statuses.append(_ask_processor(street, payment | {"grant": grant.reveal_text()}, key))
        first, *releases = account.export_customer("twice").releases

    assert statuses == [200, 200]
    assert (first.token, first.by_one_time_token) == (card.token, True)
    assert [each.order for each in releases] == ["order-twice"]


def _ask_processor(street: Street, body: object, key: str) -> int:
    connection = http.client.HTTPConnection(street.storefront.processor.address, timeout=30)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/payments", json.dumps(body), headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_processor_wants_its_key_and_a_grant_of_the_vault(street: Street) -> None:
    key = (street.storefront.state / KEY_FILE).read_text().strip()
    payment = {"grant": "grant_none", "order": "order-none", "minor_units": 1, "currency": "EUR"}

    assert _ask_processor(street, payment, "wrong") == 401
    assert _ask_processor(street, payment, key) == 409
    assert _ask_processor(street, {"grant": "grant_none"}, key) == 400
    assert _ask_processor(street, [], key) == 400
    assert _payments(street, "order-none") == []

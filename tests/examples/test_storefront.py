"""The shop as a shopper meets it, over HTTP, with a real vault behind it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256

import pytest

from examples.storefront.shop import terms
from tests.examples.conftest import Street
from tests.examples.shopper import typed
from tests.support.cards import fresh_security_code, fresh_typed_card

Leaks = Callable[..., list[str]]


def test_a_card_without_the_tick_pays_and_is_not_kept(street: Street, leaks: Leaks) -> None:
    shopper = street.shopper("Once")
    card = fresh_typed_card(with_security_code=True)

    paid = shopper.pay(card)

    assert "is paid" in paid.text
    assert f"•••• {card.last4}" in paid.text
    assert "No. It was used for this order alone." in paid.text
    assert "No card is kept for you." in shopper.get("/account").text
    assert leaks(*shopper.seen) == []


def test_the_box_is_unticked_and_the_terms_stand_beside_it(street: Street) -> None:
    page = street.shopper("Reader").choose()

    form = page.form("/checkout", holding="number")

    assert form.inputs["keep"]["type"] == "checkbox"
    assert "checked" not in form.inputs["keep"]
    assert "keep" not in form.fields
    assert " ".join(terms.TEXTS[form.fields["terms"]].split()) in page.text


def test_a_card_with_the_tick_is_kept_shows_four_digits_pays_again_and_can_be_removed(
    street: Street, leaks: Leaks
) -> None:
    shopper = street.shopper("Keeper")
    card = fresh_typed_card(with_security_code=True)

    first = shopper.pay(card, keep=True)
    account = shopper.get("/account")
    checkout = shopper.choose("lamp")
    again = shopper.submit(checkout.form("/checkout", holding="token"))
    history = shopper.get("/orders")
    removed = shopper.submit(shopper.get("/account").form("/account/remove"))

    assert "Yes, as you asked." in first.text
    assert f"Visa Default •••• {card.last4} Expires 12/{card.year % 100}" in account.text
    assert "number" not in checkout.form("/checkout", holding="token").inputs
    assert "is paid" in again.text
    assert history.text.count("approved by your bank") == 2
    assert "number given to the processor “acquirer”, once" in history.text
    assert "The card is removed." in removed.text
    assert f"Visa •••• {card.last4} erased on" in removed.text
    assert "No card is kept for you." in removed.text
    assert leaks(*shopper.seen) == []


def test_the_consent_names_the_very_text_that_was_shown(street: Street) -> None:
    shopper = street.shopper("Witness")

    shopper.pay(fresh_typed_card(with_security_code=True), keep=True)

    with closing(sqlite3.connect(f"file:{street.vault.directory / 'cardvault.sqlite'}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT terms_version, terms_sha256 FROM consents WHERE customer_id = 'witness'"
        ).fetchall()
    assert rows == [(terms.CURRENT, sha256(terms.TEXTS[terms.CURRENT].encode()).digest())]


def test_a_declined_card_says_so_and_charges_nothing(street: Street) -> None:
    shopper = street.shopper("Unlucky")

    page = shopper.pay(fresh_typed_card(with_security_code=True), sku="notebook")

    assert "Your bank declined" in page.text
    assert "Declined" in shopper.get("/orders").text
    assert "declined by your bank" in shopper.get("/orders").text
    again = shopper.submit(page.form(f"{page.path}/anew"))
    assert again.path == "/checkout"
    assert "1 × Unlucky notebook" in again.text


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("number", "mistyped", "This card number is not right."),
        ("number", "12 34", "A card number has 12 to 19 digits."),
        ("expiry", "12/20", "This card has expired"),
        ("expiry", "soon", "Please write month and year"),
        ("code", "12", "The security code is the 3 digits"),
        ("code", "four", "The security code is the 3 digits"),
        ("name", "Ada 123", "Please write the name as it stands on the card"),
    ],
)
def test_a_mistake_is_told_beside_its_field_and_what_was_typed_does_not_come_back(
    street: Street, leaks: Leaks, field: str, value: str, sentence: str
) -> None:
    shopper = street.shopper("Mistaken")
    card = fresh_typed_card(with_security_code=True)
    fields = typed(card)
    if value == "mistyped":
        value = fields["number"][:-1] + str((int(fields["number"][-1]) + 1) % 10)
    elif value == "four":
        value = fresh_security_code() + "1"
    form = shopper.choose().form("/checkout", holding="number")

    page = shopper.submit(form, **(fields | {field: value}), keep="yes")

    again = page.form("/checkout", holding="number")
    assert page.status == 422
    assert sentence in page.text
    assert {again.fields[name] for name in ("number", "expiry", "name", "code")} == {""}
    assert again.fields["order"] == form.fields["order"]
    assert again.fields["keep"] == "yes"
    assert "is paid" in shopper.submit(again, **fields).text
    assert leaks(*shopper.seen) == []


def test_account_of_one_customer_is_not_anothers(street: Street) -> None:
    owner, other = street.shopper("Owner"), street.shopper("Other")
    paid = owner.pay(fresh_typed_card(with_security_code=True), keep=True)
    account = owner.get("/account")
    stolen = account.form("/account/remove").fields["token"]

    page = other.get("/account")
    csrf = other.get("/sign-in").form("/sign-in").fields["csrf"]

    assert "No card is kept for you." in page.text
    assert "no longer there" in other.post("/account/remove", {"csrf": csrf, "token": stolen}).text
    checkout = other.choose().form("/checkout", holding="number")
    refused = other.post("/checkout", {**checkout.fields, "token": stolen})
    assert "That card is no longer there." in refused.text
    assert other.get(paid.path).status == 404
    assert owner.get("/account").has_form("/account/remove")

"""What the client hands in and out cannot be printed, copied or written down."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.cards import TypedCard, fresh_typed_card
from vault.client import (
    Card,
    CardInput,
    CardNumber,
    CardUse,
    Consent,
    Expiry,
    Grant,
    HolderName,
    Money,
    OneTimeToken,
    ReleasedCard,
    SecurityCode,
    codec,
)
from vault.client.calls import Effect, call
from vault.client.errors import InvalidArgument
from vault.v1 import cards_pb2, checkout_pb2

TYPED = fresh_typed_card(with_security_code=True)
SECRETS = (TYPED.pan, TYPED.holder_name, TYPED.security_code)


def card_in(typed: TypedCard = TYPED) -> CardInput:
    return CardInput(
        typed.pan,
        expiry=Expiry(year=typed.year, month=typed.month),
        holder_name=typed.holder_name,
        security_code=typed.security_code,
    )


def card_out() -> ReleasedCard:
    return ReleasedCard(
        number=CardNumber(TYPED.pan),
        expiry=Expiry(year=TYPED.year, month=TYPED.month),
        holder_name=HolderName(TYPED.holder_name),
        security_code=SecurityCode(TYPED.security_code),
        brand=None,
        purpose=CardUse.CUSTOMER_INITIATED,
    )


HOLDERS = {"in": card_in(), "out": card_out()}
ATOMS: dict[str, Any] = {
    "number": CardNumber(TYPED.pan),
    "name": HolderName(TYPED.holder_name),
    "code": SecurityCode(TYPED.security_code),
    "grant": Grant("grant_bcdf"),
    "one-time token": OneTimeToken("once_bcdf"),
}


@pytest.mark.parametrize("which", [*HOLDERS, *ATOMS])
def test_what_it_shows_is_the_last_four_digits_and_nothing_else(which: str) -> None:
    thing = {**HOLDERS, **ATOMS}[which]

    shown = repr(thing) + repr([thing]) + ascii(thing) + f"{thing!r}"

    assert not any(secret in shown for secret in (*SECRETS, "bcdf"))
    assert (TYPED.last4 in shown) is (which in ("in", "out", "number"))


@pytest.mark.parametrize("which", ATOMS)
def test_a_secret_does_not_become_text(which: str) -> None:
    thing = ATOMS[which]

    for attempt in (str, "{}".format, "%s".__mod__, lambda it: f"{it}", lambda it: print(it), json.dumps):
        with pytest.raises(TypeError):
            attempt(thing)
    with pytest.raises(TypeError):
        json.dumps({"it": thing}, default=str)


@pytest.mark.parametrize("which", [*HOLDERS, *ATOMS])
def test_nothing_of_it_can_be_pickled_or_copied(which: str) -> None:
    thing = {**HOLDERS, **ATOMS}[which]

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(thing, protocol)
    with pytest.raises(TypeError):
        copy.deepcopy(thing)


def test_a_released_card_does_not_become_a_dictionary() -> None:
    with pytest.raises(TypeError):
        dataclasses.asdict(card_out())


def test_logging_a_card_shows_four_digits_or_fails(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("shop").warning("card %r", card_out())
    with pytest.raises(TypeError):
        logging.getLogger("shop").warning("number %s", card_out().number)

    assert TYPED.last4 in caplog.text
    assert TYPED.pan not in caplog.text


def test_too_short_a_number_shows_nothing() -> None:
    assert CardNumber("42424242424").last4() == ""
    assert repr(CardNumber("4242")) == "CardNumber(••••)"


def test_reveal_is_the_way_to_the_digits() -> None:
    assert card_in().number.reveal() == card_out().number.reveal() == TYPED.pan
    assert not hasattr(card_in(), "__dict__")
    assert not hasattr(CardNumber(TYPED.pan), "__dict__")


def test_a_number_equals_itself_and_is_no_dictionary_key() -> None:
    assert CardNumber(TYPED.pan) == CardNumber(TYPED.pan)
    assert CardNumber(TYPED.pan) != CardNumber(fresh_typed_card().pan)
    with pytest.raises(TypeError):
        hash(CardNumber(TYPED.pan))


def test_values_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        card_out().brand = None  # type: ignore[misc]
    with pytest.raises(AttributeError):
        card_in().number = CardNumber("")  # type: ignore[misc]


def test_a_request_on_its_way_shows_nothing() -> None:
    request = call(
        "/x/Tokenize",
        lambda: checkout_pb2.TokenizeRequest(card=codec.card_input(card_in())),
        checkout_pb2.TokenizeResponse,
        codec.tokenized,
        effect=Effect.WRITE,
        deadline=None,
    )

    assert TYPED.pan.encode() in request.request.serialized()
    assert repr(request) == "Call(Tokenize)"
    assert repr(request.request) == "Request(…)"


@pytest.mark.parametrize(
    "make",
    [
        lambda: checkout_pb2.TokenizeRequest(customer_id=int(TYPED.pan)),  # type: ignore[arg-type]
        lambda: cards_pb2.Expiry(year=int(TYPED.pan)),
        lambda: cards_pb2.CardInput(pan=TYPED.pan + "\udc80"),
        lambda: codec.money_out(Money(minor_units=10**30, currency="EUR")),
    ],
)
def test_an_argument_that_does_not_fit_is_named_without_its_value(make: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        call("/x/Y", make, cards_pb2.Money, lambda _: None, effect=Effect.READ, deadline=None)

    assert str(refused.value) == "Y: INVALID_ARGUMENT “an argument has a wrong type or is out of range”"
    assert refused.value.__context__ is refused.value.__cause__ is None


def test_an_end_of_consent_without_a_time_zone_is_refused() -> None:
    consent = Consent.to(
        "terms",
        version="1",
        uses=[CardUse.RECURRING],
        locale="en",
        agreed_until=datetime(2030, 1, 1),  # noqa: DTZ001
    )

    with pytest.raises(ValueError, match="time zone"):
        codec.consent_out(consent)


def test_consent_to_a_text_hashes_the_very_text() -> None:
    until = datetime(2030, 1, 1, tzinfo=UTC)

    message = codec.consent_out(Consent.to("", version="1", uses=[CardUse.RECURRING], locale="en", agreed_until=until))

    assert message.terms_sha256.hex().startswith("e3b0c442")
    assert (list(message.uses), message.channel) == ([cards_pb2.CARD_USE_RECURRING], cards_pb2.CONSENT_CHANNEL_WEB)
    assert message.agreed_until.ToDatetime(tzinfo=UTC) == until


def test_what_a_newer_server_says_and_this_client_does_not_know_becomes_none() -> None:
    message = cards_pb2.Card.FromString(
        cards_pb2.Card(
            token="tok_x", consent=cards_pb2.ConsentSummary(uses=[cards_pb2.CARD_USE_CUSTOMER_INITIATED])
        ).SerializeToString()
        + b"\x10\x63\x38\x63"  # brand and state 99
    )

    card: Card = codec.card(message)

    assert (card.brand, card.state, card.consent.uses) == (None, None, (CardUse.CUSTOMER_INITIATED,))


def test_drawn_keys_differ_and_hold_no_digit() -> None:
    keys = {codec.new_key() for _ in range(100)}

    assert len(keys) == 100
    assert not any(character.isdigit() for key in keys for character in key)
    assert max(map(len, keys)) <= 64

"""Names: letters without digits, a check byte that finds typing errors, and patterns for what shops name themselves."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cards import made_up_digits
from tests.support.problems import problem_of
from tests.support.world import NOW
from vault.domain import letters
from vault.domain.errors import InvalidField, NotAvailable
from vault.domain.ids import (
    ConsentId,
    CustomerId,
    EventId,
    IdempotencyKey,
    OnceId,
    OrderId,
    ProcessorName,
    RequestId,
    TenantId,
    Token,
)
from vault.domain.pan import Pan, contains_pan

ALPHABET = "bcdfghjkmnpqrstv"
VECTORS = json.loads((Path(__file__).parents[1] / "vectors/letters.json").read_text())
DRAWN = [Token, ConsentId, OnceId, EventId, RequestId]
DATED = [ConsentId, EventId]
GIVEN = [TenantId, CustomerId, OrderId, IdempotencyKey, ProcessorName]
raw_ids = st.binary(min_size=16, max_size=16)


# --- letters ---


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["raw"])
def test_letters_are_those_of_the_golden_vectors(vector: dict[str, str]) -> None:
    raw = bytes.fromhex(vector["raw"])

    assert letters.encode(raw) == vector["letters"]
    assert letters.decode(vector["letters"]) == raw


@given(st.binary(min_size=1, max_size=300))
def test_letters_lead_back_to_the_bytes(raw: bytes) -> None:
    assert letters.decode(letters.encode(raw)) == raw


@given(st.text(max_size=40))
def test_whatever_is_decoded_is_encoded_the_same(text: str) -> None:
    raw = letters.decode(text)

    assert raw is None or letters.encode(raw) == text


@given(raw_ids)
def test_every_single_wrong_letter_is_found(raw: bytes) -> None:
    text = letters.encode(raw)

    passed = [
        (i, other)
        for i, right in enumerate(text)
        for other in ALPHABET
        if other != right and letters.decode(text[:i] + other + text[i + 1 :]) is not None
    ]

    assert passed == []


@given(raw_ids)
def test_every_exchange_of_neighbouring_letters_is_found(raw: bytes) -> None:
    text = letters.encode(raw)

    # Two neighbouring letters span at most nine bits that change together: a burst that CRC-8 finds.
    passed = [
        i
        for i, (a, b) in enumerate(itertools.pairwise(text))
        if a != b and letters.decode(text[:i] + b + a + text[i + 2 :]) is not None
    ]

    assert passed == []


@given(raw_ids, st.integers(0, 33))
def test_a_lost_or_doubled_letter_is_found(raw: bytes, at: int) -> None:
    text = letters.encode(raw)

    assert letters.decode(text[:at] + text[at + 1 :]) is None
    assert letters.decode(text[:at] + text[at] + text[at:]) is None


@pytest.mark.parametrize("text", ["", "b", "bb", "bbb", "BCDF", "bcdé", "bcd\n", " bcdf", "１２３４", "aeio", "1234"])
def test_foreign_or_missing_letters_are_refused(text: str) -> None:
    assert letters.decode(text) is None


# --- ids that are drawn ---


def test_no_token_holds_a_digit_or_repeats() -> None:
    shared = os.urandom(4)

    tokens = {Token.drawn(shared, os.urandom(16)) for _ in range(100_000)}

    assert len(tokens) == 100_000
    assert re.search("[^a-z_]", "".join(tokens)) is None


@pytest.mark.parametrize("kind", DRAWN, ids=lambda k: k.__name__)
def test_a_drawn_id_can_be_read_back(kind: type[Token]) -> None:
    raw = os.urandom(16)

    drawn = kind.from_random(raw)

    assert kind.parse(drawn) == drawn
    assert drawn.raw() == raw
    assert len(drawn) == 4 + 34


@pytest.mark.parametrize("kind", DATED, ids=lambda k: k.__name__)
def test_names_that_open_nothing_are_in_the_order_of_their_time(kind: type[ConsentId] | type[EventId]) -> None:
    moments = [NOW + timedelta(milliseconds=n) for n in range(2000)]

    drawn = [kind.drawn(moment, os.urandom(10)) for moment in moments]

    assert drawn == sorted(drawn)
    assert [kind.parse(each).raw()[:6] for each in drawn] == [
        round(moment.timestamp() * 1000).to_bytes(6, "big") for moment in moments
    ]


@pytest.mark.parametrize("kind", DATED, ids=lambda k: k.__name__)
def test_names_of_one_moment_differ(kind: type[ConsentId] | type[EventId]) -> None:
    assert len({kind.drawn(NOW, os.urandom(10)) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("count", [0, 9, 11, 16])
def test_beside_its_time_a_name_has_ten_random_bytes(count: int) -> None:
    with pytest.raises(ValueError, match="16 random bytes"):
        EventId.drawn(NOW, bytes(count))


def test_a_name_that_leads_to_a_card_tells_no_time() -> None:
    assert list(inspect.signature(Token.drawn).parameters) == ["shared", "raw"]
    assert not hasattr(OnceId, "drawn")


def test_tokens_drawn_together_begin_alike_and_have_sixteen_bytes_each_of_their_own() -> None:
    shared, others = os.urandom(4), [os.urandom(16) for _ in range(1000)]

    tokens = [Token.drawn(shared, own) for own in others]

    assert [Token.parse(token).raw() for token in tokens] == [shared + own for own in others]
    assert {(len(token), token[:12]) for token in tokens} == {(4 + 42, "tok_" + letters.encode(shared)[:8])}


@pytest.mark.parametrize(("shared", "own"), [(0, 16), (3, 16), (5, 16), (4, 12), (4, 15), (0, 20), (8, 12), (4, 0)])
def test_a_token_without_sixteen_bytes_of_its_own_is_not_made(shared: int, own: int) -> None:
    with pytest.raises(ValueError, match="16 of its own"):
        Token.drawn(bytes(shared), bytes(own))


@pytest.mark.parametrize(("kind", "other"), list(itertools.permutations(DRAWN, 2)), ids=lambda k: k.__name__)
def test_one_kind_of_id_is_never_taken_for_another(kind: type[Token], other: type[Token]) -> None:
    drawn = kind.from_random(os.urandom(16))

    with pytest.raises(NotAvailable):
        other.parse(drawn)


@pytest.mark.parametrize("count", [0, 15, 17, 19, 21, 32])
def test_an_id_is_drawn_from_sixteen_bytes_and_parsed_to_sixteen(count: int) -> None:
    with pytest.raises(ValueError, match="16 random bytes"):
        Token.from_random(bytes(count))
    with pytest.raises(NotAvailable):
        Token.parse("tok_" + letters.encode(bytes(count)))


@given(st.text(max_size=60))
def test_every_refused_token_gets_one_answer_that_does_not_repeat_it(text: str) -> None:
    with pytest.raises(NotAvailable) as caught:
        Token.parse(text)

    assert (caught.value.message, caught.value.reason) == ("not available", "malformed_tok")


@pytest.mark.parametrize(
    "spoil",
    [
        str.upper,
        lambda t: t.removeprefix("tok_"),
        lambda t: "tok_" + t,
        lambda t: t + "\n",
        lambda t: " " + t,
        lambda t: t.replace("tok_", "TOK_"),
        lambda t: t.replace("_", "-"),
    ],
)
def test_a_token_written_otherwise_is_refused(spoil: type[str]) -> None:
    token = Token.from_random(os.urandom(16))

    with pytest.raises(NotAvailable):
        Token.parse(spoil(token))


def test_a_token_is_no_card_number_and_a_card_number_no_token() -> None:
    token, digits = Token.from_random(os.urandom(16)), made_up_digits()

    with pytest.raises(InvalidField):
        Pan.parse(token)
    for text in (digits, "tok_" + digits, "tok_" + digits + digits):
        with pytest.raises(NotAvailable):
            Token.parse(text)
    assert not contains_pan(token)


# --- ids that shops give ---


@pytest.mark.parametrize("kind", GIVEN, ids=lambda k: k.__name__)
@given(text=st.text(max_size=140))
def test_what_does_not_fit_the_pattern_is_refused_without_the_value(kind: type[CustomerId], text: str) -> None:
    problem = problem_of(kind.parse, text, field="some_field")

    if problem is None:
        assert kind.pattern.fullmatch(text)
        assert not contains_pan(text)
    else:
        assert problem.field == "some_field"
        assert problem.message in (kind.rule, "must not contain a card number")
        assert problem.args == ("invalid_field",)


@pytest.mark.parametrize(
    ("kind", "longest"),
    [(TenantId, 63), (CustomerId, 128), (OrderId, 64), (IdempotencyKey, 64), (ProcessorName, 63)],
)
def test_the_longest_name_is_accepted_and_one_more_is_not(kind: type[CustomerId], longest: int) -> None:
    assert kind.parse("a" * longest, field="f") == "a" * longest
    for text in ("", "a" * (longest + 1), "a b", "a\n", "ä", "a\0"):
        with pytest.raises(InvalidField):
            kind.parse(text, field="f")


@pytest.mark.parametrize("kind", [CustomerId, OrderId, IdempotencyKey])
@pytest.mark.parametrize("shape", ["{}", "order-{}", "{}-01", "1-{}", "a.{}.b"])
def test_a_name_that_holds_a_card_number_is_refused(kind: type[CustomerId], shape: str) -> None:
    text = shape.format(made_up_digits())

    with pytest.raises(InvalidField, match="invalid_field") as caught:
        kind.parse(text, field="order_id")

    assert caught.value.message == "must not contain a card number"


@pytest.mark.parametrize("text", ["alice@example.com", "c:42/7", "0001", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"])
def test_usual_customer_names_are_accepted(text: str) -> None:
    assert CustomerId.parse(text, field="customer_id") == text


@pytest.mark.parametrize("text", ["1shop", "-shop", "Shop", "shop_a", "shop.a"])
def test_tenants_and_processors_are_named_like_host_labels(text: str) -> None:
    for kind in (TenantId, ProcessorName):
        with pytest.raises(InvalidField):
            kind.parse(text, field="f")

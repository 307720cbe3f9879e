"""The card number: what is one, and that it does not let itself be printed."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import pickle
import random
import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cards import check_digit, made_up_digits
from vault.domain.brand import RANGES, Brand, brand_of
from vault.domain.errors import InvalidField
from vault.domain.pan import Pan, contains_pan

LENGTHS = [(brand, length) for brand in Brand for length in sorted(brand.lengths)]
seeds = st.integers(0, 2**64).map(random.Random)


def _problem(text: str) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        Pan.parse(text)
    return caught.value


@pytest.mark.parametrize(("brand", "length"), LENGTHS, ids=lambda v: getattr(v, "name", v))
def test_a_number_of_each_scheme_and_length_is_accepted(brand: Brand, length: int) -> None:
    digits = made_up_digits(brand=brand, length=length)

    pan = Pan.parse(digits)

    assert pan.brand is brand
    assert pan.reveal() == digits
    assert pan.last4() == digits[-4:]


@pytest.mark.parametrize("brand", Brand, ids=lambda b: b.name)
def test_lengths_that_a_scheme_does_not_issue_are_refused(brand: Brand) -> None:
    others = sorted(set(range(12, 20)) - brand.lengths)
    bodies = [made_up_digits(brand=brand, length=max(brand.lengths))[:8].ljust(n - 1, "1") for n in others]

    problems = [_problem(body + check_digit(body)) for body in bodies]

    assert {p.message for p in problems} <= {"has a length that its card scheme does not issue"}


@given(st.text(string.digits, min_size=1, max_size=30).filter(lambda t: not 12 <= len(t) <= 19))
def test_numbers_of_any_other_length_are_refused(text: str) -> None:
    assert _problem(text).message == "must be 12 to 19 ASCII digits and nothing else"


@given(seeds, st.data())
def test_a_wrong_digit_is_refused(rng: random.Random, data: st.DataObject) -> None:
    digits = made_up_digits(rng=rng)
    at = data.draw(st.integers(0, len(digits) - 1))
    other = data.draw(st.sampled_from(string.digits.replace(digits[at], "")))

    problem = _problem(digits[:at] + other + digits[at + 1 :])

    assert problem.message == "check digit does not match"


@given(seeds)
def test_neighbours_exchanged_are_refused_except_0_and_9(rng: random.Random) -> None:
    digits = made_up_digits(rng=rng)
    swaps = [
        digits[:i] + b + a + digits[i + 2 :]
        for i, (a, b) in enumerate(itertools.pairwise(digits))
        if a != b and {a, b} != {"0", "9"}
    ]

    assert {_problem(swap).message for swap in swaps} <= {"check digit does not match"}


# One zero digit of several scripts, and the mathematical and full-width ones that NFKC folds.
@pytest.mark.parametrize("zero", "٠۰०߀０𝟎𝟘")
def test_digits_of_other_scripts_are_refused(zero: str) -> None:
    digits = made_up_digits()
    foreign = "".join(chr(ord(zero) + int(d)) for d in digits)

    assert _problem(foreign).message == "must be 12 to 19 ASCII digits and nothing else"
    assert _problem(digits[:-1] + foreign[-1]).message == "must be 12 to 19 ASCII digits and nothing else"


@given(seeds, st.characters(exclude_characters=string.digits), st.data())
def test_any_other_character_anywhere_is_refused(rng: random.Random, stranger: str, data: st.DataObject) -> None:
    digits = made_up_digits(rng=rng)
    at = data.draw(st.integers(0, len(digits)))

    problem = _problem(digits[:at] + stranger + digits[at:])

    assert problem.message == "must be 12 to 19 ASCII digits and nothing else"


@pytest.mark.parametrize("prefix", ["0", "1", "70000000", "99999999", "2199", "2721"])
def test_a_number_of_no_known_scheme_is_refused(prefix: str) -> None:
    body = prefix.ljust(15, "0")

    assert _problem(body + check_digit(body)).message == "belongs to no supported card scheme"


@given(st.text(max_size=40))
def test_an_error_names_the_field_and_never_the_value(text: str) -> None:
    words = ("must be 12 to 19 ASCII digits and nothing else", "check digit does not match")

    with pytest.raises(InvalidField) as caught:
        Pan.parse(text, field="items[3].card.pan")

    assert caught.value.field == "items[3].card.pan"
    assert caught.value.message in words
    assert caught.value.args == ("invalid_field",)


@given(seeds, st.data())
def test_an_error_about_a_nearly_right_number_shows_no_digit_of_it(rng: random.Random, data: st.DataObject) -> None:
    digits = made_up_digits(rng=rng)
    at = data.draw(st.integers(0, len(digits) - 1))
    spoilt = digits[:at] + str((int(digits[at]) + 1) % 10) + digits[at + 1 :]

    problem = _problem(spoilt)

    shown = f"{problem!r} {problem} {problem.message} {problem.field} {problem.reason}"
    assert not any(digits[i : i + 4] in shown for i in range(len(digits) - 3))


REFUSING: dict[str, Callable[[Pan], object]] = {
    "str": str,
    "f-string": lambda pan: f"{pan}",
    "f-string with a width": lambda pan: f"{pan:>30}",
    "percent": lambda pan: "%s" % (pan,),  # noqa: UP031
    "format": "{}".format,
    "join": lambda pan: ",".join([pan]),  # type: ignore[list-item]
    "json": json.dumps,
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "hash": hash,
    "int": int,  # type: ignore[dict-item]
    "bytes": bytes,  # type: ignore[dict-item]
    "iteration": iter,  # type: ignore[dict-item]
    "len": len,  # type: ignore[dict-item]
    "index": lambda pan: pan[0],  # type: ignore[index]
    "vars": vars,
}


@pytest.mark.parametrize("way", REFUSING)
def test_every_way_to_turn_it_into_something_else_refuses(way: str) -> None:
    pan = Pan.parse(made_up_digits())

    with pytest.raises(TypeError) as caught:
        REFUSING[way](pan)

    assert pan.reveal()[:6] not in str(caught.value)


def test_every_pickle_protocol_refuses() -> None:
    pan = Pan.parse(made_up_digits())

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(pan, protocol)


def test_repr_shows_four_digits() -> None:
    digits = made_up_digits()

    assert repr(Pan.parse(digits)) == f"Pan(••••{digits[-4:]})"
    assert f"{[Pan.parse(digits)]}" == f"[Pan(••••{digits[-4:]})]"


def test_logging_a_number_does_not_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    pan = Pan.parse(made_up_digits())
    logger = logging.getLogger("cardvault-test-pan")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler())

    logger.warning("paid with %s", pan)

    assert pan.reveal() not in capsys.readouterr().err


def test_equal_numbers_are_equal_and_nothing_else_is() -> None:
    digits, other = made_up_digits(), made_up_digits()

    assert Pan.parse(digits) == Pan.parse(digits)
    assert Pan.parse(digits) != Pan.parse(other)
    assert Pan.parse(digits) != digits


def test_only_one_truncation_exists() -> None:
    public = {name for name in dir(Pan) if not name.startswith("_")}

    assert public == {"brand", "last4", "parse", "reveal"}


# --- brands ---


@pytest.mark.parametrize(
    ("prefix", "brand"),
    [
        ("40117800", Brand.ELO),
        ("40117700", Brand.VISA),
        ("49369800", Brand.MAESTRO),
        ("49369700", Brand.VISA),
        ("22209999", None),
        ("22210000", Brand.MASTERCARD),
        ("27209999", Brand.MASTERCARD),
        ("27210000", None),
        ("65003100", Brand.ELO),
        ("65000200", Brand.VERVE),
        ("65215000", Brand.RUPAY),
        ("65000000", Brand.DISCOVER),
        ("62278000", Brand.UNIONPAY),
        ("62778000", Brand.ELO),
        ("50700000", Brand.MAESTRO),
        ("50850000", Brand.RUPAY),
        ("30949999", None),
        ("30950000", Brand.DINERS),
        ("97920000", Brand.TROY),
    ],
)
def test_where_ranges_overlap_the_narrower_one_wins(prefix: str, brand: Brand | None) -> None:
    assert brand_of(prefix) is brand


def _matching(prefix: str) -> Brand | None:
    """The table read the slow way: longest prefix first, then the narrower range."""
    candidates = []
    for brand, ranges in RANGES.items():
        for text in ranges:
            low, _, high = text.partition("-")
            high = high or low
            if low <= prefix[: len(low)] <= high:
                candidates.append((len(low), -(int(high) - int(low)), brand))
    return max(candidates)[2] if candidates else None


def test_every_eight_digit_edge_of_the_table_is_decided_as_the_ranges_say() -> None:
    edges = set()
    for ranges in RANGES.values():
        for text in ranges:
            low, _, high = text.partition("-")
            first, last = int(low.ljust(8, "0")), int((high or low).ljust(8, "9"))
            edges |= {first - 1, first, last, last + 1}

    wrong = [e for e in edges if e < 10**8 and brand_of(f"{e:08}") is not _matching(f"{e:08}")]

    assert wrong == []


@given(st.text(string.digits, min_size=8, max_size=19))
def test_any_first_digits_are_decided_as_the_ranges_say(digits: str) -> None:
    assert brand_of(digits) is _matching(digits)


def test_no_two_ranges_of_equal_precision_overlap() -> None:
    parts = [text.partition("-") for ranges in RANGES.values() for text in ranges]
    spans = [(low, high or low) for low, _, high in parts]

    overlapping = [
        (a, b) for a, b in itertools.combinations(spans, 2) if len(a[0]) == len(b[0]) and a[0] <= b[1] and b[0] <= a[1]
    ]

    assert overlapping == []


# --- texts that should hold no number ---


@given(
    seeds,
    st.sampled_from(["", " ", "-", ".", "/", "_", ":", "@", "+", "=", "#", ","]),
    st.text("abc =:\n", max_size=9),
    st.text("abc =:", max_size=9),
)
def test_a_number_in_a_text_is_seen_with_any_separator(
    rng: random.Random, separator: str, before: str, after: str
) -> None:
    digits = made_up_digits(rng=rng)
    grouped = separator.join(digits[i : i + 4] for i in range(0, len(digits), 4))

    assert contains_pan(before + digits + after)
    assert contains_pan(before + grouped + after)


@given(seeds, st.sampled_from([" ", "-", ".", "/", "_"]), st.text(string.digits, min_size=1, max_size=3))
def test_a_number_with_other_digits_behind_or_before_a_separator_is_seen(
    rng: random.Random, separator: str, more: str
) -> None:
    digits = made_up_digits(rng=rng)
    grouped = separator.join(digits[i : i + 4] for i in range(0, len(digits), 4))

    assert contains_pan(digits + separator + more)
    assert contains_pan(more + separator + digits)
    assert contains_pan(grouped + separator + more)


@given(seeds)
def test_a_number_hidden_in_a_long_run_of_digits_is_seen(rng: random.Random) -> None:
    digits = made_up_digits(length=16, rng=rng)

    assert contains_pan("17" * 6 + digits + "93" * 6)


@pytest.mark.parametrize(
    "text",
    ["", "42", "order 12345678901", "2026-10-01T12:00:00.123456Z", "1767225600000000", "tok_bcdf", "0000000000000000"],
)
def test_ordinary_texts_hold_no_number(text: str) -> None:
    assert not contains_pan(text)


@given(seeds)
def test_a_number_with_a_wrong_check_digit_is_no_number(rng: random.Random) -> None:
    digits = made_up_digits(rng=rng)

    assert not contains_pan(digits[:-1] + str((int(digits[-1]) + 1) % 10))


@given(st.text(string.digits + " -./_x", max_size=400))
def test_looking_for_numbers_ends_on_any_text(text: str) -> None:
    assert contains_pan(text) in (True, False)

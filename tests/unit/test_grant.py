"""Grants, one-time tokens, money, and the decision whether a grant may be redeemed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.problems import problem_of
from tests.support.world import (
    CUSTOMER,
    NOW,
    ORDER,
    OTHER_TENANT,
    PROCESSOR,
    TENANT,
    consent,
    consent_entry,
    new_token,
    processor_identity,
)
from vault.domain.card import Expiry
from vault.domain.consent import CardUse
from vault.domain.errors import InvalidField, NotAvailable, Refused
from vault.domain.grant import (
    DEFAULT_LIFETIME,
    MAX_LIFETIME,
    MAX_MINOR_UNITS,
    MIN_LIFETIME,
    Allowed,
    Denied,
    Grant,
    GrantState,
    GrantText,
    Money,
    OneTimeToken,
    Redeemable,
    RedeemableOnce,
    RedeemableStoredCard,
    SealedKey,
    decide_redemption,
    parse_lifetime,
    why_no_outcome,
)
from vault.domain.ids import OnceId, OrderId, ProcessorName
from vault.domain.outcome import PaymentOutcome

VECTOR = json.loads((Path(__file__).parents[1] / "vectors/one_time_token.json").read_text())
AMOUNT = Money(1999, "EUR")
SOON = NOW + timedelta(minutes=2)
KEY = SealedKey("vault:v3:AAAA")
ALPHABET = "bcdfghjkmnpqrstv"


def _one_time_token() -> OneTimeToken:
    return OneTimeToken(OnceId.from_random(os.urandom(16)), os.urandom(221))


def _refusal(text: str) -> Refused:
    with pytest.raises(Refused) as caught:
        GrantText.parse(text)
    return caught.value


# --- money and lifetime ---


@pytest.mark.parametrize("units", [0, 1, MAX_MINOR_UNITS])
def test_amounts_from_zero_to_the_largest_are_accepted(units: int) -> None:
    assert Money.parse(minor_units=units, currency="EUR") == Money(units, "EUR")


@pytest.mark.parametrize("units", [-1, MAX_MINOR_UNITS + 1, 2**63 - 1, -(2**63)])
def test_amounts_beyond_are_refused(units: int) -> None:
    problem = problem_of(Money.parse, minor_units=units, currency="EUR")

    assert problem is not None
    assert problem.field == "amount.minor_units"


@pytest.mark.parametrize("currency", ["", "EU", "EURO", "eur", "Eur", "E1R", "ÄÖÜ", "EU\n", "ЕUR", "ＥＵＲ"])
def test_a_currency_is_three_capital_ascii_letters(currency: str) -> None:
    problem = problem_of(Money.parse, minor_units=1, currency=currency)

    assert problem is not None
    assert (problem.field, problem.message) == ("amount.currency", "must be three capital letters (ISO 4217)")


@given(st.text(max_size=5))
def test_any_accepted_currency_is_three_capital_letters(currency: str) -> None:
    accepted = problem_of(Money.parse, minor_units=1, currency=currency) is None

    assert accepted == (len(currency) == 3 and all("A" <= c <= "Z" for c in currency))


def test_a_lifetime_lies_between_its_limits_and_has_a_default() -> None:
    assert parse_lifetime(None) == DEFAULT_LIFETIME == timedelta(minutes=2)
    assert parse_lifetime(MIN_LIFETIME) == MIN_LIFETIME
    assert parse_lifetime(MAX_LIFETIME) == MAX_LIFETIME
    for beyond in (MIN_LIFETIME - timedelta.resolution, MAX_LIFETIME + timedelta.resolution, timedelta(0)):
        with pytest.raises(InvalidField):
            parse_lifetime(beyond)


# --- one-time tokens ---


def test_a_one_time_token_can_be_read_back() -> None:
    token = _one_time_token()

    parsed = OneTimeToken.parse(token.reveal_text())

    assert (parsed.once_id, parsed.sealed) == (token.once_id, token.sealed)
    assert not any(c.isdigit() for c in token.reveal_text())


def test_a_one_time_token_is_that_of_the_golden_vector() -> None:
    token = OneTimeToken.parse(VECTOR["one_time_token"])

    assert token.once_id == VECTOR["once_id"]
    assert token.sealed.hex() == VECTOR["sealed"]
    assert OneTimeToken(token.once_id, token.sealed).reveal_text() == VECTOR["one_time_token"]


def test_changing_any_letter_of_a_one_time_token_refuses_it() -> None:
    text = _one_time_token().reveal_text()

    passed = []
    for i, right in enumerate(text):
        changed = text[:i] + ("b" if right != "b" else "c") + text[i + 1 :]
        try:
            OneTimeToken.parse(changed)
        except NotAvailable:
            continue
        passed.append(i)

    assert passed == []


@given(st.text(max_size=80))
def test_whatever_is_no_one_time_token_gets_one_answer(text: str) -> None:
    with pytest.raises(NotAvailable) as caught:
        OneTimeToken.parse("once_" + text)

    assert (caught.value.message, caught.value.reason) == ("not available", "malformed_one_time_token")


# --- grants as text ---


def test_a_grant_can_be_read_back_and_is_known_by_its_digest() -> None:
    grant = GrantText.draw(os.urandom(16), None)

    parsed = GrantText.parse(grant.reveal_text())

    assert parsed == grant
    assert parsed.one_time_token is None
    assert parsed.sha256() == hashlib.sha256(grant.reveal_text().encode()).digest()


def test_a_grant_for_a_one_time_token_carries_it() -> None:
    token = _one_time_token()

    parsed = GrantText.parse(GrantText.draw(os.urandom(16), token).reveal_text())

    assert parsed.one_time_token == token
    assert parsed.one_time_token is not None
    assert parsed.one_time_token.sealed == token.sealed


def test_grants_are_those_of_the_golden_vectors() -> None:
    golden = VECTOR["grant"]
    raw = bytes.fromhex(golden["raw"])

    plain = GrantText.draw(raw, None)
    carrying = GrantText.draw(raw, OneTimeToken.parse(VECTOR["one_time_token"]))

    assert plain.reveal_text() == golden["for_stored_card"]
    assert plain.sha256().hex() == golden["for_stored_card_sha256"]
    assert carrying.reveal_text() == golden["for_one_time_token"]


@pytest.mark.parametrize("token", [None, _one_time_token()], ids=["stored", "one-time"])
def test_changing_any_letter_of_a_grant_refuses_it(token: OneTimeToken | None) -> None:
    text = GrantText.draw(os.urandom(16), token).reveal_text()

    changes = (text[:i] + ("b" if right != "b" else "c") + text[i + 1 :] for i, right in enumerate(text))
    reasons = {(_refusal(changed).message, _refusal(changed).reason) for changed in changes}

    assert reasons == {("refused", "malformed_grant")}


@given(st.binary(min_size=16, max_size=16), st.integers(6, 39), st.sampled_from(ALPHABET))
def test_any_other_letter_in_a_grant_refuses_it(raw: bytes, at: int, letter: str) -> None:
    text = GrantText.draw(raw, None).reveal_text()

    changed = text[:at] + letter + text[at + 1 :]

    assert changed == text or _refusal(changed).reason == "malformed_grant"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t + "_",
        lambda t: t + "_" + t,
        lambda t: t.removeprefix("grant_"),
        lambda t: "grant_" + t,
        lambda t: t[:-2],
        lambda t: t + "bb",
        str.upper,
        lambda t: t + "\n",
        lambda t: "grant__" + t.removeprefix("grant_"),
        lambda t: "",
        lambda t: "grant_",
    ],
)
def test_a_grant_written_otherwise_is_refused(spoil: Callable[[str], str]) -> None:
    text = GrantText.draw(os.urandom(16), None).reveal_text()

    assert _refusal(spoil(text)).reason == "malformed_grant"


@given(st.text(max_size=80))
def test_whatever_is_no_grant_gets_one_answer_that_does_not_repeat_it(text: str) -> None:
    assert _refusal(text).args == ("malformed_grant",)
    assert _refusal("grant_" + text).args == ("malformed_grant",)


@pytest.mark.parametrize("count", [0, 15, 17])
def test_a_grant_is_drawn_from_sixteen_bytes(count: int) -> None:
    with pytest.raises(ValueError, match="16 random bytes"):
        GrantText.draw(bytes(count), None)


def test_a_grant_and_a_one_time_token_do_not_print() -> None:
    for secret in (GrantText.draw(os.urandom(16), None), _one_time_token()):
        assert repr(secret) in ("GrantText(••••)", "OneTimeToken(••••)")
        with pytest.raises(TypeError):
            str(secret)
        with pytest.raises(TypeError):
            pickle.dumps(secret)


# --- what the vault keeps ---


@pytest.mark.parametrize(("wrapped", "version"), [("vault:v1:AA==", 1), ("vault:v42:a:b", 42)])
def test_a_wrapped_key_says_which_version_wrapped_it(wrapped: str, version: int) -> None:
    assert SealedKey(wrapped).kek_version == version


def _grant(**changes: Any) -> Grant:
    plain = Grant(
        tenant=TENANT,
        grant_sha256=bytes(32),
        customer=CUSTOMER,
        token=new_token(),
        once_id=None,
        order=ORDER,
        amount=AMOUNT,
        purpose=CardUse.CUSTOMER_INITIATED,
        processor=PROCESSOR,
        state=GrantState.OPEN,
        issued_at=NOW,
        expires_at=SOON,
        issued_by="spiffe://example.test/checkout",
    )
    return dataclasses.replace(plain, **changes)


def _stored(**changes: Any) -> RedeemableStoredCard:
    plain = RedeemableStoredCard(
        token=new_token(),
        customer=CUSTOMER,
        key=KEY,
        ciphertext=b"sealed",
        record_version=1,
        expiry=Expiry(year=2026, month=6),
        is_active=True,
        consent=consent_entry(),
    )
    return dataclasses.replace(plain, **changes)


def _once(**changes: Any) -> RedeemableOnce:
    plain = RedeemableOnce(once_id=OnceId.from_random(bytes(16)), order=ORDER, key=KEY, expires_at=SOON)
    return dataclasses.replace(plain, **changes)


def _decide(found: Redeemable | None, **changes: Any) -> Allowed | Denied:
    asked: dict[str, Any] = {"identity": processor_identity(), "order": ORDER, "amount": AMOUNT, "now": NOW}
    return decide_redemption(found, **asked | changes)


def test_the_subject_of_a_grant_is_its_token_or_its_one_time_id() -> None:
    once_id = OnceId.from_random(bytes(16))
    stored = _grant()

    assert stored.subject == stored.token
    assert _grant(token=None, once_id=once_id).subject == once_id
    with pytest.raises(AssertionError):
        _ = _grant(token=None).subject


def test_a_good_grant_may_be_redeemed() -> None:
    stored, once = _stored(), _once()
    for target in (stored, once):
        found = Redeemable(_grant(), target)

        assert _decide(found) == Allowed(found, target)


def test_a_processor_of_several_tenants_may_redeem_for_each() -> None:
    identity = processor_identity(OTHER_TENANT, TENANT)

    assert isinstance(_decide(Redeemable(_grant(), _stored()), identity=identity), Allowed)
    assert isinstance(_decide(Redeemable(_grant(tenant=OTHER_TENANT), _stored()), identity=identity), Allowed)


LAST_MOMENT = SOON - timedelta.resolution
ENDED = consent_entry(consent(agreed_until=NOW))
OTHER_USE = consent_entry(consent(uses=[CardUse.RECURRING]))
REFUSALS: dict[str, tuple[Redeemable | None, dict[str, Any], str]] = {
    "no such grant": (None, {}, "unknown_grant"),
    "tenant not served": (
        Redeemable(_grant(), _stored()),
        {"identity": processor_identity(OTHER_TENANT)},
        "foreign_tenant",
    ),
    "another processor": (
        Redeemable(_grant(), _stored()),
        {"identity": processor_identity(name=ProcessorName("other-pay"))},
        "wrong_processor",
    ),
    "used": (Redeemable(_grant(state=GrantState.USED), _stored()), {}, "grant_used"),
    "revoked": (Redeemable(_grant(state=GrantState.REVOKED), _stored()), {}, "grant_revoked"),
    "expired at its end": (Redeemable(_grant(), _stored()), {"now": SOON}, "grant_expired"),
    "another order": (Redeemable(_grant(), _stored()), {"order": OrderId("order-2")}, "wrong_order"),
    "another amount": (Redeemable(_grant(), _stored()), {"amount": Money(2000, "EUR")}, "wrong_amount"),
    "another currency": (Redeemable(_grant(), _stored()), {"amount": Money(1999, "USD")}, "wrong_amount"),
    "card erased": (Redeemable(_grant(), None), {}, "card_gone"),
    "card pending": (
        Redeemable(_grant(purpose=CardUse.RECURRING), _stored(is_active=False, consent=OTHER_USE)),
        {},
        "card_pending",
    ),
    "card expired": (Redeemable(_grant(), _stored(expiry=Expiry(year=2026, month=5))), {}, "card_expired"),
    "consent ended": (Redeemable(_grant(), _stored(consent=ENDED)), {}, "consent_missing"),
    "use not agreed to": (Redeemable(_grant(), _stored(consent=OTHER_USE)), {}, "consent_missing"),
    "merchant-initiated without consent": (
        Redeemable(_grant(purpose=CardUse.UNSCHEDULED), _stored()),
        {},
        "consent_missing",
    ),
    "one-time token of another order": (Redeemable(_grant(), _once(order=OrderId("order-2"))), {}, "wrong_order"),
    "one-time token expired": (Redeemable(_grant(), _once(expires_at=NOW)), {}, "one_time_token_expired"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_grant_is_refused_with_the_reason_for_the_audit_log(case: str) -> None:
    found, changes, reason = REFUSALS[case]

    assert _decide(found, **changes) == Denied(reason)


@pytest.mark.parametrize("purpose", CardUse)
def test_a_pending_card_is_good_for_payments_that_the_customer_starts_alone(purpose: CardUse) -> None:
    everything = consent_entry(consent(uses=list(CardUse)))
    pending = _stored(is_active=False, consent=everything)

    decision = _decide(Redeemable(_grant(purpose=purpose), pending))

    assert isinstance(decision, Allowed) == (purpose is CardUse.CUSTOMER_INITIATED)


def test_an_outcome_is_refused_with_the_reason_for_the_audit_log() -> None:
    used = _grant(state=GrantState.USED, outcome=PaymentOutcome.APPROVED)
    asked: dict[str, Any] = {"processor": PROCESSOR, "order": ORDER, "outcome": PaymentOutcome.APPROVED}

    assert why_no_outcome(used, **asked) is None
    assert why_no_outcome(None, **asked) == "unknown_grant"
    assert why_no_outcome(used, **asked | {"processor": ProcessorName("other-pay")}) == "wrong_processor"
    assert why_no_outcome(used, **asked | {"order": OrderId("order-2")}) == "wrong_order"
    assert why_no_outcome(used, **asked | {"outcome": PaymentOutcome.DECLINED}) == "other_outcome"
    assert why_no_outcome(_grant(), **asked) == "grant_unused"
    assert why_no_outcome(_grant(state=GrantState.REVOKED), **asked) == "grant_revoked"


def test_a_grant_is_good_until_the_moment_before_its_end() -> None:
    assert isinstance(_decide(Redeemable(_grant(), _stored()), now=LAST_MOMENT), Allowed)


@pytest.mark.parametrize("use", CardUse)
def test_a_purpose_is_allowed_exactly_where_the_consent_names_it(use: CardUse) -> None:
    covering = consent_entry(consent(uses=[use]))

    allowed = {
        purpose
        for purpose in CardUse
        if isinstance(_decide(Redeemable(_grant(purpose=purpose), _stored(consent=covering))), Allowed)
    }

    assert allowed == {use}

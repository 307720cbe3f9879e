"""Consent: what an opt-in must say, and what it allows."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cards import made_up_digits
from tests.support.problems import problem_of
from tests.support.world import NOW, consent, consent_entry
from vault.domain.consent import CardUse, Consent, ConsentChannel
from vault.domain.errors import InvalidField
from vault.v1 import cards_pb2

LATER = NOW + timedelta(days=1)


def _parse(**changes: Any) -> Consent:
    given: dict[str, Any] = {
        "terms_version": "2026-01",
        "terms_sha256": bytes(32),
        "uses": [1],
        "channel": 1,
        "locale": "de-AT",
        "agreed_until": None,
        "now": NOW,
    }
    return Consent.parse(**given | changes)


def _field_at_fault(**changes: Any) -> str:
    with pytest.raises(InvalidField) as caught:
        _parse(**changes)
    return caught.value.field


def test_a_whole_consent_is_accepted_with_its_uses_in_order() -> None:
    parsed = _parse(uses=[3, 1, 2], channel=4, agreed_until=LATER)

    assert parsed.uses == (CardUse.CUSTOMER_INITIATED, CardUse.RECURRING, CardUse.INSTALMENT)
    assert parsed.channel is ConsentChannel.PAPER
    assert parsed.agreed_until == LATER


@pytest.mark.parametrize("uses", [[], [0], [5], [1, 1], [1, 0], [-1], [1, 99]])
def test_uses_must_be_known_and_named_once(uses: list[int]) -> None:
    assert _field_at_fault(uses=uses) == "consent.uses"


@pytest.mark.parametrize("channel", [0, 5, -1, 2**31 - 1])
def test_a_channel_must_be_known_so_a_ticked_box_in_advance_cannot_be_reported(channel: int) -> None:
    assert _field_at_fault(channel=channel) == "consent.channel"


@pytest.mark.parametrize("enum", [ConsentChannel, cards_pb2.ConsentChannel], ids=["domain", "contract"])
def test_no_channel_stands_for_a_box_ticked_in_advance_or_for_consent_that_was_implied(enum: Any) -> None:
    names = {name.removeprefix("CONSENT_CHANNEL_") for name in (enum.keys() if hasattr(enum, "keys") else _names(enum))}

    assert names - {"UNSPECIFIED"} == {"WEB", "APP", "PHONE", "PAPER"}


def _names(enum: type[ConsentChannel]) -> list[str]:
    return [channel.name for channel in enum]


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33), b"a" * 64])
def test_the_terms_are_named_by_a_whole_digest(digest: bytes) -> None:
    assert _field_at_fault(terms_sha256=digest) == "consent.terms_sha256"


@pytest.mark.parametrize("version", ["", "x" * 65, "v1\n", "v\0", "vé", "<v1>"])
def test_a_version_is_plain_text(version: str) -> None:
    assert _field_at_fault(terms_version=version) == "consent.terms_version"


def test_a_version_that_holds_a_card_number_is_refused() -> None:
    assert _field_at_fault(terms_version=made_up_digits()) == "consent.terms_version"
    assert _field_at_fault(terms_version=f"v1 {made_up_digits()} 1") == "consent.terms_version"


@pytest.mark.parametrize("locale", ["de", "de-AT", "zh-Hant-TW", "sl-rozaj-biske-1994"])
def test_language_tags_are_accepted(locale: str) -> None:
    assert _parse(locale=locale).locale == locale


@pytest.mark.parametrize("locale", ["", "d", "de_AT", "de-", "-AT", "1e", "de-AT\n", "x" * 9, "de-" + "a" * 9])
def test_what_is_no_language_tag_is_refused(locale: str) -> None:
    assert _field_at_fault(locale=locale) == "consent.locale"


@pytest.mark.parametrize("end", [NOW, NOW - timedelta(microseconds=1), NOW - timedelta(days=9)])
def test_an_end_must_lie_ahead(end: datetime) -> None:
    assert _field_at_fault(agreed_until=end) == "consent.agreed_until"


@given(st.text(max_size=80), st.sampled_from(["terms_version", "locale"]))
def test_a_refused_value_is_not_in_the_error(text: str, name: str) -> None:
    problem = problem_of(_parse, **{name: text})

    assert problem is None or problem.args == ("invalid_field",)
    assert problem is None or (problem.field, problem.message) in (
        ("consent.terms_version", "must be 1 to 64 plain characters"),
        ("consent.locale", "must be a BCP 47 tag of at most 35 characters"),
    )


@pytest.mark.parametrize("use", CardUse)
@pytest.mark.parametrize("agreed", CardUse)
def test_a_consent_covers_the_uses_it_names_and_no_other(use: CardUse, agreed: CardUse) -> None:
    entry = consent_entry(consent(uses=[agreed]))

    assert entry.covers(use, now=NOW) == (use is agreed)


def test_a_consent_covers_nothing_from_its_end_on() -> None:
    entry = consent_entry(consent(agreed_until=LATER))

    assert entry.covers(CardUse.CUSTOMER_INITIATED, now=LATER - timedelta(microseconds=1))
    assert not entry.covers(CardUse.CUSTOMER_INITIATED, now=LATER)

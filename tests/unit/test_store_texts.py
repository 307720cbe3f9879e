"""Texts that rows become, whichever library writes them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vault.store.columns import Engine, from_canonical_json, to_canonical_json
from vault.store.given import Given, row_of
from vault.store.tables import cards, settings

FACTS = st.dictionaries(st.text(), st.text() | st.integers(), max_size=4)


def _canonical(facts: object) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


@given(FACTS)
def test_facts_have_one_text_whoever_writes_it(facts: dict[str, str | int]) -> None:
    text = to_canonical_json(facts)

    assert text == _canonical(facts)
    assert from_canonical_json(text) == facts


@pytest.mark.parametrize("code", [*range(0x20), 0x22, 0x5C, 0x7F, 0x80, 0xE9, 0x2028, 0xD800, 0xFFFF, 0x1F600])
def test_facts_are_escaped_alike_down_to_the_last_character(code: int) -> None:
    facts = {chr(code): f"<{chr(code)}>"}

    assert to_canonical_json(facts) == _canonical(facts)
    assert to_canonical_json(facts).isascii()


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**30])
def test_a_number_of_any_size_stays_what_it_is(number: int) -> None:
    assert to_canonical_json({"n": number}) == _canonical({"n": number})


@pytest.mark.parametrize("engine", list(Engine))
@given(rows=st.lists(st.tuples(st.text(st.characters()), st.text(st.characters())), max_size=4))
def test_rows_come_out_of_their_document_as_they_went_in(engine: Engine, rows: list[tuple[str, str]]) -> None:
    document = Given(engine, [settings.c.name, settings.c.value]).params(rows)["given"]

    assert [tuple(row) for row in json.loads(document)] == rows


def test_a_row_that_somebody_else_wrote_is_named_even_if_it_is_no_text() -> None:
    document = Given(Engine.SQLITE, [settings.c.name]).params([("\udcff",)])["given"]

    assert json.loads(document) == [["\udcff"]]


def test_a_row_has_a_value_for_each_column_in_their_order() -> None:
    row = row_of(cards, {"token": "t", "tenant_id": "a"})

    assert row[:3] == ["a", "t", None]
    assert len(row) == len(cards.columns)

"""The data map and the tables say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable

from vault.domain.data_map import DATA_MAP, DataClass
from vault.store.tables import metadata

Named = tuple[str, str]


def _columns() -> set[Named]:
    return {(table.name, column.name) for table in metadata.sorted_tables for column in table.columns}


def _mapped() -> list[Named]:
    return [(column.table, column.name) for column in DATA_MAP]


def _differences(mapped: Iterable[Named], columns: set[Named]) -> tuple[set[Named], set[Named]]:
    """What the map lacks, and what it has beyond the tables."""
    return columns - set(mapped), set(mapped) - columns


def test_every_column_is_in_the_map_and_nothing_else_is() -> None:
    assert _differences(_mapped(), _columns()) == (set(), set())
    assert len(_mapped()) == len(set(_mapped()))


def test_a_missing_column_and_a_stale_one_are_found() -> None:
    columns, mapped = _columns(), _mapped()

    assert _differences(mapped, columns | {("cards", "new")}) == ({("cards", "new")}, set())
    assert _differences([*mapped, ("gone", "x")], columns) == (set(), {("gone", "x")})


def test_what_opens_or_names_a_card_is_mapped_as_such() -> None:
    by_class = {
        wanted: {f"{column.table}.{column.name}" for column in DATA_MAP if column.data_class is wanted}
        for wanted in DataClass
    }

    assert by_class[DataClass.SEALED_CARD] == {"card_secrets.ciphertext"}
    assert by_class[DataClass.KEYED_HASH] == {"card_secrets.fingerprint"}
    assert by_class[DataClass.WRAPPED_KEY] == {
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        for column in table.columns
        if column.name.endswith("wrapped_key")
    }
    assert by_class[DataClass.DISPLAY] == {
        f"cards.{name}" for name in ("brand", "last4", "expiry_year", "expiry_month")
    }


def test_every_row_says_how_long_it_lives_and_what_ends_it() -> None:
    assert all(column.longest_life and column.ended_by for column in DATA_MAP)
    assert all(column.personal for column in DATA_MAP if column.name in {"customer_id", "token", "last4"})


def test_the_command_prints_it_without_a_configuration() -> None:
    def typed(*more: str) -> str:
        command = [sys.executable, "-m", "vault", "data-map", *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    facts = json.loads(typed("--json"))

    assert [(each["table"], each["name"]) for each in facts] == _mapped()
    assert {"data_class", "personal", "longest_life", "ended_by"} <= facts[0].keys()
    assert "last4" in typed()

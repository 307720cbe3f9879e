"""Reading a file of cards: one line at a time, and keys that no line shares and no server refuses."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from vault.cli.import_source import MAX_LINE_BYTES, BadLine, UnfitFile, count_lines, read_cards
from vault.domain.ids import IdempotencyKey
from vault.v1 import checkout_pb2

HEADER = "customer_id,pan,exp_month,exp_year,terms_version,terms_sha256,uses,channel,locale"
LINE = f"ada,none,12,2030,v1,{'ab' * 32},recurring|instalment,app,en"


def file_of(tmp_path: Path, lines: Sequence[str]) -> Path:
    path = tmp_path / "cards.csv"
    path.write_text("\n".join((HEADER, *lines, "")), encoding="utf-8")
    return path


def test_a_line_becomes_an_item(tmp_path: Path) -> None:
    [line] = read_cards(file_of(tmp_path, [LINE]), is_csv=True, name="move")

    assert line.number == 2
    assert isinstance(line.item, checkout_pb2.BatchTokenizeItem)
    assert (line.item.customer_id, line.item.idempotency_key) == ("ada", "move.line2")
    assert list(line.item.consent.uses) == [2, 3]


def test_keys_of_lines_are_never_taken_for_card_numbers(tmp_path: Path) -> None:
    name = "4" + "0" * 10

    lines = list(read_cards(file_of(tmp_path, [LINE] * 500), is_csv=True, name=name))

    keys = {
        IdempotencyKey.parse(line.item.idempotency_key, field="key")
        for line in lines
        if not isinstance(line.item, BadLine)
    }
    assert len(keys) == 500


def test_lines_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = file_of(tmp_path, [LINE] * 20_000)

    tracemalloc.start()
    count = sum(1 for _ in read_cards(path, is_csv=True, name="move"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 20_000
    assert count_lines(path) == 20_001
    assert peak < 1_000_000


def test_a_line_without_end_is_not_held_and_the_next_one_is_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, ["x" * 5_000_000, LINE])

    tracemalloc.start()
    long, good = read_cards(path, is_csv=True, name="move")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert isinstance(long.item, BadLine)
    assert (good.number, isinstance(good.item, BadLine)) == (3, False)
    assert peak < 50 * MAX_LINE_BYTES


def test_columns_that_are_not_known_are_named_by_place_alone(tmp_path: Path) -> None:
    path = tmp_path / "cards.csv"
    path.write_text(f"{LINE}\n{LINE}\n", encoding="utf-8")

    with pytest.raises(UnfitFile) as caught:
        list(read_cards(path, is_csv=True, name="move"))

    assert "column 1, 2" in str(caught.value)
    assert "ada" not in str(caught.value)

"""Reads cards out of a file, one line at a time. What is wrong with a line is said in fixed words, never in its own."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from vault.v1 import cards_pb2, checkout_pb2

MAX_LINE_BYTES = 16 * 1024
COLUMNS = {
    "customer_id": True,
    "pan": True,
    "exp_month": True,
    "exp_year": True,
    "holder_name": False,
    "terms_version": True,
    "terms_sha256": True,
    "uses": True,
    "channel": True,
    "locale": True,
    "agreed_until": False,
    "idempotency_key": False,
}
"""Whether each is required."""
USES: Mapping[str, cards_pb2.CardUse.ValueType] = {
    "customer_initiated": cards_pb2.CARD_USE_CUSTOMER_INITIATED,
    "recurring": cards_pb2.CARD_USE_RECURRING,
    "instalment": cards_pb2.CARD_USE_INSTALMENT,
    "unscheduled": cards_pb2.CARD_USE_UNSCHEDULED,
}
CHANNELS: Mapping[str, cards_pb2.ConsentChannel.ValueType] = {
    "web": cards_pb2.CONSENT_CHANNEL_WEB,
    "app": cards_pb2.CONSENT_CHANNEL_APP,
    "phone": cards_pb2.CONSENT_CHANNEL_PHONE,
    "paper": cards_pb2.CONSENT_CHANNEL_PAPER,
}

_BOM = b"\xef\xbb\xbf"
_NUMBER = re.compile(r"[0-9]{1,4}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class UnfitFile(Exception):
    """The file as a whole cannot be read; the text says why and holds nothing of it."""


class BadLine(Exception):
    """A line that is not worth sending; `message` is in fixed words."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file with its number, from 1: a card, or what is wrong with it."""

    number: int
    item: checkout_pb2.BatchTokenizeItem | BadLine


def read_cards(path: Path, *, is_csv: bool, name: str) -> Iterator[Line]:
    """Every line but the header and empty ones; holds one of them at a time. Raises `UnfitFile` and `OSError`.

    A line without an idempotency key gets one made of `name` and its number.
    """
    with path.open("rb") as file:
        lines = _lines(file)
        record = _records_of_header(lines) if is_csv else _json_record
        for number, raw in lines:
            if raw is not None and not raw.strip():
                continue
            try:
                item = _item(record(_text_of(raw)))
            except BadLine as problem:
                yield Line(number, problem)
                continue
            if not item.idempotency_key:
                # Letters between the two: digits of the name and of the line must not look like one long number.
                item.idempotency_key = f"{name}.line{number}"
            yield Line(number, item)


def count_lines(path: Path) -> int:
    """About how many cards there are, for the progress."""
    count = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            count += block.count(b"\n")
    return count


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without their ends; None for one that is too long."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UnfitFile("it is UTF-16; it must be UTF-8")
            raw = raw.removeprefix(_BOM)
        if len(raw) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES)
            yield number, None
        else:
            yield number, raw.rstrip(b"\r\n")


def _text_of(raw: bytes | None) -> str:
    if raw is None:
        raise BadLine("", f"is longer than {MAX_LINE_BYTES} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise BadLine("", "is not UTF-8 text")
    return text


def _records_of_header(lines: Iterator[tuple[int, bytes | None]]) -> Callable[[str], Mapping[str, Any]]:
    """What takes a line apart by the names in the header, which is read here.

    A name that is not known is not shown either: without a header it would be a card.
    """
    try:
        _, raw = next(lines, (0, b""))
        header = [cell.strip() for cell in _csv_cells(_text_of(raw))]
    except BadLine as problem:
        raise UnfitFile(f"its first line {problem.message}; it must name the columns") from None
    unknown = [str(place) for place, cell in enumerate(header, 1) if cell not in COLUMNS]
    if unknown:
        raise UnfitFile(
            f"its first line must name the columns, separated by commas, and column {', '.join(unknown[:20])} is none "
            "of those in --help; a security code must never be stored: take it out of the file"
        )
    missing = [name for name, required in COLUMNS.items() if required and name not in header]
    if missing or len(set(header)) != len(header):
        raise UnfitFile(f"its first line lacks {', '.join(missing)}" if missing else "it names a column twice")

    def record(text: str) -> Mapping[str, Any]:
        cells = _csv_cells(text)
        if len(cells) != len(header):
            raise BadLine("", "has another number of columns than the first line")
        return dict(zip(header, cells, strict=True))

    return record


def _csv_cells(text: str) -> list[str]:
    """A quoted field ends on its line, so that a stray quote spoils one line and not the rest of the file."""
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error:
        rows = []
    if len(rows) != 1:
        raise BadLine("", "is not well-formed CSV")
    return rows[0]


def _json_record(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadLine("", "is not a JSON object")
    if not found.keys() <= COLUMNS.keys():
        raise BadLine("", "has a name that is not known")
    return found


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _item(record: Mapping[str, Any]) -> checkout_pb2.BatchTokenizeItem:
    """What can only be judged before it is sent is judged here; all else by the server, once for all callers."""
    sha256 = _text(record, "terms_sha256")
    if _SHA256.fullmatch(sha256) is None:
        raise BadLine("terms_sha256", "must be 64 hexadecimal digits")
    consent = cards_pb2.Consent(
        terms_version=_text(record, "terms_version"),
        terms_sha256=bytes.fromhex(sha256),
        uses=_uses(record),
        channel=_named(CHANNELS, _text(record, "channel"), "channel"),
        locale=_text(record, "locale"),
    )
    if until := _text(record, "agreed_until"):
        consent.agreed_until.FromDatetime(_moment(until))
    try:
        return checkout_pb2.BatchTokenizeItem(
            idempotency_key=_text(record, "idempotency_key"),
            customer_id=_text(record, "customer_id"),
            card=cards_pb2.CardInput(
                pan=_text(record, "pan"),
                expiry=cards_pb2.Expiry(month=_number(record, "exp_month"), year=_number(record, "exp_year")),
                holder_name=_text(record, "holder_name"),
            ),
            consent=consent,
        )
    except (ValueError, UnicodeError):
        problem = BadLine("", "is not UTF-8 text")  # half a surrogate pair, which JSON can write
    raise problem


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise BadLine(name, "must be text")
    value = value.strip()
    if not value and COLUMNS[name]:
        raise BadLine(name, "is required")
    return value


def _number(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name)
    text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if _NUMBER.fullmatch(text) is None:
        raise BadLine(name, "must be a number of at most four digits")
    return int(text)


def _uses(record: Mapping[str, Any]) -> list[cards_pb2.CardUse.ValueType]:
    value = record.get("uses")
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        names = value
    else:
        names = _text(record, "uses").replace("|", " ").split()
    return [_named(USES, each, "uses") for each in names]


def _named(known: Mapping[str, Any], name: str, field: str) -> Any:
    if name not in known:
        raise BadLine(field, f"must be of: {', '.join(known)}")
    return known[name]


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise BadLine("agreed_until", "must be a time with its zone, as in 2030-12-31T23:59:59Z")

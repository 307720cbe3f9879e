"""Rows that somebody with the database wrote into the log's events: the good ones beside them are not held up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, text

from tests.contract.store.make import event
from tests.integration.audit.conftest import Log
from tests.integration.audit.test_log import APPEND_ONLY, tampering
from tests.support.world import NOW
from vault.audit.report import PAGE, review
from vault.audit.sequencer import Sequencer
from vault.cli.status import Level, log_findings
from vault.domain.audit import RELEASED
from vault.domain.ids import CustomerId, TenantId
from vault.store.columns import Engine
from vault.store.engine import Limits, open_engines
from vault.store.log import LONGEST

_TEXTS = (
    "event",
    "outcome",
    "reason",
    "actor",
    "actor_certificate",
    "role",
    "peer",
    "request_id",
    "customer_id",
    "target",
    "order_id",
    "processor",
)


@dataclass(frozen=True, slots=True)
class Forgery:
    """What a column is set to, as SQL."""

    name: str
    column: str
    value: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.column}-{self.name}"


def _details(name: str, document: str) -> Forgery:
    return Forgery(name, "details", ":value", {"value": document})


_DETAILS = (
    _details("no-json", "no json"),
    _details("empty", ""),
    _details("list", "[]"),
    _details("null", "null"),
    _details("number", "7"),
    _details("nested", '{"a":{"b":1}}'),
    _details("list-inside", '{"a":[1]}'),
    _details("null-inside", '{"a":null}'),
    _details("nan", '{"a":NaN}'),
    _details("infinity", '{"a":-Infinity}'),
    _details("fraction", '{"a":1.5}'),
    _details("too-great", '{"a":1e999}'),
    _details("huge-number", '{"a":' + "9" * 4000 + "}"),
    _details("number-beyond-python", '{"a":' + "9" * 5000 + "}"),
    _details("lone-surrogate", '{"a":"\\ud800"}'),
    _details("lone-surrogate-as-name", '{"\\udc80":1}'),
    _details("nul", '{"a":"\\u0000"}'),
    _details("deep", "[" * 20_000 + "]" * 20_000),
    _details("deep-inside", '{"a":' + "[" * 20_000 + "]" * 20_000 + "}"),
    _details("long", json.dumps({"a": "x" * LONGEST})),
)
_POSTGRESQL = (
    *(
        Forgery(name, "occurred_at", f"timestamptz '{moment}'")
        for name, moment in {
            "infinity": "infinity",
            "minus-infinity": "-infinity",
            "last": "294276-12-31 23:59:59.999999+00",
            "first": "4714-11-24 00:00:00+00 BC",
            "before-christ": "0044-03-15 12:00:00+00 BC",
            "year-10000": "10000-01-01 00:00:00+00",
            "end-of-9999": "9999-12-31 23:59:59.999999+00",
            "first-of-year-1": "0001-01-01 00:00:00+00",
        }.items()
    ),
    *(Forgery("long", column, f"repeat('x', {LONGEST + 1})") for column in _TEXTS),
)
_SQLITE = (
    *(
        Forgery(name, "occurred_at", value)
        for name, value in {
            "greatest": "9223372036854775807",
            "least": "-9223372036854775808",
            "year-10000": "253402300800000000",
            "before-christ": "-62135596800000001",
            "text": "'yesterday'",
            "bytes": "x'00ff'",
            "infinity": "9e999",
            "great-fraction": "1e300",
        }.items()
    ),
    *(Forgery("bytes", column, "x'00ff'") for column in (*_TEXTS, "details", "tenant_id", "event_id")),
    *(Forgery("no-utf-8", column, "CAST(x'61ff62' AS TEXT)") for column in (*_TEXTS, "tenant_id", "event_id")),
    *(Forgery("surrogate", column, "CAST(x'eda080' AS TEXT)") for column in (*_TEXTS, "event_id")),
    *(Forgery("nul", column, "'a' || char(0) || 'b'") for column in (*_TEXTS, "event_id")),
    *(Forgery("long", column, f"hex(zeroblob({LONGEST}))") for column in _TEXTS),
    Forgery("no-utf-8", "details", "CAST(x'7b2261223a22ff227d' AS TEXT)"),
)
_GRANTS = (  # odd, but an event for all that
    Forgery("empty", "grant_sha256", "''"),
    Forgery("short", "grant_sha256", "'a'"),
)


@contextmanager
def _writing(url: str) -> Iterator[Connection]:
    """A connection of somebody who may add events, as every server may."""
    engines = open_engines(url, Limits())
    with engines.writer.begin() as connection:
        yield connection
    engines.dispose()


@contextmanager
def _owning(url: str) -> Iterator[Connection]:
    """A connection of the database's owner, who puts its guards aside for once."""
    with tampering(url) as connection:
        yield connection
        if connection.dialect.name != Engine.SQLITE:
            for table in APPEND_ONLY:
                connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))


def _forge(db: Connection, forgery: Forgery, number: int) -> None:
    """Insert a copy of some event with one column changed, as anybody may who may insert."""
    columns = [row[0] for row in db.execute(text("SELECT * FROM audit_events LIMIT 0")).cursor.description]
    values = {name: name for name in columns} | {"event_id": f"'evt_forged{number}'"}
    values[forgery.column] = forgery.value
    statement = (
        f"INSERT INTO audit_events ({', '.join(columns)}) "
        f"SELECT {', '.join(values[name] for name in columns)} FROM audit_events "
        "WHERE event_id LIKE 'evt\\_%' ESCAPE '\\' AND event_id NOT LIKE 'evt\\_forged%' ESCAPE '\\' LIMIT 1"
    )
    db.execute(text(statement), dict(forgery.parameters))


def _set(log: Log, url: str, event_id: str, forgery: Forgery) -> None:
    with _owning(url) as db:
        statement = f"UPDATE audit_events SET {forgery.column} = {forgery.value} WHERE event_id = :id"
        db.execute(text(statement), {**forgery.parameters, "id": event_id})


def _all_of(log: Log) -> tuple[Forgery, ...]:
    return (*_DETAILS, *(_SQLITE if log.store.kind is Engine.SQLITE else _POSTGRESQL))


def test_no_forged_row_holds_up_a_good_one_and_each_is_told(log: Log, database_url: str) -> None:
    first = log.add(1)[0]
    forgeries = _all_of(log)
    with _writing(database_url) as db:
        for number, forgery in enumerate(forgeries[::2]):
            _forge(db, forgery, number)
    good = log.add(3, sequence=False)
    with _writing(database_url) as db:
        for number, forgery in enumerate(forgeries[1::2], len(forgeries)):
            _forge(db, forgery, number)
    good += log.add(3, sequence=False)

    assert Sequencer(log.store)() == 6

    with log.store.reading() as tx:
        assert [each.event_id for each in tx.logged_events(0, 100)] == [each.event_id for each in (first, *good)]
        assert tx.log_state().queued == len(forgeries)
        worst = {level for _, level, _ in log_findings(tx.log_state(), now=datetime.now(UTC))}
    assert Level.FAILED in worst
    log.sign()
    found = log.verify().findings
    assert [each.kind for each in found] == ["queue"]
    assert found[0].text.startswith(f"{len(forgeries)} rows wait for a place and are no events")
    log.add(1)
    assert log.ship() == 8


@pytest.mark.parametrize("waits", [False, True])
def test_each_forgery_by_itself_is_found(log: Log, database_url: str, waits: bool) -> None:
    log.add(1)
    for forgery in _all_of(log):
        if forgery.column in {"event_id", "tenant_id"} and not waits:
            continue  # then nothing of this name is there: `removed`, by another way
        (changed,) = log.add(1, sequence=not waits)
        if waits:
            with _owning(database_url) as db:
                db.execute(text("DELETE FROM audit_queue"))
                db.execute(text("DELETE FROM audit_events WHERE event_id = :id"), {"id": changed.event_id})
            with _writing(database_url) as db:
                _forge(db, forgery, 0)
        else:
            _set(log, database_url, changed.event_id, forgery)

        found = log.verify().findings

        if waits:
            assert [each.kind for each in found] == ["queue"], forgery
            with _owning(database_url) as db:
                db.execute(text("DELETE FROM audit_queue"))
                db.execute(text("DELETE FROM audit_events WHERE event_id NOT IN (SELECT event_id FROM audit_leaves)"))
        else:
            assert [(each.kind, each.text.partition(" (")[0]) for each in found] == [
                ("removed", f"event {len(log.added) - 1}")
            ], forgery
            with _owning(database_url) as db:
                db.execute(text("DELETE FROM audit_events WHERE event_id = :id"), {"id": changed.event_id})
            with log.store.writing() as tx:
                tx.append_events([changed])
            with _owning(database_url) as db:
                db.execute(text("DELETE FROM audit_queue"))


@pytest.mark.parametrize("forgery", _GRANTS, ids=str)
def test_an_odd_but_readable_row_is_logged_as_it_stands(log: Log, database_url: str, forgery: Forgery) -> None:
    log.add(1)
    with _writing(database_url) as db:
        _forge(db, forgery, 0)

    assert Sequencer(log.store)() == 1
    assert log.verify().findings == []


def test_the_daily_report_counts_forged_rows_and_loses_no_event(log: Log, database_url: str) -> None:
    log.add(2)
    forgeries = _all_of(log)
    with _writing(database_url) as db:
        for number, forgery in enumerate(forgeries):
            _forge(db, forgery, number)
        for number in range(PAGE):
            _forge(db, Forgery("other", "outcome", "'other'"), 10_000 + number)
    moment = log.added[0].occurred_at
    more = [event() for _ in range(3)]
    with log.store.writing() as tx:
        tx.append_events(more)

    found = review(log.store, since=moment - timedelta(hours=1), until=moment + timedelta(hours=1))

    assert (found.events, found.unreadable) == (5, len(forgeries) + PAGE)
    assert found.has_findings


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_a_page_of_events_that_ends_with_a_forged_name_is_followed_by_the_next(
    log: Log, database_url: str, limit: int
) -> None:
    if log.store.kind is not Engine.SQLITE:
        pytest.skip("PostgreSQL takes no name that is not text")
    moment = NOW
    good = [replace(event(), occurred_at=moment + timedelta(seconds=n)) for n in range(4)]
    for each in good:
        with log.store.writing() as tx:
            tx.append_events([each])
    with _writing(database_url) as db:
        for n, name in enumerate(("CAST(x'61ff' AS TEXT)", "x'00'", "CAST(x'62ff' AS TEXT)", "x'01'")):
            _forge(db, Forgery("odd", "event_id", name), n)
    with _owning(database_url) as db:
        db.execute(
            text("UPDATE audit_events SET occurred_at = occurred_at + 1000000 * rowid - 2500000 WHERE rowid > 4")
        )

    seen: list[str] = []
    unreadable, pages, after = 0, 0, None
    while pages == 0 or after is not None:
        with log.store.reading() as tx:
            page = tx.events_between(moment - timedelta(hours=1), moment + timedelta(hours=1), after=after, limit=limit)
        seen += [each.event_id for each in page.events]
        unreadable, pages, after = unreadable + page.unreadable, pages + 1, page.next
        assert pages < 50

    assert seen == [each.event_id for each in good]
    assert unreadable >= 4


def test_a_forged_release_does_not_keep_a_customer_from_the_others(log: Log, database_url: str) -> None:
    (real,) = log.add(1)
    with _owning(database_url) as db:
        db.execute(
            text("UPDATE audit_events SET event = :event, customer_id = 'ada', target = 'oid_a', order_id = 'order'"),
            {"event": RELEASED},
        )
        for number, forgery in enumerate(_all_of(log)):
            if forgery.column in {"occurred_at", "details"} and forgery.name not in {"no-utf-8"}:
                _forge(db, Forgery(forgery.name, forgery.column, forgery.value, forgery.parameters), number)

    with log.store.reading() as tx:
        found = tx.releases(TenantId(real.tenant), CustomerId("ada"), after=None, limit=1000)

    assert real.event_id in {each.event for each in found}


def test_the_evidence_is_read_beside_a_review_at_no_time(log: Log, database_url: str) -> None:
    log.add(1)
    last = "timestamptz 'infinity'" if log.store.kind is Engine.POSTGRESQL else "9223372036854775807"
    with _owning(database_url) as db:
        db.execute(text("UPDATE audit_events SET event = 'audit.read', target = 'report'"))
        _forge(db, Forgery("last", "occurred_at", last), 0)

    with log.store.reading() as tx:
        counts = tx.evidence_counts(since=datetime(2020, 1, 1, tzinfo=UTC))

    assert counts.last_review == log.added[0].occurred_at

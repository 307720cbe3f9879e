"""The log: every committed event gets one place; signed, shipped, and found out when anything about it is changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from sqlalchemy import Connection, text

from tests.contract.store.make import event
from tests.integration.audit.conftest import Log
from vault.audit import leaf
from vault.audit.checkpoint import opened
from vault.audit.copy import SEGMENT, CopyTrouble, LogShrank, Shipper
from vault.audit.merkle import Tree, check_consistency, leaf_hash, root_from_inclusion
from vault.audit.sequencer import Addition, Recent, Sequencer
from vault.domain.errors import StoreUnavailable
from vault.ports_operator import Busy
from vault.store.columns import Engine
from vault.store.engine import Limits, open_engines

APPEND_ONLY = ("audit_events", "audit_leaves", "audit_nodes", "audit_checkpoints")


@contextmanager
def tampering(url: str) -> Iterator[Connection]:
    """A connection of somebody who owns the database and has put its guards aside."""
    engines = open_engines(url, Limits())
    with engines.writer.begin() as connection:
        for table in APPEND_ONLY:
            if engines.kind is Engine.SQLITE:
                for verb in ("update", "delete"):
                    connection.execute(text(f"DROP TRIGGER IF EXISTS {table}_no_{verb}"))
            else:
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        yield connection
    engines.dispose()


def _hash_hex(connection: Connection) -> str:
    return "unhex(:value)" if connection.dialect.name == "sqlite" else "decode(:value, 'hex')"


def test_every_committed_event_gets_one_place_in_the_order_of_arrival(log: Log) -> None:
    log.add(7)
    log.add(5)

    with log.store.reading() as tx:
        places = tx.logged_events(0, 100)
        state = tx.log_state()

    assert [each.index for each in places] == list(range(12))
    assert [each.event for each in places] == log.added
    assert (state.size, state.queued, state.oldest_queued) == (12, 0, None)
    assert log.verify().is_good


class _Stop(Exception):
    pass


def test_an_event_that_was_rolled_back_is_not_in_the_log(log: Log) -> None:
    with suppress(_Stop), log.store.writing() as tx:
        tx.append_events([event()])
        raise _Stop

    assert Sequencer(log.store)() == 0


def test_many_appends_at_once_make_no_fork_and_lose_nothing(log: Log) -> None:
    stop = threading.Event()
    trouble: list[Exception] = []

    def sequence() -> None:
        while not stop.is_set():
            try:
                Sequencer(log.store)()
            except Busy:
                pass
            except Exception as e:  # noqa: BLE001 - whatever it is, the test shows it
                trouble.append(e)

    def write() -> None:
        for _ in range(30):
            with log.store.writing() as tx:
                tx.append_events([event(), event()])

    sequencers = [threading.Thread(target=sequence) for _ in range(3)]
    writers = [threading.Thread(target=write) for _ in range(4)]
    for thread in [*sequencers, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in sequencers:
        thread.join()
    Sequencer(log.store)()

    result = log.verify()
    assert trouble == []
    assert (result.size, result.queued, result.findings) == (240, 0, [])


def test_of_two_appends_to_the_same_end_only_one_comes_through(log: Log) -> None:
    log.add(3, sequence=False)
    with log.store.reading() as tx:
        head, waiting = tx.log_head(), tx.queued_events(10)
    addition = Addition.after(head, [each.event for each in waiting])
    numbers = [each.number for each in waiting]
    with log.store.writing() as tx:
        addition.append(tx, numbers=numbers)

    with pytest.raises(StoreUnavailable, match="audit_log_moved"), log.store.writing() as tx:
        addition.append(tx, numbers=numbers)

    assert log.verify().size == 3


def test_only_one_process_sequences(log: Log) -> None:
    log.add(1, sequence=False)

    with log.store.exclusively("audit-sequencer"), pytest.raises(Busy):
        Sequencer(log.store)()

    assert Sequencer(log.store)() == 1


def test_a_checkpoint_is_signed_when_something_was_added(log: Log) -> None:
    assert log.checkpointer() is None
    log.add(2)
    first = log.checkpointer()
    log.add(1)

    assert first is not None
    assert opened(first.note, log.keys).size == 2
    assert log.checkpointer() is None  # neither long enough ago nor enough events
    assert opened(log.sign(), log.keys).size == 3
    assert log.checkpointer(now=True) is None


def test_every_event_can_be_proven_and_any_two_checkpoints_are_consistent(log: Log) -> None:
    notes = []
    for count in (1, 2, 300, 7):
        log.add(count)
        notes.append(opened(log.sign(), log.keys))
    newest = notes[-1]

    with log.store.reading() as tx:
        tree = Tree(tx.log_nodes)
        for each in log.added[::37]:
            place = tx.place_of(each.event_id, None)
            assert place is not None
            path = tree.inclusion(place[0], newest.size)
            assert root_from_inclusion(leaf_hash(leaf.encode(each)), place[0], newest.size, path) == newest.root
        for old in notes:
            for new in notes:
                if old.size <= new.size:
                    check_consistency(old.size, old.root, new.size, new.root, tree.consistency(old.size, new.size))


# --- what somebody with the whole database can do, and what is found ---


def _edit_event(db: Connection, log: Log) -> None:
    db.execute(text("UPDATE audit_events SET reason = 'other' WHERE event_id = :id"), {"id": log.added[5].event_id})


def _edit_event_and_its_hash(db: Connection, log: Log) -> None:
    _edit_event(db, log)
    value = leaf_hash(leaf.encode(replace(log.added[5], reason="other"))).hex()
    db.execute(text(f"UPDATE audit_leaves SET leaf_hash = {_hash_hex(db)} WHERE leaf_index = 5"), {"value": value})


def _remove_event(db: Connection, log: Log) -> None:
    db.execute(text("DELETE FROM audit_events WHERE event_id = :id"), {"id": log.added[5].event_id})


def _remove_event_and_renumber(db: Connection, log: Log) -> None:
    _remove_event(db, log)
    db.execute(text("DELETE FROM audit_leaves WHERE leaf_index = 5"))
    for index in range(6, 20):
        db.execute(
            text("UPDATE audit_leaves SET leaf_index = :new WHERE leaf_index = :old"), {"new": index - 1, "old": index}
        )
    _shorten_head(db, 19)


def _remove_place(db: Connection, log: Log) -> None:
    db.execute(text("DELETE FROM audit_leaves WHERE leaf_index = 5"))


def _swap_places(db: Connection, log: Log) -> None:
    for old, new in ((5, 1005), (6, 5), (1005, 6)):
        db.execute(text("UPDATE audit_leaves SET leaf_index = :new WHERE leaf_index = :old"), {"new": new, "old": old})


def _cut_tail(db: Connection, log: Log) -> None:
    for each in log.added[15:]:
        db.execute(text("DELETE FROM audit_events WHERE event_id = :id"), {"id": each.event_id})
    db.execute(text("DELETE FROM audit_leaves WHERE leaf_index >= 15"))
    db.execute(text("DELETE FROM audit_checkpoints WHERE size > 10"))
    _shorten_head(db, 15)


def _rebuild_all(db: Connection, log: Log) -> None:
    """Take one event out, and make a whole new log of the rest."""
    _remove_event(db, log)
    db.execute(text("DELETE FROM audit_leaves"))
    db.execute(text("DELETE FROM audit_nodes"))
    db.execute(text(f"UPDATE audit_head SET size = 0, frontier = {_hash_hex(db)}"), {"value": ""})
    for each in [*log.added[:5], *log.added[6:]]:
        row = {"tenant": each.tenant, "event": each.event_id}
        db.execute(text("INSERT INTO audit_queue (tenant_id, event_id) VALUES (:tenant, :event)"), row)


def _slip_in(db: Connection, log: Log) -> None:
    columns = ", ".join(column for column in _COLUMNS)
    values = ", ".join("'evt_slipped'" if column == "event_id" else column for column in _COLUMNS)
    db.execute(
        text(f"INSERT INTO audit_events ({columns}) SELECT {values} FROM audit_events WHERE event_id = :id"),
        {"id": log.added[5].event_id},
    )
    db.execute(text("DELETE FROM audit_queue"))


_COLUMNS = (
    "tenant_id",
    "event_id",
    "occurred_at",
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
    "details",
)


def _shorten_head(db: Connection, size: int) -> None:
    db.execute(text("UPDATE audit_head SET size = :size"), {"size": size})


FORGERIES: list[tuple[Callable[[Connection, Log], None], str, int | None]] = [
    (_edit_event, "edited", 5),
    (_edit_event_and_its_hash, "changed", 5),
    (_remove_event, "removed", 5),
    (_remove_event_and_renumber, "changed", 5),
    (_remove_place, "missing", 5),
    (_swap_places, "changed", 5),
    (_cut_tail, "truncated", 15),
    (_rebuild_all, "changed", 5),
    (_slip_in, "unlogged", None),
]


@pytest.mark.parametrize(("forge", "kind", "position"), FORGERIES, ids=[each[0].__name__ for each in FORGERIES])
def test_a_forgery_is_found_and_its_first_place_is_named(
    log: Log, database_url: str, forge: Callable[[Connection, Log], None], kind: str, position: int | None
) -> None:
    log.add(10)
    log.sign()
    log.add(10)
    kept = log.sign()
    log.ship()
    assert log.verify(kept, copy=True).is_good

    with tampering(database_url) as db:
        forge(db, log)
    Sequencer(log.store)()  # as a server that goes on would

    without_copy, with_copy = log.verify(kept), log.verify(kept, copy=True)
    assert kind in {finding.kind for finding in without_copy.findings}
    assert not with_copy.is_good
    if position is not None:
        exact = {finding.position for finding in with_copy.findings if finding.kind == kind}
        assert position in exact, with_copy.findings
    assert log.verify_copy(kept).is_good


def test_a_checkpoint_that_somebody_else_signed_is_found(log: Log, database_url: str) -> None:
    log.add(3)
    log.sign()
    with tampering(database_url) as db:
        db.execute(text("UPDATE audit_checkpoints SET note = replace(note, 'cardvault/test', 'cardvault/tesx')"))

    assert [finding.kind for finding in log.verify().findings] == ["checkpoint"]


def test_an_older_copy_of_the_whole_database_is_found_by_a_kept_checkpoint(log: Log, database_url: str) -> None:
    log.add(4)
    log.sign()
    before = log.verify()
    log.add(4)
    kept = log.sign()

    with tampering(database_url) as db:  # the database as it was before: consistent in itself
        db.execute(text("DELETE FROM audit_leaves WHERE leaf_index >= 4"))
        for each in log.added[4:]:
            db.execute(text("DELETE FROM audit_events WHERE event_id = :id"), {"id": each.event_id})
        db.execute(text("DELETE FROM audit_checkpoints WHERE size > 4"))
        db.execute(text(f"UPDATE audit_head SET size = 4, frontier = {_hash_hex(db)}"), {"value": before.root.hex()})

    assert log.verify().is_good
    assert [finding.kind for finding in log.verify(kept).findings] == ["truncated"]


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("verb", ["UPDATE {} SET {} = {}", "DELETE FROM {}"])
def test_the_database_refuses_to_change_what_was_logged(log: Log, database_url: str, table: str, verb: str) -> None:
    log.add(300)
    log.sign()
    column = {"audit_events": "reason", "audit_leaves": "event_id", "audit_nodes": "level", "audit_checkpoints": "note"}
    engines = open_engines(database_url, Limits())

    with pytest.raises(Exception, match="append-only"), engines.writer.begin() as connection:
        connection.execute(text(verb.format(table, column[table], column[table])))

    engines.dispose()


# --- the copy elsewhere ---


def test_the_copy_grows_with_the_log_and_is_verified_with_the_public_key_alone(log: Log) -> None:
    log.add(20)
    log.sign()
    first = log.ship()
    log.add(10)
    second = log.ship()
    log.sign()
    third = log.ship()

    result = log.verify_copy()
    assert (first, second, third) == (20, 10, 0)
    assert (result.size, result.covered, result.checkpoints, result.findings) == (30, 30, 2, [])
    assert [leaf.decode(line) for line in log.directory.leaves()] == log.added
    assert [leaf.decode(line) for line in log.directory.leaves(25)] == log.added[25:]
    assert log.directory.keys() == log.keys


def test_what_was_just_sequenced_is_copied_as_it_was_hashed(log: Log, database_url: str) -> None:
    recent = Recent()
    log.add(5)
    log.add(20, sequence=False)
    Sequencer(log.store, recent=recent)()
    with tampering(database_url) as db:
        _edit_event(db, log)

    with pytest.raises(CopyTrouble, match="not what was logged"):
        Shipper(store=log.store, sink=log.directory)(log.keys)
    with pytest.raises(CopyTrouble, match="not what was logged"):
        # The page begins before what is remembered, so all of it is read.
        Shipper(store=log.store, sink=log.directory, recent=recent)(log.keys)
    log.directory.add_events(0, [leaf.encode(each) for each in log.added[:5]])
    added = Shipper(store=log.store, sink=log.directory, recent=recent)(log.keys)

    assert added == 20
    assert [leaf.decode(line) for line in log.directory.leaves()] == log.added


def test_remembered_lines_that_are_not_what_the_database_logged_are_not_copied(log: Log) -> None:
    log.add(5)
    others = Recent()
    others.add(0, [leaf.encode(event()) for _ in range(5)])

    Shipper(store=log.store, sink=log.directory, recent=others)(log.keys)

    assert [leaf.decode(line) for line in log.directory.leaves()] == log.added


def test_the_copy_has_segments_of_one_length(log: Log) -> None:
    new = [event() for _ in range(SEGMENT + 10)]
    with log.store.writing() as tx:
        tx.append_events(new)
    Sequencer(log.store)()

    log.ship()

    names = sorted(path.name for path in (log.directory.path / "segments").iterdir())
    assert names == ["000000000000.jsonl", f"{SEGMENT:012d}.jsonl"]
    assert log.directory.size() == SEGMENT + 10
    assert len(list(log.directory.leaves(SEGMENT - 5))) == 15


def test_a_line_that_a_crash_cut_short_is_written_again(log: Log) -> None:
    log.add(5)
    log.ship()
    segment = log.directory.path / "segments" / "000000000000.jsonl"
    segment.write_bytes(segment.read_bytes()[:-20])

    assert len(list(log.directory.leaves())) == 4
    assert log.ship() == 1
    log.sign()
    log.ship()
    assert log.verify_copy().is_good


@pytest.mark.parametrize("change", ["edit", "drop", "swap", "repeat", "cut", "segment"])
def test_a_change_of_the_copy_is_found(log: Log, change: str) -> None:
    log.add(10)
    kept = log.sign()
    log.ship()
    segment = log.directory.path / "segments" / "000000000000.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    if change == "edit":
        lines[4] = lines[4].replace(b"test.done", b"test.dome")
    elif change == "drop":
        del lines[4]
    elif change == "swap":
        lines[4], lines[5] = lines[5], lines[4]
    elif change == "repeat":
        lines.insert(4, lines[4])
    elif change == "cut":
        del lines[8:]
    segment.write_bytes(b"".join(lines))
    if change == "segment":
        segment.unlink()

    assert not log.verify_copy(kept).is_good


def test_a_database_that_was_set_back_is_noticed_when_shipping(log: Log, database_url: str) -> None:
    log.add(10)
    log.sign()
    log.ship()
    with tampering(database_url) as db:
        db.execute(text("DELETE FROM audit_leaves WHERE leaf_index >= 5"))
        db.execute(text("DELETE FROM audit_checkpoints"))
        db.execute(text("UPDATE audit_head SET size = 5"))

    with pytest.raises(LogShrank):
        log.ship()


def test_two_writers_of_one_copy_take_turns(log: Log) -> None:
    log.add(1)

    with log.directory.exclusively(), pytest.raises(Busy):
        log.ship()


def test_a_copy_that_cannot_be_written_is_said(log: Log) -> None:
    log.add(1)
    (log.directory.path).write_text("a file where the folder should be")

    with pytest.raises(CopyTrouble):
        log.ship()

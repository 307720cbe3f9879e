"""What somebody with the database or with the copy might try, and what must not raise a false alarm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from tests.contract.store.make import event
from tests.integration.audit.conftest import Log
from tests.integration.audit.test_log import _hash_hex, tampering
from vault.audit import leaf
from vault.audit.copy import CopyTrouble, LogShrank
from vault.audit.keeper import LogKeeper, problems
from vault.audit.merkle import Frontier, leaf_hash
from vault.audit.sequencer import Sequencer
from vault.audit.verify import verify_store
from vault.domain.errors import StoreUnavailable
from vault.ports_audit import LogReader


def _kinds(log: Log, *, copy: bool = False) -> set[str]:
    return {finding.kind for finding in log.verify(copy=copy).findings}


def _gate(log: Log) -> list[str]:
    return problems(log.store, log.directory)


# --- with the whole database ---


def test_an_event_hidden_at_a_place_beyond_the_end_is_found(log: Log, database_url: str) -> None:
    log.add(5)
    hidden = log.add(1, sequence=False)[0]
    with tampering(database_url) as db:
        db.execute(text("DELETE FROM audit_queue"))
        db.execute(
            text(f"INSERT INTO audit_leaves VALUES (1000000, :tenant, :id, {_hash_hex(db)})"),
            {"tenant": hidden.tenant, "id": hidden.event_id, "value": leaf_hash(leaf.encode(hidden)).hex()},
        )

    assert _kinds(log) == {"unlogged", "beyond"}


def test_a_place_taken_beyond_the_end_which_stalls_the_log_is_found(log: Log, database_url: str) -> None:
    log.add(5)
    log.add(1, sequence=False)
    with tampering(database_url) as db:
        db.execute(
            text(f"INSERT INTO audit_leaves VALUES (5, '', 'evt_nobody', {_hash_hex(db)})"), {"value": "00" * 32}
        )
    with pytest.raises(StoreUnavailable):
        Sequencer(log.store)()

    assert "beyond" in _kinds(log)


def test_an_event_queued_twice_which_stalls_the_log_is_found(log: Log, database_url: str) -> None:
    old = log.add(5)[0]
    with tampering(database_url) as db:
        db.execute(
            text("INSERT INTO audit_queue (tenant_id, event_id) VALUES (:tenant, :id)"),
            {"tenant": old.tenant, "id": old.event_id},
        )

    assert "queue" in _kinds(log)


def _forge_unsigned(log: Log, url: str, at: int) -> None:
    """Edit an event that no checkpoint covers yet, and everything in the database that says otherwise."""
    forged = [replace(each, reason="other") if n == at else each for n, each in enumerate(log.added)]
    frontier = Frontier()
    frontier.extend(leaf_hash(leaf.encode(each)) for each in forged)
    with tampering(url) as db:
        db.execute(text("UPDATE audit_events SET reason = 'other' WHERE event_id = :id"), {"id": forged[at].event_id})
        db.execute(
            text(f"UPDATE audit_leaves SET leaf_hash = {_hash_hex(db)} WHERE leaf_index = :at"),
            {"value": leaf_hash(leaf.encode(forged[at])).hex(), "at": at},
        )
        db.execute(text(f"UPDATE audit_head SET frontier = {_hash_hex(db)}"), {"value": frontier.encode().hex()})


@pytest.mark.parametrize("signed_since", [False, True])
def test_an_edit_between_copy_and_checkpoint_is_found_by_the_copy(
    log: Log, database_url: str, signed_since: bool
) -> None:
    log.add(3)
    log.sign()
    log.add(3)
    log.ship()
    _forge_unsigned(log, database_url, 4)
    if signed_since:
        log.sign()
        log.ship()

    found = log.verify(copy=True).findings

    assert [(each.kind, each.position) for each in found] == [("changed", 4)]


def test_events_cut_off_that_only_the_copy_has_are_found(log: Log, database_url: str) -> None:
    log.add(4)
    before = log.verify()
    gone = log.add(2)
    log.ship()
    with tampering(database_url) as db:
        db.execute(text("DELETE FROM audit_leaves WHERE leaf_index >= 4"))
        for each in gone:
            db.execute(text("DELETE FROM audit_events WHERE event_id = :id"), {"id": each.event_id})
        db.execute(text(f"UPDATE audit_head SET size = 4, frontier = {_hash_hex(db)}"), {"value": before.root.hex()})

    found = log.verify(copy=True).findings

    assert [(each.kind, each.position) for each in found] == [("truncated", 4)]


def test_a_forged_end_of_the_log_is_not_signed(log: Log, database_url: str) -> None:
    log.add(4)
    log.sign()
    log.add(1)
    with tampering(database_url) as db:
        db.execute(text(f"UPDATE audit_head SET frontier = {_hash_hex(db)}"), {"value": "ab" * 64})

    with pytest.raises(StoreUnavailable, match="audit_log_inconsistent"):
        log.checkpointer(now=True)


def test_a_log_that_does_not_continue_its_newest_checkpoint_is_not_signed(log: Log, database_url: str) -> None:
    log.add(4)
    log.sign()
    log.add(1)
    _forge_unsigned(log, database_url, 2)

    with pytest.raises(StoreUnavailable, match="audit_log_inconsistent"):
        log.checkpointer(now=True)


def test_a_checkpoint_beyond_the_end_does_not_end_signing_in_silence(log: Log, database_url: str) -> None:
    log.add(4)
    log.sign()
    with tampering(database_url) as db:
        db.execute(text("INSERT INTO audit_checkpoints SELECT 1000000, root, note, signed_at FROM audit_checkpoints"))
    log.add(1)

    with pytest.raises(StoreUnavailable, match="audit_log_inconsistent"):
        log.checkpointer(now=True)


GARBAGE = ("outcome = 'other'", "details = 'no json'", "details = '[]'")


@pytest.mark.parametrize("change", GARBAGE)
def test_a_row_that_is_no_event_any_more_is_found_at_its_place(log: Log, database_url: str, change: str) -> None:
    log.add(3)
    log.sign()
    with tampering(database_url) as db:
        db.execute(text(f"UPDATE audit_events SET {change} WHERE event_id = :id"), {"id": log.added[1].event_id})

    assert [(each.kind, each.position) for each in log.verify().findings] == [("removed", 1)]


@pytest.mark.parametrize("change", GARBAGE)
def test_a_row_that_is_no_event_stalls_nothing(log: Log, database_url: str, change: str) -> None:
    log.add(3, sequence=False)
    with tampering(database_url) as db:
        db.execute(text(f"UPDATE audit_events SET {change} WHERE event_id = :id"), {"id": log.added[0].event_id})

    assert Sequencer(log.store)() == 2
    assert _kinds(log) == {"queue"}


@pytest.mark.parametrize("stuck", ["sequencer", "checkpointer"])
def test_what_stalls_one_part_of_the_log_s_care_holds_up_no_other(log: Log, database_url: str, stuck: str) -> None:
    log.add(3)
    log.sign()
    log.add(1)
    log.add(1, sequence=False)
    with tampering(database_url) as db:
        if stuck == "sequencer":
            statement = f"INSERT INTO audit_leaves VALUES (4, '', 'evt_nobody', {_hash_hex(db)})"
            db.execute(text(statement), {"value": "00" * 32})
        else:
            db.execute(
                text("INSERT INTO audit_checkpoints SELECT 1000000, root, note, signed_at FROM audit_checkpoints")
            )
    keeper = LogKeeper(store=log.store, sequence=True, checkpointer=log.checkpointer, directory=log.directory)

    with pytest.raises(StoreUnavailable):
        keeper.turn()

    assert log.directory.size() == (4 if stuck == "sequencer" else 5)


# --- no false alarm ---


class _Busy:
    """A store whose log grows whenever somebody has looked at it, as beside a busy server."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._left = 5

    @contextmanager
    def reading(self) -> Iterator[LogReader]:
        with self._log.store.reading() as tx:
            yield tx
        if self._left:
            self._left -= 1
            self._log.add(1)
            self._log.sign()
            self._log.ship()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log.store, name)


@pytest.mark.parametrize("with_copy", [False, True])
def test_a_log_that_grows_while_it_is_verified_is_no_finding(log: Log, with_copy: bool) -> None:
    log.add(3)
    log.sign()
    log.ship()

    result = verify_store(_Busy(log), log.keys, copy=log.directory if with_copy else None)

    assert result.findings == []


def test_a_checkpoint_whose_key_did_not_come_with_it_is_no_reason_to_stay_down(log: Log) -> None:
    log.add(3)
    log.sign()
    log.ship()
    (log.directory.path / "keys").unlink()  # as where the server that copies has no login to ask for the key

    assert _gate(log) == []


# --- with the copy, or beside somebody who writes it ---


def test_looking_at_the_copy_leaves_it_as_it_is(log: Log) -> None:
    log.add(5)
    log.ship()
    segment = log.directory.path / "segments" / "000000000000.jsonl"
    with segment.open("ab") as file:
        file.write(b'{"half":')  # its writer is at it
    before = segment.read_bytes()

    assert log.verify_copy().size == 5
    assert _gate(log) == []
    assert segment.read_bytes() == before
    log.add(1)
    assert log.ship() == 1
    assert log.verify_copy().size == 6


@pytest.mark.parametrize("name", ["²", "5", "999999999999"])
def test_a_name_in_the_copy_that_nobody_signed_stops_no_server(log: Log, name: str) -> None:
    log.add(3)
    log.sign()
    log.ship()
    (log.directory.path / "checkpoints" / name).touch()
    (log.directory.path / "segments" / "².jsonl").touch()

    assert _gate(log) == []
    log.add(1)
    assert log.ship() == 1


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_the_copy_leads_nowhere_else(log: Log, what: str) -> None:
    log.add(3)
    log.sign()
    elsewhere = log.directory.path.parent / "elsewhere"
    elsewhere.write_text("precious")
    checkpoints = log.directory.path / "checkpoints"
    checkpoints.mkdir(parents=True)
    if what == "link":
        (checkpoints / ".000000000003.new").symlink_to(elsewhere)
        (log.directory.path / "keys").symlink_to(elsewhere)
    else:
        os.mkfifo(checkpoints / ".000000000003.new")
        os.mkfifo(log.directory.path / "keys")

    with pytest.raises(CopyTrouble):
        log.ship()
    (log.directory.path / "keys").unlink()
    with pytest.raises(CopyTrouble):
        log.ship()
    assert elsewhere.read_text() == "precious"


def test_an_event_that_was_edited_does_not_reach_the_copy(log: Log, database_url: str) -> None:
    changed = log.add(3)[1]
    with tampering(database_url) as db:
        db.execute(text("UPDATE audit_events SET reason = 'other' WHERE event_id = :id"), {"id": changed.event_id})

    with pytest.raises(CopyTrouble):
        log.ship()


def test_a_database_that_was_set_back_and_grew_again_is_noticed(log: Log, database_url: str) -> None:
    log.add(3)
    log.sign()
    log.add(2)
    log.ship()
    _forge_unsigned(log, database_url, 4)  # another event at a place that the copy has
    more = [event() for _ in range(3)]
    with log.store.writing() as tx:
        tx.append_events(more)
    Sequencer(log.store)()

    assert len(_gate(log)) == 1
    with pytest.raises(LogShrank):
        log.ship()

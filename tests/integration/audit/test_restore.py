"""A database restored from a backup: it is brought up to what the log's copy knows, and nothing is used twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.contract.store.make import card, grant_for, granted, kept, once_key, sealed_again, stored
from tests.integration.audit.conftest import Log
from tests.support.world import CUSTOMER, NOW, TENANT
from vault.audit.copy import Directory, LogShrank
from vault.audit.restore import PAGE, Reconcile, Reconciled
from vault.audit.sequencer import Sequencer
from vault.domain.card import CardState
from vault.domain.errors import PreconditionFailed
from vault.domain.ids import RANDOM_BYTES, RequestId, Token
from vault.ports import CardRef, GrantKey
from vault.store import SqlStore
from vault.system import SystemClock, SystemEntropy
from vault.usecases.operating import Operator, OperatorWorld
from vault.usecases.outcomes import ACTIVATED, REPORTED


@pytest.fixture
def set_back(log: Log, database_url: str, tmp_path: Path) -> Callable[[], Callable[[], None]]:
    """Takes a backup; what it returns restores it."""
    if database_url.startswith("sqlite:///"):
        path = Path(database_url.removeprefix("sqlite:///"))

        def back_up_file() -> Callable[[], None]:
            log.store.close()
            kept = tmp_path / "backup.sqlite"
            shutil.copy(path, kept)

            def restore() -> None:
                log.store.close()
                for suffix in ("-wal", "-shm"):
                    Path(f"{path}{suffix}").unlink(missing_ok=True)
                shutil.copy(kept, path)
                log.store = SqlStore(database_url)

            log.store = SqlStore(database_url)
            return restore

        return back_up_file

    base, _, query = database_url.partition("?")
    server, _, name = base.rpartition("/")

    def admin(*statements: str) -> None:
        log.store.close()
        with closing(psycopg.connect(f"{server}/postgres?{query}", autocommit=True)) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def back_up_database() -> Callable[[], None]:
        admin(f"CREATE DATABASE {name}_backup TEMPLATE {name}")

        def restore() -> None:
            admin(f"DROP DATABASE {name}", f"CREATE DATABASE {name} TEMPLATE {name}_backup")

        return restore

    return back_up_database


def _world(log: Log) -> OperatorWorld:
    return OperatorWorld(environment="test", store=log.store, clock=SystemClock(), entropy=SystemEntropy())


def _operator() -> Operator:
    return Operator(
        name="operator:test", reason="disk died", command_id=RequestId.from_random(os.urandom(RANDOM_BYTES))
    )


def _reconcile(log: Log) -> Reconciled:
    use_case = Reconcile(world=_world(log), store=log.store, copy=log.directory, keys=log.keys)
    return use_case(_operator())


def _erase(log: Log, token: Token | None) -> None:
    world = _world(log)
    event = world.event(
        _operator(),
        "card.erased" if token else "customer.erased",
        tenant=TENANT,
        customer=CUSTOMER,
        target=token or "",
    )
    with log.store.writing() as tx:
        tx.erase_cards(TENANT, CUSTOMER, token, event_id=event.event_id, now=NOW)
        tx.append_events([event])


def _secure(log: Log) -> None:
    """What a server does every second."""
    Sequencer(log.store)()
    log.checkpointer(now=True)
    log.ship()


@pytest.mark.parametrize("whole_customer", [False, True])
def test_what_was_erased_after_the_backup_is_erased_again(
    log: Log, set_back: Callable[[], Callable[[], None]], whole_customer: bool
) -> None:
    erased, other = card(), card()
    stored(log.store, erased, other)
    log.add(3)
    _secure(log)
    restore = set_back()
    _erase(log, None if whole_customer else erased.token)
    log.add(2)
    _secure(log)
    newest = log.directory.newest_checkpoint()
    restore()

    report = _reconcile(log)

    with log.store.reading() as tx:
        there = tx.cards([CardRef(TENANT, CUSTOMER, each.token) for each in (erased, other)])
        assert tx.is_stored_or_erased(TENANT, erased.token)
    assert {ref.token for ref in there} == (set() if whole_customer else {other.token})
    assert report.cards_erased == (2 if whole_customer else 1)
    assert report.events == 3
    result = log.verify(log.directory.note(newest), copy=True)
    assert result.findings == []


def test_grants_and_one_time_tokens_of_the_backup_are_closed(
    log: Log, set_back: Callable[[], Callable[[], None]]
) -> None:
    new, once = card(), once_key()
    stored(log.store, new)
    given = grant_for(new.token)
    granted(log.store, given)
    kept(log.store, once)
    restore = set_back()
    log.add(1)
    _secure(log)
    restore()

    report = _reconcile(log)

    with log.store.reading() as tx:
        key = GrantKey((TENANT,), given.grant_sha256)
        assert tx.grants([key])[given.grant_sha256].state.value == "revoked"
        assert tx.once_keys([(TENANT, once.once_id)]) == {}
    assert (report.grants_revoked, report.once_keys_destroyed) == (1, 1)


def test_a_card_that_was_approved_after_the_backup_is_active_again(
    log: Log, set_back: Callable[[], Callable[[], None]]
) -> None:
    approved, waiting = card(state=CardState.PENDING), card(state=CardState.PENDING)
    stored(log.store, approved, waiting)
    restore = set_back()
    details = {"card": ACTIVATED, "outcome": "approved", "token": approved.token, "network_transaction_id": "NTI"}
    reported = _world(log).event(_operator(), REPORTED, tenant=TENANT, customer=CUSTOMER, target="once")
    with log.store.writing() as tx:
        tx.append_events([replace(reported, details=details)])
    _secure(log)
    restore()

    _reconcile(log)

    with log.store.reading() as tx:
        states = {
            ref.token: each.state
            for ref, each in tx.cards([CardRef(TENANT, CUSTOMER, c.token) for c in (approved, waiting)]).items()
        }
    assert states == {approved.token: CardState.ACTIVE, waiting.token: CardState.PENDING}


def test_running_it_again_changes_nothing_more(log: Log, set_back: Callable[[], Callable[[], None]]) -> None:
    restore = set_back()
    log.add(5)
    _secure(log)
    restore()

    first, second = _reconcile(log), _reconcile(log)

    assert (first.events, second.events) == (5, 0)
    assert log.verify().is_good


def test_cards_that_were_stored_after_the_backup_are_named(
    log: Log, set_back: Callable[[], Callable[[], None]]
) -> None:
    restore = set_back()
    token = card().token
    with log.store.writing() as tx:
        tx.append_events([_world(log).event(_operator(), "card.tokenized", tenant=TENANT, target=token)])
    _secure(log)
    restore()

    assert _reconcile(log).lost_cards == [f"{TENANT}/{token}"]


def test_a_restored_database_is_not_gone_on_with_before(log: Log, set_back: Callable[[], Callable[[], None]]) -> None:
    restore = set_back()
    log.add(5)
    _secure(log)
    restore()

    with pytest.raises(LogShrank):
        log.ship()
    _reconcile(log)

    log.add(1)
    _secure(log)
    assert log.verify_copy().is_good


def test_a_copy_that_was_edited_is_not_put_back(log: Log, set_back: Callable[[], Callable[[], None]]) -> None:
    restore = set_back()
    log.add(5)
    _secure(log)
    segment = log.directory.path / "segments" / "000000000000.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"test.done", b"test.dome", 1))
    restore()

    with pytest.raises(PreconditionFailed, match="audit_copy_bad"):
        _reconcile(log)


def _swap_what_is_not_signed(log: Log) -> None:
    """So that only the database can tell."""
    log.add(2)
    _secure(log)
    log.add(2)
    log.ship()
    segment = log.directory.path / "segments" / "000000000000.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:-2], lines[-1], lines[-2]]))


def test_the_copy_of_another_log_is_not_put_back(log: Log) -> None:
    _swap_what_is_not_signed(log)

    with pytest.raises(PreconditionFailed, match="audit_log_foreign"):
        _reconcile(log)


def test_an_empty_copy_is_refused(log: Log) -> None:
    log.directory = Directory(log.directory.path / "nothing")

    with pytest.raises(PreconditionFailed, match="audit_copy_empty"):
        _reconcile(log)


def test_an_event_that_waited_when_the_backup_was_taken_gets_its_old_place(
    log: Log, set_back: Callable[[], Callable[[], None]]
) -> None:
    log.add(3, sequence=False)
    restore = set_back()
    Sequencer(log.store)()
    log.add(2)
    _secure(log)
    restore()
    assert _queued(log) == 3

    report = _reconcile(log)

    assert report.events == 5
    result = log.verify(copy=True)
    assert (result.findings, result.queued) == ([], 1)  # its own event waits


def _queued(log: Log) -> int:
    with log.store.reading() as tx:
        return tx.queue_health(1).waiting


def _open_grant(log: Log) -> GrantKey:
    new = card()
    stored(log.store, new)
    given = grant_for(new.token)
    granted(log.store, given)
    return GrantKey((TENANT,), given.grant_sha256)


def test_a_foreign_copy_closes_no_grant(log: Log) -> None:
    key = _open_grant(log)
    _swap_what_is_not_signed(log)

    with pytest.raises(PreconditionFailed):
        _reconcile(log)

    with log.store.reading() as tx:
        assert tx.grants([key])[key.grant_sha256].state.value == "open"


def test_a_database_that_grew_again_past_the_copy_is_not_taken_for_a_whole_one(
    log: Log, set_back: Callable[[], Callable[[], None]]
) -> None:
    log.add(2)
    _secure(log)
    restore = set_back()
    log.add(3)
    _secure(log)
    restore()
    log.add(6)  # somebody went on with it

    with pytest.raises(PreconditionFailed, match="audit_log_foreign"):
        _reconcile(log)


def test_a_copy_that_nobody_signed_erases_nothing(log: Log, set_back: Callable[[], Callable[[], None]]) -> None:
    victim = card()
    stored(log.store, victim)
    restore = set_back()
    forged = _world(log).event(_operator(), "customer.erased", tenant=TENANT, customer=CUSTOMER)
    with log.store.writing() as tx:
        tx.append_events([forged])
    Sequencer(log.store)()
    log.ship()
    restore()

    with pytest.raises(PreconditionFailed, match="audit_copy_unsigned"):
        _reconcile(log)
    with log.store.reading() as tx:
        assert len(tx.cards([CardRef(TENANT, CUSTOMER, victim.token)])) == 1


def test_what_no_checkpoint_of_the_copy_covers_is_said(log: Log, set_back: Callable[[], Callable[[], None]]) -> None:
    restore = set_back()
    log.add(3)
    _secure(log)
    log.add(2)
    log.ship()
    restore()

    report = _reconcile(log)

    assert (report.events, report.unsigned) == (5, 2)


class _CutOff(Exception):
    pass


@pytest.mark.parametrize("after", ["a page", "the last page"])
def test_lost_cards_are_named_also_by_a_run_that_goes_on_after_one_that_was_cut_off(
    log: Log, set_back: Callable[[], Callable[[], None]], after: str
) -> None:
    restore = set_back()
    token = card().token
    with log.store.writing() as tx:
        tx.append_events([_world(log).event(_operator(), "card.tokenized", tenant=TENANT, target=token)])
    Sequencer(log.store)()
    with log.store.writing() as tx:
        tx.append_events([_world(log).event(_operator(), "test.done") for _ in range(PAGE)])
    _secure(log)
    restore()

    def cut_off(done: int, total: int) -> None:
        if after == "a page" or done == total:
            raise _CutOff

    use_case = Reconcile(world=_world(log), store=log.store, copy=log.directory, keys=log.keys)
    with pytest.raises(_CutOff):
        use_case(_operator(), watch=cut_off)

    assert _reconcile(log).lost_cards == [f"{TENANT}/{token}"]
    assert _reconcile(log).lost_cards == []
    assert log.verify().is_good


def test_cards_that_were_stored_again_after_the_backup_are_named(
    log: Log, set_back: Callable[[], Callable[[], None]]
) -> None:
    first = card()
    stored(log.store, first)
    restore = set_back()
    again = _world(log).event(_operator(), "card.tokenized", tenant=TENANT, customer=CUSTOMER, target=first.token)
    with log.store.writing() as tx:
        assert tx.reseal_cards([sealed_again(first)])
        tx.append_events([again])
    _secure(log)
    restore()

    report = _reconcile(log)

    assert (report.lost_cards, report.outdated_cards) == ([], [f"{TENANT}/{first.token}"])

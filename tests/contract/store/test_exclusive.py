"""An operator's lock: held by one process on one host, and gone when that process dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from tests.contract.store.make import card, stored
from tests.fixtures_db import execute_as_admin
from vault.domain.errors import Kind, StoreUnavailable
from vault.ports_operator import Busy
from vault.store import Limits, SqlStore

_HOLDER = """
import sys, time
from vault.store import SqlStore

with SqlStore(sys.argv[1]).exclusively(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
_SESSIONS = "FROM pg_stat_activity WHERE application_name = 'cardvault-lock'"
_END_SESSIONS = f"SELECT pg_terminate_backend(pid, 5000) {_SESSIONS}"


@contextmanager
def held_by_another_process(url: str, what: str = "rotation") -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", _HOLDER, url, what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        try:
            yield child
        finally:
            child.kill()


def taken_within(store: SqlStore, seconds: float) -> bool:
    """Whether the lock becomes free; the server notices a little later that a session's process is gone."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        try:
            with store.exclusively("rotation"):
                return True
        except Busy:
            time.sleep(0.02)
    return False


def test_who_comes_second_is_told_at_once_and_who_comes_later_gets_it(store: SqlStore) -> None:
    began = time.monotonic()

    with store.exclusively("rotation"), pytest.raises(Busy, match="busy") as caught, store.exclusively("rotation"):
        pass
    with store.exclusively("rotation"):
        pass

    assert caught.value.kind is Kind.CONTENTION
    assert time.monotonic() - began < 3


def test_locks_of_different_names_do_not_meet(store: SqlStore) -> None:
    with store.exclusively("rotation"), store.exclusively("rekey"), store.exclusively("rotation-once"):
        pass


def test_another_store_in_another_thread_is_another_holder(database_url: str) -> None:
    def take() -> bool:
        mine = SqlStore(database_url)
        try:
            with mine.exclusively("rotation"):
                inside.release()
                finish.wait(10)
        except Busy:
            inside.release()
            return False
        else:
            return True
        finally:
            mine.close()

    inside, finish = threading.Semaphore(0), threading.Event()
    with ThreadPoolExecutor(6) as pool:
        attempts = [pool.submit(take) for _ in range(6)]
        for _ in attempts:
            assert inside.acquire(timeout=10)
        finish.set()

    assert [each.result() for each in attempts].count(True) == 1


def test_the_holder_reads_and_writes_as_ever(store: SqlStore) -> None:
    with store.exclusively("rotation"):
        stored(store, card())
        store.check()


def test_an_error_inside_frees_the_lock_and_goes_its_way(store: SqlStore) -> None:
    with pytest.raises(ZeroDivisionError), store.exclusively("rotation"):
        raise ZeroDivisionError

    with store.exclusively("rotation"):
        pass


def test_another_process_holds_it_until_it_ends(database_url: str) -> None:
    store = SqlStore(database_url)

    with held_by_another_process(database_url) as child:
        with pytest.raises(Busy), store.exclusively("rotation"):
            pass
        child.communicate(timeout=30)

    assert child.returncode == 0
    assert taken_within(store, 10)
    store.close()


def test_a_process_that_is_killed_frees_it(database_url: str) -> None:
    store = SqlStore(database_url)

    with held_by_another_process(database_url) as child:
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=30) == -signal.SIGKILL
        free = taken_within(store, 10)

    assert free
    store.close()


def test_a_process_that_is_stopped_keeps_it(database_url: str) -> None:
    store = SqlStore(database_url)

    with held_by_another_process(database_url) as child:
        child.send_signal(signal.SIGSTOP)
        free = taken_within(store, 0.3)

    assert not free
    store.close()


@pytest.mark.parametrize("name", ["", "../up", "A", "a b", "a.b", "a/b", "-a", "a" * 42])
def test_a_name_that_could_lead_elsewhere_is_refused(store: SqlStore, name: str) -> None:
    with pytest.raises(ValueError, match="name"), store.exclusively(name):
        pass


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def test_a_lock_whose_session_died_is_reported_at_the_end(postgresql_url: str, postgresql_server: str) -> None:
    store = SqlStore(postgresql_url)

    def lose() -> None:
        with store.exclusively("rotation"):
            execute_as_admin(postgresql_server, _END_SESSIONS)
            with store.exclusively("rotation"):
                pass

    with pytest.raises(StoreUnavailable, match="lock_lost") as caught:
        lose()

    assert caught.value.__context__ is None
    store.close()


def test_an_error_inside_goes_before_the_loss_of_the_lock(postgresql_url: str, postgresql_server: str) -> None:
    store = SqlStore(postgresql_url)

    def lose_and_fail() -> None:
        with store.exclusively("rotation"):
            execute_as_admin(postgresql_server, _END_SESSIONS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lose_and_fail()

    store.close()


def test_the_lock_s_session_is_idle_outside_a_transaction_and_no_timeout_ends_it(
    postgresql_url: str, postgresql_server: str
) -> None:
    name = postgresql_url.split("?")[0].rsplit("/", 1)[1]
    execute_as_admin(postgresql_server, f"ALTER DATABASE {name} SET idle_session_timeout = '200ms'")
    limits = Limits(pool_size=1, idle_in_transaction_timeout=timedelta(milliseconds=100))
    store = SqlStore(postgresql_url, limits=limits)

    with store.exclusively("rotation"):
        with psycopg.connect(postgresql_server) as admin:
            state = admin.execute(f"SELECT state, xact_start {_SESSIONS}".encode()).fetchall()
        time.sleep(0.5)

    assert state == [("idle", None)]
    store.close()


def test_databases_of_one_server_have_locks_of_their_own(postgresql_url: str, empty_postgresql_url: str) -> None:
    one, other = SqlStore(postgresql_url), SqlStore(empty_postgresql_url)

    with one.exclusively("rotation"), other.exclusively("rotation"):
        pass

    one.close()
    other.close()


def test_without_a_server_the_database_is_unreachable() -> None:
    store = SqlStore("postgresql://nobody:secret@127.0.0.1:1/none")

    with pytest.raises(StoreUnavailable, match="database_unreachable") as caught, store.exclusively("rotation"):
        pass

    assert caught.value.__context__ is None


# --- SQLite ----------------------------------------------------------------------------------------------------------


def test_the_lock_is_a_file_of_the_owner_alone_beside_the_database(sqlite_url: str, tmp_path: Path) -> None:
    store = SqlStore(sqlite_url)
    file = tmp_path / "vault.db.rotation.lock"

    with store.exclusively("rotation"):
        mode = file.stat().st_mode & 0o777
    with store.exclusively("rotation"):
        pass

    assert mode == 0o600
    store.close()


def test_a_program_that_the_holder_starts_does_not_inherit_the_lock(sqlite_url: str) -> None:
    store = SqlStore(sqlite_url)

    with ExitStack() as stack:
        with store.exclusively("rotation"):
            child = stack.enter_context(subprocess.Popen(["sleep", "60"], close_fds=False))
            stack.callback(child.kill)
        with store.exclusively("rotation"):
            pass

    store.close()


def test_a_lock_whose_file_was_replaced_is_reported_at_the_end(sqlite_url: str, tmp_path: Path) -> None:
    store = SqlStore(sqlite_url)
    file = tmp_path / "vault.db.rotation.lock"

    def lose() -> None:
        with store.exclusively("rotation"):
            file.unlink()
            with store.exclusively("rotation"):
                pass

    with pytest.raises(StoreUnavailable, match="lock_lost"):
        lose()

    store.close()


def test_a_lock_file_that_is_a_link_elsewhere_is_not_followed(sqlite_url: str, tmp_path: Path) -> None:
    store = SqlStore(sqlite_url)
    (tmp_path / "vault.db.rotation.lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StoreUnavailable, match="database_unreachable") as caught, store.exclusively("rotation"):
        pass

    assert caught.value.__context__ is None
    assert not (tmp_path / "elsewhere").exists()
    store.close()

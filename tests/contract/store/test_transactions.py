"""What a transaction promises: evidence or nothing, all or nothing, and no word of the driver outside."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Integer, bindparam, literal_column, make_url, select, text
from sqlalchemy import event as sqlalchemy_event

from tests.contract.store.make import (
    card,
    claim_of,
    claimed,
    event,
    grant_for,
    granted,
    kept,
    listed,
    once_key,
    outcome_of,
    record,
    ref,
    released,
    stored,
    writing,
)
from tests.fixtures_db import execute_as_admin
from tests.support.world import CUSTOMER, NOW, ORDER, OTHER_TENANT, TENANT
from vault.domain.card import CardState, Expiry
from vault.domain.errors import StoreUnavailable
from vault.domain.ids import CustomerId, NetworkTransactionId, OrderId
from vault.ports import Approval, CardsOf, Reader, Store, Writer
from vault.store import Limits, SqlStore, link, words
from vault.store.columns import UtcTime
from vault.store.engine import open_engines
from vault.store.oldest import REFUSAL
from vault.store.operators import SqlOperatorReader
from vault.store.tables import audit_events

SHORT = Limits(
    pool_size=2,
    pool_timeout=timedelta(milliseconds=100),
    lock_timeout=timedelta(milliseconds=100),
    statement_timeout=timedelta(milliseconds=300),
)


def test_the_store_is_one_of_the_ports(store: SqlStore) -> None:
    as_port: Store = store

    with as_port.writing() as tx:
        writer: Writer = tx
        reader: Reader = tx

    assert writer is reader


_NEW = card()
_GRANT = grant_for(_NEW.token)
_WAITING = card(customer=CustomerId("customer-waiting"), state=CardState.PENDING)
_USED = grant_for(_NEW.token, order=OrderId("order-used"))
_ONCE = once_key()
_RECORD = record()
_CHANGES: dict[str, Callable[[Writer], object]] = {
    "claim_idempotency": lambda tx: tx.claim_idempotency([record()], now=NOW),
    "replace_answers": lambda tx: tx.replace_answers({_RECORD.id: {}}),
    "release_idempotency": lambda tx: tx.release_idempotency([_RECORD.id]),
    "insert_new_cards": lambda tx: tx.insert_new_cards([card()]),
    "insert_once_keys": lambda tx: tx.insert_once_keys([once_key()]),
    "void_once_keys": lambda tx: tx.void_once_keys([(TENANT, _ONCE.once_id)]),
    "expire_once_keys": lambda tx: tx.expire_once_keys(now=_ONCE.expires_at, limit=10),
    "insert_grants": lambda tx: tx.insert_grants([grant_for(card().token)]),
    "revoke_open_grants": lambda tx: tx.revoke_open_grants([(TENANT, _NEW.token, ORDER)], now=NOW),
    "revoke_grants": lambda tx: tx.revoke_grants([(TENANT, _GRANT.grant_sha256)], now=NOW),
    "claim_grants": lambda tx: tx.claim_grants([claim_of(_GRANT)], now=NOW),
    "record_outcomes": lambda tx: tx.record_outcomes([outcome_of(_USED)], now=NOW),
    "approve_cards": lambda tx: tx.approve_cards([Approval(ref(_WAITING), None)]),
    "approve_cards with an id": lambda tx: [
        tx.approve_cards([Approval(ref(_NEW), NetworkTransactionId("id-1"))]) == frozenset()
    ],
    "update_expiry": lambda tx: tx.update_expiry(ref(_NEW), Expiry(2040, 1)),
    "set_default": lambda tx: tx.set_default(ref(_NEW)),
    "erase_cards": lambda tx: tx.erase_cards(TENANT, CUSTOMER, None, event_id=event().event_id, now=NOW),
}


def test_no_change_of_any_kind_is_committed_without_an_event(store: SqlStore) -> None:
    stored(store, _NEW)
    stored(store, _WAITING)
    granted(store, _GRANT, _USED)
    claimed(store, _USED)
    kept(store, _ONCE)
    with writing(store) as tx:
        tx.claim_idempotency([_RECORD], now=NOW)

    for name, change in _CHANGES.items():
        with pytest.raises(AssertionError, match="audit event"), store.writing() as tx:
            assert change(tx) is not False, name

    with store.reading() as tx:
        assert tx.cards([ref(_NEW)])[ref(_NEW)].expiry == _NEW.expiry
        assert tx.once_keys([(TENANT, _ONCE.once_id)])
        assert tx.idempotency([_RECORD.id]) == {_RECORD.id: _RECORD}
    assert listed(store) == [_NEW.token]


def test_a_transaction_that_changed_nothing_needs_no_event(store: SqlStore) -> None:
    with store.writing() as tx:
        assert tx.claim_grants([claim_of(_GRANT)], now=NOW) == frozenset()
        assert not tx.update_expiry(ref(_NEW), Expiry(2040, 1))
        tx.put_setting("environment", "test")

    with store.reading() as tx:
        assert tx.setting("environment") == "test"


def test_settings_are_replaced_and_unknown_ones_are_none(store: SqlStore) -> None:
    with store.writing() as tx:
        tx.put_setting("environment", "test")
        tx.put_setting("environment", "live")

    with store.reading() as tx:
        assert (tx.setting("environment"), tx.setting("other")) == ("live", None)


def test_a_block_that_raises_leaves_nothing(store: SqlStore) -> None:
    def attempt() -> None:
        with writing(store) as tx:
            tx.insert_new_cards([card()])
            raise KeyError

    with pytest.raises(KeyError):
        attempt()

    assert listed(store) == []


def test_a_swallowed_failure_still_rolls_everything_back(store: SqlStore) -> None:
    first = card()
    stored(store, first)

    def attempt() -> None:
        with store.writing() as tx:
            tx.insert_new_cards([card()])
            tx.append_events([event()])
            with suppress(StoreUnavailable):
                tx.insert_new_cards([card(token=first.token)])

    with pytest.raises(StoreUnavailable, match="database_error"):
        attempt()

    assert listed(store) == [first.token]


def test_a_reader_has_nothing_that_writes(store: SqlStore) -> None:
    writing_methods = {name for name in vars(Writer) if not name.startswith("_")}

    with store.reading() as tx:
        assert type(tx) is SqlOperatorReader
        assert not [name for name in writing_methods if hasattr(tx, name)]


def test_the_database_refuses_to_write_for_a_reader(store: SqlStore) -> None:
    with store.reading() as tx, pytest.raises(StoreUnavailable, match="database_readonly"):
        tx._link.count(text("DELETE FROM settings"))


def test_a_reader_sees_one_moment(store: SqlStore) -> None:
    with store.reading() as tx:
        before = tx.list_cards([CardsOf(TENANT, CUSTOMER, None, 10)])[0]
        stored(store, card())
        after = tx.list_cards([CardsOf(TENANT, CUSTOMER, None, 10)])[0]

    assert (before, after) == ((), ())
    assert len(listed(store)) == 1


def test_a_second_release_of_one_grant_is_refused_by_the_database(store: SqlStore) -> None:
    with store.writing() as tx:
        tx.append_events([released(b"g" * 32), released(b"g" * 32, tenant=OTHER_TENANT)])

    with pytest.raises(StoreUnavailable, match="database_error"), store.writing() as tx:
        tx.append_events([event(), released(b"g" * 32)])

    with store.writing() as tx:
        tx.append_events([event(name="card.release_refused", grant=b"g" * 32)])


@pytest.mark.parametrize("table", ["consents", "audit_events"])
@pytest.mark.parametrize(
    "change", ["UPDATE {} SET customer_id = 'x'", "DELETE FROM {}", "TRUNCATE {} CASCADE", "INSERT OR REPLACE INTO {}"]
)
def test_ledger_and_audit_log_refuse_every_change(database_url: str, table: str, change: str) -> None:
    is_sqlite = database_url.startswith("sqlite")
    if ("TRUNCATE" in change and is_sqlite) or ("REPLACE" in change and not is_sqlite):
        return  # a word that this engine does not have
    store = SqlStore(database_url)
    stored(store, card())

    with pytest.raises(StoreUnavailable, match="database_error"), store.writing() as tx:
        tx._link.count(text(change.format(table) + (f" SELECT * FROM {table}" if "REPLACE" in change else "")))

    with store.reading() as tx:
        assert tx._link.rows(text(f"SELECT 1 FROM {table} WHERE customer_id <> 'x'"))
    store.close()


def test_a_card_without_a_consent_is_refused_by_the_database(store: SqlStore) -> None:
    first = card()
    stored(store, first)

    with pytest.raises(StoreUnavailable, match="database_error"), store.writing() as tx:
        tx._link.count(text("UPDATE cards SET consent_id = 'cns_none'"))


def test_a_secret_without_a_card_is_refused_at_commit(store: SqlStore) -> None:
    first = card()
    stored(store, first)

    with pytest.raises(StoreUnavailable, match="database_error"), store.writing() as tx:
        tx._link.count(text("DELETE FROM cards"))

    assert listed(store) == [first.token]


def test_an_error_shows_no_value_and_no_cause(store: SqlStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    first = card()
    stored(store, first)

    with pytest.raises(StoreUnavailable) as caught, store.writing() as tx:
        tx.insert_new_cards([card(token=first.token)])

    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert str(caught.value) == "database_error"
    assert first.token not in caplog.text
    assert first.sealed.key.wrapped not in caplog.text


@pytest.mark.parametrize("odd", [NOW.replace(tzinfo=None), "text", "\udc80"], ids=["naive", "text", "surrogate"])
def test_what_cannot_be_handed_over_ends_the_transaction(store: SqlStore, odd: Any) -> None:
    def swallow() -> None:
        with store.writing() as tx:
            tx.append_events([event()])
            tx.put_setting("beside", "it")
            with pytest.raises(StoreUnavailable) as caught:
                tx.claim_idempotency([record()], now=odd)
            assert (caught.value.__cause__, caught.value.__context__) == (None, None)

    with pytest.raises(StoreUnavailable, match="database_error"):
        swallow()

    with store.reading() as tx:
        assert tx.setting("beside") is None


def test_a_parameter_that_is_missing_is_not_null(store: SqlStore) -> None:
    with store.reading() as tx, pytest.raises(StoreUnavailable, match="database_error"):
        tx._link.plain(REFUSAL, {"wanted": "oldest.cardvault-cards"})


def test_a_parameter_that_stands_twice_is_written_once_and_one_of_an_odd_name_as_ever(store: SqlStore) -> None:
    twice = [bindparam("moment", type_=UtcTime()) for _ in range(2)]
    found: Any = select(literal_column("1")).where(twice[0] == twice[1])

    with store.reading() as tx:
        assert len(tx._link.plain(found, {"moment": NOW})) == 1
        odd: Any = select(literal_column("1")).where(bindparam("a.b", type_=Integer()) == 7)
        assert [len(tx._link.plain(odd, {"a.b": number})) for number in (7, 8)] == [1, 0]


@pytest.mark.parametrize("limit_in_the_text", [False, True])
def test_rows_say_what_their_columns_mean_whoever_carries_the_statement_out(
    store: SqlStore, *, limit_in_the_text: bool
) -> None:
    facts: dict[str, str | int] = {"n": 3, "who": "x"}
    with store.writing() as tx:
        tx.append_events([replace(event(), occurred_at=NOW, details=facts, grant_sha256=b"\0\xff")])
    columns = audit_events.c
    asked: Any = select(
        columns.occurred_at,
        columns.details,
        columns.grant_sha256.label("digest"),
        columns.grant_sha256 == b"",
        literal_column("7"),
    )
    limited = asked.limit(bindparam("most", type_=Integer(), literal_execute=limit_in_the_text))

    with store.reading() as tx:
        (row,) = tx._link.rows(limited, {"most": 5})

    assert (row.occurred_at, row.details, row.digest) == (NOW, facts, b"\0\xff")
    assert row.occurred_at.tzinfo is UTC
    assert row[3] is False
    assert row[4] == 7


def test_the_engines_hide_parameters_and_echo_nothing(database_url: str) -> None:
    engines = open_engines(database_url, Limits())

    assert engines.writer.hide_parameters is True
    assert engines.reader.hide_parameters is True
    assert engines.writer.echo is False
    assert engines.reader.echo is False


def test_a_check_leaves_no_trace(store: SqlStore) -> None:
    store.check()

    with store.reading() as tx:
        assert tx.setting("cardvault.probe") is None


def test_a_sound_database_has_no_weakness(store: SqlStore) -> None:
    assert store.weaknesses() == []


def test_a_closed_store_opens_again(store: SqlStore) -> None:
    store.close()

    store.check()


def test_every_statement_still_works_once_postgresql_has_prepared_it(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url, limits=Limits(pool_size=1))

    for number in range(12):  # the driver prepares a statement at its sixth use of a connection
        new, once = card(), once_key()
        grants = [grant_for(new.token), grant_for(once.once_id), grant_for(card().token)]
        with writing(store) as tx:
            assert tx.insert_new_cards([new]) == {new.token}
            tx.insert_once_keys([once])
            assert len(tx.insert_grants(grants)) == 3
            assert tx.insert_grants(grants[:1]) == frozenset()
            assert tx.claim_idempotency([record(key=f"key-{number}")], now=NOW)
            assert tx.revoke_open_grants([(TENANT, grants[2].subject, ORDER)], now=NOW) == 1
            assert tx.expire_once_keys(now=NOW, limit=10) == 0
            assert len(tx.claim_grants([claim_of(each) for each in grants], now=NOW)) == 2
            assert tx.void_once_keys([(TENANT, once.once_id)]) == frozenset()
            assert tx.erase_cards(TENANT, CUSTOMER, new.token, event_id=event().event_id, now=NOW).cards == 1

    store.close()


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_who_waits_too_long_for_the_one_writer_of_sqlite_is_told_so(sqlite_url: str) -> None:
    store = SqlStore(sqlite_url, limits=SHORT)

    with store.writing(), pytest.raises(StoreUnavailable, match="database_locked"):
        store.check()

    store.check()
    store.close()


def test_another_process_that_writes_to_sqlite_makes_us_wait_and_then_give_up(sqlite_url: str) -> None:
    store, other = SqlStore(sqlite_url, limits=SHORT), SqlStore(sqlite_url)

    with other.writing(), pytest.raises(StoreUnavailable, match="database_locked"):
        store.check()

    store.check()
    store.close()
    other.close()


def test_who_waits_too_long_for_a_row_of_postgresql_is_told_so(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url, limits=SHORT)
    new = card()
    stored(store, new)

    with writing(store) as holder:
        holder.update_expiry(ref(new), Expiry(2040, 1))
        with pytest.raises(StoreUnavailable, match="database_locked"), writing(store) as tx:
            tx.update_expiry(ref(new), Expiry(2041, 1))

    store.close()


def test_who_waits_too_long_for_another_who_stores_the_same_card_is_told_so(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url, limits=SHORT)
    new = card()

    with store.writing() as holder:
        holder.insert_new_cards([new])
        holder.append_events([event()])
        with pytest.raises(StoreUnavailable, match="database_locked") as caught, writing(store) as tx:
            tx.insert_new_cards([replace(new, token=card().token)])

    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    store.close()


def test_no_connection_left_is_told_as_such(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url, limits=SHORT)

    with store.reading(), store.reading(), pytest.raises(StoreUnavailable, match="database_locked"):
        store.check()

    store.close()


# --- trouble ---------------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_unreachable() -> None:
    store = SqlStore("postgresql://nobody:secret@127.0.0.1:1/none")

    with pytest.raises(StoreUnavailable, match="database_unreachable") as caught:
        store.check()

    assert caught.value.__context__ is None


def test_connections_that_died_in_the_pool_are_replaced_without_a_failure(
    postgresql_url: str, postgresql_server: str
) -> None:
    store = SqlStore(postgresql_url)
    with store.reading(), store.reading():
        pass

    _end_sessions(postgresql_server, postgresql_url)

    store.check()
    assert listed(store) == []
    store.close()


def test_a_connection_that_dies_in_a_transaction_is_unreachable_and_nothing_is_stored(
    postgresql_url: str, postgresql_server: str
) -> None:
    store = SqlStore(postgresql_url)

    def attempt() -> None:
        with writing(store) as tx:
            tx.insert_new_cards([card()])
            _end_sessions(postgresql_server, postgresql_url)

    with pytest.raises(StoreUnavailable, match="database_unreachable"):
        attempt()

    assert listed(store) == []
    store.close()


def test_when_one_connection_died_no_other_of_the_pool_is_tried_again(
    postgresql_url: str, postgresql_server: str
) -> None:
    store = SqlStore(postgresql_url)
    with store.reading(), store.reading(), store.reading():
        pass

    def attempt() -> None:
        with writing(store) as tx:
            _end_sessions(postgresql_server, postgresql_url)
            tx.insert_new_cards([card()])

    with pytest.raises(StoreUnavailable, match="database_unreachable"):
        attempt()

    failures: list[object] = []
    sqlalchemy_event.listen(store._engines.writer, "handle_error", failures.append)
    with store.reading(), store.reading(), store.reading():
        pass
    assert failures == []
    store.close()


def test_a_connection_that_died_is_not_given_back(postgresql_url: str, postgresql_server: str) -> None:
    store = SqlStore(postgresql_url)

    def attempt() -> None:
        with writing(store) as tx:
            _end_sessions(postgresql_server, postgresql_url)
            with pytest.raises(StoreUnavailable, match="database_unreachable") as caught:
                tx.insert_new_cards([card()])
            assert (caught.value.__cause__, caught.value.__context__) == (None, None)
            assert _link(tx)._connection.invalidated
            with pytest.raises(StoreUnavailable, match="database_error"):
                tx.insert_new_cards([card()])

    with pytest.raises(StoreUnavailable, match="database_error"):
        attempt()
    store.close()


def test_a_connection_that_ctrl_c_met_in_a_statement_is_not_given_back(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(driver: object, text: str, values: object = ()) -> object:
        words.carry_out(driver, text, values)
        raise KeyboardInterrupt

    def attempt() -> None:
        with store.writing() as tx:
            seen.append(_link(tx)._driver)
            tx.insert_new_cards([card()])

    def swallow() -> None:
        with store.writing() as tx, pytest.raises(KeyboardInterrupt):
            tx.insert_new_cards([card()])

    seen: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr(link, "carry_out", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attempt()

        with pytest.raises(StoreUnavailable, match="database_error"):
            swallow()

    with writing(store) as tx:
        assert _link(tx)._driver is not seen[0]
    assert listed(store) == []


def test_a_connection_that_dies_before_commit_leaves_the_outcome_unknown(
    postgresql_url: str, postgresql_server: str
) -> None:
    store = SqlStore(postgresql_url)

    def attempt() -> None:
        with store.writing() as tx:
            tx.insert_new_cards([card()])
            tx.append_events([event()])
            _end_sessions(postgresql_server, postgresql_url)

    with pytest.raises(StoreUnavailable, match="commit_unknown"):
        attempt()

    store.check()
    store.close()


def test_a_lost_answer_to_commit_is_unknown_although_the_transaction_happened(postgresql_url: str) -> None:
    new = card()
    store = SqlStore(postgresql_url)
    with _proxy(postgresql_url) as (proxied_url, cut_after_commit):
        through_proxy = SqlStore(proxied_url)

        def attempt() -> None:
            with writing(through_proxy) as tx:
                tx.insert_new_cards([new])
                cut_after_commit.set()

        with pytest.raises(StoreUnavailable, match="commit_unknown"):
            attempt()
        through_proxy.close()

    assert listed(store) == [new.token]
    store.close()


def test_a_commit_whose_wait_for_the_synchronous_standby_was_cut_short_is_unknown(
    postgresql_url: str, postgresql_server: str
) -> None:
    store = SqlStore(postgresql_url)
    reload = "SELECT pg_reload_conf()"
    execute_as_admin(postgresql_server, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", reload)
    try:
        _await_row(postgresql_server, "SELECT 1 WHERE current_setting('synchronous_standby_names') = 'nobody'")

        with ThreadPoolExecutor(1) as pool:
            attempt = pool.submit(stored, store, card())
            waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            _await_row(postgresql_server, waiting)
            outcome = attempt.exception(timeout=10)
    finally:
        execute_as_admin(postgresql_server, "ALTER SYSTEM RESET synchronous_standby_names", reload)
        _await_row(postgresql_server, "SELECT 1 WHERE current_setting('synchronous_standby_names') = ''")
    store.close()
    assert isinstance(outcome, StoreUnavailable)
    assert outcome.reason == "commit_unknown"


def test_a_full_disk_is_named_and_the_store_recovers(sqlite_url: str) -> None:
    store = SqlStore(sqlite_url)
    with store.writing() as tx:
        pages = tx._link.rows(text("PRAGMA page_count"))[0][0]
        tx._link.rows(text(f"PRAGMA max_page_count={pages}"))

    with pytest.raises(StoreUnavailable, match="database_full"), writing(store) as tx:
        tx.insert_new_cards([card() for _ in range(200)])
    store.close()
    stored(store, card())

    assert len(listed(store)) == 1
    store.close()


def test_a_server_that_is_read_only_refuses_writes_and_is_named(postgresql_url: str, postgresql_server: str) -> None:
    name = make_url(postgresql_url).database
    execute_as_admin(postgresql_server, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    store = SqlStore(postgresql_url)

    with pytest.raises(StoreUnavailable, match="database_readonly"):
        store.check()
    problems = store.weaknesses()

    store.close()
    assert problems == ["PostgreSQL: default_transaction_read_only is on: nothing can be written"]


def test_a_database_that_may_lose_commits_is_named(postgresql_url: str, postgresql_server: str) -> None:
    name = make_url(postgresql_url).database
    execute_as_admin(postgresql_server, f"ALTER DATABASE {name} SET synchronous_commit = off")
    store = SqlStore(postgresql_url)

    problems = store.weaknesses()

    store.close()
    assert len(problems) == 1
    assert "synchronous_commit is off" in problems[0]


@pytest.mark.parametrize(
    ("pragma", "word"), [("synchronous=NORMAL", "synchronous"), ("secure_delete=OFF", "secure_delete")]
)
def test_weak_settings_of_sqlite_are_named(sqlite_url: str, pragma: str, word: str) -> None:
    store = SqlStore(sqlite_url)
    raw = store._engines.writer.raw_connection()
    raw.cursor().execute(f"PRAGMA {pragma}")
    raw.close()

    problems = store.weaknesses()

    store.close()
    assert [word in problem for problem in problems] == [True]


def test_a_sqlite_file_that_others_may_read_is_named(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "vault.db").chmod(0o644)
    store = SqlStore(sqlite_url)

    problems = store.weaknesses()

    store.close()
    assert problems == ["SQLite: the database file is open to other users of this machine: chmod 600"]


@pytest.mark.parametrize("query", [{}, {"client_encoding": "latin1"}, {"options": "-c client_encoding=latin1"}])
def test_a_text_is_stored_whatever_encoding_the_environment_or_the_url_names(
    query: dict[str, str], postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    store = SqlStore(make_url(postgresql_url).update_query_dict(query).render_as_string(hide_password=False))
    text = "\u20ac \U0001f600"

    with closing(store):
        with store.writing() as tx:
            tx.put_setting("any", text)
        with store.reading() as tx:
            assert tx.setting("any") == text


def _link(tx: Any) -> link.Link:
    found: link.Link = tx._link
    return found


def _end_sessions(server: str, url: str) -> None:
    name = make_url(url).database
    # With a timeout it returns only when the session is gone.
    execute_as_admin(server, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'")


def _await_row(server: str, query: str) -> None:
    """Ask, each time in a new session, until there is a row."""
    for _ in range(2000):
        with psycopg.connect(server) as connection:
            if connection.execute(query.encode()).fetchone() is not None:
                return
    raise AssertionError("it never came")


@contextmanager
def _proxy(url: str) -> Iterator[tuple[str, threading.Event]]:
    """A TCP way to the server's Unix socket that, once armed, passes COMMIT on but not its answer."""
    parsed = make_url(url)
    directory = str(parsed.query["host"])
    armed = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket, *, from_client: bool, swallow: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if from_client and armed.is_set() and b"COMMIT" in data:
                    swallow.set()
                if not from_client and swallow.is_set():
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{directory}/.s.PGSQL.5432")
            opened.extend((client, server))
            swallow = threading.Event()
            for source, target, from_client in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=pump,
                    args=(source, target),
                    kwargs={"from_client": from_client, "swallow": swallow},
                    daemon=True,
                ).start()

    opened: list[socket.socket] = []
    threading.Thread(target=serve, daemon=True).start()
    port = listener.getsockname()[1]
    try:
        yield f"postgresql://{parsed.username}@127.0.0.1:{port}/{parsed.database}?sslmode=disable", armed
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for each in opened:
            each.close()

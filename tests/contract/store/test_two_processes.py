"""Operator commands beside a running server: several processes write to one database, and one of them is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.contract.store.make import card, event, key_of, operating, rewrapped, sealed_key, stored, writing
from tests.support.world import CUSTOMER, NOW, OTHER_TENANT, TENANT
from vault.domain.errors import StoreUnavailable
from vault.domain.ids import CustomerId, Token
from vault.ports_operator import Selection, WrapReplacement
from vault.store import Engine, Limits, SqlStore

_SERVER = """
import sys
from tests.contract.store.make import card, stored
from vault.domain.ids import CustomerId
from vault.store import SqlStore

store = SqlStore(sys.argv[1])
for _ in range(int(sys.argv[3])):
    new = card(customer=CustomerId(sys.argv[2]))
    stored(store, new)
    print(new.token, flush=True)
"""
"""Stores one card a transaction and says so after each commit."""

_OPERATOR = """
import sys
from tests.contract.store.make import operating, sealed_key
from vault.ports_operator import WrapReplacement
from vault.store import SqlStore

store = SqlStore(sys.argv[1])
with store.exclusively("rotation"):
    for version in range(2, int(sys.argv[2])):
        after = None
        while True:
            with store.reading() as tx:
                page = tx.wraps_below(version, after=after, limit=7)
            if not page:
                break
            with operating(store) as tx:
                changed = tx.replace_wraps([WrapReplacement(w.card, w.key, sealed_key(version)) for w in page])
            for each in changed:
                print(each.token, version, flush=True)
            after = page[-1].card
"""
"""Exchanges wraps round after round and says so after each commit."""


class _Process:
    """A program at work, and the lines that it wrote so far."""

    def __init__(self, program: str, *arguments: object) -> None:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._lines: list[str] = []
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            for line in out:
                self._lines.append(line)

    def await_lines(self, count: int) -> None:
        """Until it wrote that many."""
        while len(self._lines) < count:
            assert self._listener.is_alive(), "it ended before"
            time.sleep(0.005)

    def lines(self) -> Sequence[str]:
        """All whole lines that it wrote until it ended."""
        self._listener.join(90)
        self.process.wait(90)
        return [line.removesuffix("\n") for line in self._lines if line.endswith("\n")]

    @property
    def returncode(self) -> int:
        return self.process.returncode


def _is_sound(store: SqlStore) -> bool:
    if store.kind is not Engine.SQLITE:
        return True
    with store.reading() as tx:
        return [tuple(row) for row in tx._link.rows(text("PRAGMA integrity_check"))] == [("ok",)]


def _tokens(store: SqlStore) -> set[Token]:
    with store.reading() as tx:
        return {each.wrap.card.token for each in tx.secrets(Selection(), after=None, limit=10_000)}


def test_servers_and_an_operator_that_write_at_once_lose_nothing(database_url: str) -> None:
    store = SqlStore(database_url)
    old = [card(tenant=OTHER_TENANT) for _ in range(40)]
    stored(store, *old)
    servers = [_Process(_SERVER, database_url, f"customer-{i}", 60) for i in range(2)]
    operator = _Process(_OPERATOR, database_url, 5)
    mine = []

    for _ in range(60):
        mine.append(new := card())
        stored(store, new)

    answered = {Token(line) for server in servers for line in server.lines()}
    exchanges = [line.split() for line in operator.lines()]
    assert [server.returncode for server in servers] == [0, 0]
    assert operator.returncode == 0
    assert len(answered) == 120
    assert _tokens(store) == answered | {each.token for each in (*old, *mine)}
    newest: dict[str, int] = {}
    for token, version in exchanges:
        newest[token] = int(version)
    with store.reading() as tx:
        found = {each.card.token: each.key.kek_version for each in tx.wraps_below(9, after=None, limit=1000)}
    assert {token: found[Token(token)] for token in newest} == newest
    assert {token for token, version in newest.items() if version == 4} >= {each.token for each in old}
    assert _is_sound(store)
    store.close()


@pytest.mark.parametrize("victim", ["server", "operator"])
def test_a_writer_killed_midway_takes_no_answered_change_with_it(database_url: str, victim: str) -> None:
    store = SqlStore(database_url)
    old = [card(tenant=OTHER_TENANT) for _ in range(40)]
    stored(store, *old)
    server = _Process(_SERVER, database_url, "customer-2", 10_000 if victim == "server" else 80)
    operator = _Process(_OPERATOR, database_url, 1000 if victim == "operator" else 4)
    doomed, other = (server, operator) if victim == "server" else (operator, server)
    doomed.await_lines(30)

    timer = threading.Timer(0.2, doomed.process.send_signal, [signal.SIGKILL])
    timer.start()
    mine = []
    for _ in range(40):
        mine.append(new := card())
        stored(store, new)
    said = {each: each.lines() for each in (doomed, other)}
    timer.join()

    assert (doomed.returncode, other.returncode) == (-signal.SIGKILL, 0)
    assert _tokens(store) >= {Token(line) for line in said[server]} | {each.token for each in (*old, *mine)}
    newest: dict[str, int] = {}
    for token, version in (line.split() for line in said[operator]):
        newest[token] = int(version)
    with store.reading() as tx:
        found = {each.card.token: each.key.kek_version for each in tx.wraps_below(2000, after=None, limit=10_000)}
        count = tx.count_secrets(Selection())
    assert newest
    # The killed one may have committed a little more than it had said.
    assert all(found[Token(token)] >= version for token, version in newest.items())
    assert count == len(_tokens(store)) == len(found)
    assert _is_sound(store)
    with store.exclusively("rotation"):
        stored(store, card(customer=CustomerId("customer-3")))
    store.close()


def test_the_wrap_that_an_operator_was_killed_over_is_the_old_or_the_new_one(sqlite_url: str) -> None:
    store = SqlStore(sqlite_url)
    new = card()
    stored(store, new)
    program = (
        "import os, signal, sys\n"
        "from vault.domain.grant import SealedKey\n"
        "from vault.domain.ids import TenantId, Token\n"
        "from vault.ports_operator import CardKey, WrapReplacement\n"
        "from vault.store import SqlStore\n"
        "card = CardKey(TenantId(sys.argv[2]), Token(sys.argv[3]))\n"
        "with SqlStore(sys.argv[1]).writing() as tx:\n"
        "    assert tx.replace_wraps([WrapReplacement(card, SealedKey(sys.argv[4]), SealedKey('vault:v2:AA'))])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    killed = _Process(program, sqlite_url, TENANT, new.token, new.sealed.key.wrapped)
    assert killed.lines() == []

    with store.reading() as tx:
        assert [each.key for each in tx.wraps_below(9, after=None, limit=9)] == [new.sealed.key]
        assert tx.count_previous_wraps() == {}
    with operating(store) as writer:
        assert writer.replace_wraps([rewrapped(new)]) == {key_of(new)}
    assert killed.returncode == -signal.SIGKILL
    assert _is_sound(store)
    store.close()


def test_an_erasure_beside_a_reader_of_another_process_leaves_the_files_once_that_is_gone(sqlite_url: str) -> None:
    mine, other = SqlStore(sqlite_url), SqlStore(sqlite_url)
    new = card()
    stored(mine, new)
    path = Path(sqlite_url.removeprefix("sqlite:///"))

    def is_in_files() -> bool:
        return any(new.sealed.ciphertext in each.read_bytes() for each in path.parent.glob(path.name + "*"))

    with other.reading() as tx:
        assert len(tx.secrets(Selection(), after=None, limit=1)) == 1
        with writing(mine) as writer:
            writer.erase_cards(TENANT, CUSTOMER, None, event_id=event().event_id, now=NOW)
        assert is_in_files()
    stored(mine, card())

    assert not is_in_files()
    mine.close()
    other.close()


def test_an_exchange_that_cannot_have_the_writer_in_time_says_so_and_works_afterwards(sqlite_url: str) -> None:
    server = SqlStore(sqlite_url)
    operator = SqlStore(sqlite_url, limits=Limits(lock_timeout=timedelta(milliseconds=100)))
    new = card()
    stored(server, new)

    with server.writing(), pytest.raises(StoreUnavailable, match="database_locked"), operating(operator) as tx:
        tx.replace_wraps([rewrapped(new)])
    with operating(operator) as tx:
        changed = tx.replace_wraps([WrapReplacement(key_of(new), new.sealed.key, sealed_key(2))])

    assert changed == {key_of(new)}
    server.close()
    operator.close()

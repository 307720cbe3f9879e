"""An SQLite file written anew at an operator's word: whatever its size, wholly or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.contract.store.make import card, ref, stored
from tests.contract.store.test_erasure import SOMEONE_ELSE, _left_in_files, _secrets_of, erased
from tests.support.world import CUSTOMER
from vault.domain.errors import PreconditionFailed
from vault.ports import NewCard
from vault.store import SqlStore, compaction, sql_store
from vault.store.engine import Limits
from vault.usecases.compaction import left_over

SHORT = Limits(lock_timeout=timedelta(seconds=0.5))


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[SqlStore]:
    store = SqlStore(sqlite_url, limits=SHORT)
    yield store
    store.close()


def _come_and_go(store: SqlStore, count: int = 600) -> tuple[list[NewCard], list[bytes]]:
    """Cards that stay, and secrets of those that went."""
    cards = [card(customer=SOMEONE_ELSE if n % 2 else CUSTOMER) for n in range(count)]
    for start in range(0, count, 100):
        stored(store, *cards[start : start + 100])
    erased(store, None, SOMEONE_ELSE)
    return cards[::2], [secret for each in cards[1::2] for secret in _secrets_of(each)]


def _is_whole(store: SqlStore, kept: list[NewCard]) -> bool:
    with store.reading() as tx:
        return set(tx.cards([ref(each) for each in kept])) == {ref(each) for each in kept}


def test_nothing_of_erased_cards_is_left_and_the_file_is_smaller(sqlite_store: SqlStore, tmp_path: Path) -> None:
    kept, gone = _come_and_go(sqlite_store)
    before = (tmp_path / "vault.db").stat().st_size

    done = sqlite_store.write_anew()

    assert (done.bytes_before, done.bytes_after) == (before, (tmp_path / "vault.db").stat().st_size)
    assert done.bytes_after < done.bytes_before
    assert done.is_clear
    assert done.seconds > 0
    assert [secret for secret in gone if _left_in_files(tmp_path, secret)] == []
    assert _is_whole(sqlite_store, kept)
    assert sqlite_store.weaknesses() == []


def test_a_long_reader_is_named_and_the_file_stays_as_it_was(
    sqlite_store: SqlStore, sqlite_url: str, tmp_path: Path
) -> None:
    kept, _ = _come_and_go(sqlite_store)
    before = (tmp_path / "vault.db").stat().st_size
    elsewhere = SqlStore(sqlite_url)
    with elsewhere.reading() as reader:
        reader.cards([ref(kept[0])])
        stored(sqlite_store, card())

        with pytest.raises(PreconditionFailed) as refused:
            sqlite_store.write_anew()

    assert refused.value.reason == "database_in_use"
    assert (tmp_path / "vault.db").stat().st_size == before
    assert _is_whole(sqlite_store, kept)
    elsewhere.close()
    assert sqlite_store.write_anew().is_clear


@pytest.mark.parametrize("begins", ["before", "just then"])
def test_a_long_writer_is_named_and_the_file_stays_as_it_was(
    sqlite_store: SqlStore, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    kept, _ = _come_and_go(sqlite_store)
    elsewhere = SqlStore(sqlite_url)
    if begins == "just then":
        monkeypatch.setattr(compaction, "_clear_wal", lambda *_: True)

    with elsewhere.writing(), pytest.raises(PreconditionFailed) as refused:
        sqlite_store.write_anew()

    assert refused.value.reason == "database_in_use"
    assert _is_whole(sqlite_store, kept)
    elsewhere.close()


@pytest.mark.parametrize("lacking", ["free space", "memory"])
def test_too_little_room_is_said_before_anything_is_done(
    sqlite_store: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    kept, _ = _come_and_go(sqlite_store)
    before = (tmp_path / "vault.db").read_bytes()
    if lacking == "memory":
        (tmp_path / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable:        100 kB\n")
        monkeypatch.setattr(compaction, "MEMORY", tmp_path / "meminfo")
    else:
        monkeypatch.setattr(compaction, "ROOM", 1e12)

    with pytest.raises(PreconditionFailed) as refused:
        sqlite_store.write_anew()

    assert refused.value.reason == "database_no_room"
    assert f"MiB of {lacking}" in refused.value.message
    assert (tmp_path / "vault.db").read_bytes() == before
    assert _is_whole(sqlite_store, kept)


_LIMITED = """
import json, resource, sys
from vault.domain.errors import PreconditionFailed
from vault.store import SqlStore
store = SqlStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    store.write_anew()
except PreconditionFailed as e:
    print(json.dumps([e.reason, e.message]))
"""


@pytest.mark.parametrize("pages", [-100, 1], ids=["at once", "at the end"])
def test_room_that_runs_out_on_the_way_leaves_the_file_as_it_was(
    sqlite_store: SqlStore, sqlite_url: str, tmp_path: Path, pages: int
) -> None:
    """A limit on the size of files stands for a disk that is full: the log that carries the copy over does not fit."""
    kept, _ = _come_and_go(sqlite_store, 1500)
    path = tmp_path / "vault.db"
    before = path.stat().st_size
    (tmp_path / "try").mkdir(mode=0o700)
    shutil.copy(path, tmp_path / "try" / "vault.db")
    smaller = SqlStore(f"sqlite:///{tmp_path}/try/vault.db")
    copy = smaller.write_anew().bytes_after
    smaller.close()
    limit = copy + pages * 4096

    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, sqlite_url, str(limit)], capture_output=True, text=True, check=True, timeout=60
    )

    reason, message = json.loads(done.stdout)
    assert (reason, message.endswith("nothing was changed")) == ("database_no_room", True)
    assert path.stat().st_size == before
    assert _is_whole(sqlite_store, kept)
    assert {each.name for each in tmp_path.iterdir() if each.name.startswith("vault.db")} <= {
        "vault.db",
        "vault.db-wal",
        "vault.db-shm",
    }
    assert sqlite_store.write_anew().bytes_after < before


def test_beside_busy_writers_nothing_is_lost(sqlite_url: str) -> None:
    store = SqlStore(sqlite_url)
    kept, _ = _come_and_go(store)
    ended, added = threading.Event(), list[NewCard]()

    def write() -> None:
        elsewhere = SqlStore(sqlite_url)
        while not ended.is_set():
            new = card()
            stored(elsewhere, new)
            added.append(new)
        elsewhere.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            store.write_anew()
    finally:
        ended.set()
        writer.join()

    assert added
    assert _is_whole(store, [*kept, *added])
    store.close()


def test_what_was_erased_since_the_last_time_is_known_to_every_process(
    sqlite_store: SqlStore, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert left_over(sqlite_store) is None
    kept, _ = _come_and_go(sqlite_store, 20)
    left = left_over(sqlite_store)
    assert left is not None
    assert (left.erased, left.is_small) == (10, True)

    sqlite_store.tidy()

    elsewhere = SqlStore(sqlite_url)
    assert left_over(elsewhere) is None
    monkeypatch.setattr(sql_store, "COMPACTED_UP_TO", 1)
    erased(elsewhere, kept[0].token)
    left = left_over(elsewhere)
    assert left is not None
    assert (left.erased, left.is_small) == (1, False)
    elsewhere.close()


def test_postgresql_has_no_file_of_ours(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url)

    assert store.file_size() is None
    assert left_over(store) is None
    store.close()

"""What the audit log costs, how far it is behind, how fast it verifies: `python -m benchmarks.audit`.

Throughput with the log is held against throughput without it in alternating rounds on the same machine, Vault, kind of
database and clients. Nothing else is turned off: without the log events are still committed with each effect.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.harness import Figure, say, table
from tests.support.installation import Installation, installed
from vault.audit.copy import Directory, Shipper
from vault.audit.sequencer import Checkpointer, Pace, Sequencer
from vault.audit.verify import verify_directory, verify_store
from vault.domain.audit import AuditEvent, Outcome
from vault.domain.ids import RANDOM_BYTES, EventId, RequestId
from vault.embedded.openbao import OpenBao
from vault.keyring.operator import CheckpointerTransit
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.store import SqlStore, upgrade
from vault.system import SystemClock, settle_memory

IN_FLIGHT = 64
PHASE = 6.0


def _settings(openbao: OpenBao, copy: Path | None) -> dict[str, Any]:
    files = openbao.login_files(LoginName.CHECKPOINTER)
    if copy is None:
        return {"audit__sequence": False}
    return {
        "audit__directory": str(copy),
        "vault__checkpointer__role_id_file": str(files.role_id_file),
        "vault__checkpointer__secret_id_file": str(files.secret_id_file),
    }


class Lag:
    """Samples how old the oldest waiting event is."""

    def __init__(self, url: str) -> None:
        self._store = SqlStore(url)
        self._end = threading.Event()
        self.worst = 0.0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Lag:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._store.close()

    def _watch(self) -> None:
        while not self._end.wait(0.25):
            with self._store.reading() as tx:
                oldest = tx.log_state().oldest_queued
            if oldest is not None:
                self.worst = max(self.worst, (datetime.now(UTC) - oldest).total_seconds())


def throughput(openbao: OpenBao, directory: Path, url: str, rounds: int, engine: str) -> list[Figure]:
    """Tokenize with and without the log, in turns, each on a server of its own that begins with what is there."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    lags: list[float] = []
    for number in range(rounds):
        for with_log in (True, False) if number % 2 else (False, True):
            folder = directory / f"{engine}-{number}-{with_log}"
            copy = folder / "copy" if with_log else None
            with installed(folder, openbao, url) as installation:
                _catch_up(url, copy)
                server = installation.serve(**_settings(openbao, copy))
                found, lag = _one(installation, server.port, url)
            rates[with_log].append(found.rate)
            if with_log:
                lags.append(lag)
            say(f"{engine} {'with' if with_log else 'without'} the log: {found}, lag {lag:.1f} s")
    return [
        Figure(f"Tokenize on {engine} with the log: calls/s", rates[True]),
        Figure(f"Tokenize on {engine} without it: calls/s", rates[False]),
        Figure(
            f"with / without, {engine}",
            [on / off for on, off in zip(rates[True], rates[False], strict=True)],
            ">= 0.9",
            _is_cheap,
        ),
        Figure(f"longest wait for a place under load, {engine}: s", lags),
    ]


def _is_cheap(ratio: float) -> bool:
    return ratio >= 0.9


def _catch_up(url: str, copy: Path | None) -> None:
    """What the rounds before left to be sequenced and copied must not be this one's work."""
    with closing(SqlStore(url)) as store:
        Sequencer(store)()
        if copy is not None:
            Shipper(store=store, sink=Directory(copy))()


def _one(installation: Installation, port: int, url: str) -> tuple[load.Load, float]:
    files = installation.ca.issue_client("spiffe://test.localhost/checkout")
    target = load.Target(port, files.ca_file, {"checkout": files})
    with Lag(url) as lag:
        found = load.run([target], load.tokenize, in_flight=IN_FLIGHT, seconds=PHASE)
    return found, lag.worst


def verification(openbao: OpenBao, directory: Path, count: int) -> list[Figure]:
    """Sequence, ship and verify a long log on SQLite."""
    url = f"sqlite:///{directory / 'long.sqlite'}"
    upgrade(url)
    session = VaultSession(address=openbao.address, login=openbao.login(LoginName.CHECKPOINTER))
    with closing(SqlStore(url)) as store, closing(session):
        for start in range(0, count, 5000):
            with store.writing() as tx:
                tx.append_events([_event() for _ in range(start, min(count, start + 5000))])
        checkpointer = Checkpointer(
            store=store,
            signer=CheckpointerTransit(session),
            clock=SystemClock(),
            environment="bench",
            pace=Pace(),
        )
        sequenced = _timed(lambda: Sequencer(store)())
        checkpointer(now=True)
        keys, copy = checkpointer.keys(), Directory(directory / "long-copy")
        shipped = _timed(lambda: Shipper(store=store, sink=copy)(keys))
        online = _timed(lambda: _must(verify_store(store, keys).is_good))
        offline = _timed(lambda: _must(verify_directory(copy, keys).is_good))
    return [
        Figure(f"sequencer, {count} events: events/s", [count / sequenced]),
        Figure("copy elsewhere: events/s", [count / shipped]),
        Figure("verify in the database: events/s", [count / online]),
        Figure("verify a copy offline: events/s", [count / offline]),
    ]


def _event() -> AuditEvent:
    return AuditEvent(
        event_id=EventId.from_random(os.urandom(RANDOM_BYTES)),
        occurred_at=datetime.now(UTC),
        event="card.tokenized",
        outcome=Outcome.OK,
        reason="",
        actor="spiffe://shop.example/checkout",
        actor_certificate="ab" * 32,
        role="checkout",
        peer="ipv4:127.0.0.1:50000",
        request_id=RequestId.from_random(os.urandom(RANDOM_BYTES)),
        tenant="shop",
        customer="customer-1",
        target="tok_" + "a" * 42,
        details={"stored": 1},
    )


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _must(holds: bool) -> None:
    if not holds:
        raise AssertionError("the log does not verify")


def main() -> int:
    """Exit 0 if every goal is met, 1 if one is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=1_000_000, help="of the long log (default %(default)s)")
    parser.add_argument("--postgresql", metavar="URL", help="an empty database of a running PostgreSQL, measured too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    settle_memory()
    directory = Path(tempfile.mkdtemp(prefix="cardvault-benchmark-"))
    openbao = OpenBao(directory / "openbao", storage="inmem", keep_root_token=True)
    openbao.start()
    figures: list[Figure] = []
    try:
        databases: Sequence[tuple[str, str]] = [("SQLite", f"sqlite:///{directory / 'bench.sqlite'}")]
        if arguments.postgresql:
            databases = [*databases, ("PostgreSQL", arguments.postgresql)]
        for engine, url in databases:
            upgrade(url)
            figures += throughput(openbao, directory, url, arguments.rounds, engine)
        figures += verification(openbao, directory, arguments.events)
    finally:
        openbao.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print(table(figures))
    if arguments.json:
        facts = {"when": datetime.now(UTC).isoformat(), "figures": [figure.facts() for figure in figures]}
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return 0 if all(figure.holds(figure.median) for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""What requests cost, held against what cannot be cheaper: `make bench`, or `python -m benchmarks`.

The floor is health's own check: an empty RPC at the same server process, through the same door, certificates, clients
and connections. It skips the caller's identity and place, so it is a little cheaper than an empty RPC of ours could be,
and every ratio to it a little worse. The yardstick is what an application would do merely to encrypt: one hvac call an
item, from as many client processes. Everything runs on this machine at once; what is divided was measured in one round.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hvac

from benchmarks import load
from benchmarks.harness import Figure, at_least, at_most, facts, memory, postgresql, say, table
from tests.support.installation import SHOP, Installation, ServerProcess, installed, uri_of
from vault.embedded.openbao import OpenBao
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.keyring.transit import IntakeTransit
from vault.ports import KeyName, KeyToWrap
from vault.store import SqlStore, upgrade
from vault.store.engine import Limits, open_engines

PROCESSES = 2
"""Of clients."""
IN_FLIGHT = 64
BATCHES_IN_FLIGHT = 4
CORES_FOR_TWO = 4
"""So many, two workers are worth their goal: fewer are full of one worker, Vault, the database and the clients."""
THREADS = 8
"""That unwrap in a server, by default."""
BUSY = 0.9
ROLES = ("checkout", "account", "processor")


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how often."""

    seconds: float
    warm_up: float
    rounds: int
    sizes: tuple[int, ...]
    engines_of_sizes: tuple[str, ...]
    rounds_of_sizes: int
    latencies: tuple[int, ...]
    """Calls in flight."""
    workers: bool
    """Whether two workers are held against one."""


WHOLE = Pace(4.0, 1.0, 3, (1_000, 100_000, 1_000_000), ("SQLite", "PostgreSQL"), 3, (1, 8, 64, 256), True)
QUICK = Pace(0.5, 0.2, 2, (1_000, 100_000), ("SQLite",), 1, (1, 64), False)


class Rounds:
    """Figures as they come, by name, with what is to be said of them."""

    def __init__(self) -> None:
        self._figures: dict[str, Figure] = {}

    def add(self, name: str, value: float, *, note: str = "", **goal: Any) -> None:
        """One more round of one figure."""
        figure = self._figures.setdefault(name, Figure(name, [], **goal))
        figure.values.append(value)
        figure.note = figure.note or note

    def rate(self, name: str, found: load.Load) -> None:
        """Calls a second, and whether the clients were what limited them."""
        self.add(f"{name}: calls/s", found.rate, note=_notes(found))

    def all(self) -> list[Figure]:
        """In the order in which they first came."""
        return list(self._figures.values())


def _notes(found: load.Load) -> str:
    notes = []
    if found.client_busy > BUSY:
        notes.append(f"the clients were the bottleneck ({found.client_busy:.0%} of a core)")
    if found.errors:
        notes.append(f"{found.errors} errors")
    return "; ".join(notes)


# --- Vault alone ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Raw:
    """Calls to Vault by hvac alone, on so many threads of each process."""

    address: str
    ca_file: Path
    token: str
    threads: int
    decrypts: bool
    seconds: float

    async def __call__(self, _seat: load.Seat) -> dict[str, Any]:
        busy, began = time.process_time(), time.perf_counter()
        end = began + self.seconds
        taken: list[float] = []
        threads = [threading.Thread(target=self._call, args=(end, taken)) for _ in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - began
        return {"taken": taken, "errors": 0, "elapsed": elapsed, "busy": (time.process_time() - busy) / elapsed}

    def _call(self, end: float, taken: list[float]) -> None:
        transit = hvac.Client(url=self.address, token=self.token, verify=str(self.ca_file)).secrets.transit
        item = base64.b64encode(os.urandom(32)).decode()
        sealed = transit.encrypt_data(name=KeyName.CARDS, plaintext=item, context=item)["data"]["ciphertext"]
        while (now := time.perf_counter()) < end:
            if self.decrypts:
                transit.decrypt_data(name=KeyName.CARDS, ciphertext=sealed, context=item)
            else:
                transit.encrypt_data(name=KeyName.CARDS, plaintext=item, context=item)
            taken.append(time.perf_counter() - now)


def parts_of_one_tokenize(openbao: OpenBao, url: str, count: int) -> float:
    """Milliseconds of two trips to Vault and one commit, one after the other, alone on the machine."""
    session = VaultSession(address=openbao.address, login=openbao.login(LoginName.INTAKE))
    message = os.urandom(32)
    keys = IntakeTransit(session)
    with closing(SqlStore(url)) as store, closing(session):

        def commit(number: int) -> None:
            with store.writing() as tx:
                tx.put_setting("bench", str(number))

        def wrap(_: int) -> None:
            keys.protect(cards=[KeyToWrap(os.urandom(32), os.urandom(32))], once=[], fingerprints=[])

        def fingerprint(_: int) -> None:
            keys.protect(cards=[], once=[], fingerprints=[message])

        return sum(_median(part, count) for part in (wrap, fingerprint, commit))


def _median(work: Callable[[int], None], count: int) -> float:
    taken = []
    for number in range(count):
        began = time.perf_counter()
        work(number)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[count // 5 :]) * 1000


# --- servers --------------------------------------------------------------------------------------------------------


def _started(installation: Installation, rounds: Rounds | None, engine: str, workers: int) -> ServerProcess:
    began = time.perf_counter()
    server = installation.serve(server__workers=workers)
    if rounds is not None:
        rounds.add(f"start to ready, {engine}: s", time.perf_counter() - began, **at_most(2.0))
    return server


def _target(installation: Installation, server: ServerProcess) -> load.Target:
    files = {role: installation.ca.issue_client(uri_of(role)) for role in ROLES}
    return load.Target(server.port, installation.ca.ca_file, files)


@contextmanager
def serving(
    directory: Path,
    openbao: OpenBao,
    url: str,
    *,
    engine: str,
    rounds: Rounds | None,
    processes: int = PROCESSES,
    workers: int = 1,
) -> Iterator[tuple[ServerProcess, load.Clients]]:
    """A server and its clients."""
    with installed(directory, openbao, url) as installation:
        server = _started(installation, rounds, engine, workers)
        with load.Clients([_target(installation, server)] * processes) as clients:
            yield server, clients


def measure_requests(
    openbao: OpenBao, clients: load.Clients, rounds: Rounds, engine: str, pace: Pace, url: str
) -> None:
    """One round on one engine."""

    def run(work: load.Work, in_flight: int = IN_FLIGHT) -> load.Load:
        return clients.run(work, in_flight=in_flight, seconds=pace.seconds, warm_up=pace.warm_up)

    root = openbao.files.root_token.read_text(encoding="utf-8").strip()

    def raw(threads: int, *, decrypts: bool) -> load.Load:
        address = openbao.address
        job = Raw(address.address, address.ca_file, root, threads, decrypts, pace.seconds)
        return clients.run_job(job, alone=decrypts)

    yardstick = raw(1, decrypts=False)
    floor = run(load.nothing)
    stored = run(load.tokenize)
    listed = run(load.list_five)
    granted = run(load.issue_grant)
    decrypted = raw(THREADS, decrypts=True)
    redeemed = run(load.detokenize)
    rounds.rate(f"floor, {engine}", floor)
    rounds.rate(f"yardstick: hvac encrypt, {PROCESSES} processes ({engine} idle)", yardstick)
    rounds.rate(f"raw decrypt, {THREADS} threads ({engine} idle)", decrypted)
    for name, found in (
        ("Tokenize", stored),
        ("ListCards of 5", listed),
        ("IssueGrant", granted),
        ("Detokenize", redeemed),
    ):
        rounds.rate(f"{name}, {engine}", found)
    rounds.add(f"Tokenize / floor, {engine}", stored.rate / floor.rate, **at_least(0.5))
    rounds.add(f"Tokenize / yardstick, {engine}", stored.rate / yardstick.rate, **at_least(1.5))
    rounds.add(f"ListCards of 5 / floor, {engine}", listed.rate / floor.rate, **at_least(0.7))
    rounds.add(f"IssueGrant / floor, {engine}", granted.rate / floor.rate)
    rounds.add(f"Detokenize / raw decrypt, {engine}", redeemed.rate / decrypted.rate, **at_least(0.7))
    parts = parts_of_one_tokenize(openbao, url, 40 if pace.seconds < 1 else 200)
    alone = run(load.tokenize, 1)
    rounds.add(f"lone Tokenize, {engine}: p50 ms", alone.p50)
    rounds.add(f"its two Vault trips and commit, {engine}: ms", parts)
    rounds.add(f"lone Tokenize beyond its parts, {engine}: ms", alone.p50 - parts, **at_most(2.0))
    for in_flight in pace.latencies:
        found = {1: alone, IN_FLIGHT: stored}.get(in_flight) or run(load.tokenize, in_flight)
        rounds.add(f"Tokenize, {in_flight} in flight, {engine}: p50 ms", found.p50, note=_notes(found))
        rounds.add(f"Tokenize, {in_flight} in flight, {engine}: p99 ms", found.p99)
    # Last: thousands of events are then still to get their places in the log, which what follows would wait for.
    moved = run(load.batch_tokenize, BATCHES_IN_FLIGHT)
    rounds.add(f"BatchTokenize, {engine}: cards/s", moved.rate * load.BATCH, note=_notes(moved), **at_least(5000))


# --- several workers ------------------------------------------------------------------------------------------------


def measure_workers(openbao: OpenBao, directory: Path, url: str, rounds: Rounds, pace: Pace) -> None:
    """Two worker processes against one, taking turns, on one PostgreSQL; connections spread by the kernel's dice."""
    works = (load.tokenize, load.list_five, load.issue_grant, load.detokenize)
    goal = at_least(1.5) if (os.cpu_count() or 1) >= CORES_FOR_TWO else {}
    with ExitStack() as stack:
        clients: dict[int, load.Clients] = {}
        for workers in (1, 2):
            # More client processes than workers: each has one connection, and a worker may get several or none.
            up = serving(
                directory / f"workers-{workers}",
                openbao,
                url,
                engine="",
                rounds=None,
                processes=2 * PROCESSES,
                workers=workers,
            )
            clients[workers] = stack.enter_context(up)[1]
        for number in range(pace.rounds):
            say(f"round {number + 1} of {pace.rounds}, workers")
            for work in works:
                rates = {
                    workers: clients[workers]
                    .run(work, in_flight=IN_FLIGHT, seconds=pace.seconds, warm_up=pace.warm_up)
                    .rate
                    for workers in ((2, 1) if number % 2 else (1, 2))
                }
                rounds.add(f"{work.__name__}, two workers / one, PostgreSQL", rates[2] / rates[1], **goal)


# --- many cards -----------------------------------------------------------------------------------------------------

_NAMES = {
    "sqlite": """
        WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
        SELECT lower(hex(randomblob(21))) AS name, randomblob(32) AS fingerprint, n FROM numbers""",
    "postgresql": """
        SELECT md5(random()::text || n) || substr(md5(random()::text), 1, 10) AS name,
            sha256((random()::text || n)::bytea) AS fingerprint, n
        FROM generate_series(1, {count}) AS numbers(n)""",
}
_ROWS = (
    """
    INSERT INTO consents (tenant_id, consent_id, kind, customer_id, token, terms_version, terms_sha256, uses, channel,
        locale, recorded_at, recorded_by)
    SELECT '{shop}', 'con_' || name, 'given', 'bulk-' || n, 'tok_' || name, '2026-01', fingerprint, '1', 1,
        'en', {now}, 'spiffe://bulk' FROM bulk_names""",
    """
    INSERT INTO cards (tenant_id, token, customer_id, brand, last4, expiry_year, expiry_month, state, default_rank,
        consent_id, created_at)
    SELECT '{shop}', 'tok_' || name, 'bulk-' || n, 1, '0000', 2035, 12, 1, 0, 'con_' || name, {now} FROM bulk_names""",
    """
    INSERT INTO card_secrets (tenant_id, token, wrapped_key, kek_version, ciphertext, record_version, fingerprint,
        fingerprint_version, data_key_version)
    SELECT '{shop}', 'tok_' || name, '{wrapped}', 1, {sealed}, 1, fingerprint, 1, 1 FROM bulk_names""",
)


def add_rows(url: str, count: int) -> None:
    """Cards that nobody asks for, of the same shop, their names spread like real ones; nothing in them opens."""
    engines = open_engines(url, Limits(pool_size=2))
    is_sqlite = engines.kind == "sqlite"
    words = {
        "shop": SHOP,
        "now": str(time.time_ns() // 1000) if is_sqlite else "now()",
        "wrapped": "vault:v1:" + "A" * 80,
        "sealed": "zeroblob(222)" if is_sqlite else "decode(repeat('00', 222), 'hex')",
    }
    try:
        with engines.writer.begin() as connection:
            for statement in (
                *([] if is_sqlite else ["SET LOCAL statement_timeout = 0"]),
                "CREATE TEMPORARY TABLE bulk_names AS" + _NAMES[engines.kind].format(count=count),
                # Foreign keys are looked up in what was inserted before: PostgreSQL must know how much that is.
                *(step for rows in _ROWS for step in (rows.format(**words), *([] if is_sqlite else ["ANALYZE"]))),
                "DROP TABLE bulk_names",
                *([] if is_sqlite else ["SET CONSTRAINTS ALL IMMEDIATE"]),
            ):
                connection.exec_driver_sql(statement)
    finally:
        engines.dispose()


def measure_sizes(
    openbao: OpenBao, directory: Path, new_database: Callable[[str], str], engine: str, rounds: Rounds, pace: Pace
) -> None:
    """Latency beside so many cards, servers taking turns; and memory."""
    works = (load.tokenize, load.list_five, load.issue_grant, load.detokenize)
    with ExitStack() as stack:
        servers: dict[int, tuple[ServerProcess, load.Clients]] = {}
        for count in pace.sizes:
            url = new_database(f"size{count}")
            began = time.perf_counter()
            add_rows(url, count)
            say(f"{engine}: {count} cards in {time.perf_counter() - began:.0f} s")
            place = directory / f"{engine}-{count}"
            servers[count] = stack.enter_context(
                serving(place, openbao, url, engine=f"{engine}, {count} cards", rounds=rounds, processes=1)
            )
        for number in range(pace.rounds_of_sizes):
            found: dict[tuple[str, int], float] = defaultdict(float)
            for work in works:
                for count in reversed(pace.sizes) if number % 2 else pace.sizes:
                    _, clients = servers[count]
                    done = clients.run(work, in_flight=8, seconds=pace.seconds, warm_up=pace.warm_up)
                    found[work.__name__, count] = done.p50
            small = pace.sizes[0]
            for count in pace.sizes[1:]:
                for work in works:
                    ratio = found[work.__name__, count] / found[work.__name__, small]
                    rounds.add(f"{work.__name__} p50, {count} / {small} cards, {engine}", ratio, **at_most(1.2))
        for count, (server, _) in servers.items():
            rounds.add(f"memory of a server, {count} cards, {engine}: MiB", memory("VmRSS", server.process.pid))


# --- the whole ------------------------------------------------------------------------------------------------------


def measure(directory: Path, pace: Pace, rounds: Rounds) -> None:
    """Everything."""
    with ExitStack() as stack:
        openbao = OpenBao(directory / "openbao", storage="inmem", keep_root_token=True)
        openbao.start()
        stack.callback(openbao.stop)
        admin = stack.enter_context(postgresql(directory / "postgresql"))

        def sqlite_database(name: str) -> str:
            url = f"sqlite:///{directory / f'{name}.db'}"
            upgrade(url)
            return url

        def postgresql_database(name: str) -> str:
            import psycopg

            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
            url = admin.replace("/postgres?", f"/{name}?")
            upgrade(url)
            return url

        engines = {"SQLite": sqlite_database, "PostgreSQL": postgresql_database}
        with ExitStack() as running:
            servers = {}
            for engine, new_database in engines.items():
                url = new_database("requests")
                up = serving(directory / engine, openbao, url, engine=engine, rounds=rounds)
                servers[engine] = (url, *running.enter_context(up))
                rounds.add(f"memory of a fresh server, {engine}: MiB", memory("VmRSS", servers[engine][1].process.pid))
            for number in range(pace.rounds):
                for engine, (url, _, clients) in servers.items():
                    say(f"round {number + 1} of {pace.rounds}, {engine}")
                    measure_requests(openbao, clients, rounds, engine, pace, url)
            for engine, (_, server, _) in servers.items():
                rounds.add(f"memory of a server after load, {engine}: MiB", memory("VmRSS", server.process.pid))
        if pace.workers:
            measure_workers(openbao, directory, postgresql_database("workers"), rounds, pace)
        for engine in pace.engines_of_sizes:
            measure_sizes(openbao, directory, engines[engine], engine, rounds, pace)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 0 if every goal is met, 1 if one is missed; a quick run is too noisy to judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; the spread is large")
    parser.add_argument("--rounds", type=int, help="of each measurement")
    parser.add_argument("--seconds", type=float, help="of each phase")
    parser.add_argument("--no-sizes", action="store_true", help="leave out what many cards cost")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    given = parser.parse_args(arguments)
    usual = QUICK if given.quick else WHOLE
    pace = replace(
        usual,
        seconds=given.seconds or usual.seconds,
        rounds=given.rounds or usual.rounds,
        engines_of_sizes=() if given.no_sizes else usual.engines_of_sizes,
    )
    directory = Path(tempfile.mkdtemp(prefix="cardvault-benchmark-"))
    rounds = Rounds()
    try:
        measure(directory, pace, rounds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        figures = rounds.all()
        print(table(figures))  # also of what was measured before something failed
    if given.json:
        given.json.write_text(json.dumps(facts(figures, vars(given)), indent=2) + "\n", encoding="utf-8")
    return 0 if given.quick or all(figure.holds(figure.median) for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())

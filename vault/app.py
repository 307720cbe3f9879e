"""Puts the parts of a server together. Beside it only `parts` and `app_operator` name concrete classes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from vault.app_eyes import Eyes
from vault.app_log import LogProcess
from vault.audit.copy import CopyTrouble, Directory
from vault.audit.keeper import problems as log_problems
from vault.audit.proof import prove
from vault.config import INTAKE_SERVICES, RELEASE_SERVICES, LoginSection, Settings
from vault.domain.errors import CardVaultError, Exhausted, KeyRingUnavailable, StoreUnavailable
from vault.domain.ids import RANDOM_BYTES, RequestId
from vault.keyring.operator import OperatorTransit
from vault.keyring.session import VaultSession
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.one_cpu import LOOK_EVERY, OneCpu, stand_behind
from vault.parts import open_store, open_vault
from vault.readiness import Readiness
from vault.rpc.access import SERVICES
from vault.rpc.coalescer import Coalescer, Work, one_by_one
from vault.rpc.door import Door, Limits
from vault.rpc.identity import Identities
from vault.rpc.server import Check, Server, TlsFiles
from vault.rpc.servicers import AccountServicer, CheckoutServicer, ProcessorServicer, RunWork
from vault.store import sqlite
from vault.store.columns import Engine
from vault.system import SystemClock, SystemEntropy
from vault.telemetry import where
from vault.usecases.accounts import Erase, GetCard, ListCards, SetDefaultCard, UpdateCard
from vault.usecases.batch import World
from vault.usecases.batch_tokenize import BatchTokenize, BatchTokenizeCommand
from vault.usecases.detokenize import Detokenize
from vault.usecases.export import ExportCustomer
from vault.usecases.grants import IssueGrant, IssueGrantCommand, RevokeGrant
from vault.usecases.maintain import MaintainOnceKey
from vault.usecases.maintenance import ExpireOnceKeys
from vault.usecases.operating import Operator, OperatorWorld
from vault.usecases.outcomes import ReportOutcome
from vault.usecases.refusals import RecordRefusals
from vault.usecases.retention import Retain
from vault.usecases.tokenize import Tokenize, TokenizeCommand

_log = structlog.get_logger()

MAX_BATCH = 200
MAX_WORKS = 16
"""Pieces of work that one thread does one after the other, so how many one may wait for."""
MAX_READS = 32
"""Pages in one statement: each may hold a hundred cards, and all wait for the last."""
SWEEP_EVERY = timedelta(seconds=15)
MAINTAIN_EVERY = timedelta(minutes=10)
PAGE_PAUSE = timedelta(milliseconds=50)
_ENVIRONMENT = "environment"

C = TypeVar("C")
R = TypeVar("R")
Q = TypeVar("Q")


async def _keep_on_one_cpu(cpus: OneCpu) -> None:
    while True:
        try:
            cpus.look()
        except Exception as e:  # noqa: BLE001 - without it the server is slower, not wrong
            _log.warning("cpu.failed", where=where(e))
        await asyncio.sleep(LOOK_EVERY)


class StartRefused(Exception):
    """The server must not start like this; `problems` lists why."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class App:
    """One server process."""

    def __init__(
        self, settings: Settings, *, log_process: LogProcess | None, shares_port: bool = False, worker: int = 0
    ) -> None:
        """Build everything; touches neither network nor database. Raises `PolicyGap`, `DatabaseRefused`, `OSError`.

        Of workers that share a port the first, 0, does the chores: the sweeps, retention, the one-time key; and has the
        process that keeps the log beside it, which whoever forked it also ends.
        """
        self._settings = settings
        self._shares_port = shares_port
        self._does_chores = worker == 0
        self._served = frozenset(settings.server.services)
        self._eyes = Eyes(settings, worker=worker)
        self._store = open_store(settings, telemetry=self._eyes.telemetry)
        self._world = World(
            environment=settings.environment, store=self._store, clock=SystemClock(), entropy=SystemEntropy()
        )
        self._coalescers: list[Coalescer[Any, Any]] = []
        # A stuck Vault may hold every thread that calls it, so what needs no Vault has threads of its own.
        self._vault_threads = ThreadPoolExecutor(settings.server.threads, "vault")
        self._cpus = OneCpu(worker, workers=settings.server.workers) if settings.server.one_cpu else None
        behind = stand_behind if self._cpus is not None and self._cpus.is_of_use else None
        self._store_threads = ThreadPoolExecutor(settings.server.threads, "store", initializer=behind)
        self._check_threads = ThreadPoolExecutor(2, "check")
        self._retention_thread = ThreadPoolExecutor(1, "retention")
        self._stops = threading.Event()
        self._logins: dict[str, VaultSession] = {}
        self._intake = self._open_intake()
        self._release = self._open_release()
        self._readiness = Readiness(world=self._world)
        self._log_process = log_process
        self._is_set_back = False
        self._hopeless = asyncio.Event()
        self._chores: list[asyncio.Task[None]] = []
        self._lock: int | None = None
        self._server = self._build_server()
        self._open_eyes()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.port

    def preflight(self) -> None:
        """Refuse to start weak. Raises `StartRefused` with every problem."""
        problems: list[str] = []
        try:
            self._lock_sqlite()
            problems += [f"database: {problem}" for problem in self._store.weaknesses()]
            if not problems:
                problems += self._environment_problems()
                problems += [f"audit: {problem}" for problem in self._log_problems()]
        except CopyTrouble as e:
            problems.append(f"audit.directory: {e}")
        except StoreUnavailable as e:
            problems.append(f"database: {e.reason}")
        except StartRefused as e:
            problems += e.problems
        except OSError as e:
            problems.append(f"database: its lock file cannot be made ({e.strerror})")
        for keys in (self._intake, self._release):
            if keys is None:
                continue
            # Vault may be sealed or away now; readiness asks again until it has answered once.
            with contextlib.suppress(KeyRingUnavailable):
                problems += [f"vault: {problem}" for problem in keys.inspect_keys()]
        if problems:
            raise StartRefused(list(dict.fromkeys(problems)))

    async def start(self) -> None:
        """Serve."""
        await self._server.start()
        self._eyes.start()
        if self._cpus is not None and self._cpus.is_of_use:
            self._chores.append(asyncio.get_running_loop().create_task(_keep_on_one_cpu(self._cpus)))
        if not self._does_chores:
            return
        if self._log_process is not None:
            self._log_process.begin()
            asyncio.get_running_loop().add_reader(self._log_process.news, self._hear_of_the_log, self._log_process)
        if self._served & INTAKE_SERVICES:
            self._chores.append(asyncio.get_running_loop().create_task(self._keep_sweeping()))
            self._chores.append(asyncio.get_running_loop().create_task(self._keep_retaining()))
        if self._settings.vault.operator is not None:
            self._chores.append(asyncio.get_running_loop().create_task(self._keep_maintaining()))

    async def hopeless(self) -> list[str]:
        """Returns once this process cannot go on: why it must not even be started again, if so.

        That is: the database was set back under it.
        """
        await self._hopeless.wait()
        return ["audit: the database was set back while this server ran"] if self._is_set_back else []

    async def stop(self) -> None:
        """Drain and end; effects under way are carried out."""
        self._stops.set()
        for chore in self._chores:
            chore.cancel()
        if self._cpus is not None and self._cpus.is_of_use:
            self._cpus.let_go()
        await self._server.stop(timedelta(seconds=self._settings.server.drain_seconds))
        if self._log_process is not None:
            if not self._hopeless.is_set():
                asyncio.get_running_loop().remove_reader(self._log_process.news)
            self._log_process.let_go()
        for coalescer in self._coalescers:
            await coalescer.drained()
        self.close()

    def close(self) -> None:
        """Give everything back."""
        self._stops.set()
        self._eyes.stop()
        self._retention_thread.shutdown(wait=True, cancel_futures=True)
        for executor in (self._vault_threads, self._store_threads, self._check_threads):
            executor.shutdown(wait=False, cancel_futures=True)
        if self._release is not None:
            self._release.close()
        for session in self._logins.values():
            session.close()
        self._store.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- parts ------------------------------------------------------------------------------------------------------

    def _open_eyes(self) -> None:
        """What metrics show beside what they are told."""
        server, queues = self._server, self._coalescers
        self._eyes.show(
            in_flight=lambda: self._door.in_flight,
            waiting=lambda: {queue.name: queue.waiting for queue in queues},
            passed=lambda: server.passed,
            tokens=self._tokens,
        )
        if self._does_chores:
            self._eyes.look_at(self._store, self._world.clock)

    def _tokens(self) -> dict[str, float | None]:
        """Seconds left of each login's token."""
        ends_in = {name: session.token_ends_in for name, session in self._logins.items()}
        return ends_in if self._log_process is None else ends_in | {"checkpointer": self._log_process.token_ends_in}

    def _open_vault(self, name: str, login: LoginSection, *, connections: int) -> VaultSession:
        session = open_vault(self._settings, login, connections=connections, telemetry=self._eyes.telemetry)
        self._logins[name] = session
        return session

    def _open_intake(self) -> IntakeTransit | None:
        login = self._settings.vault.intake
        if not self._served & INTAKE_SERVICES or login is None:
            return None
        session = self._open_vault("intake", login, connections=self._settings.server.threads)
        return IntakeTransit(session)

    def _open_release(self) -> ReleaseTransit | None:
        login = self._settings.vault.release
        if not self._served & RELEASE_SERVICES or login is None:
            return None
        threads = self._settings.vault.unwrap_threads
        session = self._open_vault("release", login, connections=threads + 2)
        return ReleaseTransit(session, threads=threads)

    def _coalesced(
        self,
        name: str,
        use_case: Callable[[Sequence[C]], Sequence[R | Exception]],
        *,
        calls_vault: bool,
        max_batch: int = MAX_BATCH,
        alone: Callable[[C], Hashable] = lambda _: None,
        size: Callable[[C], int] = lambda _: 1,
    ) -> Coalescer[C, R]:
        # SQLite has one writer: a second batch at the same time would only wait for it.
        lanes = 1 if self._store.kind is Engine.SQLITE and not calls_vault else 2
        coalescer = Coalescer(
            use_case,
            executor=self._vault_threads if calls_vault else self._store_threads,
            lanes=lanes,
            max_batch=max_batch,
            max_waiting=self._settings.server.max_waiting,
            alone=alone,
            size=size,
            name=name,
            telemetry=self._eyes.telemetry,
        )
        self._coalescers.append(coalescer)
        return coalescer

    def _build_server(self) -> Server:
        settings, world = self._settings, self._world
        record = self._coalesced("Refusals", RecordRefusals(world=world), calls_vault=False)
        budget = settings.server.default_deadline_seconds
        self._door = door = Door(
            identities=Identities(settings.identities_by_uri()),
            limits=Limits(default_deadline=timedelta(seconds=budget)),
            entropy=world.entropy,
            record_refusal=lambda call: record.submit(call, budget=budget),
            telemetry=self._eyes.telemetry,
        )
        return Server(
            door=door,
            servicers={name: servicer for name, servicer in self._servicers().items() if name in self._served},
            tls=TlsFiles(
                certificate=settings.server.certificate,
                private_key=settings.server.private_key,
                client_ca=settings.server.client_ca,
            ),
            address=settings.server.listen,
            checks=self._checks(),
            executor=self._check_threads,
            shares_port=self._shares_port,
        )

    def _servicers(self) -> dict[str, object]:
        world = self._world
        servicers: dict[str, object] = {
            "account": AccountServicer(
                clock=world.clock,
                list_cards=self._coalesced("ListCards", ListCards(world=world), calls_vault=False, max_batch=MAX_READS),
                get_card=self._coalesced("GetCard", GetCard(world=world), calls_vault=False),
                update_card=self._coalesced("UpdateCard", UpdateCard(world=world), calls_vault=False),
                set_default_card=self._coalesced("SetDefaultCard", SetDefaultCard(world=world), calls_vault=False),
                erase=self._coalesced(
                    "Erase", Erase(world=world, prove=partial(prove, self._store)), calls_vault=False
                ),
                export=self._coalesced("ExportCustomer", ExportCustomer(world=world), calls_vault=False),
            )
        }
        if self._intake is not None:
            tokenize = Tokenize(world=world, keys=self._intake, first_state=self._settings.cards.first_state())
            servicers["checkout"] = CheckoutServicer(
                clock=world.clock,
                work=self._bounded_work("Decoding"),
                tokenize=self._coalesced("Tokenize", tokenize, calls_vault=True, alone=_by_idempotency_key),
                # In a queue and lanes of its own: an import is not to stand before customers at the checkout.
                batch_tokenize=self._coalesced(
                    "BatchTokenize",
                    BatchTokenize(tokenize=tokenize, record=RecordRefusals(world=world)),
                    calls_vault=True,
                    size=_cards_in,
                ),
                issue_grant=self._coalesced(
                    "IssueGrant",
                    IssueGrant(world=world, processors=self._settings.processors()),
                    calls_vault=False,
                    alone=_by_idempotency_key,
                ),
                revoke_grant=self._coalesced("RevokeGrant", RevokeGrant(world=world), calls_vault=False),
            )
        if self._release is not None:
            servicers["processor"] = ProcessorServicer(
                clock=world.clock,
                detokenize=self._coalesced("Detokenize", Detokenize(world=world, keys=self._release), calls_vault=True),
                report_outcome=self._coalesced("ReportOutcome", ReportOutcome(world=world), calls_vault=False),
            )
        return servicers

    def _bounded_work(self, name: str) -> RunWork:
        """Run functions on worker threads, several in one go, and refuse when too many wait."""
        # Few threads with several each: every change of threads costs more than a small piece of work.
        works: Coalescer[Work, Any] = Coalescer(
            one_by_one,
            executor=self._store_threads,
            lanes=2,
            max_batch=MAX_WORKS,
            max_waiting=self._settings.server.max_waiting,
            name=name,
            telemetry=self._eyes.telemetry,
        )
        self._coalescers.append(works)
        longest = Limits().longest_deadline.total_seconds()

        async def run(work: Callable[[Q], R], argument: Q, /) -> R:
            found: R = await works.submit((work, argument), budget=longest)
            return found

        return run

    def _checks(self) -> list[Check]:
        everyone = frozenset(SERVICES)
        checks = [
            Check(name="database", services=everyone, probe=self._readiness.store),
        ]
        intake, release = self._intake, self._release
        if intake is not None:
            checks.append(
                Check(
                    name="vault-intake",
                    services=INTAKE_SERVICES,
                    probe=_checked_once(intake.inspect_keys, lambda: self._readiness.intake(intake)),
                )
            )
        if release is not None:
            checks.append(
                Check(
                    name="vault-release",
                    services=RELEASE_SERVICES,
                    probe=_checked_once(release.inspect_keys, lambda: self._readiness.release(release)),
                )
            )
        return checks

    async def _keep_sweeping(self) -> None:
        expire = ExpireOnceKeys(world=self._world, actor=f"cardvault:{self._settings.environment}")
        while True:
            try:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._store_threads, expire)
                # Keys of one-time tokens that were redeemed are overwritten in place; their old bytes leave here.
                await loop.run_in_executor(self._store_threads, self._store.tidy)
            except StoreUnavailable as e:
                _log.warning("sweep.failed", reason=e.reason)
            except Exception as e:  # noqa: BLE001 - the sweep must go on; the next one tries again
                _log.error("sweep.failed", where=where(e))
            await asyncio.sleep(SWEEP_EVERY.total_seconds())

    def _hear_of_the_log(self, log_process: LogProcess) -> None:
        try:
            if log_process.hear():
                return
            asyncio.get_running_loop().remove_reader(log_process.news)
            self._is_set_back = log_process.saw_the_database_set_back()
        except Exception as e:  # noqa: BLE001 - what cannot be understood is no reason to go on without a log
            asyncio.get_running_loop().remove_reader(log_process.news)
            _log.critical("audit.failed", where=where(e))
        if not self._is_set_back:
            _log.critical("audit.process_gone")
        self._hopeless.set()

    async def _keep_retaining(self) -> None:
        """Erases what may be kept no longer, one server at a time; the others come by and see that it was done."""
        world = self._operator_world()
        retain = Retain(world=world, limits=self._settings.retention.limits())
        every = timedelta(minutes=self._settings.retention.sweep_minutes)

        def sweep() -> None:
            last = retain.last_completed()
            # In step with each other rather than one after the other; a time that lies ahead was a wrong clock's.
            if last is not None and timedelta() <= world.clock.now() - last < every * 0.9:
                return
            report = retain(self._as_operator("retention"), progress=self._gently)
            if report.failures:
                _log.error("retention.failed", count=len(report.failures), reason=report.failures[0].reason)

        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(self._retention_thread, sweep)
            except CardVaultError as e:
                # Another server may be at it; and what fails now is tried again.
                _log.info("retention.postponed", reason=e.reason)
            except Exception as e:  # noqa: BLE001 - the chore must go on; the next round tries again
                _log.error("retention.failed", where=where(e))
            await asyncio.sleep(every.total_seconds())

    def _gently(self, _done: int, _total: int, /) -> None:
        """Leave the database to callers between two pages, and end where the server does."""
        if self._stops.wait(PAGE_PAUSE.total_seconds()):
            raise Exhausted("server_stopping")

    async def _keep_maintaining(self) -> None:
        """The daily care of the one-time key, where the file gives this process the operator's login."""
        login = self._settings.vault.operator
        assert login is not None, "asked before"
        session = self._open_vault("operator", login, connections=2)
        maintain = MaintainOnceKey(world=self._operator_world(), keys=OperatorTransit(session))
        while True:
            operator = self._as_operator("daily")
            try:
                await asyncio.get_running_loop().run_in_executor(self._check_threads, maintain, operator)
            except CardVaultError as e:
                # Another server may be at it; and what fails now is tried again.
                _log.info("maintain.postponed", reason=e.reason)
            except Exception as e:  # noqa: BLE001 - the chore must go on; the next round tries again
                _log.error("maintain.failed", where=where(e))
            await asyncio.sleep(MAINTAIN_EVERY.total_seconds())

    def _operator_world(self) -> OperatorWorld:
        world = self._world
        return OperatorWorld(environment=world.environment, store=self._store, clock=world.clock, entropy=world.entropy)

    def _as_operator(self, reason: str) -> Operator:
        """Who does what the server does by itself."""
        return Operator(
            name=f"cardvault:{self._world.environment}",
            reason=reason,
            command_id=RequestId.from_random(self._world.entropy.bytes(RANDOM_BYTES)),
        )

    # --- preflight --------------------------------------------------------------------------------------------------

    def _environment_problems(self) -> list[str]:
        """A database belongs to one environment for ever (PCI DSS 6.5.3)."""
        with self._store.reading() as tx:
            label = tx.setting(_ENVIRONMENT)
        if label is None:
            with self._store.writing() as tx:
                tx.put_setting(_ENVIRONMENT, self._settings.environment)
            return []
        if label != self._settings.environment:
            return [f"environment: this database belongs to '{label}', not '{self._settings.environment}'"]
        return []

    def _log_problems(self) -> list[str]:
        """Why the log as it is must not be gone on with. Raises `StoreUnavailable`, `CopyTrouble`."""
        directory = self._settings.audit.directory
        return log_problems(self._store, Directory(directory) if directory is not None else None)

    def _lock_sqlite(self) -> None:
        """One server for one SQLite file; operator commands may work beside it."""
        if self._store.kind is not Engine.SQLITE:
            return
        path = sqlite.path_from(self._settings.database.url)
        lock = os.open(Path(f"{path}.server-lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise StartRefused([f"database: another server already uses {path}"]) from None
        self._lock = lock


def _by_idempotency_key(command: TokenizeCommand | IssueGrantCommand) -> Hashable:
    """Repeats of one request settle one after the other."""
    key = command.idempotency_key
    return (command.caller.known.tenant, key) if key is not None else None


def _cards_in(command: BatchTokenizeCommand) -> int:
    return len(command.items)


def _checked_once(inspect: Callable[[], Sequence[str]], probe: Callable[[], None]) -> Callable[[], None]:
    """A probe that first makes sure, once, that the keys in Vault have the right flags (PCI DSS 3.6.1)."""
    inspected = False

    def checked() -> None:
        nonlocal inspected
        if not inspected:
            problems = inspect()
            for problem in problems:
                _log.error("vault.key_flags", problem=problem)
            if problems:
                raise KeyRingUnavailable("key_flags")
            inspected = True
        probe()

    return checked

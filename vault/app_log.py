"""Puts together what keeps the log, in a process of its own beside a server.

There because a thread would take turns with the calls at the interpreter's lock, and because whoever takes over the
process that hears the callers then holds no login that signs checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import structlog

from vault.audit.copy import CopyTrouble, Directory
from vault.audit.keeper import SHRANK, LogKeeper
from vault.audit.sequencer import Checkpointer, Pace
from vault.companion import Companion, Side
from vault.config import Settings
from vault.domain.errors import CardVaultError
from vault.keyring.operator import CheckpointerTransit
from vault.keyring.session import VaultSession
from vault.parts import open_store, open_vault
from vault.prefork import EXIT_OK, EXIT_REFUSED
from vault.system import SystemClock, settle_memory
from vault.telemetry import where

LOG_EVERY = timedelta(seconds=1)
ENDING = timedelta(seconds=5)
"""What a round may take once the server ends. It may be cut off at any point: the log stays as it was before it."""

_log = structlog.get_logger()


class LogProcess:
    """The process that keeps the log, as the server beside it sees it."""

    def __init__(self, companion: Companion) -> None:
        self._companion = companion
        self._token_ends_at: float | None = None

    @classmethod
    def fork(cls, settings: Callable[[], Settings]) -> LogProcess:
        """To be called by a process of one thread. It asks for settings when it begins. Raises `OSError`."""
        return cls(Companion.fork(partial(_keep, settings)))

    @property
    def news(self) -> int:
        """A descriptor that is readable when `hear` is to be called; closed by `end`."""
        return self._companion.news

    @property
    def token_ends_in(self) -> float | None:
        """Seconds until the login that signs ends unless it is renewed; None if that is not known."""
        return None if self._token_ends_at is None else self._token_ends_at - time.time()

    def begin(self) -> None:
        """Keep the log: the database was found to be the one that it was."""
        self._companion.begin()

    def hear(self) -> bool:
        """Take in what it tells; False if it is gone for good."""
        lines = self._companion.hear()
        if lines:
            self._token_ends_at = float(lines[-1])
        return lines is not None

    def let_go(self) -> None:
        """Let it finish its round."""
        self._companion.let_go()

    def end(self) -> None:
        """Wait until it did."""
        self._companion.end(ENDING)

    def saw_the_database_set_back(self) -> bool:
        """Whether that is why it is gone."""
        return self._companion.end(ENDING) == EXIT_REFUSED


def keeps_log(settings: Settings) -> bool:
    """Whether there is anything of the log that this server is to do."""
    section = settings.audit
    return section.sequence or section.directory is not None or settings.vault.checkpointer is not None


def _keep(settings_of: Callable[[], Settings], side: Side) -> int:
    settings = settings_of()
    store = open_store(settings)
    session = None
    checkpointer = None
    if settings.vault.checkpointer is not None:
        session = open_vault(settings, settings.vault.checkpointer, connections=1)
        checkpointer = Checkpointer(
            store=store,
            signer=CheckpointerTransit(session),
            clock=SystemClock(),
            environment=settings.environment,
            pace=Pace(settings.audit.checkpoint_events, timedelta(seconds=settings.audit.checkpoint_seconds)),
        )
    directory = Directory(settings.audit.directory) if settings.audit.directory is not None else None
    keeper = LogKeeper(store=store, sequence=settings.audit.sequence, checkpointer=checkpointer, directory=directory)
    settle_memory()
    try:
        return _rounds(keeper, side, _News(side, session))
    finally:
        if session is not None:
            session.close()
        store.close()


def _rounds(keeper: LogKeeper, side: Side, tell: Callable[[], None]) -> int:
    while True:
        try:
            keeper.turn()
        except CardVaultError as e:
            _log.warning("audit.behind", reason=e.reason)
            if e.reason == SHRANK:
                return EXIT_REFUSED
        except CopyTrouble as e:
            _log.error("audit.copy_failed", problem=str(e))
        except Exception as e:  # noqa: BLE001 - the chore must go on; the next round tries again
            _log.error("audit.failed", where=where(e))
        tell()
        if side.is_over(LOG_EVERY):
            return EXIT_OK


class _News:
    """Tells when the token ends, each time that it is another."""

    def __init__(self, side: Side, session: VaultSession | None) -> None:
        self._side = side
        self._session = session
        self._told = 0

    def __call__(self) -> None:
        left = None if self._session is None else self._session.token_ends_in
        if left is None:
            return
        ends_at = round(time.time() + left)
        if abs(ends_at - self._told) > 1 and self._side.tell(str(ends_at)):
            self._told = ends_at

"""What operator commands share on the terminal: who is at it, patience, pace, progress, exit codes."""

from __future__ import annotations

import getpass
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import stamina
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vault.app_operator import MissingLogin, OperatorTools
from vault.config_file import ConfigProblems, load_for_operator
from vault.domain.errors import CardVaultError, Kind, Unavailable
from vault.domain.ids import RANDOM_BYTES, RequestId
from vault.domain.pan import contains_pan
from vault.hardening import harden
from vault.system import settle_memory
from vault.usecases.operating import Operator

EXIT_OK = 0
EXIT_FAILED = 1
"""It was tried and did not work out, or not for every card."""
EXIT_USAGE = 2
EXIT_DUE = 3
EXIT_OVERDUE = 4
EXIT_REFUSED = 5
"""A condition does not hold; nothing was done."""
EXIT_INTERRUPTED = 130
"""Ctrl-C: 128 and the number of the signal."""

MAX_REASON_CHARACTERS = 200

T = TypeVar("T")

# We say ourselves when something is tried again; a library's notice on stdout would spoil the JSON there.
stamina.instrumentation.set_on_retry_hooks([])

_HOPELESS = frozenset(
    {"vault_forbidden", "vault_key_missing", "vault_key_version_retired", "vault_login_file", "key_flags"}
    | {"database_error", "database_pooled", "database_readonly"}
)
"""Reasons that waiting does not mend."""


class Terminal:
    """Where a command speaks: tables and bars for people, JSON for machines; trouble goes to stderr."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.out = Console()
        self.err = Console(stderr=True)

    def say(self, text: str) -> None:
        """For people."""
        if not self.as_json:
            self.out.print(text, highlight=False, markup=False, soft_wrap=True)

    def trouble(self, text: str) -> None:
        """For people, also when machines read."""
        self.err.print(text, highlight=False, markup=False, soft_wrap=True)

    def result(self, facts: Mapping[str, Any]) -> None:
        """For machines."""
        if self.as_json:
            sys.stdout.write(json.dumps(facts, indent=2, default=_as_json) + "\n")


def _as_json(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


@contextmanager
def operating(config: Path) -> Iterator[OperatorTools]:
    """Everything a command needs; ends the command where the configuration does not allow it.

    `verify`, `rekey` and a rewrap's proof hold cards and keys in clear, as a server does.
    """
    harden()
    settle_memory()
    try:
        tools = OperatorTools(load_for_operator(config))
    except ConfigProblems as e:
        for problem in e.problems:
            typer.echo(f"  - {problem}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    try:
        _refuse_foreign_database(tools)
        yield tools
    finally:
        tools.close()


def _refuse_foreign_database(tools: OperatorTools) -> None:
    """Under another environment's label nothing would open, and each card would raise a false alarm."""
    try:
        with tools.world.store.reading() as tx:
            label = tx.setting("environment")
    except CardVaultError:
        return  # the command itself will say so, or wait
    if label is not None and label != tools.world.environment:
        typer.echo(
            f"the database belongs to environment '{label}', the file says '{tools.world.environment}'; "
            "nothing was done",
            err=True,
        )
        raise typer.Exit(EXIT_REFUSED)


CARRIES_ON = "stopped: nothing is lost, and the same command goes on from here"

_interrupted = threading.Event()
"""Set by Ctrl-C, so that a worker thread that waits for Vault gives up as well."""


def is_interrupted() -> bool:
    """Whether Ctrl-C was pressed."""
    return _interrupted.is_set()


def _interrupt(_signal: int, _frame: object) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


def ending(terminal: Terminal, command: Callable[[], int], *, stopped: str = CARRIES_ON) -> int:
    """Run a command; errors and Ctrl-C become words and exit codes."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a shell does for what runs in the background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        return command()
    except KeyboardInterrupt:
        terminal.trouble(stopped)
        terminal.result({"error": "interrupted", "message": stopped})
        return EXIT_INTERRUPTED
    except MissingLogin as e:
        terminal.trouble(e.message)
        terminal.result({"error": e.reason, "message": e.message})
        return EXIT_USAGE
    except CardVaultError as e:
        text = e.message if e.kind in (Kind.PRECONDITION, Kind.CONTENTION) else in_words(e.reason)
        terminal.trouble(text)
        terminal.result({"error": e.reason, "message": text})
        return EXIT_REFUSED if e.kind in (Kind.PRECONDITION, Kind.CONTENTION) else EXIT_FAILED
    finally:
        signal.signal(signal.SIGINT, before)


_WORDS = {
    "vault_unreachable": "Vault cannot be reached at the address in the file",
    "vault_sealed": "Vault is sealed",
    "vault_timeout": "Vault does not answer in time",
    "vault_forbidden": "Vault refused the login: look at its files, or run `cardvault vault renew-login`",
    "vault_login_file": "a login's file cannot be read",
    "vault_key_version_retired": "a card is wrapped under a version that is retired: see `cardvault keys status`",
    "database_pooled": "there is a connection pooler before PostgreSQL: name the server itself in database.url",
    "database_unreachable": "the database cannot be reached; a new one is made by `cardvault db upgrade`",
}


def in_words(reason: str) -> str:
    """A reason as a person would say it, with the code behind it."""
    return f"{_WORDS[reason]} ({reason})" if reason in _WORDS else reason


def confirmed(terminal: Terminal, warning: str, *, yes: bool) -> bool:
    """Whether the operator wants it all the same; without a terminal only --yes says so."""
    if yes:
        return True
    terminal.trouble(warning)
    if not sys.stdin.isatty():
        terminal.trouble("nobody is here to ask: give --yes")
        return False
    return typer.confirm("Go on?", default=False, err=True)


def operator_now(tools: OperatorTools, reason: str) -> Operator:
    """Who is at the terminal. Ends the command if the reason, which is kept for ever, holds a card number."""
    if not reason.strip() or contains_pan(reason) or len(reason) > MAX_REASON_CHARACTERS or not reason.isprintable():
        raise typer.BadParameter(
            f"must be 1 to {MAX_REASON_CHARACTERS} plain characters and hold no card number", param_hint="--reason"
        )
    return Operator(
        name=f"operator:{getpass.getuser()}@{socket.gethostname()}",
        reason=reason,
        command_id=RequestId.from_random(tools.world.entropy.bytes(RANDOM_BYTES)),
    )


@dataclass(frozen=True, slots=True)
class Patience:
    """Implements `usecases.operating.Persist`: waits while Vault or the database are away, and says so."""

    terminal: Terminal
    give_up_after: timedelta

    def __call__(self, work: Callable[[], T], /) -> T:
        """The result of `work`."""
        attempts = stamina.retry_context(
            on=_may_pass,
            attempts=None,
            timeout=self.give_up_after,
            wait_initial=0.2,
            wait_max=10.0,
        )
        for attempt in attempts:
            with attempt:
                try:
                    return work()
                except Unavailable as e:
                    if _may_pass(e):
                        self.terminal.trouble(f"paused: {e.reason}; trying again")
                    raise
        raise AssertionError("the last attempt raises")


def _may_pass(error: Exception) -> bool:
    return isinstance(error, Unavailable) and error.reason not in _HOPELESS and not _interrupted.is_set()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Cards a second."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


class Watch:
    """Implements `usecases.operating.Progress`: a bar on a terminal, a line now and then elsewhere; keeps the pace."""

    def __init__(self, terminal: Terminal, what: str, *, max_rate: float | None) -> None:
        self._terminal = terminal
        self._what = what
        self._max_rate = max_rate
        self._began = time.monotonic()
        self._spoke = self._began
        columns: Sequence[ProgressColumn] = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=terminal.err, transient=False)
        self._task = self._bar.add_task(what, total=None)
        self._is_shown = terminal.err.is_terminal

    def __enter__(self) -> Watch:
        if self._is_shown:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            self._bar.stop()

    def __call__(self, done: int, total: int, /) -> None:
        """After each page."""
        elapsed = time.monotonic() - self._began
        if self._is_shown:
            self._bar.update(self._task, completed=done, total=max(total, done))
        elif time.monotonic() - self._spoke >= 5:
            self._spoke = time.monotonic()
            self._terminal.trouble(f"{self._what}: {done} of {total}, {done / max(elapsed, 0.001):,.0f}/s")
        if self._max_rate is not None:
            time.sleep(max(0.0, done / self._max_rate - elapsed))

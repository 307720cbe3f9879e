"""How a use case works through a batch: several rounds, one transaction each, every command with a fate of its own.

A round tries everything that is left. What lost a race (another caller stored the same card or claimed the same
idempotency key a moment ago) goes into the next round, where it meets the winner's result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Generic, TypeVar

from vault.domain.audit import AuditEvent, Outcome, event_by
from vault.domain.caller import Caller
from vault.domain.errors import CardVaultError, Contention, Unavailable
from vault.domain.ids import DATED_RANDOM_BYTES, EventId
from vault.ports import Clock, Entropy, Store

MAX_ROUNDS = 24
"""A round is lost only to another batch that won it: this bounds how many may be ahead in the queue for one thing."""
ONE_ROW_S_TROUBLE = frozenset({"database_error", "row_unreadable"})
"""Reasons of a `StoreUnavailable` after which the transaction was rolled back, and others may fare better."""

C = TypeVar("C")
R = TypeVar("R")


class RollBack(Exception):
    """Leaves a transaction in which nothing came about."""


@dataclass(slots=True)
class Attempt(Generic[C, R]):
    """One command on its way; ends with either `result` or `error`."""

    command: C
    caller: Caller
    result: R | None = None
    error: CardVaultError | None = None

    @property
    def is_open(self) -> bool:
        """Whether it still waits for its fate."""
        return self.result is None and self.error is None

    def outcome(self) -> R | CardVaultError:
        """Result or error."""
        if self.error is not None:
            return self.error
        assert self.result is not None, "every attempt ends"
        return self.result


A = TypeVar("A", bound="Attempt[Any, Any]")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What every use case needs."""

    environment: str
    """Label of this installation; part of every binding, so test data never opens in production."""
    store: Store
    clock: Clock
    entropy: Entropy

    def new_event_id(self, now: datetime) -> EventId:
        """A fresh id for an audit event of this time."""
        return EventId.drawn(now, self.entropy.bytes(DATED_RANDOM_BYTES))


@dataclass(slots=True)
class Journal:
    """Collects a transaction's audit events; errors raised from here on count as audited once it is committed."""

    world: World
    event: str
    events: list[AuditEvent] = field(default_factory=list)
    refused: list[CardVaultError] = field(default_factory=list)

    def refuse(
        self,
        attempt: A,
        error: CardVaultError,
        *,
        event: str | None = None,
        outcome: Outcome = Outcome.REFUSED,
        **what: Any,
    ) -> None:
        """End an attempt with an error and record it."""
        attempt.error = error
        self.refused.append(error)
        now = self.world.clock.now()
        self.events.append(
            event_by(
                attempt.caller,
                event_id=self.world.new_event_id(now),
                now=now,
                event=event or self.event,
                outcome=outcome,
                reason=error.reason,
                **what,
            )
        )

    def committed(self) -> None:
        """Call after the transaction."""
        for error in self.refused:
            error.audited = True


def run_rounds(attempts: Sequence[A], one_round: Callable[[Sequence[A]], None]) -> None:
    """Run rounds until every attempt has ended. Trouble in one round ends only those that took part in it.

    An attempt whose error came from a round that failed as a whole is *unknown*, not refused; definite errors that a
    failed transaction had prepared are withdrawn with it. Where the database itself refused a statement, or a row is
    none that this release can read, the round was rolled back, and each attempt is tried alone: one bad item never
    fails its neighbours.
    """
    for _ in range(MAX_ROUNDS):
        waiting = [attempt for attempt in attempts if attempt.is_open]
        if not waiting:
            return
        if _try(waiting, one_round) is Trouble.ROLLED_BACK_BY_DATABASE:
            for attempt in waiting:
                attempt.result = attempt.error = None
                _try([attempt], one_round)
    for attempt in attempts:
        if attempt.is_open:
            attempt.error = Contention("too_many_rounds")


class Trouble(Enum):
    """Why a round came to nothing."""

    NONE = 0
    OTHER = 1
    ROLLED_BACK_BY_DATABASE = 2


def _try(waiting: Sequence[A], one_round: Callable[[Sequence[A]], None]) -> Trouble:
    try:
        one_round(waiting)
    except RollBack:
        for attempt in waiting:
            attempt.result = attempt.error = None
    except Unavailable as trouble:
        for attempt in waiting:
            attempt.result = None
            attempt.error = trouble
        by_database = trouble.reason in ONE_ROW_S_TROUBLE and len(waiting) > 1
        return Trouble.ROLLED_BACK_BY_DATABASE if by_database else Trouble.OTHER
    return Trouble.NONE

"""What operator commands share: who gives them and why, how they wait for trouble to pass, how they report progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from vault.domain.audit import AuditEvent, Outcome
from vault.domain.ids import DATED_RANDOM_BYTES, EventId, RequestId
from vault.ports import Clock, Entropy
from vault.ports_operator import CardKey, OperatorStore

T = TypeVar("T")

PAGE = 200
"""Cards in one batch: what one Vault call carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who gives a command, and why; both stand in every audit event of it."""

    name: str
    reason: str
    command_id: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorWorld:
    """What operator commands need beside keys."""

    environment: str
    store: OperatorStore
    clock: Clock
    entropy: Entropy

    def event(
        self,
        operator: Operator,
        name: str,
        *,
        tenant: str = "",
        customer: str = "",
        target: str = "",
        outcome: Outcome = Outcome.OK,
        **details: str | int,
    ) -> AuditEvent:
        """An audit event of a command."""
        now = self.clock.now()
        return AuditEvent(
            event_id=EventId.drawn(now, self.entropy.bytes(DATED_RANDOM_BYTES)),
            occurred_at=now,
            event=name,
            outcome=outcome,
            reason=operator.reason,
            actor=operator.name,
            actor_certificate="",
            role="operator",
            peer="",
            request_id=operator.command_id,
            tenant=tenant,
            customer=customer,
            target=target,
            details=details,
        )


class Persist(Protocol):
    """Runs something again after a pause while Vault or the database are away, and gives up after a while.

    It says so to whoever watches. Only for what may safely be done twice.
    """

    def __call__(self, work: Callable[[], T], /) -> T:
        """The result of `work`. Raises its last trouble."""


def at_once(work: Callable[[], T], /) -> T:
    """A `Persist` that never waits."""
    return work()


class Progress(Protocol):
    """Watches a long walk."""

    def __call__(self, done: int, total: int, /) -> None:
        """`done` of about `total` cards are behind; called after each page, and the place to slow down."""


def unwatched(_done: int, _total: int, /) -> None:
    """A `Progress` that nobody watches."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One card that could not be treated; it was left as it was."""

    card: CardKey
    reason: str

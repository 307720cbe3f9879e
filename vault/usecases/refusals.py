"""Records calls that were refused before a use case saw them: wrong role, bad input, a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vault.domain.audit import Outcome, event_by
from vault.domain.caller import Caller
from vault.domain.errors import CardVaultError, Kind
from vault.usecases.batch import Attempt, World, run_rounds

_TROUBLE = frozenset({Kind.EXHAUSTED, Kind.CONTENTION, Kind.UNAVAILABLE})
"""Kinds that are trouble or overload, not a refusal of this caller; the log has them."""


def needs_event(error: CardVaultError) -> bool:
    """Whether this refusal is still to be recorded."""
    return not error.audited and error.kind not in _TROUBLE


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCall:
    """A call that was refused at the door."""

    caller: Caller
    event: str
    method: str
    reason: str
    field: str = ""


class RecordRefusals:
    """The use case; call it with a batch."""

    def __init__(self, *, world: World) -> None:
        self._world = world

    def __call__(self, calls: Sequence[RefusedCall]) -> Sequence[bool | CardVaultError]:
        """Commit one event for each; one that cannot be recorded ends in `StoreUnavailable`."""
        attempts: list[Attempt[RefusedCall, bool]] = [Attempt(call, call.caller) for call in calls]
        run_rounds(attempts, self._round)
        return [attempt.outcome() for attempt in attempts]

    def _round(self, attempts: Sequence[Attempt[RefusedCall, bool]]) -> None:
        now = self._world.clock.now()
        with self._world.store.writing() as tx:
            tx.append_events(
                [
                    event_by(
                        attempt.caller,
                        event_id=self._world.new_event_id(now),
                        now=now,
                        event=attempt.command.event,
                        outcome=Outcome.REFUSED,
                        reason=attempt.command.reason,
                        details={"method": attempt.command.method}
                        | ({"field": attempt.command.field} if attempt.command.field else {}),
                    )
                    for attempt in attempts
                ]
            )
        for attempt in attempts:
            attempt.result = True

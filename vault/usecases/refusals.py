"""Records calls that were refused before a use case saw them: wrong role, bad input, a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vault.domain.audit import Outcome, event_by
from vault.domain.caller import Caller
from vault.domain.errors import CardVaultError
from vault.usecases.batch import World


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
        """Commit one event for each. Raises `StoreUnavailable` if that is not possible."""
        now = self._world.clock.now()
        with self._world.store.writing() as tx:
            tx.append_events(
                [
                    event_by(
                        call.caller,
                        event_id=self._world.new_event_id(),
                        now=now,
                        event=call.event,
                        outcome=Outcome.REFUSED,
                        reason=call.reason,
                        details={"method": call.method} | ({"field": call.field} if call.field else {}),
                    )
                    for call in calls
                ]
            )
        return [True] * len(calls)

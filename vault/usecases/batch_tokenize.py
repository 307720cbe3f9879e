"""Takes many consented cards in with one call: each as `Tokenize` would, with its own fate and its own event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vault.domain.caller import Caller
from vault.domain.errors import CardVaultError, Unavailable
from vault.usecases.refusals import RefusedCall, needs_event
from vault.usecases.tokenize import EVENT, TokenizeCommand, Tokenized

MAX_ITEMS = 200
"""Of one call: what one trip to Vault can carry."""

Results = tuple[Tokenized | CardVaultError, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTokenizeCommand:
    """The items of one call in their order; one that failed its checks is here as its error."""

    caller: Caller
    items: tuple[TokenizeCommand | CardVaultError, ...]


class BatchTokenize:
    """The use case; call it with the calls of a batch."""

    def __init__(
        self,
        *,
        tokenize: Callable[[Sequence[TokenizeCommand]], Sequence[Tokenized | CardVaultError]],
        record: Callable[[Sequence[RefusedCall]], Sequence[bool | CardVaultError]],
    ) -> None:
        self._tokenize = tokenize
        self._record = record

    def __call__(self, calls: Sequence[BatchTokenizeCommand]) -> Sequence[Results]:
        """One outcome for each item of each call. A refusal that cannot be recorded ends in `Unavailable`."""
        done = iter(
            self._tokenize([item for call in calls for item in call.items if isinstance(item, TokenizeCommand)])
        )
        results = [[next(done) if isinstance(item, TokenizeCommand) else item for item in call.items] for call in calls]
        refused = [
            (call.caller, found, place, error)
            for call, found in zip(calls, results, strict=True)
            for place, error in enumerate(found)
            if isinstance(error, CardVaultError) and needs_event(error)
        ]
        events = [
            RefusedCall(caller=caller, event=EVENT, method="BatchTokenize", reason=error.reason, field=error.field)
            for caller, _, _, error in refused
        ]
        for (_, found, place, error), recorded in zip(refused, self._record(events) if events else (), strict=True):
            if recorded is True:
                error.audited = True
            else:
                found[place] = Unavailable("audit_unavailable")
        return [tuple(found) for found in results]

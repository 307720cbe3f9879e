"""What the server does by itself from time to time."""

from __future__ import annotations

from vault.domain.audit import AuditEvent, Outcome
from vault.domain.ids import RANDOM_BYTES, RequestId
from vault.usecases.batch import RollBack, World

SWEEP_ROWS = 500


class ExpireOnceKeys:
    """Destroys the wrapped keys of one-time tokens whose time is over (PCI DSS 3.2.1, 3.3.2)."""

    def __init__(self, *, world: World, actor: str) -> None:
        self._world = world
        self._actor = actor

    def __call__(self) -> int:
        """Sweep until nothing is left; returns how many keys were destroyed. Raises `StoreUnavailable`."""
        destroyed = 0
        while True:
            swept = self._sweep()
            destroyed += swept
            if swept < SWEEP_ROWS:
                return destroyed

    def _sweep(self) -> int:
        now = self._world.clock.now()
        try:
            with self._world.store.writing() as tx:
                swept = tx.expire_once_keys(now=now, limit=SWEEP_ROWS)
                if swept == 0:
                    raise RollBack
                tx.append_events(
                    [
                        AuditEvent(
                            event_id=self._world.new_event_id(now),
                            occurred_at=now,
                            event="once.expired",
                            outcome=Outcome.OK,
                            reason="",
                            actor=self._actor,
                            actor_certificate="",
                            role="server",
                            peer="",
                            request_id=RequestId.from_random(self._world.entropy.bytes(RANDOM_BYTES)),
                            details={"keys": swept},
                        )
                    ]
                )
        except RollBack:
            return 0
        return swept

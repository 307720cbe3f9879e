"""Writes an embedded database's file anew, so that no copy is left of what was moved before it was erased."""

from __future__ import annotations

from dataclasses import dataclass

from vault.domain.errors import PreconditionFailed
from vault.ports_operator import Compacted, OperatorStore
from vault.usecases.operating import Operator, OperatorWorld

COMPACTED = "database.compacted"
LOCK = "compaction"


@dataclass(frozen=True, slots=True)
class Left:
    """A database whose file may hold remains of erased cards."""

    erased: int
    """Cards erased since the file was last written anew."""
    size: int
    """Bytes of the file."""
    is_small: bool
    """Whether servers write it anew by themselves."""


def left_over(store: OperatorStore) -> Left | None:
    """What erasures since the last time may have left; None if there were none, and on PostgreSQL.

    Raises `StoreUnavailable`.
    """
    size = store.file_size()
    if size is None:
        return None
    with store.reading() as tx:
        erased = tx.count_erased_since_compaction()
    return Left(erased, size, store.compacts_by_itself(size)) if erased else None


class Compact:
    """The use case of `retention compact`."""

    def __init__(self, *, world: OperatorWorld) -> None:
        self._world = world

    def __call__(self, operator: Operator) -> Compacted:
        """Write the file anew, and record it.

        Raises `PreconditionFailed` if it was left as it was, `Busy`, `StoreUnavailable`.
        """
        store = self._world.store
        if store.file_size() is None:
            raise PreconditionFailed(
                "not_sqlite",
                message="this is for SQLite: on PostgreSQL the owner runs `VACUUM FULL card_secrets, cards` in a quiet "
                "hour (it locks the tables); the write-ahead log, its archive, replicas and backups keep erased rows "
                "until they are recycled or expire: SECURITY.md, What deletion leaves behind; nothing was done",
            )
        with store.exclusively(LOCK):
            with store.reading() as tx:
                erased = tx.count_erased()
            compacted = store.write_anew()
            event = self._world.event(
                operator,
                COMPACTED,
                bytes_before=compacted.bytes_before,
                bytes_after=compacted.bytes_after,
                clear=int(compacted.is_clear),
            )
            with store.writing() as tx:
                if compacted.is_clear:
                    tx.note_compacted(erased)
                tx.append_events([event])
        return compacted

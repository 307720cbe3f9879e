"""The log's care while servers run: places for new events, checkpoints, the copy elsewhere; and the gate at start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import islice

from vault.audit.checkpoint import VerifierKey, read
from vault.audit.copy import SEGMENT, Directory, LogShrank, Shipper
from vault.audit.merkle import BadProof, Tree, leaf_hash
from vault.audit.sequencer import Checkpointer, Recent, Sequencer
from vault.domain.errors import KeyRingUnavailable, StoreUnavailable
from vault.ports_audit import LogStore
from vault.ports_operator import Busy

SHRANK = "audit_log_shrank"
RESTORED = (
    "the log in the database is shorter than, or not the one, that was kept in {}: the database was restored from a "
    "backup, or tampered with. Run `cardvault restore reconcile`, or `cardvault audit verify`"
)


class LogKeeper:
    """What one process does for the log. Another process may do the same: each part is done by one at a time."""

    def __init__(
        self, *, store: LogStore, sequence: bool, checkpointer: Checkpointer | None, directory: Directory | None
    ) -> None:
        recent = Recent()
        self._sequencer = Sequencer(store, recent=recent) if sequence else None
        self._checkpointer = checkpointer
        self._shipper = Shipper(store=store, sink=directory, recent=recent) if directory is not None else None
        self._keys: tuple[VerifierKey, ...] = ()

    def turn(self) -> None:
        """One round. Raises `KeyRingUnavailable`, `StoreUnavailable`, `CopyTrouble`; the next round tries again.

        The reason `SHRANK` is not to be tried again: the database was set back.
        """
        # One part that cannot go on holds up no other: above all, a database that was set back must be noticed.
        troubles = [
            trouble for part in (self._sequence, self._checkpoint) if (trouble := _trouble_of(part)) is not None
        ]
        if self._shipper is not None:
            try:
                with suppress(Busy):
                    self._shipper(self._keys)
            except LogShrank:
                raise StoreUnavailable(SHRANK) from None
        if troubles:
            raise troubles[0]

    def _sequence(self) -> None:
        if self._sequencer is not None:
            self._sequencer()

    def _checkpoint(self) -> None:
        if self._checkpointer is None:
            return
        signed = self._checkpointer()
        if signed is not None or not self._keys:
            self._keys = self._checkpointer.keys()


def _trouble_of(part: Callable[[], None]) -> KeyRingUnavailable | StoreUnavailable | None:
    try:
        with suppress(Busy):
            part()
    except (KeyRingUnavailable, StoreUnavailable) as e:
        return e
    return None


def problems(store: LogStore, directory: Directory | None) -> list[str]:
    """Why the log as it is must not be gone on with. Raises `StoreUnavailable`, `CopyTrouble`."""
    if directory is None:
        return []
    return [RESTORED.format(directory.path)] if set_back(store, directory) else []


def set_back(store: LogStore, directory: Directory) -> bool:
    """Whether the log in the database is shorter than, or not the one, that was kept. Raises as `problems` does."""
    held, newest = directory.size(), directory.newest_checkpoint()
    start = max(0, held - SEGMENT)
    tail = [leaf_hash(line) for line in islice(directory.leaves(start), held - start)]
    with store.reading() as tx:
        if tx.log_head().size < max(held, newest):
            return True
        try:
            # The root alone decides: keys that lag behind a rotation of the signing key are no reason to stay down.
            is_same = not newest or Tree(tx.log_nodes).root(newest) == read(directory.note(newest)).root
        except BadProof:
            is_same = False
        # Beyond the checkpoint too: a database that was set back may have grown again since.
        return not is_same or list(tx.log_nodes(0, start, held - start)) != tail

"""Gives committed events their places in the log, and signs how far it is. Requests never wait for either.

One process at a time does each, by a lock of the database; even without that lock the row of the log's head lets only
one of two appends through. A crash leaves the log as it was before or after a batch, never between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice

from vault.audit import leaf
from vault.audit.checkpoint import BadCheckpoint, Checkpoint, VerifierKey, note, opened, origin_of
from vault.audit.merkle import BadProof, Frontier, Tree, leaf_hash
from vault.domain.audit import AuditEvent
from vault.domain.errors import StoreUnavailable
from vault.ports import Clock
from vault.ports_audit import LogHead, LogStore, LogWriter, NewLeaf, NewNode, StoredCheckpoint
from vault.ports_operator import Signer

BATCH = 500
"""Events in one append: on SQLite a request's commit may have to wait for that."""
MOVED = "audit_log_moved"
INCONSISTENT = "audit_log_inconsistent"


@dataclass(frozen=True, slots=True)
class Pace:
    """When a checkpoint is due: whichever comes first, if there is anything new at all."""

    events: int = 1000
    after: timedelta = timedelta(seconds=10)


class Recent:
    """The lines that were given the last places in the log, so that who copies them need not read them again.

    Only where they are what the log in the database says: it is asked for their hashes.
    """

    KEPT = 10_000

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=self.KEPT)
        self._end = 0

    def add(self, start: int, lines: Sequence[bytes]) -> None:
        """Lines that were just added at a place."""
        if start != self._end:
            self._lines.clear()
        self._lines.extend(lines)
        self._end = start + len(lines)

    def lines(self, start: int, hashes: Sequence[bytes]) -> Sequence[bytes] | None:
        """The lines from a place on, if they are known and have these leaf hashes."""
        first = self._end - len(self._lines)
        if start < first or start + len(hashes) > self._end:
            return None
        lines = tuple(islice(self._lines, start - first, start - first + len(hashes)))
        return lines if [leaf_hash(line) for line in lines] == list(hashes) else None


class Sequencer:
    """Moves events from the queue into the log."""

    def __init__(self, store: LogStore, *, recent: Recent | None = None) -> None:
        self._store = store
        self._recent = recent

    def __call__(self, *, limit: int | None = None) -> int:
        """Append what waits, about `limit` events at most; returns how many.

        Raises `Busy` while another process is at it, `StoreUnavailable`.
        """
        with self._store.reading() as tx:
            if not tx.queued_events(1):
                return 0
        done = 0
        with self._store.exclusively("audit-sequencer"):
            while limit is None or done < limit:
                moved = self._batch()
                done += moved
                if moved < BATCH:
                    break
        return done

    def _batch(self) -> int:
        # Read and hashed before the transaction that writes, so that nobody's commit waits for that.
        with self._store.reading() as tx:
            waiting = tx.queued_events(BATCH)
            head = tx.log_head()
        if not waiting:
            return 0
        addition = Addition.after(head, [each.event for each in waiting])
        with self._store.writing() as tx:
            addition.append(tx, numbers=[each.number for each in waiting])
        if self._recent is not None:
            self._recent.add(addition.before.size, addition.lines)
        return len(waiting)


@dataclass(frozen=True, slots=True)
class Addition:
    """The next piece of the log."""

    before: LogHead
    after_head: LogHead
    leaves: Sequence[NewLeaf]
    nodes: Sequence[NewNode]
    lines: Sequence[bytes]
    """The events as they are hashed."""

    @classmethod
    def after(cls, head: LogHead, events: Sequence[AuditEvent]) -> Addition:
        """What these events add to a log that ends there. Raises `StoreUnavailable` if its head is damaged."""
        frontier = frontier_of(head)
        leaves: list[NewLeaf] = []
        nodes: list[NewNode] = []
        lines = [leaf.encode(each) for each in events]
        for each, line in zip(events, lines, strict=True):
            value = leaf_hash(line)
            leaves.append(NewLeaf(frontier.size, each.tenant, each.event_id, value))
            nodes += frontier.append(value)
        return cls(head, LogHead(frontier.size, frontier.encode()), leaves, nodes, lines)

    def append(self, tx: LogWriter, *, numbers: Sequence[int]) -> None:
        """Take these numbers out of the queue. Raises `StoreUnavailable` if the log moved; then nothing was added."""
        if not tx.append_to_log(self.before, self.after_head, leaves=self.leaves, nodes=self.nodes, numbers=numbers):
            raise StoreUnavailable(MOVED)

    def put_back(self, tx: LogWriter, events: Sequence[AuditEvent]) -> None:
        """As `append`, for events that a restored database may lack."""
        if not tx.put_back_in_log(self.before, self.after_head, events=events, leaves=self.leaves, nodes=self.nodes):
            raise StoreUnavailable(MOVED)


def frontier_of(head: LogHead) -> Frontier:
    """The right edge that a head tells of. Raises `StoreUnavailable` if it cannot be one."""
    try:
        return Frontier.decode(head.size, head.frontier)
    except BadProof:
        pass
    raise StoreUnavailable(INCONSISTENT)


class Checkpointer:
    """Signs size and root of the log."""

    def __init__(self, *, store: LogStore, signer: Signer, clock: Clock, environment: str, pace: Pace) -> None:
        self._store = store
        self._signer = signer
        self._clock = clock
        self._origin = origin_of(environment)
        self._pace = pace

    def __call__(self, *, now: bool = False) -> StoredCheckpoint | None:
        """Sign and keep a checkpoint if one is due, or with `now` if anything was added since the last.

        Raises `Busy` while another process is at it, `KeyRingUnavailable`, `StoreUnavailable`, also where the log is
        not the one that was signed last: a forgery gets no signature.
        """
        with self._store.reading() as tx:
            head, newest = tx.log_head(), tx.newest_checkpoint()
        if not self._is_due(head, newest, now=now):
            return None
        with self._store.exclusively("audit-checkpointer"):
            with self._store.reading() as tx:
                head, newest = tx.log_head(), tx.newest_checkpoint()
                if not self._is_due(head, newest, now=now):
                    return None
                _check_continues(Tree(tx.log_nodes), head, newest)
            signed = self._sign(head)
            with self._store.writing() as tx:
                return signed if tx.add_checkpoint(signed) else None

    def keys(self) -> tuple[VerifierKey, ...]:
        """The public keys, oldest first. Raises `KeyRingUnavailable`."""
        return verifier_keys(self._signer, self._origin)

    def _is_due(self, head: LogHead, newest: StoredCheckpoint | None, *, now: bool) -> bool:
        if newest is None:
            return head.size > 0
        added = head.size - newest.size
        if added < 0:
            # Nobody here signs more than there is: somebody cut the log, or wrote a checkpoint of their own.
            raise StoreUnavailable(INCONSISTENT)
        if added == 0:
            return False
        aged = self._clock.now() - newest.signed_at >= self._pace.after
        return now or aged or added >= self._pace.events

    def _sign(self, head: LogHead) -> StoredCheckpoint:
        checkpoint = Checkpoint(self._origin, head.size, frontier_of(head).root())
        version, signature = self._signer.sign(checkpoint.body().encode())
        key = VerifierKey(self._origin, self._signer.public_keys()[version])
        text = note(checkpoint, key, signature)
        try:
            opened(text, [key])
        except BadCheckpoint:
            is_good = False
        else:
            is_good = True
        if not is_good:
            raise StoreUnavailable("audit_signature_odd")
        return StoredCheckpoint(checkpoint.size, checkpoint.root, text, self._clock.now())


def _check_continues(tree: Tree, head: LogHead, newest: StoredCheckpoint | None) -> None:
    """What is signed is what stands in the log, and goes on where the last checkpoint ended."""
    try:
        is_good = tree.frontier(head.size) == frontier_of(head)
        is_good = is_good and (newest is None or tree.root(newest.size) == newest.root)
    except BadProof:
        is_good = False
    if not is_good:
        raise StoreUnavailable(INCONSISTENT)


def verifier_keys(signer: Signer, origin: str) -> tuple[VerifierKey, ...]:
    """Public keys of the log as auditors keep them, oldest first. Raises `KeyRingUnavailable`."""
    return tuple(VerifierKey(origin, key) for _, key in sorted(signer.public_keys().items()))

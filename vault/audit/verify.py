"""Finds what was edited, added, taken out, moved or cut off in the log; needs nothing but the log and a public key.

Every event is hashed anew and the tree is built from nothing; each signed checkpoint must fit it. What no checkpoint
covers yet rests on the database alone, and the result says how much that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from vault.audit import leaf
from vault.audit.checkpoint import BadCheckpoint, Checkpoint, VerifierKey, opened
from vault.audit.copy import CopyTrouble, Directory
from vault.audit.merkle import Frontier, leaf_hash
from vault.ports_audit import LoggedEvent, LogStore, NewNode

PAGE = 1000
MOST_FINDINGS = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    kind: str
    position: int | None
    """First place in the log that is concerned, from 0; None where it has no place."""
    text: str


@dataclass(slots=True)
class Verification:
    """What was looked at, and what was found."""

    size: int = 0
    """Events in the log."""
    covered: int = 0
    """Events under the greatest checkpoint that fits."""
    checkpoints: int = 0
    """Checkpoints that fit."""
    queued: int = 0
    """Committed events that have no place yet."""
    root: bytes = b""
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def found(self, kind: str, position: int | None, text: str) -> None:
        """Note a finding."""
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(kind, position, text))


Watch = Callable[[int, int], None]
"""Called with how many events were looked at, of how many."""


def unwatched(_done: int, _total: int) -> None:
    """A `Watch` that nobody watches."""


class _Walk:
    """Builds the tree leaf by leaf and holds it against the checkpoints on the way."""

    def __init__(self, result: Verification, checkpoints: Sequence[Checkpoint]) -> None:
        self.frontier = Frontier()
        self._result = result
        self._waiting = sorted(checkpoints, key=lambda each: each.size)
        self._last_good = 0
        self.broken: tuple[int, int] | None = None
        """Places between which the first checkpoint that does not fit lies."""
        self._compare()

    def add(self, value: bytes) -> list[NewNode]:
        """The next leaf's hash; returns stored nodes that it completes."""
        nodes = self.frontier.append(value)
        if self._waiting and self._waiting[0].size == self.frontier.size:
            self._compare()
        return nodes

    def end(self) -> None:
        """No more leaves."""
        for each in self._waiting:
            self._result.found(
                "truncated",
                self._last_good,
                f"the log ends after {self.frontier.size} events, but a signed checkpoint covers {each.size}: "
                f"from event {self._last_good} on nothing is proven",
            )
            self.broken = self.broken or (self._last_good, each.size)
        self._result.size = self.frontier.size
        self._result.covered = self._last_good
        self._result.root = self.frontier.root()

    def _compare(self) -> None:
        root = self.frontier.root()
        while self._waiting and self._waiting[0].size == self.frontier.size:
            checkpoint = self._waiting.pop(0)
            if checkpoint.root == root:
                if self.broken is None:
                    self._last_good = checkpoint.size
                    self._result.checkpoints += 1
            elif self.broken is None:
                self.broken = (self._last_good, checkpoint.size)
                self._result.found(
                    "changed",
                    self._last_good,
                    f"events {self._last_good} to {checkpoint.size - 1} are not those that were signed: "
                    "something among them was changed, added, taken out or moved",
                )


def believed(notes: Sequence[tuple[str, str]], keys: Sequence[VerifierKey], result: Verification) -> list[Checkpoint]:
    """The checkpoints among named notes that a key signed; the others are findings."""
    good: list[Checkpoint] = []
    for name, text in notes:
        try:
            checkpoint = opened(text, keys, origin=keys[0].name if keys else None)
        except BadCheckpoint as e:
            result.found("checkpoint", None, f"{name} {e}")
        else:
            good.append(checkpoint)
    return good


def verify_directory(
    directory: Directory,
    keys: Sequence[VerifierKey],
    *,
    kept: Sequence[tuple[str, str]] = (),
    watch: Watch = unwatched,
) -> Verification:
    """Verify a copy or an export. `kept`: notes from elsewhere, by name. Raises `CopyTrouble`."""
    result = Verification()
    notes = [(f"checkpoint {size}", directory.note(size)) for size in directory.checkpoint_sizes()]
    walk = _Walk(result, believed([*notes, *kept], keys, result))
    total = directory.size()
    try:
        for line in directory.leaves():
            walk.add(leaf_hash(line))
            if walk.frontier.size % PAGE == 0:
                watch(walk.frontier.size, total)
    except CopyTrouble as e:
        result.found("missing", walk.frontier.size, str(e))
    walk.end()
    return result


def verify_store(
    store: LogStore,
    keys: Sequence[VerifierKey],
    *,
    kept: Sequence[tuple[str, str]] = (),
    copy: Directory | None = None,
    watch: Watch = unwatched,
) -> Verification:
    """Verify the log in the database; where a copy is at hand, it names the exact place. Raises `StoreUnavailable`."""
    result = Verification()
    # What must fit the log is read before its end: a server that goes on meanwhile makes no false alarm.
    stored = [(f"checkpoint {size}", text) for size, text in _stored_notes(store)]
    copied, held = (_copied(copy), copy.size()) if copy is not None else ([], 0)
    with store.reading() as tx:
        head = tx.log_head()
    _look_at_queue(store, result)
    walk = _Walk(result, believed([*stored, *kept, *copied], keys, result))
    lines = _Compared(copy, held, result)
    for page in _pages(store, head.size):
        completed: list[NewNode] = []
        for each in page:
            lines.compare(each)
            completed += _look_at(each, walk, result)
        _compare_nodes(store, completed, result)
        watch(walk.frontier.size, head.size)
    if walk.frontier.size < head.size:
        at = walk.frontier.size
        result.found("missing", at, f"the log should have {head.size} events, but none has place {at}")
    elif walk.frontier.encode() != head.frontier:
        result.found("head", None, "the stored end of the log does not fit its events")
    walk.end()
    if held > head.size:
        result.found("truncated", head.size, f"the log ends after {head.size} events; the copy has {held}")
    return result


class _Compared:
    """Holds the log against the copy, place by place, also where no checkpoint covers it yet."""

    def __init__(self, copy: Directory | None, held: int, result: Verification) -> None:
        self._lines = islice(copy.leaves(), held) if copy is not None else iter(())
        self._result = result

    def compare(self, each: LoggedEvent) -> None:
        """The next place of the log."""
        try:
            line = next(self._lines, None)
        except CopyTrouble as e:
            self._result.found("copy", each.index, str(e))
            line = None
        if line is None:
            self._lines = iter(())
        elif each.leaf_hash != leaf_hash(line):
            text = f"event {each.index} differs from the copy: the first that does"
            self._result.found("changed", each.index, text)
            self._lines = iter(())


def _look_at_queue(store: LogStore, result: Verification) -> None:
    with store.reading() as tx:
        queue = tx.queue_health(MOST_FINDINGS)
        readable = len(tx.queued_events(queue.waiting + 1))
    result.queued = queue.waiting
    for event_id in queue.unlogged:
        result.found("unlogged", None, f"event {event_id} is neither in the log nor waiting for it")
    if queue.orphaned > 0:
        result.found("queue", None, f"{queue.orphaned} events wait for their place but are gone themselves")
    if readable < queue.waiting - queue.orphaned:
        result.found(
            "queue", None, f"{queue.waiting - queue.orphaned - readable} rows wait for a place and are no events"
        )
    if queue.repeated > 0:
        result.found("queue", None, f"{queue.repeated} events wait for a second place: the log cannot go on")
    if queue.beyond is not None:
        result.found(
            "beyond", queue.beyond, f"place {queue.beyond} is taken, outside of the log: it cannot go on there"
        )


def _stored_notes(store: LogStore) -> Iterator[tuple[int, str]]:
    with store.reading() as tx:
        newest = tx.newest_checkpoint()
    after = -1
    while newest is not None and after < newest.size:
        with store.reading() as tx:
            page = tx.checkpoints(after=after, limit=PAGE)
        for each in page:
            if each.size <= newest.size:
                yield each.size, each.note
        if not page:
            return
        after = page[-1].size


def _copied(copy: Directory) -> list[tuple[str, str]]:
    """The newest checkpoint of the copy: the log must be at least as long."""
    newest = copy.newest_checkpoint()
    return [(f"checkpoint {newest} of the copy", copy.note(newest))] if newest else []


def _pages(store: LogStore, size: int) -> Iterator[Sequence[LoggedEvent]]:
    start = 0
    while start < size:
        with store.reading() as tx:
            page = tx.logged_events(start, min(PAGE, size - start))
        if not page or page[0].index != start:
            return
        whole = [each for place, each in enumerate(page, start) if each.index == place]
        yield whole
        if len(whole) < min(PAGE, size - start):
            return
        start += len(whole)


def _look_at(each: LoggedEvent, walk: _Walk, result: Verification) -> list[NewNode]:
    if each.event is None:
        result.found("removed", each.index, f"event {each.index} ({each.event_id}) is gone, or is no event any more")
    elif leaf_hash(leaf.encode(each.event)) != each.leaf_hash:
        result.found("edited", each.index, f"event {each.index} ({each.event_id}) is not what was logged")
    # The stored hash goes on into the tree: so one edited event is one finding, and what is signed decides the rest.
    return walk.add(each.leaf_hash)


def _compare_nodes(store: LogStore, completed: Sequence[NewNode], result: Verification) -> None:
    by_level: dict[int, list[NewNode]] = {}
    for node in completed:
        by_level.setdefault(node.level, []).append(node)
    for level, nodes in by_level.items():
        with store.reading() as tx:
            stored = list(tx.log_nodes(level, nodes[0].index, len(nodes)))
        if stored != [node.value for node in nodes]:
            result.found("nodes", nodes[0].index << level, f"stored hashes of level {level} do not fit the events")

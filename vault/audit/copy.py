"""The log kept in a second place: a directory with every event in segments, every checkpoint, and the public keys.

    keys                              verifier keys, one a line
    segments/000000000000.jsonl       4096 events, one canonical JSON line each; the last segment grows
    checkpoints/000000001234          a signed checkpoint, named by its size

What is in it is never changed, only added to, so write-once storage fits. It can be verified with a public key alone,
and after a database restore it says what the database forgot.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from vault.audit import leaf
from vault.audit.checkpoint import BadCheckpoint, VerifierKey, opened, parse_keys, read
from vault.audit.merkle import leaf_hash
from vault.audit.sequencer import Recent
from vault.ports_audit import LogStore, StoredCheckpoint
from vault.ports_operator import Busy

SEGMENT = 4096
"""Events in a full segment."""
PAGE = 1000
_END = 64 << 10
"""Bytes that are read to find a segment's last line."""


class CopyTrouble(Exception):
    """The second place cannot be written or holds something else; the text says where."""


class LogSink(Protocol):
    """A second place for the log."""

    def exclusively(self) -> AbstractContextManager[None]:
        """Be the only writer meanwhile. Raises `Busy`."""

    def size(self) -> int:
        """How many events it holds."""

    def newest_checkpoint(self) -> int:
        """Size of the greatest checkpoint it holds; 0 if none."""

    def last_event(self) -> bytes | None:
        """The leaf at the place `size() - 1`; None if it is empty."""

    def add_events(self, start: int, leaves: Sequence[bytes]) -> None:
        """Add leaves; the first has the place `start`, which is `size()`. Durable when it returns."""

    def add_checkpoint(self, size: int, note: str) -> None:
        """Add a checkpoint. Durable when it returns."""

    def add_keys(self, keys: Sequence[VerifierKey]) -> None:
        """Make sure that these public keys are there."""


class Directory:
    """Implements `LogSink` as files; one process may write at a time, any may read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._segments = path / "segments"
        self._checkpoints = path / "checkpoints"
        self._seen: tuple[Path, int, int] | None = None
        """The last segment when it was last looked at and had only whole lines: its length, and where the log ends."""
        self._newest: tuple[int, int] | None = None

    # --- writing ---

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Be the only writer meanwhile. Raises `Busy` if another is at it, `CopyTrouble`."""
        self._prepare()
        try:
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as e:
            raise CopyTrouble(f"{self.path}: cannot be written ({e.strerror})") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy("busy") from None
        else:
            yield
        finally:
            os.close(lock)

    def _prepare(self) -> None:
        try:
            for folder in (self.path, self._segments, self._checkpoints):
                folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as e:
            raise CopyTrouble(f"{self.path}: cannot be made ({e.strerror})") from None

    def add_events(self, start: int, leaves: Sequence[bytes]) -> None:
        """Append lines, each segment synced before the next is begun."""
        if start != self.size():
            raise CopyTrouble(f"{self.path}: holds {self.size()} events, not {start}")
        position = 0
        try:
            self._cut_off_half_a_line()
            while position < len(leaves):
                at = start + position
                first = at - at % SEGMENT
                part = leaves[position : position + SEGMENT - (at - first)]
                path = self._segment(first)
                with _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
                    file.write(b"".join(each + b"\n" for each in part))
                    file.flush()
                    os.fsync(file.fileno())
                    self._seen = (path, file.tell(), at + len(part))
                if at == first:
                    _sync(self._segments)
                position += len(part)
        except OSError as e:
            raise CopyTrouble(f"{self.path}: cannot be written ({e.strerror})") from None

    def add_checkpoint(self, size: int, note: str) -> None:
        """One file; never replaced."""
        self._write_once(self._checkpoints / f"{size:012d}", note)
        self._newest = None if self._newest is None else (self._changed_at(), max(self._newest[1], size))

    def add_keys(self, keys: Sequence[VerifierKey]) -> None:
        """Lines are only added: a key that is gone from Vault still checks old checkpoints."""
        known = self.keys()
        new = [str(key) for key in keys if key not in known]
        if not new:
            return
        try:
            with _opened(self.path / "keys", os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
                file.write("".join(f"{line}\n" for line in new).encode())
                file.flush()
                os.fsync(file.fileno())
            _sync(self.path)
        except OSError as e:
            raise CopyTrouble(f"{self.path}: cannot be written ({e.strerror})") from None

    def _write_once(self, path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.new")
        try:
            with _opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync(path.parent)
        except OSError as e:
            raise CopyTrouble(f"{path}: cannot be written ({e.strerror})") from None

    # --- reading ---

    def keys(self) -> tuple[VerifierKey, ...]:
        """Public keys that came with the copy; whoever could change the copy could change them too."""
        path = self.path / "keys"
        try:
            return parse_keys(_text(path)) if path.exists() else ()
        except OSError as e:
            raise CopyTrouble(f"{path}: cannot be read ({e.strerror})") from None
        except (BadCheckpoint, UnicodeDecodeError):
            raise CopyTrouble(f"{path}: is no list of verifier keys") from None

    def size(self) -> int:
        """Events held. A line that a crash cut short does not count, and is taken away before the next is added."""
        return self._measured()

    def newest_checkpoint(self) -> int:
        """Size of the greatest checkpoint that one of the keys beside it signed, if any are there."""
        at = self._changed_at()
        if self._newest is None or self._newest[0] != at:
            # Not asked of every file every second: after a year there are millions.
            keys = self.keys()
            self._newest = (at, next((each for each in self._newest_first() if self._is_believed(each, keys)), 0))
        return self._newest[1]

    def last_event(self) -> bytes | None:
        """The last whole line."""
        size = self.size()
        if not size:
            return None
        if self._seen is not None and (line := self._last_line(*self._seen[:2])) is not None:
            return line
        return next(self.leaves(size - 1), None)

    def _last_line(self, path: Path, length: int) -> bytes | None:
        """Of a file of whole lines; None if it is longer than what is read of its end."""
        try:
            with _opened(path, os.O_RDONLY) as file:
                file.seek(max(0, length - _END))
                lines = file.read(length - file.tell()).split(b"\n")
        except OSError as e:
            raise CopyTrouble(f"{path}: cannot be read ({e.strerror})") from None
        return lines[-2] if len(lines) > 2 or (length <= _END and len(lines) == 2) else None

    def note(self, size: int) -> str:
        """A checkpoint's text. Raises `CopyTrouble`."""
        path = self._checkpoints / f"{size:012d}"
        try:
            return _text(path)
        except (OSError, UnicodeDecodeError):
            raise CopyTrouble(f"{path}: cannot be read") from None

    def checkpoint_sizes(self) -> Sequence[int]:
        """Sizes of all checkpoints, in order."""
        return sorted(self._checkpoint_sizes())

    def leaves(self, start: int = 0) -> Iterator[bytes]:
        """Every line from a place on, in order, without its line end. Raises `CopyTrouble` where a segment is missing.

        A last line without line end is left out: a crash cut it short, and its event comes again.
        """
        first = start - start % SEGMENT
        skip = start - first
        last = self._last_segment()
        while last is not None and first <= last:
            path = self._segment(first)
            try:
                with _opened(path, os.O_RDONLY) as file:
                    count = 0
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        count += 1
                        if count > skip:
                            yield line[:-1]
            except OSError as e:
                raise CopyTrouble(f"{path}: cannot be read ({e.strerror})") from None
            if first < last and count != SEGMENT:
                raise CopyTrouble(f"{path}: holds {count} events instead of {SEGMENT}")
            first, skip = first + SEGMENT, 0

    def _segment(self, first: int) -> Path:
        return self._segments / f"{first:012d}.jsonl"

    def _last_segment(self) -> int | None:
        try:
            names = [path.stem for path in self._segments.glob("*.jsonl")] if self._segments.is_dir() else []
        except OSError as e:
            raise CopyTrouble(f"{self._segments}: cannot be read ({e.strerror})") from None
        return max((int(name) for name in names if _is_number(name)), default=None)

    def _checkpoint_sizes(self) -> list[int]:
        try:
            found = list(self._checkpoints.iterdir()) if self._checkpoints.is_dir() else []
        except OSError as e:
            raise CopyTrouble(f"{self._checkpoints}: cannot be read ({e.strerror})") from None
        return [int(path.name) for path in found if _is_number(path.name)]

    def _newest_first(self) -> Sequence[int]:
        return sorted(self._checkpoint_sizes(), reverse=True)

    def _is_believed(self, size: int, keys: Sequence[VerifierKey]) -> bool:
        try:
            note = self.note(size)
            return (opened(note, keys) if keys else read(note)).size == size
        except (BadCheckpoint, CopyTrouble):
            return False

    def _changed_at(self) -> int:
        """When a checkpoint or a key was added last."""
        try:
            found = [path.stat().st_mtime_ns for path in (self._checkpoints, self.path / "keys") if path.exists()]
        except OSError as e:
            raise CopyTrouble(f"{self.path}: cannot be read ({e.strerror})") from None
        return max(found, default=0)

    def _measured(self) -> int:
        last = self._last_segment()
        if last is None:
            return 0
        path = self._segment(last)
        try:
            length = path.stat().st_size
            if self._seen is not None and self._seen[:2] == (path, length):
                return self._seen[2]
            with _opened(path, os.O_RDONLY) as file:
                count = whole = 0
                for line in file:
                    if line.endswith(b"\n"):
                        count += 1
                        whole += len(line)
        except OSError as e:
            raise CopyTrouble(f"{path}: cannot be read ({e.strerror})") from None
        self._seen = (path, length, last + count) if whole == length else None
        return last + count

    def _cut_off_half_a_line(self) -> None:
        """Only who writes does this: a reader may see a line that is just being written."""
        last = self._last_segment()
        if last is None:
            return
        path = self._segment(last)
        if self._seen is not None and self._seen[:2] == (path, path.stat().st_size):
            return
        with _opened(path, os.O_RDWR) as file:
            whole = sum(len(line) for line in file if line.endswith(b"\n"))
            if file.tell() != whole:
                file.truncate(whole)
                self._seen = None


class Shipper:
    """Brings the second place up to the database: events first, then the checkpoints that cover them."""

    def __init__(self, *, store: LogStore, sink: LogSink, recent: Recent | None = None) -> None:
        self._store = store
        self._sink = sink
        self._recent = recent or Recent()

    def __call__(self, keys: Sequence[VerifierKey] = ()) -> int:
        """Returns how many events were added. Raises `Busy`, `CopyTrouble`, `LogShrank`, `StoreUnavailable`."""
        with self._sink.exclusively():
            return self._ship(keys)

    def _ship(self, keys: Sequence[VerifierKey]) -> int:
        self._sink.add_keys(keys)
        added = 0
        while True:
            start = self._sink.size()
            with self._store.reading() as tx:
                size = tx.log_head().size
                hashes = tx.log_nodes(0, start, min(PAGE, size - start)) if start < size else ()
                before = tx.log_nodes(0, start - 1, 1) if start else ()
            if size < max(start, self._sink.newest_checkpoint()):
                raise LogShrank
            last = self._sink.last_event()
            if last is not None and list(before) != [leaf_hash(last)]:
                # It was set back and has grown again since: what is here must not be continued with what is there.
                raise LogShrank
            if not hashes:
                break
            lines = self._recent.lines(start, hashes) or self._read(start, len(hashes))
            self._sink.add_events(start, lines)
            added += len(lines)
        self._ship_checkpoints()
        return added

    def _read(self, start: int, count: int) -> Sequence[bytes]:
        """Lines made of the events in the database. Raises `CopyTrouble` if they are not what was logged."""
        with self._store.reading() as tx:
            page = tx.logged_events(start, count)
        events = [each.event for each in page]
        if len(page) != count or any(event is None for event in events):
            raise CopyTrouble("an event of the log is gone from the database: run `cardvault audit verify`")
        lines = [leaf.encode(event) for event in events if event is not None]
        if [leaf_hash(line) for line in lines] != [each.leaf_hash for each in page]:
            raise CopyTrouble("an event in the database is not what was logged: run `cardvault audit verify`")
        return lines

    def _ship_checkpoints(self) -> None:
        held = self._sink.size()
        after = self._sink.newest_checkpoint()
        while True:
            with self._store.reading() as tx:
                page: Sequence[StoredCheckpoint] = tx.checkpoints(after=after, limit=PAGE)
            due = [each for each in page if each.size <= held]
            for each in due:
                self._sink.add_checkpoint(each.size, each.note)
                after = each.size
            if not due:
                return


class LogShrank(Exception):
    """The database's log is shorter than, or not the one, that was kept elsewhere: it was restored from a backup."""


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == f"{int(name):012d}"


def _opened(path: Path, flags: int) -> BinaryIO:
    """A plain file: not what a link leads to, and no pipe or device that never ends. Raises `OSError`."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file")
    return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "ab" if flags & os.O_WRONLY else "rb")


def _text(path: Path) -> str:
    with _opened(path, os.O_RDONLY) as file:
        return file.read().decode("utf-8")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

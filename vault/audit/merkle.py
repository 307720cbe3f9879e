"""Hashes and proofs of an append-only log, as RFC 6962 (section 2.1) and RFC 9162 (section 2.1.3, 2.1.4) define them.

A *node* at level `l` and index `i` is the hash over the leaves `i * 2**l` up to `(i + 1) * 2**l`. Of all levels only
every eighth is stored: a proof reads at most 256 nodes of each, however long the log is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vault.ports_audit import NewNode

HASH_BYTES = 32
STRIDE = 8
"""Levels between two that are stored."""

EMPTY_ROOT = hashlib.sha256(b"").digest()

ReadNodes = Callable[[int, int, int], Sequence[bytes]]
"""Stored nodes: level (0, 8, 16, …), first index, how many."""


class BadProof(Exception):
    """A proof does not prove what it should, or the log's stored hashes are incomplete."""


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of one leaf."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash over two nodes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(slots=True)
class Frontier:
    """The right edge of a log: all that appending and the root need.

    Hashes of the complete subtrees that the log falls into, largest first: one for each bit set in `size`.
    """

    size: int = 0
    hashes: list[bytes] = field(default_factory=list)

    def copy(self) -> Frontier:
        """One that can be changed apart."""
        return Frontier(self.size, list(self.hashes))

    def append(self, leaf: bytes) -> list[NewNode]:
        """Add a leaf's hash; returns the nodes above level 0 that this completes and that are stored."""
        completed: list[NewNode] = []
        level, value, position = 0, leaf, self.size
        while position & 1:
            value = node_hash(self.hashes.pop(), value)
            position >>= 1
            level += 1
            if level % STRIDE == 0:
                completed.append(NewNode(level, position, value))
        self.hashes.append(value)
        self.size += 1
        return completed

    def extend(self, leaves: Iterable[bytes]) -> list[NewNode]:
        """Add many."""
        return [node for leaf in leaves for node in self.append(leaf)]

    def root(self) -> bytes:
        """The Merkle tree hash."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root

    def encode(self) -> bytes:
        """The hashes, one after the other; the size says how many there are."""
        return b"".join(self.hashes)

    @classmethod
    def decode(cls, size: int, hashes: bytes) -> Frontier:
        """What `encode` wrote. Raises `BadProof`."""
        if size < 0 or len(hashes) != size.bit_count() * HASH_BYTES:
            raise BadProof("the stored edge of the log does not fit its size")
        return cls(size, [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)])


# --- making proofs --------------------------------------------------------------------------------------------------


class Tree:
    """A log as far as it is stored, for proofs."""

    def __init__(self, read: ReadNodes) -> None:
        self._read = read

    def root(self, size: int) -> bytes:
        """The Merkle tree hash of the first `size` leaves. Raises `BadProof` if hashes are missing."""
        return self._range(0, size) if size else EMPTY_ROOT

    def frontier(self, size: int) -> Frontier:
        """The right edge at that size."""
        hashes, start = [], 0
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                hashes.append(self._node(level, start >> level))
                start += 1 << level
        return Frontier(size, hashes)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """PATH(index, D[size]) of RFC 6962, 2.1.1."""
        if not 0 <= index < size:
            raise BadProof("no such leaf in a log of this size")
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _largest_power_below(end - start)
            if index < middle:
                path.append(self._range(middle, end))
                end = middle
            else:
                path.append(self._range(start, middle))
                start = middle
        return path[::-1]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """PROOF(old, D[new]) of RFC 6962, 2.1.2."""
        if not 0 <= old <= new:
            raise BadProof("a consistency proof leads from a smaller to a larger log")
        if old in (0, new):
            return []
        path: list[bytes] = []
        start, end, is_whole = 0, new, True
        while old != end:
            middle = start + _largest_power_below(end - start)
            if old <= middle:
                path.append(self._range(middle, end))
                end = middle
            else:
                path.append(self._range(start, middle))
                start, is_whole = middle, False
        if not is_whole:
            path.append(self._range(start, end))
        return path[::-1]

    def _range(self, start: int, end: int) -> bytes:
        """Hash over leaves; `start` is a multiple of the largest power of two below the count, as in every proof."""
        width = end - start
        if width & (width - 1) == 0:
            return self._node(width.bit_length() - 1, start // width)
        middle = start + _largest_power_below(width)
        return node_hash(self._range(start, middle), self._range(middle, end))

    def _node(self, level: int, index: int) -> bytes:
        above = level % STRIDE
        count = 1 << above
        hashes = list(self._read(level - above, index << above, count))
        if len(hashes) != count:
            raise BadProof("stored hashes of the log are missing")
        while len(hashes) > 1:
            hashes = [node_hash(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
        return hashes[0]


def _largest_power_below(n: int) -> int:
    """The largest power of two smaller than `n`, which is at least 2."""
    return 1 << (n - 1).bit_length() - 1


# --- checking proofs ------------------------------------------------------------------------------------------------


def root_from_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that a path leads to from a leaf's hash (RFC 9162, 2.1.3.2). Raises `BadProof` for a wrong length."""
    if not 0 <= index < size:
        raise BadProof("no such leaf in a log of this size")
    fn, sn, root = index, size - 1, leaf
    for each in path:
        if sn == 0:
            raise BadProof("the path is too long")
        if fn & 1 or fn == sn:
            root = node_hash(each, root)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            root = node_hash(root, each)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise BadProof("the path is too short")
    return root


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Whether the older log is the beginning of the newer one (RFC 9162, 2.1.4.2). Raises `BadProof` if not."""
    if not 0 <= old <= new:
        raise BadProof("the newer log is shorter")
    if old in (0, new):
        expected = EMPTY_ROOT if old == 0 else new_root
        if path or old_root != expected:
            raise BadProof("the older log is not the beginning of the newer one")
        return
    hashes = list(path) if old & (old - 1) else [old_root, *path]
    if not hashes:
        raise BadProof("the path is too short")
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    older = newer = hashes[0]
    for each in hashes[1:]:
        if sn == 0:
            raise BadProof("the path is too long")
        if fn & 1 or fn == sn:
            older, newer = node_hash(each, older), node_hash(each, newer)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            newer = node_hash(newer, each)
        fn, sn = fn >> 1, sn >> 1
    if sn or older != old_root or newer != new_root:
        raise BadProof("the older log is not the beginning of the newer one")

"""Merkle tree hashes and proofs against RFC 6962's own construction, and the published vectors of its reference log."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vault.audit.merkle import (
    EMPTY_ROOT,
    STRIDE,
    BadProof,
    Frontier,
    Tree,
    check_consistency,
    leaf_hash,
    node_hash,
    root_from_inclusion,
)

LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
"""Of the first 1 to 8 leaves: the vectors of the Certificate Transparency reference implementation."""


def _root(leaves: Sequence[bytes]) -> bytes:
    """MTH as RFC 6962, 2.1 writes it."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(_root(leaves[:k]), _root(leaves[k:]))


def _logged(leaves: Sequence[bytes]) -> tuple[Frontier, Tree]:
    frontier = Frontier()
    nodes = frontier.extend(map(leaf_hash, leaves))
    stored = {(0, i): leaf_hash(leaf) for i, leaf in enumerate(leaves)}
    stored |= {(node.level, node.index): node.value for node in nodes}

    def read(level: int, start: int, count: int) -> list[bytes]:
        assert level % STRIDE == 0
        return [stored[level, i] for i in range(start, start + count) if (level, i) in stored]

    return frontier, Tree(read)


def _many(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_the_reference(size: int) -> None:
    frontier, tree = _logged(LEAVES[:size])

    assert frontier.root().hex() == ROOTS[size - 1]
    assert tree.root(size).hex() == ROOTS[size - 1]


def test_an_empty_log_has_the_hash_of_nothing() -> None:
    assert Frontier().root() == EMPTY_ROOT == hashlib.sha256(b"").digest()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.data())
def test_proofs_of_any_log_prove_and_lead_to_the_right_root(size: int, data: st.DataObject) -> None:
    leaves = _many(size)
    frontier, tree = _logged(leaves)
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(0, size))

    path = tree.inclusion(index, size)
    consistency = tree.consistency(old, size)

    assert frontier.root() == _root(leaves)
    assert root_from_inclusion(leaf_hash(leaves[index]), index, size, path) == frontier.root()
    check_consistency(old, _root(leaves[:old]), size, frontier.root(), consistency)
    assert tree.frontier(old).root() == _root(leaves[:old])


def test_a_long_log_has_stored_nodes_of_two_levels() -> None:
    leaves = _many(2**16 + 300)
    frontier, tree = _logged(leaves)

    for index in (0, 255, 256, 2**16 - 1, 2**16, 2**16 + 299):
        path = tree.inclusion(index, len(leaves))
        assert root_from_inclusion(leaf_hash(leaves[index]), index, len(leaves), path) == frontier.root()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.data())
def test_no_other_leaf_place_size_or_path_proves(size: int, data: st.DataObject) -> None:
    leaves = _many(size)
    frontier, tree = _logged(leaves)
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1).filter(lambda each: each != index))
    path = tree.inclusion(index, size)
    leaf = leaf_hash(leaves[index])

    assert not _proves(frontier, leaf_hash(leaves[other]), index, size, path)
    assert not _proves(frontier, leaf, other, size, path)
    assert not _proves(frontier, leaf, index, size, [*path, leaf])
    assert not _proves(frontier, leaf, index, size, path[:-1])
    assert not _proves(frontier, leaf, index, size, [path[0][::-1], *path[1:]])


def _proves(frontier: Frontier, leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bool:
    try:
        return root_from_inclusion(leaf, index, size, path) == frontier.root()
    except BadProof:
        return False


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.data())
def test_no_other_beginning_is_consistent(size: int, data: st.DataObject) -> None:
    leaves = _many(size)
    frontier, tree = _logged(leaves)
    old = data.draw(st.integers(1, size - 1))
    changed = data.draw(st.integers(0, old - 1))
    forged = _root([*leaves[:changed], b"forged", *leaves[changed + 1 : old]])
    path = tree.consistency(old, size)

    for old_root, new_root, proof in (
        (forged, frontier.root(), path),
        (_root(leaves[:old]), _root([*leaves[:-1], b"forged"]), path),
        (_root(leaves[:old]), frontier.root(), path[:-1]),
        (_root(leaves[:old]), frontier.root(), [*path, forged]),
    ):
        with pytest.raises(BadProof):
            check_consistency(old, old_root, size, new_root, proof)


def test_a_log_that_shrank_is_consistent_with_nothing() -> None:
    with pytest.raises(BadProof):
        check_consistency(5, _root(_many(5)), 4, _root(_many(4)), [])


@given(st.integers(0, 2000))
def test_the_right_edge_survives_being_stored(size: int) -> None:
    frontier = Frontier()
    frontier.extend(map(leaf_hash, _many(size)))

    again = Frontier.decode(frontier.size, frontier.encode())

    assert again == frontier
    with pytest.raises(BadProof):
        Frontier.decode(size, frontier.encode() + bytes(32))


def test_missing_hashes_are_noticed() -> None:
    with pytest.raises(BadProof):
        Tree(lambda _level, _start, count: [bytes(32)] * (count - 1)).root(8)

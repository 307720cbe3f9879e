"""Any change of a copied log is found, whatever it is and wherever."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vault.audit import copy as copies
from vault.audit.checkpoint import Checkpoint, VerifierKey, note
from vault.audit.copy import CopyTrouble, Directory
from vault.audit.merkle import Frontier, leaf_hash
from vault.audit.sequencer import Recent
from vault.audit.verify import verify_directory

ORIGIN = "cardvault/test"
COUNT = 23
PRIVATE = Ed25519PrivateKey.generate()
KEY = VerifierKey(ORIGIN, PRIVATE.public_key().public_bytes_raw())

Lines = list[bytes]


def _signed(lines: Sequence[bytes]) -> str:
    frontier = Frontier()
    frontier.extend(map(leaf_hash, lines))
    checkpoint = Checkpoint(ORIGIN, frontier.size, frontier.root())
    return note(checkpoint, KEY, PRIVATE.sign(checkpoint.body().encode()))


def _written(folder: Path, lines: Sequence[bytes]) -> Directory:
    directory = Directory(folder)
    with directory.exclusively():
        directory.add_keys([KEY])
        directory.add_events(directory.size(), lines)
    return directory


def _edit(lines: Lines, at: int, other: int) -> Lines:
    return [*lines[:at], lines[at] + str(other).encode(), *lines[at + 1 :]]


def _drop(lines: Lines, at: int, _: int) -> Lines:
    return lines[:at] + lines[at + 1 :]


def _repeat(lines: Lines, at: int, other: int) -> Lines:
    return [*lines[:other], lines[at], *lines[other:]]


def _insert(lines: Lines, at: int, _: int) -> Lines:
    return [*lines[:at], b"slipped in", *lines[at:]]


def _swap(lines: Lines, at: int, other: int) -> Lines:
    changed = list(lines)
    changed[at], changed[other] = changed[other], changed[at]
    return changed


def _move(lines: Lines, at: int, other: int) -> Lines:
    changed = list(lines)
    changed.insert(other, changed.pop(at))
    return changed


def _cut(lines: Lines, at: int, _: int) -> Lines:
    return lines[:at]


CHANGES: list[Callable[[Lines, int, int], Lines]] = [_edit, _drop, _repeat, _insert, _swap, _move, _cut]
places = st.integers(0, COUNT - 1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(CHANGES), places, places, st.sampled_from([1, 5, 8, 4096]))
def test_any_change_is_found_and_its_first_place_is_at_or_after_what_is_named(
    tmp_path: Path, change: Callable[[Lines, int, int], Lines], at: int, other: int, segment: int
) -> None:
    lines = [f'{{"n":{number}}}'.encode() for number in range(COUNT)]
    changed = change(lines, at, other)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copies, "SEGMENT", segment)
        directory = _written(tmp_path / os.urandom(8).hex(), changed)
        kept = [(f"kept {size}", _signed(lines[:size])) for size in (7, COUNT)]
        result = verify_directory(directory, [KEY], kept=kept)

    if changed == lines:
        assert result.is_good
        return
    first = next(
        (i for i, (a, b) in enumerate(zip(lines, changed, strict=False)) if a != b), min(len(lines), len(changed))
    )
    if changed[:COUNT] == lines:  # something after all that was signed: it is not covered, and said to be so
        assert result.covered == COUNT < result.size
        return
    assert not result.is_good
    named = min(finding.position for finding in result.findings if finding.position is not None)
    assert named <= first
    assert result.covered <= first


def test_a_copy_is_gone_on_with_across_segments_of_any_length(tmp_path: Path) -> None:
    lines = [str(number).encode() for number in range(COUNT)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copies, "SEGMENT", 5)
        directory = _written(tmp_path / "copy", lines[:7])
        _written(tmp_path / "copy", lines[7:])

        assert list(directory.leaves()) == lines
        for start in range(COUNT):
            assert list(directory.leaves(start)) == lines[start:]
        (tmp_path / "copy" / "segments" / "000000000005.jsonl").unlink()
        with pytest.raises(CopyTrouble):
            list(directory.leaves())


@pytest.mark.parametrize("length", [1, 100, (64 << 10) - 1, 64 << 10, 200_000])
@pytest.mark.parametrize("half", [b"", b"half a li"])
def test_the_last_line_is_found_however_long_it_is(length: int, half: bytes, tmp_path: Path) -> None:
    directory = Directory(tmp_path / "copy")
    with directory.exclusively():
        for number, line in enumerate([b"a" * length, b"b" * length, b"c" * length]):
            directory.add_events(number, [line])
            assert directory.last_event() == line
    (segment,) = (tmp_path / "copy" / "segments").iterdir()
    segment.write_bytes(segment.read_bytes() + half)

    assert directory.last_event() == Directory(tmp_path / "copy").last_event() == b"c" * length
    with directory.exclusively():
        directory.add_events(3, [b"d"])
    assert list(directory.leaves(2)) == [b"c" * length, b"d"]


def test_recent_lines_are_known_by_place_and_hash() -> None:
    lines = [b"%d" % n for n in range(6)]
    hashes = [leaf_hash(line) for line in lines]
    recent = Recent()

    recent.add(10, lines[:4])
    recent.add(14, lines[4:])

    assert recent.lines(10, hashes) == tuple(lines)
    assert recent.lines(12, hashes[2:5]) == tuple(lines[2:5])
    for start, wanted in ((9, hashes), (11, hashes), (13, hashes[3:] + hashes[:1]), (10, hashes[::-1])):
        assert recent.lines(start, wanted) is None


def test_recent_lines_are_forgotten_where_the_log_went_on_elsewhere() -> None:
    recent = Recent()
    recent.add(0, [b"a", b"b"])

    recent.add(5, [b"c"])

    assert recent.lines(0, [leaf_hash(b"a")]) is None
    assert recent.lines(5, [leaf_hash(b"c")]) == (b"c",)


def test_only_so_many_recent_lines_are_kept() -> None:
    recent = Recent()

    for start in range(0, 3 * Recent.KEPT, 1000):
        recent.add(start, [b"x"] * 1000)

    assert recent.lines(2 * Recent.KEPT - 1, [leaf_hash(b"x")]) is None
    assert recent.lines(2 * Recent.KEPT, [leaf_hash(b"x")]) == (b"x",)

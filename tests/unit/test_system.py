"""The random source: nothing is drawn twice, also not in another thread or a forked process."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest

from vault import system
from vault.system import READ_AHEAD, SystemEntropy


def test_every_draw_is_new() -> None:
    entropy = SystemEntropy()
    sizes = [16, 32, 12, 1000, READ_AHEAD, READ_AHEAD + 1] * 50

    drawn = [entropy.bytes(size) for size in sizes]

    assert [len(each) for each in drawn] == sizes
    assert len({each[:12] for each in drawn}) == len(drawn)


def test_threads_share_nothing() -> None:
    entropy = SystemEntropy()
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: entropy.bytes(16), range(4000)))

    assert len(set(drawn)) == len(drawn)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside other threads
def test_a_forked_process_draws_its_own() -> None:
    entropy = SystemEntropy()

    def fork_and_draw() -> tuple[bytes, bytes]:
        entropy.bytes(16)  # something was read ahead
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.write(writing, entropy.bytes(16))
            os._exit(0)
        os.waitpid(child, 0)
        return os.read(reading, 16), entropy.bytes(16)

    with ThreadPoolExecutor(1) as pool:
        for childs, ours in (fork_and_draw(), pool.submit(fork_and_draw).result()):
            assert childs != ours


def test_what_was_drawn_is_not_kept() -> None:
    def draw() -> tuple[bytes, bytes, int]:
        drawn = SystemEntropy().bytes(32)
        left, used = system._ahead.left
        return drawn, bytes(left), used

    with ThreadPoolExecutor(1) as pool:  # a thread that drew nothing before
        drawn, left, used = pool.submit(draw).result()

    assert used == 32
    assert len(left) == READ_AHEAD
    assert drawn not in left


def test_who_draws_in_the_middle_of_a_draw_gets_other_bytes() -> None:
    entropy = SystemEntropy()
    drawn = [entropy.bytes(16)]

    def interrupt(frame: FrameType, _event: str, _of: object) -> Any:
        # As a signal handler would, between any two lines.
        if frame.f_code is SystemEntropy.bytes.__code__:
            drawn.append(entropy.bytes(16))
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        drawn.append(entropy.bytes(16))
    finally:
        sys.settrace(before)

    assert len(drawn) > 5
    assert len(set(drawn)) == len(drawn)
    assert bytes(16) not in drawn

"""The coalescer: lone calls start at once, waiting calls share a batch, and nobody waits for nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vault.domain.errors import CardVaultError, Exhausted, NotAvailable, Unavailable
from vault.rpc.coalescer import PATIENCE, Coalescer, Work, one_by_one

BUDGET = 10.0


class Recorder:
    """A use case that keeps the batches it was given; holds the first one until told to go on."""

    def __init__(self, *, hold: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Event()
        self.may_go_on = threading.Event()
        if not hold:
            self.may_go_on.set()

    def __call__(self, commands: Sequence[int]) -> Sequence[int | CardVaultError]:
        self.batches.append(list(commands))
        self.begun.set()
        assert self.may_go_on.wait(10)
        return [NotAvailable("odd") if command < 0 else command * 10 for command in commands]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def coalescer(use_case: Recorder, threads: ThreadPoolExecutor, **limits: Any) -> Coalescer[int, int]:
    bounds: dict[str, Any] = {"lanes": 1, "max_batch": 200, "max_waiting": 1000} | limits
    return Coalescer(use_case, executor=threads, **bounds)


@pytest.mark.parametrize(
    ("others", "batches_at_once"),
    [
        # A few wait for the batch under way, at first; a whole batch does not.
        (3, 1),
        (10, 2),
    ],
)
def test_a_second_lane_opens_at_once_only_for_a_whole_batch(
    threads: ThreadPoolExecutor, others: int, batches_at_once: int
) -> None:
    recorder = Recorder(hold=True)

    async def main() -> None:
        calls = coalescer(recorder, threads, lanes=2, max_batch=10)
        waiting = [asyncio.create_task(calls.submit(1, budget=BUDGET))]
        await asyncio.to_thread(recorder.begun.wait, 10)
        waiting += [asyncio.create_task(calls.submit(n, budget=BUDGET)) for n in range(others)]
        await asyncio.sleep(PATIENCE / 3)
        begun = len(recorder.batches)
        recorder.may_go_on.set()
        await asyncio.gather(*waiting)

        assert begun == batches_at_once

    run(main)


def test_what_waits_behind_a_slow_batch_gets_a_lane_of_its_own(threads: ThreadPoolExecutor) -> None:
    recorder = Recorder(hold=True)

    async def main() -> None:
        calls = coalescer(recorder, threads, lanes=2)
        slow = asyncio.create_task(calls.submit(1, budget=BUDGET))
        await asyncio.to_thread(recorder.begun.wait, 10)
        behind = asyncio.create_task(calls.submit(2, budget=BUDGET))
        await asyncio.sleep(PATIENCE * 5)
        begun = len(recorder.batches)
        recorder.may_go_on.set()
        await asyncio.gather(slow, behind)

        assert begun == 2

    run(main)


def test_what_arrives_while_a_batch_is_under_way_becomes_the_next_batch(threads: ThreadPoolExecutor) -> None:
    recorder = Recorder(hold=True)

    async def main() -> None:
        calls = coalescer(recorder, threads)
        first = asyncio.create_task(calls.submit(1, budget=BUDGET))
        await asyncio.to_thread(recorder.begun.wait, 10)
        others = [asyncio.create_task(calls.submit(n, budget=BUDGET)) for n in range(2, 52)]
        await asyncio.sleep(0)
        recorder.may_go_on.set()
        assert await first == 10
        assert await asyncio.gather(*others) == [n * 10 for n in range(2, 52)]

    run(main)

    assert recorder.batches == [[1], list(range(2, 52))]


def test_a_batch_has_a_largest_size(threads: ThreadPoolExecutor) -> None:
    recorder = Recorder(hold=True)

    async def main() -> None:
        calls = coalescer(recorder, threads, max_batch=20)
        waiting = [asyncio.create_task(calls.submit(n, budget=BUDGET)) for n in range(50)]
        await asyncio.to_thread(recorder.begun.wait, 10)
        recorder.may_go_on.set()
        await asyncio.gather(*waiting)

    run(main)

    assert max(len(batch) for batch in recorder.batches) <= 20
    assert sorted(n for batch in recorder.batches for n in batch) == list(range(50))


def test_one_bad_item_fails_alone(threads: ThreadPoolExecutor) -> None:
    async def main() -> None:
        calls = coalescer(Recorder(), threads)
        results = await asyncio.gather(*(calls.submit(n, budget=BUDGET) for n in (1, -1, 2)), return_exceptions=True)
        assert (results[0], results[2]) == (10, 20)
        assert isinstance(results[1], NotAvailable)

    run(main)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(threads: ThreadPoolExecutor) -> None:
    recorder = Recorder(hold=True)

    async def main() -> None:
        calls = coalescer(recorder, threads, max_waiting=3)
        first = asyncio.create_task(calls.submit(0, budget=BUDGET))
        await asyncio.to_thread(recorder.begun.wait, 10)
        waiting = [asyncio.create_task(calls.submit(n, budget=BUDGET)) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(Exhausted) as refused:
            await calls.submit(4, budget=BUDGET)
        assert refused.value.retry_after is not None
        recorder.may_go_on.set()
        await asyncio.gather(first, *waiting)

    run(main)

    assert 4 not in [n for batch in recorder.batches for n in batch]


def test_a_call_whose_time_ran_out_in_the_queue_is_not_started(threads: ThreadPoolExecutor) -> None:
    recorder = Recorder(hold=True)

    async def main() -> None:
        calls = coalescer(recorder, threads)
        first = asyncio.create_task(calls.submit(1, budget=BUDGET))
        await asyncio.to_thread(recorder.begun.wait, 10)
        late = asyncio.create_task(calls.submit(2, budget=0.0))
        await asyncio.sleep(0)
        recorder.may_go_on.set()
        await first
        with pytest.raises(Unavailable):
            await late

    run(main)

    assert recorder.batches == [[1]]


def test_a_cancelled_caller_does_not_stop_a_batch_that_has_begun(threads: ThreadPoolExecutor) -> None:
    recorder = Recorder(hold=True)

    async def main() -> None:
        calls = coalescer(recorder, threads)
        leaving = asyncio.create_task(calls.submit(1, budget=BUDGET))
        await asyncio.to_thread(recorder.begun.wait, 10)
        leaving.cancel()
        staying = asyncio.create_task(calls.submit(2, budget=BUDGET))
        await asyncio.sleep(0)
        recorder.may_go_on.set()
        assert await staying == 20
        await calls.drained()

    run(main)

    assert recorder.batches == [[1], [2]]


def test_an_unexpected_failure_reaches_every_caller_of_its_batch_and_the_next_batch_runs(
    threads: ThreadPoolExecutor,
) -> None:
    failures = iter([True, False])

    def use_case(commands: Sequence[int]) -> Sequence[int | CardVaultError]:
        if next(failures):
            raise ZeroDivisionError
        return list(commands)

    async def main() -> None:
        calls: Coalescer[int, int] = Coalescer(use_case, executor=threads, lanes=1, max_batch=9, max_waiting=9)
        results = await asyncio.gather(*(calls.submit(n, budget=BUDGET) for n in (1, 2)), return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError, ZeroDivisionError]
        assert await calls.submit(3, budget=BUDGET) == 3

    run(main)


def test_a_query_that_fails_fails_alone(threads: ThreadPoolExecutor) -> None:
    def double(number: int) -> int:
        if number == 2:
            raise KeyError("no such number")
        return number * 2

    async def main() -> None:
        reads: Coalescer[Work, int] = Coalescer(one_by_one, executor=threads, lanes=1, max_batch=9, max_waiting=9)
        asked = (reads.submit((double, number), budget=BUDGET) for number in (1, 2, 3))
        first, second, third = await asyncio.gather(*asked, return_exceptions=True)
        assert (first, type(second), third) == (2, KeyError, 6)

    run(main)


def test_a_call_that_comes_just_as_a_lane_ends_does_not_wait_for_ever(threads: ThreadPoolExecutor) -> None:
    recorder = Recorder()

    async def main() -> None:
        calls = coalescer(recorder, threads)
        for number in range(20):
            # Its answer wakes us before the lane that gave it is gone.
            assert await calls.submit(number, budget=BUDGET) == number * 10
            for _ in range(number % 4):
                await asyncio.sleep(0)

    run(lambda: asyncio.wait_for(main(), 5))

    assert len(recorder.batches) == 20


def test_commands_that_settle_one_after_the_other_take_one_place_in_each_batch(threads: ThreadPoolExecutor) -> None:
    recorder = Recorder(hold=True)

    async def main() -> None:
        calls = coalescer(recorder, threads, alone=lambda command: "same" if command < 10 else None)
        first = asyncio.create_task(calls.submit(0, budget=BUDGET))
        await asyncio.to_thread(recorder.begun.wait, 10)
        others = [asyncio.create_task(calls.submit(n, budget=BUDGET)) for n in (1, 2, 11, 3, 12)]
        await asyncio.sleep(0)
        recorder.may_go_on.set()
        assert await asyncio.gather(first, *others) == [0, 10, 20, 110, 30, 120]

    run(main)

    assert recorder.batches == [[0], [1, 11, 12], [2], [3]]


def test_large_commands_share_a_batch_as_far_as_they_fit_and_a_huge_one_goes_by_itself(
    threads: ThreadPoolExecutor,
) -> None:
    recorder = Recorder(hold=True)

    async def main() -> None:
        calls = coalescer(recorder, threads, max_batch=100, size=lambda size: size)
        first = asyncio.create_task(calls.submit(1, budget=BUDGET))
        await asyncio.to_thread(recorder.begun.wait, 10)
        others = [asyncio.create_task(calls.submit(size, budget=BUDGET)) for size in (60, 40, 1, 99, 250, 7)]
        await asyncio.sleep(0)
        recorder.may_go_on.set()
        await asyncio.gather(first, *others)

    run(main)

    assert recorder.batches == [[1], [60, 40], [1, 99], [250], [7]]


def test_the_queue_is_bounded_by_the_size_of_what_waits_and_has_room_again_afterwards(
    threads: ThreadPoolExecutor,
) -> None:
    recorder = Recorder(hold=True)

    async def main() -> None:
        calls = coalescer(recorder, threads, max_waiting=300, size=lambda size: size)
        first = asyncio.create_task(calls.submit(200, budget=BUDGET))
        await asyncio.to_thread(recorder.begun.wait, 10)
        others = [asyncio.create_task(calls.submit(200, budget=BUDGET)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Exhausted):
            await calls.submit(1, budget=BUDGET)
        others[0].cancel()
        recorder.may_go_on.set()
        await asyncio.gather(first, *others, return_exceptions=True)
        for _ in range(5):
            await calls.submit(300, budget=BUDGET)

    run(main)

"""Gathers calls into batches: what arrives while one batch is under way becomes the next one.

A lone call starts at once; under load a trip to Vault and a commit are shared by all that came meanwhile. A batch, once
begun, runs to its end whatever its callers do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from vault.domain.errors import Exhausted, Unavailable
from vault.ports_telemetry import FAILED, OK, UNWATCHED, Telemetry

C = TypeVar("C")
R = TypeVar("R")
RETRY_WHEN_FULL = timedelta(milliseconds=200)
PATIENCE = 0.1
"""Seconds that a batch may take before what waits behind it gets a lane of its own."""


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[C, R]):
    command: C
    answer: asyncio.Future[R]
    deadline: float
    """On the event loop's clock."""
    origin: object
    """What telemetry knows it by."""


class Coalescer(Generic[C, R]):
    """Runs one use case in batches on worker threads."""

    def __init__(
        self,
        use_case: Callable[[Sequence[C]], Sequence[R | Exception]],
        *,
        executor: Executor,
        lanes: int,
        max_batch: int,
        max_waiting: int,
        alone: Callable[[C], Hashable] = lambda _: None,
        size: Callable[[C], int] = lambda _: 1,
        name: str = "",
        telemetry: Telemetry = UNWATCHED,
    ) -> None:
        """`lanes` batches may be under way at once; `max_waiting` bounds the queue, above it calls are refused.

        A second lane opens only where a whole batch waits or the last one began some time ago: two small batches side
        by side cost more than one large one, for threads wait for each other.

        Both bounds count `size`, 1 unless told otherwise; a command that is larger than `max_batch` goes by itself.

        Of commands for which `alone` gives the same thing (not None) each batch takes one: they would settle one after
        the other, and their neighbours would wait for all of them. `name` is for telemetry.
        """
        self._use_case = use_case
        self._executor = executor
        self._lanes = lanes
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._alone = alone
        self._size = size
        self.name = name
        self._telemetry = telemetry
        self._queue: deque[_Waiting[C, R]] = deque()
        self._waiting = 0
        self._lanes_open: set[asyncio.Task[None]] = set()
        self._began = 0.0
        """When the last batch began, on the event loop's clock."""
        self._look_again: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait for their batch, by `size`."""
        return self._waiting

    async def submit(self, command: C, *, budget: float) -> R:
        """The result of one command, or its error. `budget` is the time the caller has left, in seconds."""
        if self._waiting >= self._max_waiting:
            raise Exhausted("queue_full", retry_after=RETRY_WHEN_FULL)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._queue.append(_Waiting(command, answer, loop.time() + budget, self._telemetry.origin()))
        self._waiting += self._size(command)
        self._open_lane(loop)
        return await answer

    async def drained(self) -> None:
        """Return once no batch is under way."""
        while self._lanes_open:
            await asyncio.gather(*self._lanes_open, return_exceptions=True)

    def _open_lane(self, loop: asyncio.AbstractEventLoop) -> None:
        lanes = len(self._lanes_open)
        if not self._queue or lanes >= self._lanes:
            return
        if lanes and self._waiting < self._max_batch and loop.time() - self._began < PATIENCE:
            if self._look_again is None:
                self._look_again = loop.call_later(PATIENCE, self._look, loop)
            return
        self._lanes_open.add(loop.create_task(self._work()))

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look_again = None
        self._open_lane(loop)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take(loop.time()):
                await self._run(batch)
        finally:
            # At once, not by a callback a moment later: a call that came in between would wait for a lane for ever.
            lane = asyncio.current_task()
            assert lane is not None, "a lane is a task"
            self._lanes_open.discard(lane)

    async def _run(self, batch: Sequence[_Waiting[C, R]]) -> None:
        commands = [waiting.command for waiting in batch]
        watched = self._telemetry.batch(self.name, len(batch), [waiting.origin for waiting in batch])
        outcome = FAILED
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        try:
            # In this lane's context, so that what the use case does is known to belong to this batch.
            run = copy_context().run
            results = await loop.run_in_executor(self._executor, run, self._use_case, commands)
            outcome = OK
        except Exception as trouble:  # noqa: BLE001 - handed to every caller, whose guard maps it
            for waiting in batch:
                _settle(waiting.answer, trouble)
        else:
            for waiting, result in zip(batch, results, strict=True):
                _settle(waiting.answer, result)
        finally:
            watched.ended(outcome)

    def _take(self, now: float) -> list[_Waiting[C, R]]:
        """The next batch, without those that nobody waits for any more."""
        batch: list[_Waiting[C, R]] = []
        later: list[_Waiting[C, R]] = []
        taken: set[Hashable] = set()
        room = self._max_batch
        while self._queue and room > 0:
            waiting = self._queue.popleft()
            size = self._size(waiting.command)
            if waiting.answer.done():
                self._waiting -= size
                continue
            if waiting.deadline <= now:
                self._waiting -= size
                waiting.answer.set_exception(Unavailable("deadline_in_queue"))
                continue
            key = self._alone(waiting.command)
            if key is not None and key in taken:
                later.append(waiting)
                continue
            if batch and size > room:
                self._queue.appendleft(waiting)
                break
            taken.add(key)
            batch.append(waiting)
            self._waiting -= size
            room -= size
        self._queue.extendleft(reversed(later))
        return batch


Work = tuple[Callable[[Any], Any], Any]
"""A function and its argument."""


def one_by_one(works: Sequence[Work]) -> Sequence[Any]:
    """Call functions one after the other, each with an outcome of its own."""
    return [_outcome_of(work, argument) for work, argument in works]


def _outcome_of(work: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return work(argument)
    except Exception as trouble:  # noqa: BLE001 - handed to its caller, whose guard maps it
        return trouble


def _settle(answer: asyncio.Future[R], result: R | Exception) -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)

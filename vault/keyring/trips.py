"""Several Vault calls side by side, one of them on the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from vault.domain.errors import KeyRefused, KeyRingUnavailable

T = TypeVar("T")


class Trips:
    """Calls that are collected first and then made together.

    A lone call never changes threads. The calling thread takes its share, so as many callers as there are threads in
    the pool cannot lock each other out.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._waiting: list[Callable[[], None]] = []

    def add(self, call: Callable[[], T]) -> Future[T]:
        """The future is settled once `run` returns."""
        future: Future[T] = Future()

        def settle() -> None:
            try:
                future.set_result(call())
            except (KeyRingUnavailable, KeyRefused) as e:
                future.set_exception(e)

        self._waiting.append(settle)
        return future

    def run(self) -> None:
        """Make all calls. What they raise is in their futures; anything unforeseen is raised here."""
        if not self._waiting:
            return
        mine, *others = self._waiting
        self._waiting = []
        # In the caller's context, so that traces know what the call belongs to.
        started = [self._pool.submit(copy_context().run, other) for other in others]
        mine()
        for other in started:
            other.result()

"""What is repeated, when, and when to give up: the error contract as decisions, without a clock or a socket.

Codes that leave the outcome unknown are repeated, always with the very same request and so the same idempotency key.
Of the definite ones only those for which the server says when (`RetryInfo`): it did nothing, and may do it later.
"""

from __future__ import annotations

import secrets
import threading
from datetime import timedelta
from typing import Any

import grpc

from vault.client.calls import Call, Effect
from vault.client.errors import CallError, Failure, OutcomeUnknown
from vault.client.options import Options

SHORTEST_ATTEMPT = 0.02
"""Seconds that must be left for another attempt."""
_BACK_FOR_A_SUCCESS = 0.1
_JITTER_ON_TOLD = 0.25

_SAID_BEFORE_LOOKING = frozenset(
    {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNIMPLEMENTED,
        # Meanwhile a certificate may have lost its role, a card or an agreement its validity, a server its release.
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
)
"""These say that this attempt did nothing, and nothing about the attempt before it."""

_ASK_FOR_A_NEW_GRANT = "the card may have been released and the answer lost: ask the shop for a new grant"
_REPEAT = "it may have happened: repeat it with the same idempotency key"
_REPEAT_AS_IT_IS = "it may have happened: repeating it is safe"


def kind_after_loss(failure: Failure) -> type[CallError]:
    """The class of error for a write of which an attempt before may have been carried out, and its answer lost."""
    says_nothing = failure.is_closed or failure.code in _SAID_BEFORE_LOOKING
    return OutcomeUnknown if says_nothing and not failure.is_unknown else failure.kind


_random = secrets.SystemRandom()


class Budget:
    """Tokens of one client. For any number of threads."""

    def __init__(self, tokens: float) -> None:
        self._most = self._left = tokens
        self._lock = threading.Lock()

    def failed(self) -> bool:
        """Take one; whether a repeat is allowed."""
        with self._lock:
            self._left = max(0.0, self._left - 1)
            return self._left > self._most / 2

    def succeeded(self) -> None:
        """Bring a tenth back."""
        with self._lock:
            self._left = min(self._most, self._left + _BACK_FOR_A_SUCCESS)


class Attempts:
    """The attempts of one call. Times are seconds of a monotonic clock."""

    def __init__(self, call: Call[Any], options: Options, budget: Budget, *, now: float) -> None:
        self._call = call
        self._options = options
        self._budget = budget
        self._until = now + (options.deadline if call.deadline is None else call.deadline).total_seconds()
        self._failed = 0
        self._may_have_happened = False

    @property
    def may_have_happened(self) -> bool:
        """Whether one before may have been carried out, and its answer lost."""
        return self._may_have_happened

    def seconds(self, now: float) -> float:
        """How long the next attempt may take."""
        left = max(self._until - now, 0.0)
        # A redemption is not repeated after a lost answer, so no time is kept for that.
        return left if self._call.effect is Effect.REDEEM else min(left, self._options.attempt.total_seconds())

    def succeeded(self) -> None:
        """The answer is there."""
        self._budget.succeeded()

    def pause_after(self, failure: Failure, now: float) -> float | CallError:
        """Seconds to wait before the next attempt, or the error with which the call ends."""
        error = self._error(failure)
        self._failed += 1
        self._may_have_happened |= failure.is_unknown and not failure.never_left
        if not self._may_be_repeated(failure):
            return error
        pause = self._pause(failure.retry_after)
        return pause if now + pause + SHORTEST_ATTEMPT <= self._until else error

    def _may_be_repeated(self, failure: Failure) -> bool:
        if failure.never_left:
            # It burdens nobody: gRPC itself spaces out connecting. Were it to cost tokens, a client would come out of
            # an outage with an empty bucket and give up at a server that is back.
            return True
        if not (failure.is_unknown or failure.retry_after is not None):
            return False
        has_budget = self._budget.failed()
        may_be_lost = self._call.effect is Effect.REDEEM and failure.is_unknown and failure.retry_after is None
        return has_budget and not may_be_lost

    def _pause(self, told: timedelta | None) -> float:
        most = self._options.first_pause.total_seconds() * 2 ** min(self._failed - 1, 16)
        drawn = _random.uniform(0, min(most, self._options.longest_pause.total_seconds()))
        if told is None:
            return drawn
        # Never before what the server asks for, and not all at once.
        return max(drawn, told.total_seconds() * _random.uniform(1, 1 + _JITTER_ON_TOLD))

    def _error(self, failure: Failure) -> CallError:
        call = self._call
        kind = failure.kind
        if self._may_have_happened and call.effect is not Effect.READ:
            kind = (
                OutcomeUnknown if call.effect is Effect.REDEEM and not failure.is_unknown else kind_after_loss(failure)
            )
        advice = ""
        if issubclass(kind, OutcomeUnknown) and call.effect is Effect.REDEEM:
            advice = "" if failure.never_left and not self._may_have_happened else _ASK_FOR_A_NEW_GRANT
        elif issubclass(kind, OutcomeUnknown) and call.effect is Effect.WRITE:
            advice = _REPEAT if call.idempotency_key else _REPEAT_AS_IT_IS
        return kind(failure, call.method, call.idempotency_key, advice)

"""What can go wrong, in two branches: it did not happen, or nobody here can know whether it did.

`except DidNotHappen` and `except OutcomeUnknown` together catch all that a call raises. No text holds a card number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from vault.domain.pan import contains_pan

__all__ = [
    "CallError",
    "ClientClosed",
    "Conflict",
    "ConsentRequired",
    "Contention",
    "DidNotHappen",
    "FieldViolation",
    "InvalidArgument",
    "NotAvailable",
    "NotServed",
    "OutcomeUnknown",
    "Overloaded",
    "PreconditionFailed",
    "Refused",
    "Unavailable",
]

_ERROR_ID_KEY = "cardvault-error-id"
_DETAILS_KEY = "grpc-status-details-bin"
_LONG_NUMBER = re.compile(r"[0-9]{8,}")
_MAX_TEXT = 500
_LONGEST_WAIT = 24 * 60 * 60
"""Seconds; a server that says more says never."""
_NEVER_LEFT = "failed to connect to all addresses"
"""How gRPC begins where it has no connection to send anything over. Were that to change, less would be repeated."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that fails its checks."""

    field: str
    """Its path in the request, as in `card.pan`."""
    description: str
    """What is wrong with it; never its value."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How one attempt ended, as it came over the wire or as gRPC put it."""

    code: grpc.StatusCode
    text: str = ""
    error_id: str = ""
    """Under which the server's log and audit event know more; empty where no server of ours answered."""
    reason: str = ""
    violations: tuple[FieldViolation, ...] = ()
    retry_after: timedelta | None = None
    """When the server says that a repeat makes sense."""
    is_closed: bool = False
    """The client was closed before this attempt: nothing was sent."""

    @classmethod
    def of(cls, error: Any) -> Failure:
        """What an error of gRPC says; both its kinds have these three methods."""
        metadata: Mapping[str, str | bytes] = dict(error.trailing_metadata() or ())
        violations, reason, retry_after = _details(metadata.get(_DETAILS_KEY, b""))
        return cls(
            code=error.code(),
            text=_harmless(error.details() or ""),
            error_id=_harmless(str(metadata.get(_ERROR_ID_KEY, ""))),
            reason=reason,
            violations=violations,
            retry_after=retry_after,
        )

    @property
    def kind(self) -> type[CallError]:
        """The class of error that stands for it."""
        if self.is_closed:
            return ClientClosed
        if self.code is grpc.StatusCode.FAILED_PRECONDITION:
            about_consent = self.reason.startswith("CONSENT_") or self.reason == "ONE_TIME_TOKEN_FOR_MERCHANT"
            return ConsentRequired if about_consent else PreconditionFailed
        return _KINDS.get(self.code, OutcomeUnknown)

    @property
    def is_unknown(self) -> bool:
        """Whether it may have happened all the same."""
        return issubclass(self.kind, OutcomeUnknown)

    @property
    def never_left(self) -> bool:
        """Whether it surely did not, as there was no connection."""
        return self.code is grpc.StatusCode.UNAVAILABLE and not self.error_id and self.text.startswith(_NEVER_LEFT)


class CallError(Exception):
    """A call did not bring its answer."""

    failure: Failure
    """How the last attempt ended."""

    def __init__(self, failure: Failure, method: str = "", idempotency_key: str = "", advice: str = "") -> None:
        super().__init__(failure, method, idempotency_key, advice)
        self.failure = failure
        self.method = method
        """Name of the RPC, as in `Tokenize`."""
        self.idempotency_key = idempotency_key
        """Of the call, drawn by the client or given; empty where the RPC has none."""
        self.advice = advice

    @property
    def code(self) -> grpc.StatusCode:
        """The status code."""
        return self.failure.code

    @property
    def error_id(self) -> str:
        """Tell it to whoever runs the vault; empty where no vault answered."""
        return self.failure.error_id

    @property
    def reason(self) -> str:
        """For programs, such as `IDEMPOTENCY_KEY_REUSED`; empty where there is none."""
        return self.failure.reason

    def __str__(self) -> str:
        words = [f"{self.method}: " if self.method else "", self.code.name]
        words += [f" “{self.failure.text}”" if self.failure.text else ""]
        words += [f" [{self.reason}]" if self.reason else "", f" ({self.error_id})" if self.error_id else ""]
        words += [f"; {self.advice}" if self.advice else ""]
        return "".join(words)


class DidNotHappen(CallError):
    """The vault did nothing, or says that there is nothing to do."""


class InvalidArgument(DidNotHappen):
    """A field fails its checks."""

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """Which."""
        return self.failure.violations


class Refused(DidNotHappen):
    """The certificate may not do that; or a redemption or report was refused, whatever the cause."""


class NotAvailable(DidNotHappen):
    """Not there, not yours, erased, expired: one answer for all."""


class ConsentRequired(DidNotHappen):
    """The customer's consent is missing, has ended, or does not cover the use."""


class PreconditionFailed(DidNotHappen):
    """The thing is in a state that does not allow this, such as a grant to be revoked that was used."""


class Conflict(DidNotHappen):
    """The idempotency key stands for another request, or its secret answer was used already."""


class Contention(DidNotHappen):
    """Others kept changing the same thing."""


class Overloaded(DidNotHappen):
    """A limit is reached."""


class NotServed(DidNotHappen):
    """The server at this address does not serve that service."""


class ClientClosed(DidNotHappen, RuntimeError):
    """The client was closed before anything was sent. A call that was under way then is `OutcomeUnknown`."""


class OutcomeUnknown(CallError):
    """It may have happened or not. Repeat it with the same `idempotency_key`."""


class Unavailable(OutcomeUnknown):
    """The vault, or what it depends on, is away. On a client's first call look at its certificates."""


_KINDS: dict[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.PERMISSION_DENIED: Refused,
    grpc.StatusCode.UNAUTHENTICATED: Refused,
    grpc.StatusCode.NOT_FOUND: NotAvailable,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.ABORTED: Contention,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNIMPLEMENTED: NotServed,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
}
"""Whatever is not here leaves the outcome unknown."""


def _harmless(text: str) -> str:
    """What came from afar, without anything that could be a card number."""
    text = text[:_MAX_TEXT]
    return "(text withheld)" if contains_pan(text) else _LONG_NUMBER.sub("…", text)


def _details(raw: str | bytes) -> tuple[tuple[FieldViolation, ...], str, timedelta | None]:
    violations: list[FieldViolation] = []
    reason, retry_after = "", None
    for detail in _unpacked(raw):
        match detail:
            case error_details_pb2.BadRequest():
                violations += [
                    FieldViolation(_harmless(each.field), _harmless(each.description))
                    for each in detail.field_violations
                ]
            case error_details_pb2.ErrorInfo():
                reason = _harmless(detail.reason)
            case error_details_pb2.RetryInfo():
                told = timedelta(microseconds=detail.retry_delay.nanos // 1000)
                retry_after = told + timedelta(seconds=min(max(detail.retry_delay.seconds, 0), _LONGEST_WAIT))
    return tuple(violations), reason, retry_after


def _unpacked(raw: str | bytes) -> Iterable[Any]:
    try:
        status = status_pb2.Status.FromString(raw if isinstance(raw, bytes) else raw.encode())
        for packed in status.details:
            for kind in (error_details_pb2.BadRequest, error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
                if packed.Is(kind.DESCRIPTOR):
                    yield kind.FromString(packed.value)
    except DecodeError:
        return

"""The one table from kinds of errors to what a caller is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from vault.domain.errors import CardVaultError, Kind
from vault.domain.ids import RequestId

ERROR_ID_KEY = "cardvault-error-id"
"""Trailing metadata that every error answer carries; the log and the audit event repeat its value."""

_DOMAIN = "cardvault"

CODES = {
    Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.REFUSED: grpc.StatusCode.PERMISSION_DENIED,
    Kind.NOT_AVAILABLE: grpc.StatusCode.NOT_FOUND,
    Kind.CONSENT_REQUIRED: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    Kind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.CONTENTION: grpc.StatusCode.ABORTED,
    Kind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}

_REASON_TOLD = frozenset({Kind.CONFLICT, Kind.PRECONDITION, Kind.CONSENT_REQUIRED})
"""Kinds whose reason the caller may learn; of the others it would be an oracle."""

_DEFAULT_RETRY_MILLIS = 1000
_RETRYABLE = frozenset({Kind.EXHAUSTED, Kind.UNAVAILABLE, Kind.CONTENTION})

_MAY_HAVE_HAPPENED = "commit_unknown"
"""No `RetryInfo` goes with it: a processor repeats a redemption only where that says that nothing happened."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An error as it goes over the wire."""

    code: grpc.StatusCode
    text: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def answer_to(error: CardVaultError, request_id: RequestId) -> Answer:
    """What the caller is told of this error."""
    text = f"{error.field}: {error.message}" if error.field else error.message
    return _answer(CODES[error.kind], text, request_id, _details(error))


def answer_to_unexpected(request_id: RequestId) -> Answer:
    """What the caller is told of anything else: nothing but the id under which the log knows more."""
    return _answer(grpc.StatusCode.INTERNAL, "error", request_id, ())


def answer_to_deadline(request_id: RequestId) -> Answer:
    """The server's own deadline passed; what happened is unknown."""
    return _answer(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded", request_id, ())


def reason_told(error: CardVaultError) -> str:
    """The reason as the caller may learn it, or nothing."""
    return error.reason.upper() if error.kind in _REASON_TOLD else ""


def _details(error: CardVaultError) -> Sequence[Message]:
    details: list[Message] = []
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if reason := reason_told(error):
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain=_DOMAIN))
    if error.kind in _RETRYABLE and error.reason != _MAY_HAVE_HAPPENED:
        delay = duration_pb2.Duration()
        if error.retry_after is not None:
            delay.FromTimedelta(error.retry_after)
        else:
            delay.FromMilliseconds(_DEFAULT_RETRY_MILLIS)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _answer(code: grpc.StatusCode, text: str, request_id: RequestId, details: Sequence[Message]) -> Answer:
    metadata: list[tuple[str, str | bytes]] = [(ERROR_ID_KEY, request_id)]
    if details:
        packed = []
        for detail in details:
            wrapped = any_pb2.Any()
            wrapped.Pack(detail)
            packed.append(wrapped)
        status = status_pb2.Status(code=code.value[0], message=text, details=packed)
        metadata.append(("grpc-status-details-bin", status.SerializeToString()))
    return Answer(code, text, tuple(metadata))

"""The door: every call comes through here as raw bytes, and nothing but an answer or an error of ours goes out.

Who is it, may they, is there room, how long do they have; then parse, run, serialise. gRPC would send the text of an
uncaught exception to the client, and malformed protobuf would fail before any of our code runs: hence the raw bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from time import perf_counter
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError, Message

from vault.domain.caller import Caller
from vault.domain.errors import CardVaultError, InvalidField, Refused, Unavailable
from vault.domain.ids import RANDOM_BYTES, RequestId
from vault.domain.reasons import DEADLINE, UNEXPECTED
from vault.ports import Entropy
from vault.ports_telemetry import CALL_CANCELLED, CALL_OK, UNWATCHED, Telemetry
from vault.rpc.access import Rule
from vault.rpc.errors import Answer, answer_to, answer_to_deadline, answer_to_unexpected
from vault.rpc.identity import Identities, check_transport
from vault.rpc.rooms import RoomLimits, Rooms
from vault.telemetry import where
from vault.usecases.refusals import RefusedCall, needs_event

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Call:
    """One call that came through the door."""

    caller: Caller
    budget: float
    """Seconds that the caller waits at most."""


Handler = Callable[[Any, Call], Awaitable[Message]]
"""Takes the parsed request, returns the response."""


class Context(Protocol):
    """What is used of a gRPC servicer context."""

    def auth_context(self) -> Mapping[str, Any]:
        """Facts about the connection's certificate."""

    def peer(self) -> str:
        """Network address."""

    def invocation_metadata(self) -> Any:
        """Headers of the call, as pairs."""

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline, or None."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one server process."""

    default_deadline: timedelta = timedelta(seconds=10)
    longest_deadline: timedelta = timedelta(seconds=30)
    rooms: RoomLimits = field(default_factory=RoomLimits)


class Door:
    """Guards handlers. One for a whole server."""

    def __init__(
        self,
        *,
        identities: Identities,
        limits: Limits,
        entropy: Entropy,
        record_refusal: Callable[[RefusedCall], Awaitable[object]],
        telemetry: Telemetry = UNWATCHED,
    ) -> None:
        self._identities = identities
        self._limits = limits
        self._entropy = entropy
        self._record_refusal = record_refusal
        self._rooms = Rooms(limits.rooms)
        self._telemetry = telemetry

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return self._rooms.in_flight

    def guard(
        self, *, method: str, rule: Rule, request_type: type[Message], handler: Handler
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """A handler of raw bytes that lets only the rule's roles reach `handler`."""

        async def guarded(raw: bytes, context: Context) -> bytes:
            watched = self._telemetry.call(method, lambda: _traceparent(context))
            request_id = RequestId.from_random(self._entropy.bytes(RANDOM_BYTES))
            # As it stays where the client goes away.
            code, reason, error_id = CALL_CANCELLED, "", ""
            try:
                done, reason = await answered(raw, context, request_id)
                if isinstance(done, bytes):
                    code = CALL_OK
                    return done
                code, error_id = done.code.name, request_id
            finally:
                watched.ended(code, reason, error_id)
            return await _end(context, done)

        async def answered(raw: bytes, context: Context, request_id: RequestId) -> tuple[bytes | Answer, str]:
            """The response; or the error to answer, with its reason."""
            started = perf_counter()
            at = ""
            caller: Caller | None = None
            try:
                auth = context.auth_context()
                caller = self._identities.caller(auth, peer=context.peer(), request_id=request_id)
                budget = self._budget(context)
                # A place first: also refusing costs a line in the audit log.
                with self._rooms.call(caller):
                    try:
                        self._check_caller(auth, caller, rule)
                        request = _parse(request_type, raw)
                        async with asyncio.timeout(budget):
                            response = await handler(request, Call(caller, budget))
                        return response.SerializeToString(), ""
                    except CardVaultError as error:
                        await self._audit(error, method, rule.event, caller)
                        raise
            except CardVaultError as error:
                reason, at = error.reason, error.field
                answer = answer_to(error, request_id)
            except TimeoutError:
                reason = DEADLINE
                answer = answer_to_deadline(request_id)
            except Exception as error:  # noqa: BLE001 - nothing of it may reach the client or the log but its place
                reason = UNEXPECTED
                _log.error("call.failed", method=method, error_id=request_id, where=where(error))
                answer = answer_to_unexpected(request_id)
            _log.info(
                "call.refused",
                method=method,
                code=answer.code.name,
                reason=reason,
                field=at,
                error_id=request_id,
                identity=caller.known.uri if caller is not None and caller.identity is not None else "",
                milliseconds=round((perf_counter() - started) * 1000, 1),
            )
            return answer, reason

        return guarded

    def guard_open(
        self, *, method: str, request_type: type[Message], handler: Callable[[Any, Any], Awaitable[Message]]
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """A handler for every certificate that the handshake accepted, such as a health check."""

        async def guarded(raw: bytes, context: Context) -> bytes:
            request_id = RequestId.from_random(self._entropy.bytes(RANDOM_BYTES))
            try:
                check_transport(context.auth_context())
                response = await handler(_parse(request_type, raw), context)
                return response.SerializeToString()
            except CardVaultError as error:
                answer = answer_to(error, request_id)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                _log.error("call.failed", method=method, error_id=request_id, where=where(error))
                answer = answer_to_unexpected(request_id)
            return await _end(context, answer)

        return guarded

    def guard_open_stream(
        self, *, method: str, request_type: type[Message], handler: Callable[[Any, Any], Awaitable[None]]
    ) -> Callable[[bytes, Context], Awaitable[None]]:
        """The same for a call that answers with a stream written through the context."""

        async def guarded(raw: bytes, context: Context) -> None:
            request_id = RequestId.from_random(self._entropy.bytes(RANDOM_BYTES))
            try:
                auth = context.auth_context()
                check_transport(auth)
                caller = self._identities.caller(auth, peer=context.peer(), request_id=request_id)
                with self._rooms.watcher(caller.certificate_sha256):
                    await handler(_parse(request_type, raw), context)
            except CardVaultError as error:
                await _end(context, answer_to(error, request_id))
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                _log.error("call.failed", method=method, error_id=request_id, where=where(error))
                await _end(context, answer_to_unexpected(request_id))

        return guarded

    def _check_caller(self, auth: Mapping[str, Any], caller: Caller, rule: Rule) -> None:
        check_transport(auth)
        if caller.identity is None:
            raise Refused("unmapped_identity" if caller.presented_uri else "no_single_uri")
        if caller.identity.role not in rule.roles:
            raise Refused("role")

    def _budget(self, context: Context) -> float:
        asked = context.time_remaining()
        longest = self._limits.longest_deadline.total_seconds()
        return self._limits.default_deadline.total_seconds() if asked is None else min(asked, longest)

    async def _audit(self, error: CardVaultError, method: str, event: str, caller: Caller) -> None:
        """Record a refusal. Raises `Unavailable` where that is not possible: it is then no definite answer."""
        if not needs_event(error):
            return
        refused = RefusedCall(caller=caller, event=event, method=method, reason=error.reason, field=error.field)
        try:
            async with asyncio.timeout(self._limits.default_deadline.total_seconds()):
                await self._record_refusal(refused)
        except Exception as trouble:  # noqa: BLE001 - whatever it is, the refusal is not recorded
            _log.error("audit.unavailable", method=method, error_id=caller.request_id, where=where(trouble))
            raise Unavailable("audit_unavailable") from None


def _traceparent(context: Context) -> str:
    """The header of W3C Trace Context, if it came once and as text."""
    found = [value for key, value in context.invocation_metadata() or () if key == "traceparent"]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else ""


def _parse(request_type: type[Message], raw: bytes) -> Message:
    try:
        return request_type.FromString(raw)
    except DecodeError:
        raise InvalidField("request", "is not a valid message") from None


async def _end(context: Context, answer: Answer) -> NoReturn:
    await context.abort(answer.code, answer.text, answer.trailing_metadata)
    raise AssertionError("abort does not return")

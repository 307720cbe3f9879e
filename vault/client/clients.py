"""The two drivers: one blocks, one is awaited. What they carry out and when they repeat it is decided elsewhere."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import grpc
import grpc.aio

from vault.client.calls import Call, Request
from vault.client.channels import Channels, Closed
from vault.client.errors import CallError, ClientClosed, Failure, Unavailable
from vault.client.health import check
from vault.client.options import Options, Pem, TlsFiles
from vault.client.retry import Attempts, Budget

T = TypeVar("T")
_log = logging.getLogger("vault.client")
_READY_POLL = 0.1
_READY_TIMEOUT = timedelta(seconds=30)


class _Client:
    """What both have."""

    service: ClassVar[str]
    """Full name of the service that is called."""

    def __init__(self, address: str, tls: TlsFiles, options: Options | None = None) -> None:
        """`address` is `host:port`. Nothing is connected before the first call.

        Raises `OSError` for a file that cannot be read and `UnusableCertificates` for one that is no good.
        """
        self._options = options or Options()
        self._budget = Budget(self._options.retry_tokens)
        self._address = address
        self._channels: Channels[Any] = Channels(tls, self._options, self._open)

    def _open(self, pem: Pem) -> Any:
        raise NotImplementedError

    def _attempts(self, described: Call[Any]) -> Attempts:
        return Attempts(described, self._options, self._budget, now=time.monotonic())

    def _repeated(self, described: Call[Any], failure: Failure) -> None:
        _log.info("%s is repeated after %s %s", described.method, failure.code.name, failure.error_id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"


def _credentials(pem: Pem) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(pem.ca, pem.private_key, pem.certificate)


def _read(described: Call[T], raw: bytes, *, after_loss: bool = False) -> tuple[T] | Failure:
    """The answer, in a tuple so that None can be one. `after_loss`: an attempt before may have been carried out."""
    read = described.answer_after_loss if after_loss and described.answer_after_loss is not None else described.answer
    try:
        return (read(raw),)
    except Exception:  # noqa: BLE001 - whatever is odd about it, its text could quote it
        return Failure(grpc.StatusCode.INTERNAL, "the answer cannot be read")


_CLOSED = Failure(grpc.StatusCode.CANCELLED, "this client is closed", is_closed=True)
"""Nothing was sent."""
_CLOSED_MEANWHILE = Failure(grpc.StatusCode.CANCELLED, "this client was closed")


class BlockingClient(_Client):
    """Methods return when the answer is there. For any number of threads; a context manager."""

    def run(self, described: Call[T], /) -> T:
        """Carry out one call. Raises `CallError`."""
        attempts = self._attempts(described)
        while True:
            seconds = attempts.seconds(time.monotonic())
            answer = self._attempt(described, seconds, after_loss=attempts.may_have_happened)
            if not isinstance(answer, Failure):
                attempts.succeeded()
                return answer[0]
            # Out of any `except`, so that the error drags no foreign traceback with it.
            pause = attempts.pause_after(answer, time.monotonic())
            if isinstance(pause, CallError):
                raise pause
            self._repeated(described, answer)
            time.sleep(pause)

    def wait_ready(self, timeout: timedelta = _READY_TIMEOUT) -> None:
        """Return once the service says that it can do its work. Raises `Unavailable`, `ClientClosed`."""
        until = time.monotonic() + timeout.total_seconds()
        while True:
            answer = self._attempt(check(self.service), max(until - time.monotonic(), 0.0))
            if not isinstance(answer, Failure) and answer[0]:
                return
            if time.monotonic() + _READY_POLL >= until or answer is _CLOSED:
                raise _not_ready(answer)
            time.sleep(_READY_POLL)

    def close(self) -> None:
        """End all connections, and calls on them: `OutcomeUnknown` if one may be carried out, else `ClientClosed`."""
        self._end(self._channels.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, pem: Pem) -> grpc.Channel:
        return grpc.secure_channel(self._address, _credentials(pem), options=self._options.channel_options())

    def _attempt(self, described: Call[T], seconds: float, *, after_loss: bool = False) -> tuple[T] | Failure:
        try:
            lease, done = self._channels.take()
        except Closed:
            return _CLOSED
        self._end(done)
        try:
            send = lease.channel.unary_unary(described.path, request_serializer=Request.serialized)
            raw: bytes = send(described.request, timeout=seconds)
        except grpc.RpcError as error:
            return Failure.of(error)
        except ValueError:  # so gRPC refuses to begin a call on a closed channel
            if self._channels.is_closed:
                return _CLOSED
            raise
        finally:
            self._end(self._channels.give_back(lease))
        return _read(described, raw, after_loss=after_loss)

    @staticmethod
    def _end(channels: list[grpc.Channel]) -> None:
        for channel in channels:
            channel.close()


class AsyncClient(_Client):
    """Methods are awaited, on one event loop; an async context manager. Cancelling one cancels its call."""

    async def arun(self, described: Call[T], /) -> T:
        """Carry out one call. Raises `CallError`."""
        attempts = self._attempts(described)
        while True:
            seconds = attempts.seconds(time.monotonic())
            answer = await self._attempt(described, seconds, after_loss=attempts.may_have_happened)
            if not isinstance(answer, Failure):
                attempts.succeeded()
                return answer[0]
            pause = attempts.pause_after(answer, time.monotonic())
            if isinstance(pause, CallError):
                raise pause
            self._repeated(described, answer)
            await asyncio.sleep(pause)

    async def wait_ready(self, timeout: timedelta = _READY_TIMEOUT) -> None:  # noqa: ASYNC109 - as on the other client
        """Return once the service says that it can do its work. Raises `Unavailable`, `ClientClosed`."""
        until = time.monotonic() + timeout.total_seconds()
        while True:
            answer = await self._attempt(check(self.service), max(until - time.monotonic(), 0.0))
            if not isinstance(answer, Failure) and answer[0]:
                return
            if time.monotonic() + _READY_POLL >= until or answer is _CLOSED:
                raise _not_ready(answer)
            await asyncio.sleep(_READY_POLL)

    async def close(self) -> None:
        """End all connections, and calls on them: `OutcomeUnknown` if one may be carried out, else `ClientClosed`."""
        await self._end(self._channels.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self, pem: Pem) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self._address, _credentials(pem), options=self._options.channel_options())

    async def _attempt(self, described: Call[T], seconds: float, *, after_loss: bool = False) -> tuple[T] | Failure:
        task = asyncio.current_task()
        asked = task.cancelling() if task is not None else 0
        try:
            lease, done = self._channels.take()
        except Closed:
            return _CLOSED
        try:
            await self._end(done)
            send = lease.channel.unary_unary(described.path, request_serializer=Request.serialized)
            raw: bytes = await send(described.request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return Failure.of(error)
        except grpc.aio.UsageError:  # so it refuses to begin a call on a closed channel
            if self._channels.is_closed:
                return _CLOSED
            raise
        except asyncio.CancelledError:
            # Closing a channel cancels the calls on it, which then look as if their callers had been cancelled.
            if self._channels.is_closed and (task is None or task.cancelling() == asked):
                return _CLOSED_MEANWHILE
            raise
        finally:
            await self._end(self._channels.give_back(lease))
        return _read(described, raw, after_loss=after_loss)

    @staticmethod
    async def _end(channels: list[grpc.aio.Channel]) -> None:
        for channel in channels:
            await channel.close()


def _not_ready(answer: tuple[object] | Failure) -> CallError:
    if answer is _CLOSED:
        return ClientClosed(_CLOSED, "Check")
    failure = answer if isinstance(answer, Failure) else Failure(grpc.StatusCode.UNAVAILABLE, "not ready")
    return Unavailable(failure, "Check")

"""One call described: what is sent, how its answer is read, what may be repeated. No I/O here.

Each method of a role is written once, as a function that describes its call; `rpc`, `paged` and `gathered` turn it
into a method that blocks on a `Blocking` client and into a coroutine on an `Awaiting` one.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

import grpc
from google.protobuf.message import Message

from vault.client.errors import Failure, InvalidArgument

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class Effect(Enum):
    """What a call does, and so what may be repeated."""

    READ = "read"
    """Nothing: repeat it."""
    WRITE = "write"
    """Something, once for each idempotency key or whatever the number of calls: repeat the very same request."""
    REDEEM = "redeem"
    """Uses up a grant. A repeat is refused if the first attempt was carried out, and that refusal stands in the audit
    log like an attack. So it is repeated only where the vault itself said that it could not, or nothing was sent."""


class Request:
    """A message on its way: bytes that no traceback shows."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def serialized(self) -> bytes:
        """For gRPC."""
        return self._raw

    def __repr__(self) -> str:
        return "Request(…)"


@dataclass(frozen=True, slots=True, repr=False)
class Call(Generic[T]):
    """One call."""

    path: str
    """As in `/vault.v1.CheckoutService/Tokenize`."""
    request: Request
    answer: Callable[[bytes], T]
    """Reads the answer."""
    effect: Effect
    deadline: timedelta | None
    """For all attempts together; None: as the client's options say."""
    idempotency_key: str = ""
    answer_after_loss: Callable[[bytes], T] | None = None
    """Reads it where an attempt before may have been carried out; None: in the same way."""

    @property
    def method(self) -> str:
        """Name of the RPC."""
        return self.path.rpartition("/")[2]

    def __repr__(self) -> str:
        return f"Call({self.method})"


M = TypeVar("M", bound=Message)


def call(
    path: str,
    make: Callable[[], Message],
    answer_type: type[M],
    decode: Callable[[M], T],
    *,
    effect: Effect,
    deadline: timedelta | None,
    idempotency_key: str = "",
    decode_after_loss: Callable[[M], T] | None = None,
) -> Call[T]:
    """Describe one. Raises `InvalidArgument` for what cannot even be written down, such as a number as a text."""
    raw: bytes | None = None
    # Texts of these errors can quote values, so ours is raised outside of them.
    with contextlib.suppress(TypeError, ValueError, OverflowError, AttributeError):
        raw = make().SerializeToString(deterministic=True)
    if raw is None:
        failure = Failure(grpc.StatusCode.INVALID_ARGUMENT, "an argument has a wrong type or is out of range")
        raise InvalidArgument(failure, path.rpartition("/")[2])
    return Call(
        path=path,
        request=Request(raw),
        answer=lambda received: decode(answer_type.FromString(received)),
        effect=effect,
        deadline=deadline,
        idempotency_key=idempotency_key,
        answer_after_loss=None
        if decode_after_loss is None
        else lambda received: decode_after_loss(answer_type.FromString(received)),
    )


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list."""

    items: tuple[T, ...]
    following: Call[Page[T]] | None


@dataclass(frozen=True, slots=True)
class Gathered(Generic[T, R]):
    """A list of which all pages make one answer."""

    first: Call[Page[T]]
    together: Callable[[Iterable[T]], R]


class Blocking(Protocol):
    """A client whose methods return when the answer is there."""

    def run(self, described: Call[T], /) -> T:
        """Carry out one call."""


class Awaiting(Protocol):
    """A client whose methods are awaited."""

    async def arun(self, described: Call[T], /) -> T:
        """Carry out one call."""


class _Described(Generic[P, T]):
    """A method described once, bound as its client is."""

    def __init__(self, describe: Callable[Concatenate[Any, P], Any]) -> None:
        self.__doc__ = describe.__doc__
        self._blocking = self._as_described(self.blocking(describe), describe)
        self._awaiting = self._as_described(self.awaiting(describe), describe)

    def _as_described(self, method: Callable[..., Any], describe: Callable[..., Any]) -> Callable[..., Any]:
        functools.update_wrapper(method, describe)
        signature = inspect.signature(describe)
        inner = str(signature.return_annotation).partition("[")[2].removesuffix("]")
        method.__signature__ = signature.replace(return_annotation=self.returns(inner))  # type: ignore[attr-defined]
        return method

    def bound(self, client: object, owner: type) -> Any:
        """The method of a client or, without one, the function of its class."""
        function = self._awaiting if hasattr(owner, "arun") else self._blocking
        return function if client is None else MethodType(function, client)

    @staticmethod
    def returns(inner: str) -> str:
        """What the method's help says that it returns."""
        return inner

    @staticmethod
    def blocking(describe: Callable[..., Any]) -> Callable[..., Any]:
        """The method on a blocking client."""
        raise NotImplementedError

    @staticmethod
    def awaiting(describe: Callable[..., Any]) -> Callable[..., Any]:
        """The method on an awaiting client."""
        raise NotImplementedError


class rpc(_Described[P, T]):  # noqa: N801 - stands as a decorator
    """One call, one answer."""

    def __init__(self, describe: Callable[Concatenate[Any, P], Call[T]]) -> None:
        super().__init__(describe)

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        return self.bound(client, owner)

    @staticmethod
    def blocking(describe: Callable[..., Call[T]]) -> Callable[..., T]:
        """Returns when the answer is there."""

        def method(client: Blocking, /, *args: Any, **kwargs: Any) -> T:
            return client.run(describe(client, *args, **kwargs))

        return method

    @staticmethod
    def awaiting(describe: Callable[..., Call[T]]) -> Callable[..., Coroutine[Any, Any, T]]:
        """To be awaited."""

        async def method(client: Awaiting, /, *args: Any, **kwargs: Any) -> T:
            return await client.arun(describe(client, *args, **kwargs))

        return method


class paged(_Described[P, T]):  # noqa: N801 - stands as a decorator
    """A list, fetched page by page while it is walked through."""

    def __init__(self, describe: Callable[Concatenate[Any, P], Call[Page[T]]]) -> None:
        super().__init__(describe)

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        return self.bound(client, owner)

    @staticmethod
    def returns(inner: str) -> str:
        """An iterator, which on the other client is an asynchronous one."""
        return inner.replace("Page[", "Iterator[")

    @staticmethod
    def blocking(describe: Callable[..., Call[Page[T]]]) -> Callable[..., Iterator[T]]:
        """Asks for each page when it is needed."""

        def method(client: Blocking, /, *args: Any, **kwargs: Any) -> Iterator[T]:
            return _walk(client, describe(client, *args, **kwargs))

        return method

    @staticmethod
    def awaiting(describe: Callable[..., Call[Page[T]]]) -> Callable[..., AsyncIterator[T]]:
        """Asks for each page when it is needed."""

        def method(client: Awaiting, /, *args: Any, **kwargs: Any) -> AsyncIterator[T]:
            return _awalk(client, describe(client, *args, **kwargs))

        return method


class gathered(_Described[P, R]):  # noqa: N801 - stands as a decorator
    """All pages of a list in one answer."""

    def __init__(self, describe: Callable[Concatenate[Any, P], Gathered[Any, R]]) -> None:
        super().__init__(describe)

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, R]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        return self.bound(client, owner)

    @staticmethod
    def returns(inner: str) -> str:
        """What the pages make together."""
        return inner.rpartition(", ")[2]

    @staticmethod
    def blocking(describe: Callable[..., Gathered[T, R]]) -> Callable[..., R]:
        """Returns when all pages are there."""

        def method(client: Blocking, /, *args: Any, **kwargs: Any) -> R:
            wanted = describe(client, *args, **kwargs)
            return wanted.together(_walk(client, wanted.first))

        return method

    @staticmethod
    def awaiting(describe: Callable[..., Gathered[T, R]]) -> Callable[..., Coroutine[Any, Any, R]]:
        """To be awaited."""

        async def method(client: Awaiting, /, *args: Any, **kwargs: Any) -> R:
            wanted = describe(client, *args, **kwargs)
            return wanted.together([item async for item in _awalk(client, wanted.first)])

        return method


def _walk(client: Blocking, following: Call[Page[T]] | None) -> Iterator[T]:
    while following is not None:
        page = client.run(following)
        yield from page.items
        following = page.following


async def _awalk(client: Awaiting, following: Call[Page[T]] | None) -> AsyncIterator[T]:
    while following is not None:
        page = await client.arun(following)
        for item in page.items:
            yield item
        following = page.following

"""What a refused call answered, and what the database and the log then hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy import func, select

from tests.support.requests import TIMEOUT
from vault.rpc.errors import ERROR_ID_KEY
from vault.store.engine import Engines, Limits, open_engines
from vault.store.operators import COMPACTED_AFTER
from vault.store.tables import audit_events, metadata, settings

DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer with everything that came over the wire."""

    code: grpc.StatusCode
    text: str
    metadata: Mapping[str, str | bytes]
    """The trailing metadata."""

    @classmethod
    def of(cls, error: Any) -> Refusal:
        """What an error of a stub says; the stubs raise errors that are calls as well."""
        return cls(error.code(), error.details() or "", dict(error.trailing_metadata() or ()))

    @property
    def error_id(self) -> str:
        """The id that the log and the audit event repeat; empty if there is none."""
        return str(self.metadata.get(ERROR_ID_KEY, ""))

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that BadRequest names."""
        details = self.metadata.get(DETAILS_KEY, b"")
        assert isinstance(details, bytes), "keys that end in -bin hold bytes"
        bad = error_details_pb2.BadRequest()
        return tuple(
            violation.field
            for packed in status_pb2.Status.FromString(details).details
            if packed.Unpack(bad)
            for violation in bad.field_violations
        )

    def everything(self) -> bytes:
        """All that the caller got, to be searched."""
        values = (value if isinstance(value, bytes) else value.encode() for value in self.metadata.values())
        return b"\n".join((self.code.name.encode(), self.text.encode(), *self.metadata_keys(), *values))

    def metadata_keys(self) -> tuple[bytes, ...]:
        """The keys of the trailing metadata."""
        return tuple(key.encode() for key in self.metadata)


def refusal_of(call: Callable[[], object]) -> Refusal | None:
    """How a call was refused; None if it was not."""
    try:
        call()
    except grpc.RpcError as error:
        return Refusal.of(error)
    return None


def raw_call(channel: grpc.Channel, path: str, request: bytes, **more: Any) -> Refusal | None:
    """Send these very bytes; None if the server answered OK."""
    call: Any = channel.unary_unary(path)
    return refusal_of(lambda: call(request, timeout=TIMEOUT, **more))


class Rows:
    """A second pair of eyes on a server's database."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def counts(self) -> Mapping[str, int]:
        """Rows of every table but the audit log; without the note that a server makes when it compacted the file."""
        tables = [table for table in metadata.sorted_tables if not table.name.startswith("audit_")]
        counted = {table: select(func.count()).select_from(table) for table in tables}
        counted[settings] = counted[settings].where(settings.c.name != COMPACTED_AFTER)
        wanted = select(*(count.scalar_subquery().label(table.name) for table, count in counted.items()))
        with self._engines.reader.connect() as connection, connection.begin():
            return dict(connection.execute(wanted).mappings().one())

    def events(self, request_id: str) -> list[Mapping[str, Any]]:
        """The audit events of one call."""
        wanted = select(audit_events).where(audit_events.c.request_id == request_id)
        with self._engines.reader.connect() as connection, connection.begin():
            return [dict(row) for row in connection.execute(wanted).mappings()]

    def total_events(self) -> int:
        """How many audit events there are."""
        with self._engines.reader.connect() as connection, connection.begin():
            return connection.execute(select(func.count()).select_from(audit_events)).scalar_one()


@contextmanager
def rows_of(url: str) -> Iterator[Rows]:
    """Look into a database while servers use it."""
    engines = open_engines(url, Limits(pool_size=1))
    try:
        yield Rows(engines)
    finally:
        engines.dispose()

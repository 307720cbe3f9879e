"""PostgreSQL as cardvault uses it: bounded waits, durable commits, and a COMMIT that means what it says."""

from __future__ import annotations

import re
from datetime import timedelta
from time import monotonic
from typing import Any, LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
import sqlalchemy
from sqlalchemy import Connection, event, make_url

BEGIN_WRITING = "BEGIN ISOLATION LEVEL READ COMMITTED"
BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WARNED = "cardvault_warned"

DriverError = psycopg.Error

POOLER = (
    "PostgreSQL: there is a connection pooler before it, so locks and time limits hold for nobody: name the server "
    "itself in database.url (cardvault keeps a pool of its own)"
)


_WORDS_OF_POOLERS = "unsupported startup parameter"
"""PgBouncer's, of our options, unless it is told to pass them over. PostgreSQL has no such words."""


class Pooled(psycopg.OperationalError):
    """What answers is a pooler, behind which nothing of a session is one's own."""


def tells_of_pooler(error: BaseException | None) -> bool:
    """Whether a connection failed because a pooler stands in its way."""
    return isinstance(error, Pooled) or (
        isinstance(error, psycopg.OperationalError) and error.sqlstate is None and _WORDS_OF_POOLERS in str(error)
    )


# Every statement finds its rows by key, so one plan serves all values, and the same at a thousand cards and at a
# million, whatever the statistics say. A bitmap would collect and sort all that is left of a walk to cut one page.
_PLANS = (
    "-c plan_cache_mode=force_generic_plan",
    "-c enable_seqscan=off",
    "-c enable_bitmapscan=off",
    "-c jit=off",
)

PLANS_LAST = 1.0
"""Seconds. In a table that is empty any index is as good as another: what was planned then reads all of it later."""
_PLANNED = "cardvault_planned"

_OURS = frozenset({"options", "client_encoding"})
"""Arguments that a URL may add to, or not choose at all."""

_FOR_LONG = {
    "idle_session_timeout": "0",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}

_MUST_BE_ON = {
    "fsync": "fsync is off: a power cut can lose the whole database",
    "full_page_writes": "full_page_writes is off: a power cut can corrupt the database",
}


def _milliseconds(limit: timedelta) -> int:
    return max(1, round(limit / timedelta(milliseconds=1)))


def parse(url: str) -> sqlalchemy.URL:
    """A URL with one host or several, as libpq writes them: `postgresql://user@one:5432,other:5432/name`.

    Raises `ArgumentError` or `ValueError`, whose texts may hold the URL.
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return make_url(url)
    # SQLAlchemy takes several hosts with ports in the query alone.
    names, ports = zip(*(_host_and_port(host) for host in hosts.split(",")), strict=True)
    rest = urlunsplit(("", "", parts.path, parts.query, parts.fragment))
    alone = make_url(f"{parts.scheme}://{user}{at}{rest}")
    return alone.update_query_dict({"host": ",".join(names), "port": ",".join(ports)})


def _host_and_port(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::(\d+))?", text)
    if found is None:
        raise ValueError("a host in the database URL is none")
    return found[1] or found[2], found[3] or "5432"


def connect_args(
    url: str,
    *,
    connect_timeout: timedelta,
    statement_timeout: timedelta,
    lock_timeout: timedelta,
    idle_in_transaction_timeout: timedelta,
    application_name: str,
) -> dict[str, Any]:
    """Arguments of the driver. What the URL itself says goes first, but for the encoding."""
    options = (
        f"-c statement_timeout={_milliseconds(statement_timeout)}",
        f"-c lock_timeout={_milliseconds(lock_timeout)}",
        f"-c idle_in_transaction_session_timeout={_milliseconds(idle_in_transaction_timeout)}",
        "-c timezone=UTC",
        *_PLANS,
    )
    given = parse(url).query
    arguments: dict[str, Any] = {
        "autocommit": True,
        "client_encoding": "UTF8",  # whatever the environment or the URL says: texts are sent as they are
        "connect_timeout": max(1, round(connect_timeout.total_seconds())),
        "options": " ".join((*options, str(given.get("options", "")))).strip(),
        "application_name": application_name,
        "tcp_user_timeout": _milliseconds(statement_timeout),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    return {name: value for name, value in arguments.items() if name in _OURS or name not in given}


def refuse_poolers(engine: sqlalchemy.Engine) -> None:
    """Have every new connection looked at; behind a pooler it fails with `Pooled`."""

    @event.listens_for(engine, "connect")
    def on_connect(dbapi_connection: Any, record: Any) -> None:  # noqa: ARG001 - the form of the event
        _look_for_pooler(dbapi_connection)


def _look_for_pooler(connection: psycopg.Connection[Any]) -> None:
    """Close the connection and raise `Pooled` where the process that answers is not the one that was connected to.

    PgBouncer and those like it make up the number of the process that they tell clients at the start, to cancel by. In
    transaction mode each transaction may be carried out by another server process: two clients then take one advisory
    lock, for they are one session. In any mode it may pass over what is asked for at the start (`statement_timeout`).
    pgpool-II passes a real number on: it is not known for sure.
    """
    if not answer(connection, "SELECT pg_backend_pid() = %s", connection.info.backend_pid):
        connection.close()
        raise Pooled


def remember_warnings(engine: sqlalchemy.Engine) -> None:
    """Note on each connection when the server sends a warning, for `committed_with_warning`."""

    @event.listens_for(engine, "connect")
    def on_connect(dbapi_connection: Any, record: Any) -> None:
        def on_notice(diagnostic: Any) -> None:
            if diagnostic.severity_nonlocalized == "WARNING":
                record.info[_WARNED] = True

        dbapi_connection.add_notice_handler(on_notice)


def forget_old_plans(connection: Connection) -> None:
    """Have the statements that are prepared on this connection planned anew, now and then. Call before BEGIN."""
    now = monotonic()
    if now >= connection.info.get(_PLANNED, 0.0) + PLANS_LAST:
        connection.exec_driver_sql("DISCARD PLANS")
        connection.info[_PLANNED] = now


def forget_warning(connection: Connection) -> None:
    """Call before COMMIT."""
    connection.info.pop(_WARNED, None)


def committed_with_warning(connection: Connection) -> bool:
    """Whether the last COMMIT came back with a warning.

    A server whose wait for its synchronous standby is cut short, as by `pg_cancel_backend`, answers COMMIT with
    success and a warning: the transaction is on this server only and may not survive a fail-over.
    """
    return bool(connection.info.pop(_WARNED, False))


def connect_for_long(url: str, connect_timeout: timedelta) -> psycopg.Connection[Any]:
    """A connection of the driver, beside every pool, that may be idle for hours. Raises `DriverError`, also `Pooled`.

    Both ends notice soon if the other host is gone: the server then ends the session and what it holds.
    """
    limit = timedelta(seconds=10)
    arguments = connect_args(
        url,
        connect_timeout=connect_timeout,
        statement_timeout=limit,
        lock_timeout=limit,
        idle_in_transaction_timeout=limit,
        application_name="cardvault-lock",
    )
    address = parse(url).set(drivername="postgresql+psycopg")
    _, where = address.get_dialect()().create_connect_args(address)
    connection: psycopg.Connection[Any] = psycopg.connect(**{**where, **arguments})
    try:
        _look_for_pooler(connection)
        for name, value in _FOR_LONG.items():
            # Through the view, because an older server does not know every one of them.
            connection.execute("SELECT set_config(name, %s, false) FROM pg_settings WHERE name = %s", (value, name))
    except DriverError:
        connection.close()
        raise
    return connection


def answer(connection: psycopg.Connection[Any], question: LiteralString, value: int) -> bool:
    """The one boolean that a query returns. Raises `DriverError`."""
    row = connection.execute(question, (value,)).fetchone()
    return bool(row is not None and row[0])


def weaknesses(connection: Connection) -> list[str]:
    """What makes this database unsafe, in words; empty if nothing does."""
    found = []
    for name, problem in _MUST_BE_ON.items():
        if _setting(connection, name) != "on":
            found.append(f"PostgreSQL: {problem}")
    if _setting(connection, "synchronous_commit") == "off":
        found.append("PostgreSQL: synchronous_commit is off: a power cut can lose acknowledged writes")
    if connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar():
        found.append("PostgreSQL: this server is a standby: use the primary")
    elif _setting(connection, "default_transaction_read_only") == "on":
        found.append("PostgreSQL: default_transaction_read_only is on: nothing can be written")
    if _setting(connection, "session_replication_role") == "replica":
        found.append("PostgreSQL: session_replication_role is replica: triggers and foreign keys do nothing")
    if _setting(connection, "server_encoding") != "UTF8":
        found.append("PostgreSQL: the database's encoding is not UTF8")
    return found


def _setting(connection: Connection, name: str) -> str:
    return str(connection.exec_driver_sql(f"SHOW {name}").scalar())

"""The fence: what a driver or SQLAlchemy raises becomes `StoreUnavailable` with a short code and nothing else.

Drivers put key values into their messages, so neither text nor exception passes, not even as a cause.
"""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from vault.domain.errors import StoreUnavailable
from vault.store.postgresql import tells_of_pooler

UNREACHABLE = "database_unreachable"
POOLED = "database_pooled"
"""A pooler stands before the database: see `postgresql.Pooled`."""
LOCKED = "database_locked"
FULL = "database_full"
READONLY = "database_readonly"
COMMIT_UNKNOWN = "commit_unknown"
ERROR = "database_error"
UNREADABLE = "row_unreadable"
"""What is stored is nothing that this release knows: one that is newer wrote it, or somebody altered it."""

_SQLITE_CODES = {5: LOCKED, 6: LOCKED, 8: READONLY, 13: FULL, 14: UNREACHABLE}
_SQLITE_DEFINITE = frozenset({5, 6, 8, 13, 19})
"""Primary codes after which a COMMIT surely did not happen: busy, locked, read-only, full, constraint."""

_SQLSTATES = {
    "25006": READONLY,  # read_only_sql_transaction: a standby, or default_transaction_read_only
    "40001": LOCKED,  # serialization_failure
    "40P01": LOCKED,  # deadlock_detected
    "53100": FULL,  # disk_full
    "53300": UNREACHABLE,  # too_many_connections
    "55P03": LOCKED,  # lock_not_available: lock_timeout ran out
    "57014": LOCKED,  # query_canceled: statement_timeout ran out
}
_OPERATIONAL = psycopg.OperationalError
_GONE = ("08", "28", "57P")
"""Connection trouble, refused login, server going down or not up yet."""


def _reason_from_sqlstate(sqlstate: str | None) -> str:
    if sqlstate is None:
        # libpq itself failed: it never reached the server, or lost it.
        return UNREACHABLE
    if sqlstate in _SQLSTATES:
        return _SQLSTATES[sqlstate]
    return UNREACHABLE if sqlstate.startswith(_GONE) else ERROR


def reason_for(error: SQLAlchemyError) -> str:
    """The code for a failed statement."""
    if isinstance(error, PoolTimeout):
        return LOCKED
    if not isinstance(error, DBAPIError):
        return ERROR
    return reason_from_driver(error.orig, is_gone=error.connection_invalidated)


def reason_from_driver(error: BaseException | None, *, is_gone: bool) -> str:
    """The code for a statement that failed with this; `is_gone`: the connection with it."""
    if tells_of_pooler(error):
        return POOLED
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(code, int):
        return _SQLITE_CODES.get(code & 0xFF, ERROR)
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None and not isinstance(error, _OPERATIONAL) and not is_gone:
        return ERROR
    return _reason_from_sqlstate(sqlstate)


def reason_for_commit(error: SQLAlchemyError) -> str:
    """The code for a failed COMMIT: whether it happened is unknown unless the database surely refused it."""
    if not isinstance(error, DBAPIError):
        return COMMIT_UNKNOWN
    driver_error = error.orig
    code = getattr(driver_error, "sqlite_errorcode", None)
    if isinstance(code, int):
        return reason_for(error) if code & 0xFF in _SQLITE_DEFINITE else COMMIT_UNKNOWN
    sqlstate = getattr(driver_error, "sqlstate", None)
    if sqlstate is None or error.connection_invalidated or sqlstate.startswith(_GONE):
        return COMMIT_UNKNOWN
    return reason_for(error)


def unavailable(error: SQLAlchemyError) -> StoreUnavailable:
    """What to raise for a failed statement, once the `except` block is left: then it has no context either."""
    return StoreUnavailable(reason_for(error))

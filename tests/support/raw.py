"""Straight into the database, past the store: for looking, and for what a malicious administrator would do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from pysqlite3 import dbapi2 as sqlite


@contextmanager
def raw_connection(url: str) -> Iterator[Any]:
    """A connection in autocommit mode."""
    if url.startswith("sqlite:///"):
        connection = sqlite.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=10)
    else:
        connection = psycopg.connect(url, autocommit=True)
    with closing(connection):
        yield connection


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    """What a query answers."""
    with raw_connection(url) as connection:
        return list(connection.execute(sql).fetchall())


def scalar(url: str, sql: str) -> Any:
    """The one value that a query answers."""
    return rows(url, sql)[0][0]


def execute(url: str, *statements: str) -> None:
    """Run statements, each by itself."""
    with raw_connection(url) as connection:
        for statement in statements:
            connection.execute(statement)


def fail_events_about(url: str, customer: str) -> None:
    """A trigger that fails exactly one statement: the audit event about this customer."""
    if url.startswith("sqlite"):
        execute(
            url,
            "CREATE TRIGGER poison BEFORE INSERT ON audit_events "
            f"WHEN NEW.customer_id = '{customer}' BEGIN SELECT RAISE(ABORT, 'poison'); END",
        )
        return
    execute(
        url,
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF NEW.customer_id = '{customer}' THEN RAISE 'poison'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER poison BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION poison()",
    )

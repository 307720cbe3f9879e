"""Watches how SQLite carries statements out: it knows nothing of how many rows there are, so plans do not change."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from sqlalchemy import event
from sqlalchemy.engine import Engine

from vault.store import link, sqlite, words

LARGE = (
    "cards|card_secrets|consents|grants|once_keys|idempotency|audit_events|audit_leaves|audit_nodes|erasures"
    "|others|withdrawals"
)
"""Tables that grow, and what statements call them."""

_WHOLE_TABLE = re.compile(rf"SCAN ({LARGE})\b")
_TOO_LITTLE = re.compile(rf"SEARCH ({LARGE}) USING .*\((tenant_id=\?|state=\?|tenant_id=\? AND state=\?)\)")
_SQLITE = sqlite.driver().Connection
_EXPLAINED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


def _is_ours() -> bool:
    """Whether it comes through the store's link: tests have SQL of their own."""
    return any(frame.filename == link.__file__ for frame in traceback.extract_stack())


def trouble_in(plan: list[str]) -> list[str]:
    """Lines of a plan that read all rows of a large table, or all of a tenant."""
    return [line for line in plan if _WHOLE_TABLE.search(line) or _TOO_LITTLE.search(line)]


@contextmanager
def watched() -> Iterator[dict[str, list[str]]]:
    """Each statement that our code (not a test's own SQL) runs on SQLite meanwhile, with the troubles in its plan."""
    found: dict[str, list[str]] = {}

    def look(driver: Any, statement: str, parameters: Any) -> None:
        if statement in found or not statement.startswith(_EXPLAINED) or not isinstance(driver, _SQLITE):
            return
        found[statement] = []
        asking = driver.cursor()
        try:
            plan = [str(row[3]) for row in asking.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        finally:
            asking.close()
        found[statement] = trouble_in(plan)

    def look_at_its_own(_: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not many and _is_ours():
            look(cursor.connection, statement, parameters)

    def look_first(driver: Any, text: str, values: Any = ()) -> Any:
        look(driver, text, values)
        return words.carry_out(driver, text, values)

    event.listen(Engine, "before_cursor_execute", look_at_its_own)
    try:
        with mock.patch.object(link, "carry_out", look_first):
            yield found
    finally:
        event.remove(Engine, "before_cursor_execute", look_at_its_own)

"""Behind a connection pooler nothing of a session is one's own: locks, time limits, plans. So it is refused."""

from __future__ import annotations

import os

import psycopg
import pytest

from tests.contract.store.make import card, stored
from tests.support import pooler
from vault.domain.errors import StoreUnavailable
from vault.store import SqlStore, postgresql

pytestmark = pytest.mark.skipif(
    not pooler.is_installed() and not os.environ.get("CARDVAULT_CI"), reason="PgBouncer is not installed"
)


TURNS_US_AWAY = "extra_float_digits"
"""PgBouncer as many have it: for asking for options a client is shown the door."""
PASSES_OVER = "options,extra_float_digits"


@pytest.mark.parametrize("passes_over", [PASSES_OVER, TURNS_US_AWAY])
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_before_the_database_is_named(postgresql_url: str, mode: str, passes_over: str) -> None:
    with pooler.pooled(postgresql_url, mode, passes_over=passes_over) as url:
        store = SqlStore(url)
        problems = store.weaknesses()
        store.close()

    (problem,) = problems
    assert problem.startswith("PostgreSQL: there is a connection pooler before it")
    assert "name the server itself in database.url" in problem


@pytest.mark.parametrize("passes_over", [PASSES_OVER, TURNS_US_AWAY])
def test_no_lock_is_taken_through_a_pooler(postgresql_url: str, passes_over: str) -> None:
    with pooler.pooled(postgresql_url, "transaction", passes_over=passes_over) as url:
        store = SqlStore(url)
        with pytest.raises(StoreUnavailable, match="database_pooled") as caught, store.exclusively("rotation"):
            pass
        store.close()

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_through_a_pooler_two_would_hold_one_lock(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "_look_for_pooler", lambda _: None)
    with pooler.pooled(postgresql_url, "transaction") as url:
        one, other = SqlStore(url), SqlStore(url)
        with one.exclusively("rotation"), other.exclusively("rotation"):
            pass
        one.close()
        other.close()


def test_through_a_pooler_time_limits_are_lost(postgresql_url: str) -> None:
    with pooler.pooled(postgresql_url, "session") as url, psycopg.connect(url, options="-c lock_timeout=7") as link:
        found = link.execute("SHOW lock_timeout").fetchone()

    assert found == ("0",)


def test_the_server_itself_is_no_pooler(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url)
    stored(store, card())

    with store.exclusively("rotation"):
        assert store.weaknesses() == []

    store.close()

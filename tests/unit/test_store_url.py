"""How a database URL becomes the driver's arguments: with one host, or with several of which one takes writes."""

from __future__ import annotations

from typing import Any

import pytest

from vault.store import DatabaseRefused
from vault.store.engine import kind_of
from vault.store.postgresql import parse


def arguments(url: str) -> dict[str, Any]:
    address = parse(url).set(drivername="postgresql+psycopg")
    _, found = address.get_dialect()().create_connect_args(address)
    return dict(found)


@pytest.mark.parametrize(
    ("hosts", "host", "port"),
    [
        ("one:5001,other:5002", "one,other", "5001,5002"),
        ("one,other", "one,other", "5432,5432"),
        ("one,other:5433,third", "one,other,third", "5432,5433,5432"),
        ("127.0.0.1:5001,127.0.0.1:5002", "127.0.0.1,127.0.0.1", "5001,5002"),
        ("[::1]:5001,[::1]:5002", "::1,::1", "5001,5002"),
    ],
)
def test_several_hosts_are_written_as_libpq_writes_them(hosts: str, host: str, port: str) -> None:
    found = arguments(f"postgresql://cardvault:p%40w@{hosts}/cardvault?target_session_attrs=read-write")

    assert found == {
        "host": host,
        "port": port,
        "dbname": "cardvault",
        "user": "cardvault",
        "password": "p@w",
        "target_session_attrs": "read-write",
    }


def test_several_hosts_need_no_user_in_the_url() -> None:
    found = arguments("postgresql://one:5001,other:5002/cardvault?sslmode=verify-full")

    assert found == {"host": "one,other", "port": "5001,5002", "dbname": "cardvault", "sslmode": "verify-full"}


def test_one_host_is_as_it_was() -> None:
    found = arguments("postgresql://cardvault@db.internal:5433/cardvault?sslmode=verify-full")

    assert found == {
        "host": "db.internal",
        "port": 5433,
        "dbname": "cardvault",
        "user": "cardvault",
        "sslmode": "verify-full",
    }


@pytest.mark.parametrize("hosts", ["one:port,other:5432", "one:5432:5433", "one:99x"])
def test_what_is_no_address_is_refused_without_the_url(hosts: str) -> None:
    with pytest.raises(DatabaseRefused) as caught:
        kind_of(f"postgresql://cardvault:correct-horse@{hosts}/cardvault")

    assert "correct-horse" not in str(caught.value)
    assert hosts not in str(caught.value)

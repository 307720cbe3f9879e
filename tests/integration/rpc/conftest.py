"""Running installations, shared by all tests here: SQLite with one server, PostgreSQL with two.

Tests keep apart by using customers and orders of their own. A test that breaks things makes an installation of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures_db import (
    execute_as_admin,
    postgresql_server,
    postgresql_template,
    postgresql_url,
    postgresql_url_of,
    sqlite_template,
    sqlite_url,
    sqlite_url_of,
)
from tests.support.installation import Client, Installation, installed
from vault.embedded.openbao import OpenBao

__all__ = ["postgresql_server", "postgresql_template", "postgresql_url", "sqlite_template", "sqlite_url"]


@dataclass(frozen=True, slots=True)
class Shop:
    """A running installation with a client for each role on its first server."""

    installation: Installation
    checkout: Client
    account: Client
    processor: Client


def _open(installation: Installation) -> Shop:
    return Shop(
        installation,
        installation.client("checkout"),
        installation.client("account"),
        installation.client("processor"),
    )


@pytest.fixture(scope="session")
def sqlite_shop(tmp_path_factory: pytest.TempPathFactory, openbao: OpenBao, sqlite_template: Path) -> Iterator[Shop]:
    """On SQLite, one server."""
    directory = tmp_path_factory.mktemp("sqlite-shop")
    shutil.copy(sqlite_template, directory / "vault.db")
    with installed(directory, openbao, sqlite_url_of(directory / "vault.db")) as installation:
        installation.serve()
        yield _open(installation)


@pytest.fixture(scope="session")
def postgresql_shop(
    tmp_path_factory: pytest.TempPathFactory, openbao: OpenBao, postgresql_server: str, postgresql_template: str
) -> Iterator[Shop]:
    """On PostgreSQL, two servers."""
    execute_as_admin(postgresql_server, f"CREATE DATABASE shop TEMPLATE {postgresql_template}")
    url = postgresql_url_of(postgresql_server, "shop")
    with installed(tmp_path_factory.mktemp("postgresql-shop"), openbao, url) as installation:
        installation.serve()
        installation.serve()
        yield _open(installation)


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest) -> Shop:
    """A running installation, once for each engine."""
    found: Shop = request.getfixturevalue(f"{request.param}_shop")
    return found

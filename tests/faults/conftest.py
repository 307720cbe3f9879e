"""Databases for the fault tests."""

from tests.fixtures_db import (
    database_url,
    postgresql_server,
    postgresql_template,
    postgresql_url,
    sqlite_template,
    sqlite_url,
    store,
)

__all__ = [
    "database_url",
    "postgresql_server",
    "postgresql_template",
    "postgresql_url",
    "sqlite_template",
    "sqlite_url",
    "store",
]

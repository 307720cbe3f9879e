"""Fixtures of the contract suites."""

from tests.fixtures_db import (  # noqa: F401 fixtures are used by their name
    database_url,
    empty_database_url,
    empty_postgresql_url,
    postgresql_server,
    postgresql_template,
    postgresql_url,
    sqlite_template,
    sqlite_url,
    store,
)

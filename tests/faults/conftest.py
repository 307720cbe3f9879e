"""An OpenBao and databases for the fault tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fixtures_db import (
    database_url,
    postgresql_server,
    postgresql_template,
    postgresql_url,
    sqlite_template,
    sqlite_url,
    store,
)
from vault.embedded.openbao import OpenBao

__all__ = [
    "database_url",
    "postgresql_server",
    "postgresql_template",
    "postgresql_url",
    "sqlite_template",
    "sqlite_url",
    "store",
]


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """One apart from everybody else's: each trial sets it up for a mount of its own, and the policies with it."""
    server = OpenBao(tmp_path_factory.mktemp("openbao-faults") / "state", storage="inmem", keep_root_token=True)
    server.start()
    yield server
    server.stop()

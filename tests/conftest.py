"""What tests of every kind share: the real things, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vault.embedded.openbao import OpenBao


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """A real OpenBao with a root token (`openbao.root()`), its audit log in clear. Leave it unsealed and running."""
    server = OpenBao(tmp_path_factory.mktemp("openbao") / "state", storage="inmem", keep_root_token=True, log_raw=True)
    server.start()
    yield server
    server.stop()

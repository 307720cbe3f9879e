"""Key rings on the real OpenBao."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from vault.embedded.openbao import OpenBao
from vault.keyring.admin import Administrator
from vault.keyring.login import Login
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.keyring.transit import IntakeTransit, ReleaseTransit

OpenSession = Callable[[OpenBao, Login], VaultSession]


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    """What a test opens is closed after it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def own_openbao(tmp_path: Path) -> Iterator[OpenBao]:
    """An OpenBao that the test may seal, rotate and spoil."""
    server = OpenBao(tmp_path / "state", storage="inmem", keep_root_token=True)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def open_session(cleanup: ExitStack) -> OpenSession:
    """Makes sessions."""

    def make(server: OpenBao, login: Login) -> VaultSession:
        return cleanup.enter_context(closing(VaultSession(address=server.address, login=login)))

    return make


@pytest.fixture
def open_intake(open_session: OpenSession) -> Callable[[OpenBao], IntakeTransit]:
    """Makes intake key rings."""

    def make(server: OpenBao) -> IntakeTransit:
        return IntakeTransit(open_session(server, server.login(LoginName.INTAKE)))

    return make


@pytest.fixture
def open_release(cleanup: ExitStack, open_session: OpenSession) -> Callable[[OpenBao], ReleaseTransit]:
    """Makes release key rings."""

    def make(server: OpenBao) -> ReleaseTransit:
        session = open_session(server, server.login(LoginName.RELEASE))
        return cleanup.enter_context(closing(ReleaseTransit(session)))

    return make


@pytest.fixture
def intake(openbao: OpenBao, open_intake: Callable[[OpenBao], IntakeTransit]) -> IntakeTransit:
    """Intake keys of the shared OpenBao."""
    return open_intake(openbao)


@pytest.fixture
def release(openbao: OpenBao, open_release: Callable[[OpenBao], ReleaseTransit]) -> ReleaseTransit:
    """Release keys of the shared OpenBao."""
    return open_release(openbao)


@pytest.fixture
def root(openbao: OpenBao) -> Iterator[Administrator]:
    """An administrator of the shared OpenBao."""
    with closing(openbao.root()) as admin:
        yield admin


@pytest.fixture
def own_root(own_openbao: OpenBao) -> Iterator[Administrator]:
    """An administrator of the test's own OpenBao."""
    with closing(own_openbao.root()) as admin:
        yield admin

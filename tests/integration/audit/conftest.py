"""A log on a real database, signed by the real OpenBao."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.contract.store.make import event
from vault.audit.checkpoint import VerifierKey
from vault.audit.copy import Directory, Shipper
from vault.audit.sequencer import Checkpointer, Pace, Sequencer
from vault.audit.verify import Verification, verify_directory, verify_store
from vault.domain.audit import AuditEvent
from vault.embedded.openbao import OpenBao
from vault.keyring.operator import CheckpointerTransit
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.store import SqlStore
from vault.system import SystemClock


@dataclass
class Log:
    """Everything that works on one log."""

    store: SqlStore
    signer: CheckpointerTransit
    directory: Directory
    added: list[AuditEvent] = field(default_factory=list)

    @property
    def checkpointer(self) -> Checkpointer:
        return Checkpointer(store=self.store, signer=self.signer, clock=SystemClock(), environment="test", pace=Pace())

    @property
    def keys(self) -> tuple[VerifierKey, ...]:
        return self.checkpointer.keys()

    def add(self, count: int, *, sequence: bool = True) -> list[AuditEvent]:
        """Commit events; with `sequence` they get their places."""
        new = [event() for _ in range(count)]
        for each in new:
            with self.store.writing() as tx:
                tx.append_events([each])
        self.added += new
        if sequence:
            Sequencer(self.store)()
        return new

    def sign(self) -> str:
        """A checkpoint of everything in the log."""
        signed = self.checkpointer(now=True)
        assert signed is not None
        return signed.note

    def ship(self) -> int:
        return Shipper(store=self.store, sink=self.directory)(self.keys)

    def verify(self, *kept: str, copy: bool = False) -> Verification:
        return verify_store(
            self.store,
            self.keys,
            kept=[(f"kept {n}", text) for n, text in enumerate(kept)],
            copy=self.directory if copy else None,
        )

    def verify_copy(self, *kept: str) -> Verification:
        return verify_directory(self.directory, self.keys, kept=[(f"kept {n}", text) for n, text in enumerate(kept)])


@pytest.fixture
def log(store: SqlStore, openbao: OpenBao, tmp_path: Path) -> Iterator[Log]:
    """An empty log on SQLite and on PostgreSQL."""
    login = openbao.login(LoginName.CHECKPOINTER)
    with closing(VaultSession(address=openbao.address, login=login)) as session:
        yield Log(store, CheckpointerTransit(session), Directory(tmp_path / "copy"))

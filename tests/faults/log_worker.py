"""A process that adds events, gives them places, signs and copies them, for ever: made to be killed at any moment."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from pathlib import Path

from tests.contract.store.make import event
from vault.audit.copy import Directory
from vault.audit.keeper import LogKeeper, problems
from vault.audit.sequencer import Checkpointer, Pace
from vault.keyring.login import TokenFileLogin, VaultAddress
from vault.keyring.operator import CheckpointerTransit
from vault.keyring.session import VaultSession
from vault.ports_operator import Busy
from vault.store import SqlStore
from vault.system import SystemClock


def main(url: str, address: str, ca_file: str, token_file: str, copy: str) -> None:
    """Until killed."""
    vault = VaultAddress(address=address, ca_file=Path(ca_file))
    session = VaultSession(address=vault, login=TokenFileLogin(path=Path(token_file)))
    with closing(SqlStore(url)) as store, closing(session):
        checkpointer = Checkpointer(
            store=store,
            signer=CheckpointerTransit(session),
            clock=SystemClock(),
            environment="test",
            pace=Pace(events=3),
        )
        directory = Directory(Path(copy))
        keeper = LogKeeper(store=store, sequence=True, checkpointer=checkpointer, directory=directory)
        assert problems(store, directory) == [], "a false alarm"
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            with store.writing() as tx:
                tx.append_events([event() for _ in range(7)])
            with suppress(Busy):
                keeper.turn()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""After a crash anywhere the log goes on: nothing is lost, nothing has two places, and nobody cries wolf."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from vault.audit.copy import Directory
from vault.audit.sequencer import Sequencer, verifier_keys
from vault.audit.verify import verify_directory, verify_store
from vault.embedded.openbao import OpenBao
from vault.keyring.login import TokenFileLogin
from vault.keyring.operator import CheckpointerTransit
from vault.keyring.session import VaultSession
from vault.store import SqlStore

KILLS = 25
LONGEST = 0.25
"""Seconds that a worker lives at most, once it works."""


def test_a_process_that_is_killed_at_any_moment_leaves_a_log_that_verifies(
    database_url: str, openbao: OpenBao, tmp_path: Path
) -> None:
    arguments = [
        database_url,
        openbao.address.address,
        str(openbao.address.ca_file),
        str(openbao.files.root_token),
        str(tmp_path / "copy"),
    ]
    chance = random.Random(7)
    for _ in range(KILLS):
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.log_worker", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert worker.stdout is not None
        said = worker.stdout.readline()
        assert said == "ready\n", worker.communicate()[1]
        time.sleep(chance.uniform(0, LONGEST))
        worker.kill()
        worker.communicate()

    session = VaultSession(address=openbao.address, login=TokenFileLogin(path=openbao.files.root_token))
    with closing(SqlStore(database_url)) as store, closing(session):
        Sequencer(store)()
        keys = verifier_keys(CheckpointerTransit(session), "cardvault/test")
        copy = Directory(tmp_path / "copy")
        online = verify_store(store, keys, copy=copy)
        offline = verify_directory(copy, keys)

    assert (online.findings, offline.findings) == ([], [])
    assert online.queued == 0
    assert online.checkpoints > KILLS / 2
    print(f"log: {KILLS} kills, {online.size} events, {online.checkpoints} checkpoints, 0 lost")

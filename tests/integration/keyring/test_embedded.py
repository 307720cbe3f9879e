"""The embedded OpenBao: survives crashes, leaves nothing behind, and keeps no root token."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vault.embedded.openbao import OpenBao
from vault.embedded.process import OpenBaoFailed
from vault.keyring.setup import LoginName
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.ports import KeyName, KeyToUnwrap, KeyToWrap


@pytest.fixture(scope="module")
def first_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a first start leaves. Each test gets a copy, as if the directory had been moved; later starts are quick."""
    server = OpenBao(tmp_path_factory.mktemp("raft") / "state")
    server.start()
    server.stop()
    return server.files.directory


@pytest.fixture
def raft(first_state: Path, tmp_path: Path) -> Iterator[OpenBao]:
    server = OpenBao(Path(shutil.copytree(first_state, tmp_path / "state")))
    server.start()
    yield server
    server.kill()


def test_a_restart_keeps_keys_logins_and_address_also_after_sigkill(
    raft: OpenBao,
    open_intake: Callable[[OpenBao], IntakeTransit],
    open_release: Callable[[OpenBao], ReleaseTransit],
) -> None:
    intake, release, address = open_intake(raft), open_release(raft), raft.address
    key, message = KeyToWrap(os.urandom(32), os.urandom(32)), os.urandom(32)
    before = intake.protect(cards=[key], once=[], fingerprints=[message])
    item = KeyToUnwrap(KeyName.CARDS, before.cards[0], key.context)

    os.kill(raft.pid, signal.SIGKILL)
    raft.kill()
    began = time.monotonic()
    raft.start()
    took = time.monotonic() - began

    assert list(release.unwrap([item])) == [key.data_key]
    assert intake.protect(cards=[], once=[], fingerprints=[message]).fingerprints == before.fingerprints
    assert raft.address == address
    assert took < 2


def test_no_root_token_is_left_and_every_file_is_private(raft: OpenBao) -> None:
    loose = [path for path in raft.files.directory.rglob("*.key") if path.stat().st_mode & 0o077]

    assert not raft.files.root_token.exists()
    assert loose == []
    assert raft.files.directory.stat().st_mode & 0o777 == 0o700
    for secret in (raft.files.recovery_key, raft.files.seal_key, raft.files.audit_log):
        assert secret.stat().st_mode & 0o777 == 0o600
    for name in LoginName:
        assert raft.login_files(name).secret_id_file.stat().st_mode & 0o777 == 0o600


def test_it_sees_nothing_of_our_environment_that_could_lead_it_astray(
    first_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "BAO_ADDR", "VAULT_ADDR", "GODEBUG"):
        monkeypatch.setenv(name, "https://elsewhere.example")
    monkeypatch.setenv("GOGC", "1")
    server = OpenBao(Path(shutil.copytree(first_state, tmp_path / "state")))
    try:
        server.start()
        entries = Path(f"/proc/{server.pid}/environ").read_text().rstrip("\0").split("\0")
    finally:
        server.kill()

    seen = dict(entry.split("=", 1) for entry in entries)
    assert seen.keys() - {"PATH", "LANG", "TZ"} == {"GOGC", "GOMEMLIMIT"}
    assert (seen["GOGC"], seen["GOMEMLIMIT"]) == ("400", "512MiB")


def test_the_audit_log_hashes_what_is_secret(raft: OpenBao, open_intake: Callable[[OpenBao], IntakeTransit]) -> None:
    open_intake(raft).check()

    log = raft.files.audit_log.read_text()

    assert "hmac-sha256:" in log
    assert raft.login_files(LoginName.INTAKE).secret_id_file.read_text().strip() not in log


def test_a_later_start_runs_the_set_up_again_when_it_changed(
    raft: OpenBao, open_intake: Callable[[OpenBao], IntakeTransit]
) -> None:
    raft.stop()
    raft.files.setup_mark.write_text("of an older release")
    raft.login_files(LoginName.INTAKE).secret_id_file.unlink()

    raft.start()

    open_intake(raft).check()
    assert raft.files.setup_mark.read_text() != "of an older release"


def test_a_second_server_on_the_same_state_is_refused(raft: OpenBao) -> None:
    second = OpenBao(raft.files.directory)

    with pytest.raises(OpenBaoFailed, match="another OpenBao"):
        second.start()

    assert raft.is_running


def test_a_taken_port_is_exchanged(raft: OpenBao) -> None:
    port = int(raft.address.address.rsplit(":", 1)[1])
    raft.stop()

    with socket.create_server(("127.0.0.1", port)):
        raft.start()

    assert not raft.address.address.endswith(f":{port}")


def test_a_lost_seal_key_is_said_plainly(raft: OpenBao) -> None:
    raft.stop()
    raft.files.seal_key.unlink()

    with pytest.raises(OpenBaoFailed, match="seal's key is gone"):
        raft.start()


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from vault.embedded.openbao import OpenBao\n"
        "server = OpenBao(Path(sys.argv[1]), storage='inmem'); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _is_alive(pid)
        parent.kill()

    deadline = time.monotonic() + 3
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)

    assert not _is_alive(pid)


def test_an_inmem_server_begins_anew_at_each_start(
    own_openbao: OpenBao, open_intake: Callable[[OpenBao], IntakeTransit]
) -> None:
    own_openbao.stop()

    own_openbao.start()

    open_intake(own_openbao).check()
    with closing(own_openbao.root()) as admin:
        assert admin.client.read(f"transit/keys/{KeyName.CARDS}")["data"]["latest_version"] == 1


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"

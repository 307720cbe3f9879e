"""One login, kept alive through expiry, revocation, sealing and outages."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from vault.domain.errors import KeyRefused, KeyRingUnavailable
from vault.domain.grant import SealedKey
from vault.embedded.openbao import OpenBao
from vault.embedded.pki import DevelopmentCa
from vault.keyring.admin import Administrator
from vault.keyring.login import AppRoleLogin, TokenFileLogin, VaultAddress
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName, issue_secret_id, write_login_files
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.ports import KeyName, KeyToUnwrap, KeyToWrap

from .conftest import OpenSession


class StoppedClock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def reason_of(call: Callable[[], object]) -> str:
    """Why it fails; nothing of the foreign exception may hang on the one that leaves."""
    with pytest.raises(KeyRingUnavailable) as caught:
        call()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return str(caught.value.reason)


def read_a_key(session: VaultSession) -> object:
    return session.read(f"keys/{KeyName.CARDS}")["latest_version"]


SHORT = "cardvault-short"


def short_login(root: Administrator, directory: Path, *, ttl: str, max_ttl: str) -> AppRoleLogin:
    """A login like intake whose tokens live a second or two."""
    body = {"token_policies": ["cardvault-intake"], "token_no_default_policy": True}
    root.client.write_data(f"auth/approle/role/{SHORT}", data={**body, "token_ttl": ttl, "token_max_ttl": max_ttl})
    role_id = root.client.read(f"auth/approle/role/{SHORT}/role-id")["data"]["role_id"]
    return write_login_files(directory, role_id=role_id, secret_id=issue_secret_id(root.client, SHORT)).login()


def test_nothing_is_sent_before_the_first_call(tmp_path: Path) -> None:
    nowhere = VaultAddress(address="https://127.0.0.1:1", ca_file=tmp_path / "missing.pem")

    with closing(VaultSession(address=nowhere, login=TokenFileLogin(path=tmp_path / "missing"))) as session:
        assert reason_of(lambda: read_a_key(session)) == "vault_login_file"


def test_plain_http_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="https"):
        VaultAddress(address="http://127.0.0.1:1", ca_file=tmp_path)


def test_the_environment_cannot_redirect_or_disarm_the_client(
    openbao: OpenBao, open_session: OpenSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "VAULT_ADDR", "BAO_ADDR"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "VAULT_CACERT", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "missing.pem"))
    monkeypatch.setenv("VAULT_TOKEN", "made-up")
    monkeypatch.setenv("NETRC", str(netrc))

    session = open_session(openbao, openbao.login(LoginName.INTAKE))

    assert read_a_key(session)


def test_a_server_of_another_authority_is_not_spoken_to(
    openbao: OpenBao, tmp_path: Path, open_session: OpenSession
) -> None:
    other = DevelopmentCa.load_or_create(tmp_path / "other-ca")
    address = VaultAddress(address=openbao.address.address, ca_file=other.ca_file)

    with closing(VaultSession(address=address, login=openbao.login(LoginName.INTAKE))) as session:
        assert reason_of(lambda: read_a_key(session)) == "vault_unreachable"


def test_a_wrong_secret_id_is_forbidden(openbao: OpenBao, open_session: OpenSession, tmp_path: Path) -> None:
    files = write_login_files(tmp_path / "login", role_id="made-up", secret_id="made-up")

    session = open_session(openbao, files.login())

    assert reason_of(lambda: read_a_key(session)) == "vault_forbidden"


def test_login_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    files = write_login_files(tmp_path / "login", role_id="role", secret_id="secret")

    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "login", files.role_id_file, files.secret_id_file)]

    assert modes == [0o700, 0o600, 0o600]


def test_sealed_from_the_start_then_healed_without_a_restart(
    own_openbao: OpenBao, own_root: Administrator, open_intake: Callable[[OpenBao], IntakeTransit]
) -> None:
    own_root.client.sys.seal()
    intake = open_intake(own_openbao)
    assert reason_of(intake.check) == "vault_sealed"

    own_openbao.unseal()

    intake.check()


def test_sealed_or_gone_is_trouble_for_every_item_and_heals(
    tmp_path: Path,
    open_intake: Callable[[OpenBao], IntakeTransit],
    open_release: Callable[[OpenBao], ReleaseTransit],
) -> None:
    server = OpenBao(tmp_path / "state", storage="raft", keep_root_token=True)
    server.start()
    try:
        intake, release = open_intake(server), open_release(server)
        keys = [KeyToWrap(os.urandom(32), os.urandom(32)) for _ in range(20)]
        wrapped = intake.protect(cards=keys, once=[], fingerprints=[os.urandom(32)])
        items = [KeyToUnwrap(KeyName.CARDS, w, k.context) for w, k in zip(wrapped.cards, keys, strict=True)]

        with closing(server.root()) as admin:
            admin.client.sys.seal()
        sealed = {getattr(answer, "reason", "") for answer in release.unwrap(items)}
        server.unseal()
        healed = list(release.unwrap(items))
        server.kill()
        began = time.monotonic()
        gone = {getattr(answer, "reason", "") for answer in release.unwrap(items)}
        waited = time.monotonic() - began
        wrap_reason = reason_of(lambda: intake.protect(cards=keys, once=keys, fingerprints=[os.urandom(32)]))
        server.start()

        assert (sealed, gone, wrap_reason) == ({"vault_sealed"}, {"vault_unreachable"}, "vault_unreachable")
        assert waited < 1
        assert healed == [key.data_key for key in keys]
        assert list(release.unwrap(items)) == healed  # at once, over connections that the restart broke
        intake.protect(cards=keys, once=keys, fingerprints=[os.urandom(32)])
    finally:
        server.kill()


def test_a_revoked_token_is_replaced_within_the_call(openbao: OpenBao, root: Administrator) -> None:
    clock = StoppedClock()
    login = openbao.login(LoginName.INTAKE)
    with closing(VaultSession(address=openbao.address, login=login, clock=clock)) as session:
        read_a_key(session)
        root.client.sys.revoke_prefix("auth/approle/login")
        clock.now += 2

        assert read_a_key(session)


def test_many_threads_share_one_new_login(openbao: OpenBao, root: Administrator, tmp_path: Path) -> None:
    clock = StoppedClock()
    # Of a role of its own: whoever else has a session at this OpenBao logs in anew, too.
    login = short_login(root, tmp_path / "login", ttl="60s", max_ttl="60s")
    with closing(VaultSession(address=openbao.address, login=login, clock=clock)) as session:
        read_a_key(session)
        root.client.sys.revoke_prefix("auth/approle/login")
        clock.now += 2
        before = _logins(openbao, SHORT)
        threads = [threading.Thread(target=read_a_key, args=(session,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert _logins(openbao, SHORT) - before == 1


def test_a_missing_permission_does_not_cause_a_storm_of_logins(openbao: OpenBao, open_session: OpenSession) -> None:
    session = open_session(openbao, openbao.login(LoginName.CHECKPOINTER))
    before = _logins(openbao, LoginName.CHECKPOINTER.role)

    reasons = {reason_of(lambda: read_a_key(session)) for _ in range(10)}

    assert reasons == {"vault_forbidden"}
    assert _logins(openbao, LoginName.CHECKPOINTER.role) - before == 1


@pytest.mark.parametrize(("ttl", "max_ttl"), [("1s", "60s"), ("1s", "2s")])
def test_no_call_notices_that_tokens_live_for_a_second(
    ttl: str, max_ttl: str, openbao: OpenBao, root: Administrator, open_session: OpenSession, tmp_path: Path
) -> None:
    session = open_session(openbao, short_login(root, tmp_path / "login", ttl=ttl, max_ttl=max_ttl))

    end = time.monotonic() + 3.2
    while time.monotonic() < end:
        assert read_a_key(session)
        time.sleep(0.05)


def test_a_token_is_renewed_and_not_replaced_while_it_may_live(
    openbao: OpenBao, root: Administrator, open_session: OpenSession, tmp_path: Path
) -> None:
    session = open_session(openbao, short_login(root, tmp_path / "login", ttl="1s", max_ttl="60s"))
    before = _logins(openbao, SHORT)

    read_a_key(session)
    time.sleep(2.2)
    read_a_key(session)

    assert _logins(openbao, SHORT) - before == 1


def test_a_token_file_is_read_anew_when_its_token_ends(
    openbao: OpenBao, root: Administrator, open_session: OpenSession, tmp_path: Path
) -> None:
    def make_token() -> str:
        made = root.client.auth.token.create(policies=["cardvault-intake"], no_default_policy=True, ttl="1h")
        return str(made["auth"]["client_token"])

    file = tmp_path / "token"
    file.write_text(make_token() + "\n")
    clock = StoppedClock()
    with closing(VaultSession(address=openbao.address, login=TokenFileLogin(path=file), clock=clock)) as session:
        assert read_a_key(session)
        root.client.auth.token.revoke(file.read_text().strip())
        clock.now += 2
        assert reason_of(lambda: read_a_key(session)) == "vault_forbidden"

        file.write_text(make_token())

        assert read_a_key(session)


def test_closing_gives_our_own_token_back_and_ends_the_session(openbao: OpenBao, root: Administrator) -> None:
    session = VaultSession(address=openbao.address, login=openbao.login(LoginName.INTAKE))
    accessor = session.call(lambda client: client.auth.token.lookup_self())["data"]["accessor"]

    session.close()

    assert reason_of(lambda: read_a_key(session)) == "vault_session_closed"
    with pytest.raises(Exception, match="accessor"):
        root.client.auth.token.lookup_accessor(accessor)
    assert not [thread for thread in threading.enumerate() if thread is session._keeper]


def test_a_call_is_cut_off_by_the_timeout(openbao: OpenBao, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = VaultAddress(
            address=f"https://127.0.0.1:{silent.getsockname()[1]}",
            ca_file=openbao.address.ca_file,
            timeout=timedelta(seconds=0.3),
            connect_timeout=timedelta(seconds=0.3),
        )
        with closing(VaultSession(address=address, login=openbao.login(LoginName.RELEASE))) as session:
            ring = ReleaseTransit(session)
            item = KeyToUnwrap(KeyName.CARDS, SealedKey("vault:v1:" + "A" * 80), bytes(32))
            began = time.monotonic()
            answers = ring.unwrap([item] * 30)
            waited = time.monotonic() - began
            ring.close()

    assert {getattr(answer, "reason", "") for answer in answers} == {"vault_timeout"}
    assert not any(isinstance(answer, KeyRefused) for answer in answers)
    assert waited < 1.5


def _logins(openbao: OpenBao, role: str) -> int:
    """How often somebody has logged in in this role."""
    words = ('"type":"response"', '"path":"auth/approle/login"', f'"role_name":"{role}"')
    lines = openbao.files.audit_log.read_text().splitlines()
    return sum(all(word in line for word in words) for line in lines)

"""Logging in with a JWT, as a pod does: on the real OpenBao, with roles that the deployment's own script made."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.jwt import ISSUER, Issuer
from vault.domain.errors import KeyRingUnavailable
from vault.embedded.openbao import OpenBao
from vault.embedded.process import find_binary
from vault.keyring.admin import Administrator
from vault.keyring.files import write_private
from vault.keyring.login import JwtLogin, Login
from vault.keyring.session import VaultSession
from vault.keyring.trouble import Trouble
from vault.ports import KeyName

ROLES = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes" / "vault-roles.sh"
AUDIENCE = "cardvault-vault"


def account(name: str, *, namespace: str = "cardvault") -> str:
    return f"system:serviceaccount:{namespace}:{name}"


@pytest.fixture
def issuer(own_openbao: OpenBao, own_root: Administrator) -> Issuer:
    """A cluster whose pods may log in."""
    made = Issuer()
    own_root.client.sys.enable_auth_method("jwt", path="jwt")
    own_root.client.write_data(
        "auth/jwt/config", data={"jwt_validation_pubkeys": [made.public_key], "bound_issuer": ISSUER}
    )
    for _ in range(2):  # safe to run again
        subprocess.run(
            [str(ROLES)],
            env={
                "PATH": "/usr/bin:/bin",
                "BAO": str(find_binary()),
                "BAO_ADDR": own_openbao.address.address,
                "BAO_CACERT": str(own_openbao.address.ca_file),
                "BAO_TOKEN": own_openbao.files.root_token.read_text(encoding="utf-8").strip(),
            },
            check=True,
            capture_output=True,
            timeout=60,
        )
    return made


@pytest.fixture
def open_as(
    own_openbao: OpenBao, tmp_path: Path, open_session: Callable[[OpenBao, Login], VaultSession]
) -> Callable[[str, str], VaultSession]:
    """A session with a statement, under a role."""

    def make(statement: str, role: str) -> VaultSession:
        file = tmp_path / "token"
        write_private(file, statement)
        return open_session(own_openbao, JwtLogin(jwt_file=file, role=role))

    return make


Open = Callable[[str, str], VaultSession]


def test_a_pod_gets_its_own_policy_and_no_other(issuer: Issuer, open_as: Open) -> None:
    release = open_as(issuer.statement(account("cardvault-release"), audience=[AUDIENCE]), "cardvault-release")

    found = release.call(lambda client: client.auth.token.lookup_self())

    assert found["data"]["policies"] == ["cardvault-release"]
    assert 0 < found["data"]["ttl"] <= 3600
    assert release.read(f"keys/{KeyName.CARDS}")["type"] == "aes256-gcm96"
    with pytest.raises(KeyRingUnavailable) as caught:
        release.read(f"keys/{KeyName.AUDIT}")
    assert caught.value.reason == Trouble.FORBIDDEN


@pytest.mark.parametrize(
    "wrong",
    ["another account", "another namespace", "another audience", "expired", "another issuer's key", "another issuer"],
)
def test_any_other_statement_is_refused(issuer: Issuer, open_as: Open, wrong: str) -> None:
    role, good = "cardvault-release", account("cardvault-release")
    statement = {
        "another account": lambda: issuer.statement(account("cardvault-intake"), audience=[AUDIENCE]),
        "another namespace": lambda: issuer.statement(
            account("cardvault-release", namespace="default"), audience=[AUDIENCE]
        ),
        "another audience": lambda: issuer.statement(good, audience=["https://kubernetes.default.svc"]),
        "expired": lambda: issuer.statement(good, audience=[AUDIENCE], seconds=-300),
        "another issuer's key": lambda: Issuer().statement(good, audience=[AUDIENCE]),
        "another issuer": lambda: issuer.statement(good, audience=[AUDIENCE], iss="https://elsewhere.test.localhost"),
    }[wrong]()

    session = open_as(statement, role)

    with pytest.raises(KeyRingUnavailable) as caught:
        session.read(f"keys/{KeyName.CARDS}")
    assert caught.value.reason == Trouble.FORBIDDEN


def test_a_statement_that_was_exchanged_in_its_file_is_taken_at_the_next_login(
    issuer: Issuer, open_as: Open, own_root: Administrator, tmp_path: Path
) -> None:
    session = open_as(issuer.statement(account("cardvault-intake"), audience=[AUDIENCE]), "cardvault-intake")
    first = session.call(lambda client: client.auth.token.lookup_self())["data"]
    write_private(tmp_path / "token", issuer.statement(account("cardvault-intake"), audience=[AUDIENCE], jti="next"))

    time.sleep(1.1)  # a token refused within its first second is not exchanged again
    own_root.client.write_data("auth/token/revoke-accessor", data={"accessor": first["accessor"]})
    second = session.call(lambda client: client.auth.token.lookup_self(), repeatable=True)["data"]

    assert second["accessor"] != first["accessor"]

"""The set-up of Vault: engine, keys, policies and logins. Needs an administrator's token; safe to run again.

It makes what is missing and brings policies and logins up to date. It never changes a key that exists: one with wrong
flags is named and refused, because a key that once was exportable stays so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import hvac

from vault.domain.errors import CardVaultError
from vault.keyring.files import make_private_dir, write_private
from vault.keyring.keyflags import KEY_RULES, wrong_flags
from vault.keyring.login import AppRoleLogin
from vault.keyring.trouble import FOREIGN, translate
from vault.ports import KeyName

DEFAULT_TOKEN_TTL = timedelta(hours=1)
DEFAULT_TOKEN_MAX_TTL = timedelta(hours=24)


class LoginName(StrEnum):
    """The logins, one policy and one AppRole each."""

    INTAKE = "intake"
    RELEASE = "release"
    OPERATOR = "operator"
    CHECKPOINTER = "checkpointer"

    @property
    def role(self) -> str:
        """Name of the AppRole, and of the policy, in Vault."""
        return f"cardvault-{self.value}"


class SetupRefused(Exception):
    """Vault is not as it must be, or does not let us make it so."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class LoginFiles:
    """Where a login's credentials are, each file of mode 0600."""

    role_id_file: Path
    secret_id_file: Path

    def login(self, *, mount: str = "approle") -> AppRoleLogin:
        """The login that reads them."""
        return AppRoleLogin(role_id_file=self.role_id_file, secret_id_file=self.secret_id_file, mount=mount)

    def exist(self) -> bool:
        """Whether both were written."""
        return self.role_id_file.is_file() and self.secret_id_file.is_file()


def configure(
    client: hvac.Client,
    *,
    mount: str = "transit",
    policies_dir: Path,
    approle_mount: str = "approle",
    token_ttl: timedelta = DEFAULT_TOKEN_TTL,
    token_max_ttl: timedelta = DEFAULT_TOKEN_MAX_TTL,
) -> Mapping[LoginName, str]:
    """Bring Vault to where the server can use it; returns the role id of each login. Raises `SetupRefused`."""
    policies = {name: policy_text(policies_dir, name, mount=mount) for name in LoginName}
    try:
        _enable_engine(client, mount)
        _make_keys(client, mount)
        for name, text in policies.items():
            client.sys.create_or_update_policy(name.role, text)
        _enable_approle(client, approle_mount)
        return {
            name: make_login(
                client, name.role, approle_mount=approle_mount, token_ttl=token_ttl, token_max_ttl=token_max_ttl
            )
            for name in LoginName
        }
    except FOREIGN as e:
        refused = refusal(e)
    raise refused


def make_login(
    client: hvac.Client,
    role: str,
    *,
    approle_mount: str = "approle",
    token_ttl: timedelta = DEFAULT_TOKEN_TTL,
    token_max_ttl: timedelta = DEFAULT_TOKEN_MAX_TTL,
) -> str:
    """An AppRole that carries the policy of its own name and no other; returns its role id."""
    client.write_data(
        f"auth/{approle_mount}/role/{role}",
        data={
            "bind_secret_id": True,
            "token_policies": [role],
            "token_no_default_policy": True,
            "token_ttl": f"{int(token_ttl.total_seconds())}s",
            "token_max_ttl": f"{int(token_max_ttl.total_seconds())}s",
        },
    )
    answer: Any = client.read(f"auth/{approle_mount}/role/{role}/role-id")
    return str(answer["data"]["role_id"])


def issue_secret_id(client: hvac.Client, role: str, *, approle_mount: str = "approle") -> str:
    """A fresh secret id for a login (`LoginName.role`). Raises `SetupRefused`."""
    try:
        answer: Any = client.write_data(f"auth/{approle_mount}/role/{role}/secret-id", data={})
        return str(answer["data"]["secret_id"])
    except FOREIGN as e:
        refused = refusal(e)
    raise refused


def renew_login(client: hvac.Client, name: LoginName, *, approle_mount: str = "approle") -> tuple[str, str]:
    """Make everything worthless that a login's thief may hold; returns the new role id and secret id.

    The AppRole is made anew, so its role id and every secret id are void; and every token that any AppRole of this
    mount got is revoked: the processes that hold theirs rightly log in again by themselves. Raises `SetupRefused`.
    """
    try:
        client.delete(f"auth/{approle_mount}/role/{name.role}")
        role_id = make_login(client, name.role, approle_mount=approle_mount)
        client.write_data(f"sys/leases/revoke-prefix/auth/{approle_mount}/login", data={})
        return role_id, issue_secret_id(client, name.role, approle_mount=approle_mount)
    except FOREIGN as e:
        refused = refusal(e)
    raise refused


def login_files(directory: Path) -> LoginFiles:
    """Names of the files of a login kept in `directory`."""
    return LoginFiles(directory / "role_id", directory / "secret_id")


def write_login_files(directory: Path, *, role_id: str, secret_id: str) -> LoginFiles:
    """Write a login's credentials into a directory of mode 0700."""
    files = login_files(make_private_dir(directory))
    write_private(files.role_id_file, role_id + "\n")
    write_private(files.secret_id_file, secret_id + "\n")
    return files


def policy_text(policies_dir: Path, name: LoginName, *, mount: str) -> str:
    """A login's policy, for the mount that it is to speak of."""
    text = (policies_dir / f"{name}.hcl").read_text(encoding="utf-8")
    return text.replace('path "transit/', f'path "{mount}/')


def _enable_engine(client: hvac.Client, mount: str) -> None:
    mounts: Any = client.sys.list_mounted_secrets_engines()
    found = mounts["data"].get(f"{mount}/")
    if found is None:
        client.sys.enable_secrets_engine("transit", path=mount)
    elif found["type"] != "transit":
        raise SetupRefused([f"{mount}/ is a secrets engine of another type than transit"])
    # Encrypting under a name that does not exist must never make a key, not even for an administrator.
    client.write_data(f"{mount}/config/keys", data={"disable_upsert": True})


def _make_keys(client: hvac.Client, mount: str) -> None:
    problems: list[str] = []
    for name in KeyName:
        if client.read(f"{mount}/keys/{name}") is None:
            # Not hvac's create_key: it knows no hmac keys.
            client.write_data(f"{mount}/keys/{name}", data=dict(KEY_RULES[name].creation))
        made: Any = client.read(f"{mount}/keys/{name}")
        problems += wrong_flags(name, made["data"])
    if problems:
        raise SetupRefused(problems)


def _enable_approle(client: hvac.Client, approle_mount: str) -> None:
    methods: Any = client.sys.list_auth_methods()
    found = methods["data"].get(f"{approle_mount}/")
    if found is None:
        client.sys.enable_auth_method("approle", path=approle_mount)
    elif found["type"] != "approle":
        raise SetupRefused([f"auth/{approle_mount}/ is an auth method of another type than approle"])


def refusal(error: BaseException) -> SetupRefused:
    """The error to raise instead of a foreign one."""
    trouble = translate(error)
    reason = trouble.reason if isinstance(trouble, CardVaultError) else "vault_error"
    return SetupRefused([f"Vault did not let the set-up finish: {reason}"])

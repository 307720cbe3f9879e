"""The set-up of Vault: engine, keys, policies and logins. Needs an administrator's token; safe to run again.

It first compares Vault with what it should be and then makes what is missing and puts right what was changed: where
nothing differs it writes nothing. It never changes a key that exists: one with wrong flags is named and refused,
because a key that once was exportable stays so. `deploy/vault/setup.hcl` says what its token must be allowed to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
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


@dataclass(frozen=True, slots=True)
class Change:
    """One thing in which Vault is not yet as it should be."""

    what: str
    """In words, as in `create key cardvault-cards`."""
    make: Callable[[], object]
    """Puts it right; raises hvac's and requests' exceptions."""


def changes(
    client: hvac.Client,
    *,
    mount: str = "transit",
    policies_dir: Path,
    approle_mount: str = "approle",
    token_ttl: timedelta = DEFAULT_TOKEN_TTL,
    token_max_ttl: timedelta = DEFAULT_TOKEN_MAX_TTL,
) -> Sequence[Change]:
    """What `configure` would do, in its order; nothing is changed. Raises `SetupRefused`."""
    try:
        engine, keys = _engine(client, mount), _keys(client, mount)
        policies = _policies(client, mount, policies_dir)
        return [*engine, *keys, *policies, *_logins(client, approle_mount, token_ttl, token_max_ttl)]
    except FOREIGN as e:
        refused = refusal(e)
    raise refused


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
    due = changes(
        client,
        mount=mount,
        policies_dir=policies_dir,
        approle_mount=approle_mount,
        token_ttl=token_ttl,
        token_max_ttl=token_max_ttl,
    )
    try:
        for change in due:
            change.make()
        if due:
            _refuse_wrong_flags(client, mount)
        return {name: _role_id(client, name.role, approle_mount) for name in LoginName}
    except FOREIGN as e:
        refused = refusal(e)
    raise refused


def hints(client: hvac.Client) -> list[str]:
    """What the deployer should see to and the set-up cannot: whether Vault keeps an audit log (PCI DSS 10.2.1)."""
    try:
        found: Any = client.sys.list_enabled_audit_devices()
    except FOREIGN:
        return ["this token may not see Vault's audit devices: make sure that there is one (PCI DSS 10.2.1)"]
    if found["data"]:
        return []
    return ["Vault has no audit device: without one nobody sees who unwrapped what (PCI DSS 10.2.1)"]


def make_login(
    client: hvac.Client,
    role: str,
    *,
    approle_mount: str = "approle",
    token_ttl: timedelta = DEFAULT_TOKEN_TTL,
    token_max_ttl: timedelta = DEFAULT_TOKEN_MAX_TTL,
) -> str:
    """An AppRole that carries the policy of its own name and no other; returns its role id."""
    client.write_data(f"auth/{approle_mount}/role/{role}", data=_wanted_role(role, token_ttl, token_max_ttl))
    return _role_id(client, role, approle_mount)


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


def _engine(client: hvac.Client, mount: str) -> list[Change]:
    mounts: Any = client.sys.list_mounted_secrets_engines()
    found = mounts["data"].get(f"{mount}/")
    due = []
    if found is None:
        due.append(
            Change(
                f"enable the transit engine at {mount}/",
                lambda: client.sys.enable_secrets_engine("transit", path=mount),
            )
        )
    elif found["type"] != "transit":
        raise SetupRefused([f"{mount}/ is a secrets engine of another type than transit"])
    known: Any = None if found is None else client.read(f"{mount}/config/keys")
    if known is None or known["data"].get("disable_upsert") is not True:
        # Encrypting under a name that does not exist must never make a key, not even for an administrator.
        due.append(
            Change(
                f"forbid {mount}/ to make keys by encrypting",
                lambda: client.write_data(f"{mount}/config/keys", data={"disable_upsert": True}),
            )
        )
    return due


def _keys(client: hvac.Client, mount: str) -> list[Change]:
    due: list[Change] = []
    problems: list[str] = []
    for name in KeyName:
        known: Any = client.read(f"{mount}/keys/{name}")
        if known is None:
            due.append(Change(f"create key {name}", partial(_make_key, client, mount, name)))
        else:
            problems += wrong_flags(name, known["data"])
    if problems:
        raise SetupRefused(problems)
    return due


def _make_key(client: hvac.Client, mount: str, name: KeyName) -> None:
    # Not hvac's create_key: it knows no hmac keys.
    client.write_data(f"{mount}/keys/{name}", data=dict(KEY_RULES[name].creation))


def _refuse_wrong_flags(client: hvac.Client, mount: str) -> None:
    problems: list[str] = []
    for name in KeyName:
        made: Any = client.read(f"{mount}/keys/{name}")
        problems += wrong_flags(name, made["data"])
    if problems:
        raise SetupRefused(problems)


def _policies(client: hvac.Client, mount: str, policies_dir: Path) -> list[Change]:
    due = []
    for name in LoginName:
        known: Any = client.read(f"sys/policies/acl/{name.role}")
        wanted = policy_text(policies_dir, name, mount=mount)
        write = partial(client.sys.create_or_update_policy, name.role, wanted)
        if known is None:
            due.append(Change(f"create policy {name.role}", write))
        elif known["data"]["policy"].strip() != wanted.strip():
            due.append(Change(f"update policy {name.role}, which differs from {name}.hcl", write))
    return due


def _logins(
    client: hvac.Client, approle_mount: str, token_ttl: timedelta, token_max_ttl: timedelta
) -> Sequence[Change]:
    methods: Any = client.sys.list_auth_methods()
    found = methods["data"].get(f"{approle_mount}/")
    due = []
    if found is None:
        due.append(
            Change(
                f"enable AppRole at auth/{approle_mount}/",
                lambda: client.sys.enable_auth_method("approle", path=approle_mount),
            )
        )
    elif found["type"] != "approle":
        raise SetupRefused([f"auth/{approle_mount}/ is an auth method of another type than approle"])
    for name in LoginName:
        known: Any = None if found is None else client.read(f"auth/{approle_mount}/role/{name.role}")
        wanted = _wanted_role(name.role, token_ttl, token_max_ttl)
        write = partial(client.write_data, f"auth/{approle_mount}/role/{name.role}", data=wanted)
        if known is None:
            due.append(Change(f"create AppRole {name.role}", write))
        elif differing := [field for field, value in wanted.items() if known["data"].get(field) != value]:
            due.append(Change(f"update AppRole {name.role} ({', '.join(differing)})", write))
    return due


def _wanted_role(role: str, token_ttl: timedelta, token_max_ttl: timedelta) -> dict[str, Any]:
    """What an AppRole must say; what else it says, such as the addresses it is bound to, is the deployer's."""
    return {
        "bind_secret_id": True,
        "token_policies": [role],
        "token_no_default_policy": True,
        # Seconds. A period would let a token live for ever (PCI DSS 8.6.3).
        "token_ttl": int(token_ttl.total_seconds()),
        "token_max_ttl": int(token_max_ttl.total_seconds()),
        "token_period": 0,
    }


def _role_id(client: hvac.Client, role: str, approle_mount: str) -> str:
    answer: Any = client.read(f"auth/{approle_mount}/role/{role}/role-id")
    return str(answer["data"]["role_id"])


def refusal(error: BaseException) -> SetupRefused:
    """The error to raise instead of a foreign one."""
    trouble = translate(error)
    reason = trouble.reason if isinstance(trouble, CardVaultError) else "vault_error"
    return SetupRefused([f"Vault did not let the set-up finish: {reason}"])

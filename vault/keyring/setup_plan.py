"""Says what the set-up of Vault would do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hvac

from vault.keyring.keyflags import wrong_flags
from vault.keyring.setup import LoginName, policy_text, refusal
from vault.keyring.trouble import FOREIGN
from vault.ports import KeyName


def plan(client: hvac.Client, *, mount: str, policies_dir: Path, approle_mount: str = "approle") -> list[str]:
    """The changes that `configure` would make, in words; nothing is changed. Raises `SetupRefused`."""
    try:
        return [
            *_engine(client, mount),
            *_keys(client, mount),
            *_policies(client, mount, policies_dir),
            *_logins(client, approle_mount),
        ]
    except FOREIGN as e:
        refused = refusal(e)
    raise refused


def _engine(client: hvac.Client, mount: str) -> list[str]:
    mounts: Any = client.sys.list_mounted_secrets_engines()
    return [] if f"{mount}/" in mounts["data"] else [f"enable the transit engine at {mount}/"]


def _keys(client: hvac.Client, mount: str) -> list[str]:
    changes = []
    for name in KeyName:
        known: Any = client.read(f"{mount}/keys/{name}")
        if known is None:
            changes.append(f"create key {name}")
        else:
            changes += [f"refuse, because: {problem}" for problem in wrong_flags(name, known["data"])]
    return changes


def _policies(client: hvac.Client, mount: str, policies_dir: Path) -> list[str]:
    changes = []
    for name in LoginName:
        known: Any = client.read(f"sys/policies/acl/{name.role}")
        wanted = policy_text(policies_dir, name, mount=mount)
        if known is None:
            changes.append(f"create policy {name.role}")
        elif known["data"]["policy"].strip() != wanted.strip():
            changes.append(f"update policy {name.role}")
    return changes


def _logins(client: hvac.Client, approle_mount: str) -> list[str]:
    methods: Any = client.sys.list_auth_methods()
    if f"{approle_mount}/" not in methods["data"]:
        return [f"enable AppRole at auth/{approle_mount}/", *(f"create AppRole {name.role}" for name in LoginName)]
    known = {name: client.read(f"auth/{approle_mount}/role/{name.role}") for name in LoginName}
    return [f"create AppRole {name.role}" for name, found in known.items() if found is None]

"""What a transit key must be before a card may depend on it (PCI DSS 3.6.1, 3.6.1.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vault.domain.errors import KeyRingUnavailable
from vault.keyring.session import VaultSession
from vault.keyring.trouble import Trouble
from vault.ports import KeyName

_LOCKED = {"exportable": False, "allow_plaintext_backup": False, "deletion_allowed": False}


@dataclass(frozen=True, slots=True)
class KeyRule:
    """How a key is made, and what is then true of it."""

    creation: Mapping[str, str | int | bool]
    """Parameters that make it."""
    flags: Mapping[str, str | bool]
    """What reading it must show."""


def _rule(kind: str, **more: int | bool) -> KeyRule:
    derived = {"derived": True} if more.get("derived") else {}
    return KeyRule(
        creation={"type": kind, "exportable": False, "allow_plaintext_backup": False, **more},
        flags={"type": kind, **_LOCKED, **derived},
    )


KEY_RULES: Mapping[KeyName, KeyRule] = {
    # Derived: without the right context nothing opens, and unlike associated data a context survives rewrap.
    KeyName.CARDS: _rule("aes256-gcm96", derived=True),
    KeyName.ONCE: _rule("aes256-gcm96", derived=True),
    KeyName.FINGERPRINT: _rule("hmac", key_size=32),
    KeyName.AUDIT: _rule("ed25519"),
}


def wrong_flags(name: KeyName, data: Mapping[str, Any]) -> list[str]:
    """What is wrong with a key, given the `data` that reading it answered; each names the key and the flag."""
    problems = []
    for flag, wanted in KEY_RULES[name].flags.items():
        if data.get(flag) != wanted:
            problems.append(f"transit key {name}: {flag} must be {_shown(wanted)}")
    if data.get("soft_deleted"):
        problems.append(f"transit key {name}: it is deleted")
    return problems


def inspect_login(session: VaultSession) -> list[str]:
    """Every reason not to work under this login. Raises `KeyRingUnavailable`."""
    found: Any = session.call(lambda client: client.auth.token.lookup_self(), repeatable=True)
    if "root" in found["data"]["policies"]:
        return ["the login is a root token, which may do anything: use one with a policy of its own"]
    return []


def inspect_keys(session: VaultSession, names: Sequence[KeyName]) -> list[str]:
    """Every reason not to start with these keys; empty if there is none. Raises `KeyRingUnavailable`."""
    problems: list[str] = []
    for name in names:
        try:
            data = session.read(f"keys/{name}")
        except KeyRingUnavailable as e:
            if e.reason != Trouble.KEY_MISSING:
                raise
            problems.append(f"transit key {name}: it does not exist under {session.mount}/")
        else:
            problems += wrong_flags(name, data)
    return problems


def _shown(wanted: str | bool) -> str:
    return wanted if isinstance(wanted, str) else str(wanted).lower()

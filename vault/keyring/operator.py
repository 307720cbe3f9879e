"""What operators ask of Vault: versions, rotation, rewrapping, retirement; and signatures, under another login."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vault.domain.errors import KeyRefused, KeyRingUnavailable
from vault.domain.grant import SealedKey
from vault.keyring import wire
from vault.keyring.keyflags import inspect_keys, inspect_login
from vault.keyring.session import VaultSession
from vault.keyring.trouble import Trouble
from vault.ports import KeyName, KeyToUnwrap
from vault.ports_operator import KeyVersions

_SIGNATURE = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/]{86}==)")
_PUBLIC_KEY_BYTES = 32
_FRACTION = re.compile(r"\.[0-9]+")


class OperatorTransit:
    """Implements `ports_operator.OperatorKeys` under the `operator` login."""

    def __init__(self, session: VaultSession) -> None:
        self._session = session

    def versions(self, name: KeyName) -> KeyVersions:
        """The key's versions."""
        data = self._session.read(f"keys/{name}")
        try:
            return KeyVersions(
                latest=int(data["latest_version"]),
                min_decryption=int(data["min_decryption_version"]),
                min_encryption=int(data["min_encryption_version"]),
                min_available=int(data.get("min_available_version") or 0),
                created={int(version): _created(facts) for version, facts in data.get("keys", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            odd = KeyRingUnavailable(Trouble.ODD_ANSWER)
        raise odd

    def rotate(self, name: KeyName) -> None:
        """Ask for a new version, once: a lost answer may hide a rotation that happened."""
        self._session.write(f"keys/{name}/rotate", {})

    def rewrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[SealedKey | KeyRefused]:
        """Wrap data keys anew under the newest version, inside Vault."""
        if not items:
            return []
        (name,) = {item.name for item in items}
        return wire.rewrap(self._session, name, items)

    def set_minimums(self, name: KeyName, *, decryption: int, encryption: int) -> None:
        """Refuse older versions from now on."""
        # Not hvac's update_key_configuration: it refuses equal minimums, which Vault accepts and trim needs.
        body = {"min_decryption_version": decryption, "min_encryption_version": encryption}
        self._session.write(f"keys/{name}/config", body, repeatable=True)

    def trim(self, name: KeyName, *, below: int) -> None:
        """Destroy older versions."""
        self._session.write(f"keys/{name}/trim", {"min_available_version": below}, repeatable=True)

    def inspect_keys(self) -> list[str]:
        """Every reason not to work with the keys and the login as they are. Raises `KeyRingUnavailable`."""
        return [*inspect_login(self._session), *inspect_keys(self._session, tuple(KeyName))]


class CheckpointerTransit:
    """Implements `ports_operator.Signer` under the `checkpointer` login."""

    def __init__(self, session: VaultSession) -> None:
        self._session = session

    def sign(self, message: bytes) -> tuple[int, bytes]:
        """Sign with the newest version of the ed25519 key."""
        body = {"input": base64.b64encode(message).decode("ascii")}
        answer = self._session.write(f"sign/{KeyName.AUDIT}", body, repeatable=True).get("signature")
        match = _SIGNATURE.fullmatch(answer) if isinstance(answer, str) else None
        if match is None:
            raise KeyRingUnavailable(Trouble.ODD_ANSWER)
        return int(match[1]), base64.b64decode(match[2])

    def public_keys(self) -> Mapping[int, bytes]:
        """Raw public keys by version."""
        data = self._session.read(f"keys/{KeyName.AUDIT}")
        try:
            found = {int(version): base64.b64decode(facts["public_key"]) for version, facts in data["keys"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error):
            found = {}
        if not found or any(len(key) != _PUBLIC_KEY_BYTES for key in found.values()):
            raise KeyRingUnavailable(Trouble.ODD_ANSWER)
        return found


def _created(facts: Any) -> datetime:
    """When a version was made: a number of seconds for symmetric keys, a mapping with a time for others."""
    if isinstance(facts, int):
        return datetime.fromtimestamp(facts, UTC)
    # Go writes nanoseconds; Python reads microseconds.
    text = _FRACTION.sub("", str(facts["creation_time"])).replace("Z", "+00:00")
    return datetime.fromisoformat(text).astimezone(UTC)

"""What an administrator does to a Vault, beyond the set-up: initialise, unseal, look after its state and logins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

from vault.keyring.http import http_session, vault_client
from vault.keyring.login import AppRoleLogin, VaultAddress
from vault.keyring.setup import issue_secret_id, make_login, refusal
from vault.keyring.trouble import FOREIGN

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Health:
    """What a Vault says of itself to anybody."""

    initialized: bool
    sealed: bool
    standby: bool

    @property
    def is_active(self) -> bool:
        """Whether it serves."""
        return self.initialized and not self.sealed and not self.standby


@dataclass(frozen=True, slots=True)
class FirstSecrets:
    """What a Vault says once in its life."""

    recovery_key: str = field(repr=False)
    root_token: str = field(repr=False)


class Administrator:
    """A Vault at hand, under one token; with an empty one only what needs none works."""

    def __init__(self, address: VaultAddress, *, token: str = "") -> None:
        self.address = address
        self._http = http_session(address, connections=2)
        # Initialising and set-up take their time, and nobody's deadline depends on them.
        patient = replace(address, timeout=timedelta(seconds=30))
        self.client = vault_client(patient, self._http, token=token)

    @classmethod
    def logged_in(cls, address: VaultAddress, login: AppRoleLogin) -> Administrator:
        """Under a token got through an AppRole. Raises `SetupRefused`."""
        stranger = cls(address)
        try:
            return cls(address, token=stranger._guarded(lambda: login.log_in(stranger.client)).token)
        finally:
            stranger.close()

    def health(self) -> Health | None:
        """Its state, None if it does not answer."""
        try:
            found: Any = self._http.get(f"{self.address.address}/v1/sys/health", timeout=2).json()
            return Health(bool(found["initialized"]), bool(found["sealed"]), bool(found["standby"]))
        except FOREIGN:
            return None

    def initialise(self) -> FirstSecrets:
        """Initialise a Vault whose seal opens by itself, with a single recovery key."""

        def make() -> FirstSecrets:
            made: Any = self.client.sys.initialize(recovery_shares=1, recovery_threshold=1)
            return FirstSecrets(str(made["recovery_keys_base64"][0]), str(made["root_token"]))

        return self._guarded(make)

    def seal(self) -> None:
        """Close it by hand."""
        self._guarded(lambda: self.client.sys.seal())

    def unseal(self, recovery_key: str) -> None:
        """Open it after it was sealed by hand."""
        self._guarded(lambda: self.client.sys.submit_unseal_key(recovery_key))

    def put_policy(self, name: str, text: str) -> None:
        """Write a policy."""
        self._guarded(lambda: self.client.sys.create_or_update_policy(name, text))

    def make_login(self, role: str, *, token_ttl: timedelta) -> tuple[str, str]:
        """An AppRole with the policy of its own name; returns its role id and a secret id."""
        role_id = self._guarded(lambda: make_login(self.client, role, token_ttl=token_ttl))
        return role_id, issue_secret_id(self.client, role)

    def revoke_token(self) -> None:
        """End the token this works under."""
        self._guarded(lambda: self.client.auth.token.revoke_self())

    def close(self) -> None:
        """Close the connections; the token stays valid."""
        self._http.close()

    def _guarded(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except FOREIGN as e:
            refused = refusal(e)
        raise refused

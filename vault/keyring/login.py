"""How a process logs in to Vault: where Vault is, and as whom.

Credentials are read from their files at each login, so they can be exchanged while the process runs; they are never in
the configuration, the environment or the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import hvac

from vault.domain.errors import KeyRingUnavailable
from vault.keyring.trouble import Trouble


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultAddress:
    """Where Vault is and how it proves itself."""

    address: str
    """As in `https://vault.example:8200`; never plain HTTP."""
    ca_file: Path
    """The one authority whose certificate is believed, whatever the environment says (PCI DSS 4.2.1)."""
    mount: str = "transit"
    """Where the transit engine is mounted."""
    timeout: timedelta = timedelta(seconds=5)
    """Longest silence within one call; below the deadline of the RPC that waits for it."""
    connect_timeout: timedelta = timedelta(seconds=2)

    def __post_init__(self) -> None:
        if not self.address.startswith("https://"):
            raise ValueError("Vault's address must begin with https://")


@dataclass(frozen=True, slots=True)
class Lease:
    """A token and how long it lasts."""

    token: str = field(repr=False)
    ttl: float
    """Seconds; 0 for a token that does not end."""
    renewable: bool
    """Whether renewing the token is better than logging in again."""
    ours: bool
    """Whether this process made the token, and should revoke it when done."""


class Login(Protocol):
    """A way to get a token."""

    def log_in(self, client: hvac.Client) -> Lease:
        """Get a token through a client that has none. Raises hvac's and requests' exceptions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRoleLogin:
    """A role id and a secret id, each in a file of its own."""

    role_id_file: Path
    secret_id_file: Path
    mount: str = "approle"

    def log_in(self, client: hvac.Client) -> Lease:
        """A new token of our own."""
        answer: Any = client.auth.approle.login(
            role_id=_read(self.role_id_file),
            secret_id=_read(self.secret_id_file),
            use_token=False,
            mount_point=self.mount,
        )
        return _own_lease(answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtLogin:
    """A signed statement of who we are that somebody keeps fresh in a file, such as a pod's projected token.

    For Vault's auth methods `jwt`, which checks the signature by itself, and `kubernetes`, which asks the cluster; both
    take the same request.
    """

    jwt_file: Path
    role: str
    mount: str = "jwt"

    def log_in(self, client: hvac.Client) -> Lease:
        """A new token of our own."""
        return _own_lease(
            client.auth.jwt.jwt_login(role=self.role, jwt=_read(self.jwt_file), use_token=False, path=self.mount)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFileLogin:
    """A token that something else put into a file, and may replace there, such as Vault's agent."""

    path: Path

    def log_in(self, client: hvac.Client) -> Lease:
        """The token in the file, renewed if it can be. Reading the file anew takes the place of renewal."""
        client.token = _read(self.path)
        found: Any = client.auth.token.lookup_self()
        if found["data"].get("renewable"):
            client.auth.token.renew_self()
            found = client.auth.token.lookup_self()
        return Lease(token=client.token, ttl=float(found["data"]["ttl"]), renewable=False, ours=False)


def _own_lease(answer: Any) -> Lease:
    auth = answer["auth"]
    return Lease(
        token=str(auth["client_token"]),
        ttl=float(auth["lease_duration"]),
        renewable=bool(auth["renewable"]),
        ours=True,
    )


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not text:
        raise KeyRingUnavailable(Trouble.LOGIN_FILE)
    return text

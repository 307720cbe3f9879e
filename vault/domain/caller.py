"""Who is calling, as the client certificate proves it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from vault.domain.ids import ProcessorName, RequestId, TenantId


class Role(IntEnum):
    """What a certificate may be; the numbers are those of the wire format."""

    CHECKOUT = 1
    ACCOUNT = 2
    PROCESSOR = 3

    @property
    def label(self) -> str:
        """The name used in configuration and audit events."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Identity:
    """One client, as the configuration maps its SPIFFE URI."""

    uri: str
    role: Role
    tenants: tuple[TenantId, ...]
    """For checkout and account exactly one; for a processor those it serves."""
    processor: ProcessorName | None

    @property
    def tenant(self) -> TenantId:
        """The one tenant of a checkout or account identity."""
        if self.role is Role.PROCESSOR:
            raise TypeError("a processor has no tenant of its own")
        return self.tenants[0]


@dataclass(frozen=True, slots=True)
class Caller:
    """One call's origin, for the audit log."""

    identity: Identity | None
    """None where the certificate is mapped to nobody."""
    presented_uri: str
    certificate_sha256: str
    """Hex of the SHA-256 over the certificate's DER; empty if unknown."""
    peer: str
    request_id: RequestId

    @property
    def known(self) -> Identity:
        """The identity, for code that runs behind the door."""
        if self.identity is None:
            raise TypeError("this caller is mapped to nobody")
        return self.identity

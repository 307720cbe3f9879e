"""What a sealed card is tied to: it opens in its own row, for its own customer, under its own consent, or not at all.

Every field is written with its length before it (two bytes, big-endian), so no two bindings share an encoding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from vault.domain.errors import BrokenSeal
from vault.domain.ids import ConsentId, CustomerId, OnceId, OrderId, TenantId, Token

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _prefixed(*fields: str) -> bytes:
    raws = [field.encode() for field in fields]
    return b"".join([part for raw in raws for part in (len(raw).to_bytes(2, "big"), raw)])


@dataclass(frozen=True, slots=True)
class Binding:
    """The encoded binding of one sealed card."""

    encoded: bytes
    record_version: int

    def wrap_context(self) -> bytes:
        """Key-derivation context of the wrap in Vault (32 bytes); constant for the life of the sealed card."""
        return hashlib.sha256(b"cardvault.wrap.v1" + self.encoded).digest()

    def aad(self, suite: int) -> bytes:
        """Associated data of the local seal; the suite and the record version cannot be exchanged either.

        Raises `BrokenSeal` for a record version that no sealing can have had.
        """
        if not 0 <= self.record_version < 2**32:
            raise BrokenSeal("impossible record version")
        return b"cardvault.rec.v1" + bytes((suite,)) + self.encoded + self.record_version.to_bytes(4, "big")


def stored_card_binding(
    *, environment: str, tenant: TenantId, customer: CustomerId, token: Token, consent: ConsentId, record_version: int
) -> Binding:
    """Binding of a stored card. `record_version` grows with each new sealing under the same token."""
    return Binding(_prefixed("card", environment, tenant, customer, token, consent), record_version)


def one_time_binding(
    *, environment: str, tenant: TenantId, once_id: OnceId, order: OrderId, expires_at: datetime
) -> Binding:
    """Binding of a one-time token."""
    micros = (expires_at - _EPOCH) // (datetime.resolution)
    return Binding(_prefixed("once", environment, tenant, once_id, order) + micros.to_bytes(8, "big"), 1)


def fingerprint_message(*, environment: str, tenant: TenantId, customer: CustomerId, digits: str) -> bytes:
    """What Vault is asked to HMAC: a digest, so that Vault never sees digits either (PCI DSS 3.5.1.1: keyed hash)."""
    return hashlib.sha256(b"cardvault.fp.v1" + _prefixed(environment, tenant, customer, digits)).digest()

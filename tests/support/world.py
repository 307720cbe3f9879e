"""Values that many tests need: a fixed time, well-formed ids, a consent, and an entropy to order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from vault.domain.caller import Caller, Identity, Role
from vault.domain.consent import CardUse, Consent, ConsentChannel, ConsentEntry
from vault.domain.ids import ConsentId, CustomerId, OrderId, ProcessorName, RequestId, TenantId, Token

NOW = datetime(2026, 6, 15, 12, 0, tzinfo=UTC)
TENANT = TenantId("shop-a")
OTHER_TENANT = TenantId("shop-b")
CUSTOMER = CustomerId("customer-1")
ORDER = OrderId("order-1")
PROCESSOR = ProcessorName("acme-pay")


class SystemEntropy:
    """The operating system's random source."""

    def bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes."""
        return os.urandom(count)


class FixedEntropy:
    """Hands out what it was given, in that order."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = list(chunks)

    def bytes(self, count: int) -> bytes:
        """The next chunk, which must have that length."""
        chunk = self._chunks.pop(0)
        assert len(chunk) == count, "this test prepared another number of bytes"
        return chunk


def new_token() -> Token:
    """A token that names nothing."""
    return Token.drawn(os.urandom(4), os.urandom(16))


def new_consent_id() -> ConsentId:
    """An id of no consent."""
    return ConsentId.from_random(os.urandom(16))


def consent(
    *, uses: Sequence[CardUse] = (CardUse.CUSTOMER_INITIATED,), agreed_until: datetime | None = None
) -> Consent:
    """What a customer agreed to."""
    return Consent(
        terms_version="2026-01",
        terms_sha256=bytes(32),
        uses=tuple(uses),
        channel=ConsentChannel.WEB,
        locale="de-AT",
        agreed_until=agreed_until,
    )


def consent_entry(given: Consent | None = None, *, token: Token | None = None) -> ConsentEntry:
    """The same, in the ledger."""
    return ConsentEntry(
        tenant=TENANT,
        consent_id=new_consent_id(),
        customer=CUSTOMER,
        token=token or new_token(),
        consent=given or consent(),
        agreed_at=NOW,
        recorded_by="spiffe://example.test/checkout",
    )


def processor_identity(*tenants: TenantId, name: ProcessorName = PROCESSOR) -> Identity:
    """A processor that serves these tenants, or `TENANT`."""
    return Identity(f"spiffe://example.test/{name}", Role.PROCESSOR, tenants or (TENANT,), name)


def checkout_identity(tenant: TenantId = TENANT) -> Identity:
    """A shop's checkout."""
    return Identity(f"spiffe://example.test/{tenant}/checkout", Role.CHECKOUT, (tenant,), None)


def caller(identity: Identity | None) -> Caller:
    """A call by that identity."""
    return Caller(
        identity=identity,
        presented_uri=identity.uri if identity else "spiffe://example.test/nobody",
        certificate_sha256="ab" * 32,
        peer="127.0.0.1",
        request_id=RequestId.from_random(os.urandom(16)),
    )

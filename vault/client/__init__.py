"""The Python client: what a shop and its payment processor import.

One class for each role, with the files of one client certificate. Checkout hands a card in:

>>> from vault.client import CardInput, CardUse, Checkout, Consent, Expiry, Money, Processor, StoredCard, TlsFiles
>>> checkout = Checkout(address, TlsFiles(ca=ca, certificate=checkout_pem, private_key=checkout_key))
>>> consent = Consent.to(
...     "Keep my card for my next purchase.", version="2026-01", uses=[CardUse.CUSTOMER_INITIATED], locale="en"
... )
>>> stored = checkout.tokenize(
...     CardInput(typed, expiry=Expiry(year=2030, month=12), holder_name="Ada Example"), customer="ada", consent=consent
... ).card
>>> stored.token[:4], stored.brand.label, stored.last4
('tok_', 'Visa', '4242')

To pay, checkout asks for a grant, and the processor, under its own certificate, turns it into the number, once:

>>> amount = Money(minor_units=4900, currency="EUR")
>>> grant = checkout.issue_grant(
...     StoredCard(customer="ada", token=stored.token), order="order-1", amount=amount, processor="acquirer"
... )
>>> processor = Processor(address, TlsFiles(ca=ca, certificate=processor_pem, private_key=processor_key))
>>> card = processor.detokenize(grant.reveal_text(), order="order-1", amount=amount)
>>> card.number
CardNumber(••••4242)
>>> card.number.reveal() == typed
True

`str(card.number)`, `f"{card.number}"`, `json.dumps`, `pickle` and `copy` raise `TypeError`; `reveal()` is the one way.

Without `consent` nothing is stored; with `order` the answer has a one-time token, which goes to `issue_grant` in the
place of `StoredCard`. `Account` lists and removes cards (`for card in account.list_cards("ada")`). Clients are context
managers. `AsyncCheckout`, `AsyncAccount` and `AsyncProcessor` have the same methods, to be awaited, and
`async for card in account.list_cards("ada")`.

**Errors.** A call either did not happen (`DidNotHappen`: `InvalidArgument`, `Refused`, `NotAvailable`,
`ConsentRequired`, `PreconditionFailed`, `Conflict`, `Contention`, `Overloaded`, `NotServed`, `ClientClosed`) or
nobody here can know (`OutcomeUnknown`, of which `Unavailable` is one): repeat it later with `error.idempotency_key`.
`error.error_id` is what the vault's log and audit event call it.

>>> from vault.client import NotAvailable
>>> try:
...     checkout.issue_grant(StoredCard("ada", "tok_none"), order="order-2", amount=amount, processor="acquirer")
... except NotAvailable as error:
...     print(error.code.name, error.error_id[:4])
NOT_FOUND req_

**Repeats.** Within a call's deadline (10 s unless named) the client itself repeats what is unknown, with the same
idempotency key, which it draws if you give none, and what the vault asks to be repeated; with growing random pauses and
a budget. `Processor.detokenize` is special: see there.

**Certificates** are read again when their files change. **Forks:** make clients before forking, use them only after.

Why two drivers and one description of each call: an async client behind a private event-loop thread would have cost
blocking callers a hop between threads on every call, a thread that dies in forked workers, and tracebacks, debuggers
and Ctrl-C that end at a queue; two classes written by hand or by a generator would drift or need a build step. So a
call is data (`vault.client.calls`), retries are decisions (`vault.client.retry`), and only `vault.client.clients`
waits, once with gRPC's blocking channel and once with its asyncio one.
"""

from __future__ import annotations

from vault.client.account import Account, AsyncAccount
from vault.client.checkout import AsyncCheckout, Checkout, NotStored
from vault.client.errors import (
    CallError,
    ClientClosed,
    Conflict,
    ConsentRequired,
    Contention,
    DidNotHappen,
    FieldViolation,
    InvalidArgument,
    NotAvailable,
    NotServed,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    Refused,
    Unavailable,
)
from vault.client.options import Options, TlsFiles, UnusableCertificates
from vault.client.processor import AsyncProcessor, Processor
from vault.client.values import (
    Brand,
    Card,
    CardInput,
    CardNumber,
    CardState,
    CardUse,
    Consent,
    ConsentChannel,
    ConsentSummary,
    CustomerExport,
    ErasureReceipt,
    Expiry,
    Grant,
    HolderName,
    ImportItem,
    InclusionProof,
    Money,
    OneTimeToken,
    PaymentOutcome,
    Release,
    ReleasedCard,
    SecurityCode,
    StoredCard,
    Token,
    Tokenized,
)

__all__ = [
    "Account",
    "AsyncAccount",
    "AsyncCheckout",
    "AsyncProcessor",
    "Brand",
    "CallError",
    "Card",
    "CardInput",
    "CardNumber",
    "CardState",
    "CardUse",
    "Checkout",
    "ClientClosed",
    "Conflict",
    "Consent",
    "ConsentChannel",
    "ConsentRequired",
    "ConsentSummary",
    "Contention",
    "CustomerExport",
    "DidNotHappen",
    "ErasureReceipt",
    "Expiry",
    "FieldViolation",
    "Grant",
    "HolderName",
    "ImportItem",
    "InclusionProof",
    "InvalidArgument",
    "Money",
    "NotAvailable",
    "NotServed",
    "NotStored",
    "OneTimeToken",
    "Options",
    "OutcomeUnknown",
    "Overloaded",
    "PaymentOutcome",
    "PreconditionFailed",
    "Processor",
    "Refused",
    "Release",
    "ReleasedCard",
    "SecurityCode",
    "StoredCard",
    "TlsFiles",
    "Token",
    "Tokenized",
    "Unavailable",
    "UnusableCertificates",
]

"""What the use cases ask of the world: keys, storage, time and randomness.

Everything here is synchronous and called from worker threads. Implementations translate every foreign exception at
their own fence: trouble with Vault is `KeyRingUnavailable`, trouble with the database `StoreUnavailable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from vault.domain.audit import AuditEvent
from vault.domain.brand import Brand
from vault.domain.card import CardState, Expiry, StoredCard
from vault.domain.consent import ConsentEntry, GivenConsent
from vault.domain.errors import KeyRefused, KeyRingUnavailable
from vault.domain.grant import Grant, Redeemable, SealedKey
from vault.domain.ids import (
    ConsentId,
    CustomerId,
    EventId,
    IdempotencyKey,
    NetworkTransactionId,
    OnceId,
    OrderId,
    ProcessorName,
    TenantId,
    Token,
)
from vault.domain.outcome import PaymentOutcome

# --- time and randomness --------------------------------------------------------------------------------------------


class Clock(Protocol):
    """The wall clock."""

    def now(self) -> datetime:
        """Now, with time zone UTC and microseconds."""


class Entropy(Protocol):
    """The operating system's random source."""

    def bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes."""


# --- keys -----------------------------------------------------------------------------------------------------------


class KeyName(StrEnum):
    """The transit keys."""

    CARDS = "cardvault-cards"
    ONCE = "cardvault-once"
    FINGERPRINT = "cardvault-fingerprint"
    AUDIT = "cardvault-audit"


@dataclass(frozen=True, slots=True)
class KeyToWrap:
    """A fresh data key (32 bytes) and the key-derivation context it is bound to (32 bytes)."""

    data_key: bytes = field(repr=False)
    context: bytes


@dataclass(frozen=True, slots=True)
class KeyToUnwrap:
    """A wrapped data key, the transit key that wrapped it, and the context it must be bound to."""

    name: KeyName
    key: SealedKey
    context: bytes


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A keyed hash by which a card is found again (PCI DSS 3.5.1.1)."""

    version: int
    """Version of `cardvault-fingerprint` that made it."""
    value: bytes
    """32 bytes."""


@dataclass(frozen=True, slots=True)
class Protected:
    """Answers of `IntakeKeys.protect`, each in the order of what was asked."""

    cards: Sequence[SealedKey]
    once: Sequence[SealedKey]
    fingerprints: Sequence[tuple[Fingerprint, ...]]
    """For each message its fingerprints under every key version in use, newest first; never empty."""


class IntakeKeys(Protocol):
    """What processes may ask of Vault that take cards in: wrap and fingerprint, never unwrap."""

    def protect(
        self, *, cards: Sequence[KeyToWrap], once: Sequence[KeyToWrap], fingerprints: Sequence[bytes]
    ) -> Protected:
        """Wrap data keys under `cardvault-cards` and `cardvault-once` and fingerprint 32-byte messages.

        Any number of items; they travel in batches of at most 200, side by side, and nothing is sent for an empty
        sequence. All or nothing: raises `KeyRingUnavailable` if any answer is missing or odd.
        """

    def check(self) -> None:
        """Prove readiness with a real wrap under both keys. Raises `KeyRingUnavailable`."""


class ReleaseKeys(Protocol):
    """What processes may ask of Vault that serve the processor: unwrap, one key a call."""

    def unwrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[bytes | KeyRefused | KeyRingUnavailable]:
        """Unwrap each key in a Vault call of its own, several side by side. Each result stands for itself.

        `KeyRefused`: Vault answered that this wrapped key does not belong to this context.
        """

    def check(self, canary: KeyToUnwrap | None) -> None:
        """Prove readiness with a real unwrap of `canary`. Raises `KeyRingUnavailable`, also if there is none."""


# --- storage --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PageCursor:
    """Where the next page of a customer's cards begins: after this card."""

    created_at: datetime
    token: Token


@dataclass(frozen=True, slots=True)
class ConsentCursor:
    """Where the next page of a customer's consents begins: after this one."""

    agreed_at: datetime
    consent: ConsentId


@dataclass(frozen=True, slots=True)
class ReleaseCursor:
    """Where the next page of a customer's releases begins: after this one."""

    released_at: datetime
    event: EventId


@dataclass(frozen=True, slots=True)
class Release:
    """One card that went to a processor, as the audit log has it."""

    event: EventId
    token: Token | None
    """The card; None if it was not stored."""
    order: OrderId
    processor: ProcessorName
    released_at: datetime
    by_one_time_token: bool = False


@dataclass(frozen=True, slots=True)
class SealedCard:
    """A card at rest: its wrapped data key and its ciphertext."""

    key: SealedKey
    ciphertext: bytes
    record_version: int


@dataclass(frozen=True, slots=True)
class NewCard:
    """A card to be stored under a token: as a new row, or sealed anew under the token it already has."""

    tenant: TenantId
    customer: CustomerId
    token: Token
    brand: Brand
    last4: str
    expiry: Expiry
    state: CardState
    consent: ConsentEntry
    fingerprint: Fingerprint
    sealed: SealedCard
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class KnownCard:
    """A stored card that a fingerprint led to."""

    token: Token
    record_version: int


@dataclass(frozen=True, slots=True)
class OnceKey:
    """The wrapped data key of a one-time token: all that the vault keeps of it."""

    tenant: TenantId
    once_id: OnceId
    order: OrderId
    key: SealedKey
    created_at: datetime
    expires_at: datetime
    token: Token | None = None
    """The card that was stored in the same call, whose first payment this token then makes."""
    customer: CustomerId | None = None
    """Whose card it is, if the shop said so."""


@dataclass(frozen=True, slots=True)
class IdempotencyId:
    """What an idempotency key is unique in."""

    tenant: TenantId
    method: str
    """Name of the RPC, as in `Tokenize`."""
    key: IdempotencyKey


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """A request that was answered, and what must be known to answer it again."""

    id: IdempotencyId
    request_sha256: bytes
    """Digest of the request; a card enters it through its fingerprint alone, a security code not at all."""
    fingerprint_version: int
    """Version of the fingerprint in the digest; 0 if there is none."""
    answer: Mapping[str, str | int]
    """Nothing secret: tokens, ids, digests of grants."""
    customer: CustomerId | None
    token: Token | None
    """The stored card that the answer speaks of; erasing that card erases the answer."""
    created_at: datetime
    expires_at: datetime
    erased: bool = False
    """True once the card was erased: digest and answer are then empty."""


@dataclass(frozen=True, slots=True)
class CardRef:
    """One customer's card."""

    tenant: TenantId
    customer: CustomerId
    token: Token


@dataclass(frozen=True, slots=True)
class GrantKey:
    """One grant, with the tenants in which it may be looked for."""

    tenants: tuple[TenantId, ...]
    grant_sha256: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """A redemption to be decided by the database, with the data it was checked against."""

    tenant: TenantId
    grant_sha256: bytes
    token: Token | None
    record_version: int
    """Of the stored card whose key was unwrapped; 0 for a one-time token."""
    once_id: OnceId | None


@dataclass(frozen=True, slots=True)
class OutcomeReport:
    """What became of a payment, to be recorded if it is the first that is heard of it."""

    grant: GrantKey
    processor: ProcessorName
    order: OrderId
    outcome: PaymentOutcome


@dataclass(frozen=True, slots=True)
class Approval:
    """A payment of this card was approved, under this id of the scheme."""

    card: CardRef
    network_transaction_id: NetworkTransactionId | None


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure removed."""

    cards: int
    grants_revoked: int


@dataclass(frozen=True, slots=True)
class CardsOf:
    """A customer whose cards are wanted: those after a place, so many at most."""

    tenant: TenantId
    customer: CustomerId
    after: PageCursor | None
    limit: int


class Reader(Protocol):
    """Queries. Nothing reachable from here can write."""

    def list_cards(self, wanted: Sequence[CardsOf]) -> Sequence[Sequence[StoredCard]]:
        """The cards of each, in this order; oldest first (created_at, then token)."""

    def cards(self, refs: Sequence[CardRef]) -> Mapping[CardRef, StoredCard]:
        """Those that exist and belong to that customer of that tenant."""

    def default_cards(
        self, customers: Sequence[tuple[TenantId, CustomerId]]
    ) -> Mapping[tuple[TenantId, CustomerId], Token]:
        """The default card of each customer who has cards."""

    def known_cards(
        self, fingerprints: Sequence[tuple[TenantId, Fingerprint]]
    ) -> Mapping[tuple[TenantId, Fingerprint], KnownCard]:
        """Stored cards by fingerprint."""

    def once_keys(self, ids: Sequence[tuple[TenantId, OnceId]]) -> Mapping[tuple[TenantId, OnceId], OnceKey]:
        """Those whose wrapped key still exists, expired or not."""

    def grants(self, keys: Sequence[GrantKey]) -> Mapping[bytes, Grant]:
        """Grants by their SHA-256, in whatever state."""

    def redeemables(self, keys: Sequence[GrantKey]) -> Mapping[bytes, Redeemable]:
        """Grants by their SHA-256 together with the wrapped keys they lead to. Only `release` roles may read these."""

    def idempotency(self, ids: Sequence[IdempotencyId]) -> Mapping[IdempotencyId, IdempotencyRecord]:
        """Records by key, expired ones too."""

    def consents_given(
        self, tenant: TenantId, customer: CustomerId, *, after: ConsentCursor | None, limit: int
    ) -> Sequence[GivenConsent]:
        """Every consent that the customer gave, also those withdrawn, oldest first."""

    def releases(
        self, tenant: TenantId, customer: CustomerId, *, after: ReleaseCursor | None, limit: int
    ) -> Sequence[Release]:
        """Every release that names the customer, also of cards erased since or never stored, oldest first."""

    def setting(self, name: str) -> str | None:
        """A fact about this database, such as its environment label."""


class Writer(Reader, Protocol):
    """One transaction. It commits when the block ends and rolls back when the block raises.

    A transaction that changed something and appended no event raises `AssertionError` instead of committing.
    Every conditional method is decided by the database in one statement, never by reading first.
    """

    def append_events(self, events: Sequence[AuditEvent]) -> None:
        """Add to the audit log. A second `card.released` with outcome ok for one grant raises `StoreUnavailable`."""

    def claim_idempotency(self, records: Sequence[IdempotencyRecord], *, now: datetime) -> frozenset[IdempotencyId]:
        """Insert those whose key is free (absent, or expired by `now`); returns the ids inserted.

        Within one call each id stands once. Concurrent claimants of one id wait for each other.
        """

    def replace_answers(self, answers: Mapping[IdempotencyId, Mapping[str, str | int]]) -> None:
        """Exchange the answers of existing records."""

    def release_idempotency(self, ids: Sequence[IdempotencyId]) -> None:
        """Take claims back that this same transaction made."""

    def insert_new_cards(self, cards: Sequence[NewCard]) -> frozenset[Token]:
        """Store consent, card and secret of those whose fingerprint is not stored yet; returns the tokens inserted.

        Of several with one fingerprint in one call only one is inserted. Of the others nothing is stored.
        """

    def reseal_cards(self, cards: Sequence[NewCard]) -> frozenset[Token]:
        """Replace expiry, consent, state and secret of stored cards, where the stored record version is one less.

        A card that is active stays so. Adds their consents to the ledger. Tenant, customer, token and fingerprint value
        must match; the fingerprint's version may be older than the newest. Returns the tokens changed; of the others
        nothing is stored.
        """

    def insert_once_keys(self, keys: Sequence[OnceKey]) -> None:
        """Keep the wrapped keys of one-time tokens."""

    def void_once_keys(self, ids: Sequence[tuple[TenantId, OnceId]]) -> frozenset[OnceId]:
        """Destroy wrapped keys that still exist and revoke open grants for them; returns those destroyed."""

    def expire_once_keys(self, *, now: datetime, limit: int) -> int:
        """Destroy wrapped keys expired by `now` and forget rows expired for a day; returns how many were destroyed."""

    def insert_grants(self, grants: Sequence[Grant]) -> frozenset[bytes]:
        """Insert open grants where no other open grant exists for the same tenant, subject and order.

        Returns the SHA-256 values inserted.
        """

    def revoke_open_grants(self, subjects: Sequence[tuple[TenantId, str, OrderId]], *, now: datetime) -> int:
        """Revoke whatever open grants exist for these subjects (token or one-time id) and orders."""

    def revoke_grants(self, grants: Sequence[tuple[TenantId, bytes]], *, now: datetime) -> frozenset[bytes]:
        """Revoke these grants where open; returns those changed."""

    def claim_grants(self, claims: Sequence[Claim], *, now: datetime) -> frozenset[bytes]:
        """Use up grants, each at most once ever; returns the SHA-256 values won.

        Won only if, in this transaction, the grant is open and unexpired and its target is still what was unwrapped:
        the stored card active, or pending and the grant for a customer-initiated payment, with that record version and
        a consent that was not withdrawn and has not ended; or the one-time key unspent and unexpired, whose wrapped key
        is then destroyed.
        """

    def record_outcomes(self, reports: Sequence[OutcomeReport], *, now: datetime) -> Mapping[bytes, CardRef | None]:
        """Record the first outcome of used grants, where processor and order are the grant's.

        Returns the SHA-256 values recorded, each with its card if that is still stored: for a grant of a one-time token
        the card that was stored in the same call. Each grant stands once in a call.
        """

    def approve_cards(self, approvals: Sequence[Approval]) -> frozenset[Token]:
        """Make pending cards active; returns those that became so.

        A card that has no network transaction id yet keeps the first one given.
        """

    def update_expiry(self, ref: CardRef, expiry: Expiry) -> bool:
        """Change the display column; False if there is no such card."""

    def set_default(self, ref: CardRef) -> bool:
        """Make it the customer's default card; False if there is no such card."""

    def erase_cards(
        self,
        tenant: TenantId,
        customer: CustomerId,
        token: Token | None,
        *,
        event_id: EventId,
        now: datetime,
        only_pending: bool = False,
    ) -> Erased:
        """Erase one card, or with `token` None all cards of the customer; with `only_pending` none that is active.

        Removes card and secret, revokes open grants, empties idempotency records that speak of the card, adds a
        withdrawal to the consent ledger and a tombstone that names `event_id`.
        """

    def put_setting(self, name: str, value: str) -> None:
        """Record a fact about this database."""


class Store(Protocol):
    """The database."""

    def reading(self) -> AbstractContextManager[Reader]:
        """A snapshot to read from. Raises `StoreUnavailable`."""

    def writing(self) -> AbstractContextManager[Writer]:
        """One transaction. Raises `StoreUnavailable`; where the answer to COMMIT was lost, what happened is unknown."""

    def check(self) -> None:
        """Prove that a write would work, without leaving a trace. Raises `StoreUnavailable`."""

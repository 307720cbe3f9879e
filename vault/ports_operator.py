"""What operator commands ask of the world, beyond what serving needs: rotation of keys and care for what they wrap.

The same rules as in `ports`: synchronous, foreign exceptions translated at their fence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from vault.domain.brand import Brand
from vault.domain.consent import LedgerEntry
from vault.domain.errors import CardVaultError, KeyRefused, Kind
from vault.domain.grant import SealedKey
from vault.domain.ids import ConsentId, CustomerId, EventId, TenantId, Token
from vault.domain.retention import CardRule, Deadlines, RowRule
from vault.ports import Fingerprint, KeyName, KeyToUnwrap, Reader, SealedCard, Store, Writer


class Busy(CardVaultError):
    """Another operator command holds the lock that this one needs; nothing happened."""

    kind = Kind.CONTENTION
    default_message = "another operator command is at work"


# --- keys -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyVersions:
    """What Vault knows of one transit key's versions."""

    latest: int
    min_decryption: int
    min_encryption: int
    """0: only the latest."""
    min_available: int
    """Versions below were trimmed: destroyed for good."""
    created: Mapping[int, datetime] = field(default_factory=dict)
    """When each version that still exists was made, UTC; empty for hmac keys, of which Vault does not tell."""


class OperatorKeys(Protocol):
    """What the operator's login may do: rotate, rewrap, retire, trim; never wrap or unwrap."""

    def versions(self, name: KeyName) -> KeyVersions:
        """The key's versions. Raises `KeyRingUnavailable`."""

    def rotate(self, name: KeyName) -> None:
        """Ask for a new version, once; never repeated by itself.

        Raises `KeyRingUnavailable`: the version may or may not have come about; read `versions` before and after.
        """

    def rewrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[SealedKey | KeyRefused]:
        """Wrap data keys anew under the newest version of their key, inside Vault, without plaintext.

        All items are for one key, at most 200 in one call. Each result stands for itself: `KeyRefused` for one that
        Vault refused (HTTP 200 with an error inside the item). Raises `KeyRingUnavailable` if the call failed.
        """

    def set_minimums(self, name: KeyName, *, decryption: int, encryption: int) -> None:
        """Refuse versions below these from now on; reversible until trimmed. Raises `KeyRingUnavailable`."""

    def trim(self, name: KeyName, *, below: int) -> None:
        """Destroy versions below this one for good. Raises `KeyRingUnavailable`."""


class Signer(Protocol):
    """What the checkpointer's login may do: sign with `cardvault-audit` (ed25519)."""

    def sign(self, message: bytes) -> tuple[int, bytes]:
        """The key's version and the signature (64 bytes). Raises `KeyRingUnavailable`."""

    def public_keys(self) -> Mapping[int, bytes]:
        """Raw public keys (32 bytes) by version. Raises `KeyRingUnavailable`."""


# --- storage --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CardKey:
    """Names one stored card; cards are walked in the order of tenant, then token."""

    tenant: TenantId
    token: Token


@dataclass(frozen=True, slots=True)
class StoredWrap:
    """A card's wrapped data key with what it is bound to."""

    card: CardKey
    customer: CustomerId
    consent: ConsentId
    record_version: int
    key: SealedKey


@dataclass(frozen=True, slots=True)
class WrapReplacement:
    """The same data key under another wrap."""

    card: CardKey
    old: SealedKey
    new: SealedKey


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """Everything of a stored card that `verify` and `rekey` need."""

    wrap: StoredWrap
    ciphertext: bytes
    fingerprint: Fingerprint
    brand: Brand | None
    """None for one that this release does not know."""
    last4: str
    stored_at: datetime
    """When it was first stored."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which cards a command is about; None: all."""

    tenant: TenantId | None = None
    since: datetime | None = None
    """First stored at or after."""
    until: datetime | None = None
    """First stored before."""
    data_key_below: int | None = None
    """Whose data key was made under an older version of `cardvault-cards` than this, however often it was rewrapped."""


@dataclass(frozen=True, slots=True)
class RekeyedCard:
    """A card sealed anew under a fresh data key; token, consent and display stay."""

    card: CardKey
    from_record_version: int
    sealed: SealedCard
    """Its record version is one more."""
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True)
class DueCard:
    """A card that a retention rule ends."""

    card: CardKey
    customer: CustomerId
    rule: CardRule


@dataclass(frozen=True, slots=True)
class DuePage:
    """One page of the walk over all cards."""

    due: Sequence[DueCard]
    last: CardKey | None
    """The last card that was looked at, due or not: the next page begins after it. None: there was none left."""


@dataclass(frozen=True, slots=True)
class ErasedDue:
    """What a retention rule ended."""

    cards: Sequence[DueCard]
    grants_revoked: int


@dataclass(frozen=True, slots=True)
class EvidenceCounts:
    """What the periodic audit asks of the database."""

    cards: int
    cards_pending: int
    cards_without_consent: int
    """Whose consent is missing from the ledger or was withdrawn; must be 0."""
    releases_without_grant: int
    """Releases of which no event says that a grant was issued; must be 0."""
    releases: Mapping[str, int]
    """By identity."""
    oldest_once_key: datetime | None
    last_review: datetime | None
    """When `cardvault audit report` was last run."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """A database's file, written anew."""

    bytes_before: int
    bytes_after: int
    seconds: float
    """While which nobody could write."""
    is_clear: bool
    """False: a reader that began before is still at it, and for its sake the old bytes are still there."""


class OperatorReader(Reader, Protocol):
    """Queries of operator commands."""

    def count_wraps(self) -> Mapping[int, int]:
        """How many stored cards are wrapped under each version of `cardvault-cards`."""

    def count_previous_wraps(self) -> Mapping[int, int]:
        """How many former wraps are still kept, by version."""

    def count_once_wraps(self, *, now: datetime) -> Mapping[int, int]:
        """How many unspent, unexpired one-time tokens are wrapped under each version of `cardvault-once`."""

    def count_fingerprints(self) -> Mapping[int, int]:
        """How many stored cards have their fingerprint under each version of `cardvault-fingerprint`."""

    def wraps_below(self, version: int, *, after: CardKey | None, limit: int) -> Sequence[StoredWrap]:
        """Wraps under older versions, in order, after a card."""

    def secrets(self, selection: Selection, *, after: CardKey | None, limit: int) -> Sequence[StoredSecret]:
        """Stored cards in order, after a card."""

    def secrets_by_fingerprint(self, tenant: TenantId, *, least: bytes, limit: int) -> Sequence[StoredSecret]:
        """A shop's cards in the order of their fingerprints, from this value on; only those with a secret."""

    def secrets_of(self, cards: Sequence[CardKey]) -> Mapping[CardKey, StoredSecret]:
        """These stored cards, as far as they exist; at most 200."""

    def count_secrets(self, selection: Selection) -> int:
        """How many `secrets` would walk over."""

    def count_customers(self) -> int:
        """How many customers have a card, each shop's counted apart."""

    def count_open_grants(self) -> int:
        """How many grants are open, expired or not."""

    def oldest_open_once_key(self) -> datetime | None:
        """When the open one-time key was issued that expires first."""

    def settings(self, prefix: str) -> Mapping[str, str]:
        """Facts whose name begins with `prefix`."""

    def due_cards(self, at: Deadlines, *, after: CardKey | None, limit: int) -> DuePage:
        """Look at `limit` cards in order, after a card: which of them are due, and by which rule."""

    def count_due_rows(self, at: Deadlines) -> Mapping[RowRule, int]:
        """How many rows beside cards are due."""

    def evidence_counts(self, *, since: datetime) -> EvidenceCounts:
        """What the periodic audit asks for; releases by identity since a time."""

    def count_erased(self) -> int:
        """How many cards were ever erased and not stored again under their token."""

    def count_erased_since_compaction(self) -> int:
        """How many of them since the database's file was last written anew."""

    def consent_ledger(self, tenant: TenantId, customer: CustomerId) -> Sequence[LedgerEntry]:
        """Every consent and withdrawal of the customer, oldest first."""


class OperatorWriter(OperatorReader, Writer, Protocol):
    """Changes of operator commands."""

    def replace_wraps(self, replacements: Sequence[WrapReplacement]) -> frozenset[CardKey]:
        """Exchange wraps where the stored one is still `old`; the old one is kept as the former wrap.

        Returns the cards changed: others were erased or sealed anew meanwhile, and have no need of it.
        """

    def forget_previous_wraps(self, *, below: int, limit: int) -> int:
        """Remove former wraps under versions below this one for good; returns how many."""

    def restore_previous_wraps(self, *, above: int, below: int = 0, limit: int) -> int:
        """Exchange current and former wrap where only the former one is under a version from `below` to `above`.

        Nothing is thrown away: with other bounds it exchanges them back. Returns how many.
        """

    def rekey_cards(self, cards: Sequence[RekeyedCard]) -> frozenset[CardKey]:
        """Replace wrap, ciphertext and fingerprint where the record version is still the expected one.

        No former wrap is kept: the old data key may be exposed. Returns the cards changed.
        """

    def delete_setting(self, name: str) -> None:
        """Forget a fact."""

    def note_compacted(self, erased: int) -> None:
        """Remember that the file was written anew after so many erasures."""

    def erase_due_cards(self, events: Mapping[CardKey, EventId], at: Deadlines) -> ErasedDue:
        """Erase, as `erase_cards` does, those of these cards that are still due; at most 200.

        Decided by the database with the cards locked: one stored again or used since it was found stays. Each
        tombstone names its card's event, which the caller appends for every card returned.
        """

    def forget_once_keys(self, at: Deadlines, *, limit: int) -> int:
        """Remove rows of spent one-time tokens; returns how many."""

    def close_expired_grants(self, at: Deadlines, *, limit: int) -> int:
        """Revoke open grants whose time has long passed; returns how many."""

    def forget_grants(self, at: Deadlines, *, limit: int) -> int:
        """Remove rows of old grants; returns how many."""

    def forget_answers(self, at: Deadlines, *, limit: int) -> int:
        """Remove idempotency records whose key is free again; returns how many."""


class OperatorStore(Store, Protocol):
    """The database, for operator commands; works beside running servers."""

    def reading(self) -> AbstractContextManager[OperatorReader]:
        """As in `Store`."""

    def writing(self) -> AbstractContextManager[OperatorWriter]:
        """As in `Store`."""

    def exclusively(self, what: str) -> AbstractContextManager[None]:
        """Hold a lock of this name across processes and hosts while the block runs; gone when the process dies.

        Raises `Busy` at once if another holds it. Needs no open transaction meanwhile.
        """

    def file_size(self) -> int | None:
        """Bytes of SQLite's file without its log; None on PostgreSQL. Raises `StoreUnavailable`."""

    def compacts_by_itself(self, size: int) -> bool:
        """Whether servers write a file of so many bytes anew after erasures."""

    def write_anew(self) -> Compacted:
        """Write SQLite's file anew. Nobody else can write meanwhile, and what waits too long for that is unavailable.

        Raises `PreconditionFailed` where somebody is in the way or room is lacking, `StoreUnavailable`; then nothing
        was changed.
        """

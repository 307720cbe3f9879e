"""The customer's recorded opt-in, and what it allows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum, StrEnum
from functools import lru_cache

from vault.domain.errors import InvalidField
from vault.domain.ids import ConsentId, CustomerId, EventId, TenantId, Token
from vault.domain.pan import contains_pan

_VERSION = re.compile(r"[A-Za-z0-9._:/ -]{1,64}")
_LOCALE = re.compile(r"[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8}){0,4}")
_SHA256_BYTES = 32


class CardUse(IntEnum):
    """What a stored card may be used for; the numbers are those of the wire format and of the database."""

    CUSTOMER_INITIATED = 1
    RECURRING = 2
    INSTALMENT = 3
    UNSCHEDULED = 4


class ConsentChannel(IntEnum):
    """Where the customer agreed. A pre-ticked box or implied consent has no value here on purpose."""

    WEB = 1
    APP = 2
    PHONE = 3
    PAPER = 4


@dataclass(frozen=True, slots=True)
class Consent:
    """What the customer agreed to, as the shop reports it."""

    terms_version: str
    terms_sha256: bytes
    uses: tuple[CardUse, ...]
    channel: ConsentChannel
    locale: str
    agreed_until: datetime | None

    @classmethod
    def parse(
        cls,
        *,
        terms_version: str,
        terms_sha256: bytes,
        uses: Sequence[int],
        channel: int,
        locale: str,
        agreed_until: datetime | None,
        now: datetime,
        field: str = "consent",
    ) -> Consent:
        """Check every part. Raises `InvalidField`, never with a value."""
        endless = _endless(terms_version, terms_sha256, tuple(uses), channel, locale, field)
        if agreed_until is None:
            return endless
        if agreed_until <= now:
            raise InvalidField(f"{field}.agreed_until", "must be in the future")
        return replace(endless, agreed_until=agreed_until)

    def has_ended(self, now: datetime) -> bool:
        """Whether the end that was agreed upon has come."""
        return self.agreed_until is not None and self.agreed_until <= now


# A shop has a handful of texts that customers agree to. What is refused is not kept.
@lru_cache(maxsize=1024)
def _endless(
    terms_version: str, terms_sha256: bytes, uses: tuple[int, ...], channel: int, locale: str, field: str
) -> Consent:
    if _VERSION.fullmatch(terms_version) is None or contains_pan(terms_version):
        raise InvalidField(f"{field}.terms_version", "must be 1 to 64 plain characters")
    # The shapes of the next two leave room for a card number: any 32 bytes, and groups of digits.
    if len(terms_sha256) != _SHA256_BYTES or contains_pan(terms_sha256.decode("latin-1")):
        raise InvalidField(f"{field}.terms_sha256", "must be the 32 bytes of a SHA-256")
    if not uses or len(set(uses)) != len(uses) or not set(uses) <= set(CardUse):
        raise InvalidField(f"{field}.uses", "must name one or more known uses, each once")
    if channel not in set(ConsentChannel):
        raise InvalidField(f"{field}.channel", "must be a known channel")
    if len(locale) > 35 or _LOCALE.fullmatch(locale) is None or contains_pan(locale):
        raise InvalidField(f"{field}.locale", "must be a BCP 47 tag of at most 35 characters")
    return Consent(
        terms_version=terms_version,
        terms_sha256=terms_sha256,
        uses=tuple(CardUse(use) for use in sorted(uses)),
        channel=ConsentChannel(channel),
        locale=locale,
        agreed_until=None,
    )


@dataclass(frozen=True, slots=True)
class ConsentEntry:
    """One consent in the ledger."""

    tenant: TenantId
    consent_id: ConsentId
    customer: CustomerId
    token: Token
    consent: Consent
    agreed_at: datetime
    recorded_by: str
    """Identity of the caller that reported it."""

    def covers(self, use: CardUse, *, now: datetime) -> bool:
        """Whether it allows this use at this time."""
        return use in self.consent.uses and not self.consent.has_ended(now)


@dataclass(frozen=True, slots=True)
class GivenConsent:
    """One consent in the ledger, and when it was withdrawn if it was."""

    entry: ConsentEntry
    withdrawn_at: datetime | None


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What ends a consent."""

    consent: ConsentId
    """The consent that it ends."""
    event: EventId
    """The audit event that says who asked for it."""
    requested_by: str
    """Identity that asked for it; empty where that event is not kept any more."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line of the ledger: a consent given, or its withdrawal."""

    consent_id: ConsentId
    customer: CustomerId
    token: Token
    what: ConsentEntry | Withdrawal
    recorded_at: datetime
    """By the vault's clock."""
    is_of_card: bool
    """Whether a card is stored under it now."""


class Standing(StrEnum):
    """Whether an entry of the ledger allows anything now, and why not."""

    IN_FORCE = "in force"
    WITHDRAWN = "withdrawn"
    ENDED = "ended"
    REPLACED = "replaced by a later consent"
    NO_CARD = "no card is stored under it"
    WITHDRAWAL = "a withdrawal"


def standings(ledger: Sequence[LedgerEntry], *, now: datetime) -> Sequence[Standing]:
    """How each entry of a customer's whole ledger stands, in their order."""
    withdrawn = {entry.what.consent for entry in ledger if isinstance(entry.what, Withdrawal)}
    given = Counter(entry.token for entry in ledger if isinstance(entry.what, ConsentEntry))
    return tuple(_standing(entry, entry.consent_id in withdrawn, given[entry.token] > 1, now) for entry in ledger)


def _standing(entry: LedgerEntry, is_withdrawn: bool, has_others: bool, now: datetime) -> Standing:
    match entry.what:
        case Withdrawal():
            return Standing.WITHDRAWAL
        case _ if is_withdrawn:
            return Standing.WITHDRAWN
        case _ if not entry.is_of_card:
            return Standing.REPLACED if has_others else Standing.NO_CARD
        case ConsentEntry(consent=consent) if consent.has_ended(now):
            return Standing.ENDED
    return Standing.IN_FORCE

"""Transactions as operator commands and the audit log see them, beside what serving needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from vault.domain.consent import LedgerEntry
from vault.domain.ids import CustomerId, EventId, TenantId
from vault.domain.retention import Deadlines, RowRule
from vault.ports_operator import (
    CardKey,
    DuePage,
    ErasedDue,
    EvidenceCounts,
    RekeyedCard,
    Selection,
    StoredSecret,
    StoredWrap,
    WrapReplacement,
)
from vault.store import (
    read_customer,
    read_evidence,
    read_wraps,
    retention,
    write_grants,
    write_idempotency,
    write_wraps,
)
from vault.store.logbook import SqlLogReader, SqlLogWriter

COMPACTED_AFTER = "database.compacted_after_erasures"
"""Setting: how many cards had been erased when SQLite's file was last written anew."""


class SqlOperatorReader(SqlLogReader):
    """Implements `ports_operator.OperatorReader`; the docstrings there are the contract."""

    __slots__ = ()

    def count_wraps(self) -> Mapping[int, int]:
        """Stored cards by version of their wrap."""
        return read_wraps.count_wraps(self._link)

    def count_previous_wraps(self) -> Mapping[int, int]:
        """Former wraps by version."""
        return read_wraps.count_former_wraps(self._link)

    def count_once_wraps(self, *, now: datetime) -> Mapping[int, int]:
        """Unspent, unexpired one-time tokens by version of their wrap."""
        return read_wraps.count_once_wraps(self._link, now)

    def count_fingerprints(self) -> Mapping[int, int]:
        """Stored cards by version of their fingerprint."""
        return read_wraps.count_fingerprints(self._link)

    def wraps_below(self, version: int, *, after: CardKey | None, limit: int) -> Sequence[StoredWrap]:
        """Wraps under older versions, in order, after a card. A page shorter than `limit` is the last."""
        return read_wraps.wraps_below(self._link, version, after, limit)

    def secrets(self, selection: Selection, *, after: CardKey | None, limit: int) -> Sequence[StoredSecret]:
        """Stored cards in order, after a card. A page shorter than `limit` is the last."""
        return read_wraps.secrets(self._link, selection, after, limit)

    def secrets_by_fingerprint(self, tenant: TenantId, *, least: bytes, limit: int) -> Sequence[StoredSecret]:
        """A shop's cards in the order of their fingerprints, from this value on."""
        return read_wraps.secrets_by_fingerprint(self._link, tenant, least, limit)

    def secrets_of(self, cards: Sequence[CardKey]) -> Mapping[CardKey, StoredSecret]:
        """These stored cards, as far as they exist."""
        return read_wraps.secrets_of(self._link, cards)

    def count_secrets(self, selection: Selection) -> int:
        """How many `secrets` would walk over, and cards whose secret was removed behind the vault's back."""
        return read_wraps.count_secrets(self._link, selection)

    def settings(self, prefix: str) -> Mapping[str, str]:
        """Facts whose name begins with `prefix`."""
        return read_wraps.settings_of(self._link, prefix)

    def evidence_counts(self, *, since: datetime) -> EvidenceCounts:
        """What the periodic audit asks for."""
        return read_evidence.counts(self._link, since)

    def consent_ledger(self, tenant: TenantId, customer: CustomerId) -> Sequence[LedgerEntry]:
        """Every consent and withdrawal of the customer, oldest first."""
        return read_customer.ledger(self._link, tenant, customer)

    def due_cards(self, at: Deadlines, *, after: CardKey | None, limit: int) -> DuePage:
        """Look at `limit` cards in order, after a card."""
        return retention.due_cards(self._link, at, after, limit)

    def count_erased(self) -> int:
        """How many tombstones there are."""
        return read_evidence.count_erased(self._link)

    def count_erased_since_compaction(self) -> int:
        """How many of them are newer than the file."""
        erased, known = self.count_erased(), self.setting(COMPACTED_AFTER)
        before = int(known) if known is not None and known.isdecimal() else 0
        return erased - before if erased >= before else erased

    def count_customers(self) -> int:
        """How many customers have a card."""
        return read_evidence.count_customers(self._link)

    def count_open_grants(self) -> int:
        """How many grants are open."""
        return retention.count_open_grants(self._link)

    def oldest_open_once_key(self) -> datetime | None:
        """When the open one-time key was issued that expires first."""
        return retention.oldest_open_once_key(self._link)

    def count_due_rows(self, at: Deadlines) -> Mapping[RowRule, int]:
        """How many rows beside cards are due."""
        return retention.count_due_rows(self._link, at)


class SqlOperatorWriter(SqlOperatorReader, SqlLogWriter):
    """Implements `ports_operator.OperatorWriter`; the docstrings there are the contract."""

    __slots__ = ()

    def replace_wraps(self, replacements: Sequence[WrapReplacement]) -> frozenset[CardKey]:
        """Exchange wraps where the stored one is still `old`, and keep that as the former wrap.

        There is room for one former wrap: forget those of the rotation before only once they are not needed, and
        before this one begins.
        """
        return self._noted(write_wraps.replace(self._link, replacements))

    def forget_previous_wraps(self, *, below: int, limit: int) -> int:
        """Remove former wraps under versions below this one for good."""
        return self._destroyed(write_wraps.forget_former(self._link, below, limit))

    def restore_previous_wraps(self, *, above: int, below: int = 0, limit: int) -> int:
        """Exchange current and former wrap where the current version is greater than `above` or less than `below`.

        Where the former one is too, it would help no more than the current one: both stay as they are.
        """
        return self._noted(write_wraps.restore_former(self._link, above, below, limit))

    def rekey_cards(self, cards: Sequence[RekeyedCard]) -> frozenset[CardKey]:
        """Replace wrap, ciphertext and fingerprint where the record version is still the expected one.

        Where another card of the tenant has the new fingerprint already, the former one stays; the rest is replaced.
        """
        return self._destroyed(write_wraps.rekey(self._link, cards))

    def delete_setting(self, name: str) -> None:
        """Forget a fact."""
        write_wraps.delete_setting(self._link, name)

    def note_compacted(self, erased: int) -> None:
        """Remember after how many erasures the file was written anew."""
        self.put_setting(COMPACTED_AFTER, str(erased))

    def erase_due_cards(self, events: Mapping[CardKey, EventId], at: Deadlines) -> ErasedDue:
        """Erase those of these cards that are still due."""
        erased = retention.erase_due(self._link, events, at)
        self._destroyed(erased.cards)
        return erased

    def forget_once_keys(self, at: Deadlines, *, limit: int) -> int:
        """Remove rows of spent one-time tokens."""
        return self._noted(write_grants.forget_once(self._link, expired_by=at.once_forgotten_before, limit=limit))

    def close_expired_grants(self, at: Deadlines, *, limit: int) -> int:
        """Revoke open grants whose time has long passed."""
        expired_by = at.grants_expired_before
        return self._noted(write_grants.close_expired(self._link, expired_by=expired_by, now=at.now, limit=limit))

    def forget_grants(self, at: Deadlines, *, limit: int) -> int:
        """Remove rows of old grants."""
        return self._noted(write_grants.forget(self._link, expired_by=at.grants_forgotten_before, limit=limit))

    def forget_answers(self, at: Deadlines, *, limit: int) -> int:
        """Remove idempotency records whose key is free again."""
        return self._noted(write_idempotency.forget(self._link, now=at.now, limit=limit))

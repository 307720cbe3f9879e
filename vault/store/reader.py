"""Queries. Each looks only at rows of the tenant it is asked about, and names the columns it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from sqlalchemy import ColumnElement, and_, bindparam, literal_column, select

from vault.domain.card import StoredCard
from vault.domain.consent import GivenConsent
from vault.domain.grant import Grant, Redeemable
from vault.domain.ids import CustomerId, OnceId, TenantId, Token
from vault.ports import (
    CardRef,
    CardsOf,
    ConsentCursor,
    Fingerprint,
    GrantKey,
    IdempotencyId,
    IdempotencyRecord,
    KnownCard,
    OnceKey,
    Release,
    ReleaseCursor,
)
from vault.store import read_cards, read_customer
from vault.store import rows as as_domain
from vault.store.columns import Engine, unindexed
from vault.store.given import Given
from vault.store.link import Batch, Link, selecting
from vault.store.rows import (
    CARD_COLUMNS,
    GRANT_COLUMNS,
    IDEMPOTENCY_COLUMNS,
    ONCE_COLUMNS,
    OPEN,
    TARGET_COLUMNS,
)
from vault.store.tables import card_secrets, cards, consents, grants, idempotency, once_keys, settings


def not_withdrawn() -> ColumnElement[bool]:
    """That the ledger has no withdrawal of the card's consent. Such a card is gone wherever it may come from."""
    withdrawals = consents.alias("withdrawals")
    # Not EXISTS: PostgreSQL might read every withdrawal there is into a hash table to look one up.
    one = (
        select(withdrawals.c.consent_id)
        .where(withdrawals.c.tenant_id == cards.c.tenant_id, withdrawals.c.withdraws_consent_id == cards.c.consent_id)
        .limit(literal_column("1"))
        .correlate(cards)
        .scalar_subquery()
    )
    return one.is_(None)


@cache
def _cards(engine: Engine) -> Batch:
    given = Given(engine, [cards.c.tenant_id, cards.c.customer_id, cards.c.token])
    first = read_cards.default_token(engine, cards.c.tenant_id, cards.c.customer_id).scalar_subquery()
    statement = (
        select(*CARD_COLUMNS, (cards.c.token == first).label("is_default"))
        .select_from(cards.join(consents, read_cards.is_consent_of_card(engine)))
        .join(
            given.rows,
            and_(
                cards.c.tenant_id == given.c.tenant_id,
                cards.c.token == given.c.token,
                cards.c.customer_id == given.c.customer_id,
            ),
        )
    )
    return selecting(engine, statement, given)


@cache
def _known_cards(engine: Engine) -> Batch:
    given = Given(engine, [card_secrets.c.tenant_id, card_secrets.c.fingerprint])
    statement = select(
        card_secrets.c.tenant_id,
        card_secrets.c.fingerprint,
        card_secrets.c.fingerprint_version,
        card_secrets.c.token,
        card_secrets.c.record_version,
    ).join(
        given.rows,
        and_(card_secrets.c.tenant_id == given.c.tenant_id, card_secrets.c.fingerprint == given.c.fingerprint),
    )
    return selecting(engine, statement, given)


@cache
def _once_keys(engine: Engine) -> Batch:
    given = Given(engine, [once_keys.c.tenant_id, once_keys.c.once_id])
    statement = (
        select(*ONCE_COLUMNS)
        .join(given.rows, and_(once_keys.c.tenant_id == given.c.tenant_id, once_keys.c.once_id == given.c.once_id))
        .where(unindexed(engine, once_keys.c.state) == OPEN)
    )
    return selecting(engine, statement, given)


@cache
def _grants(engine: Engine, *, with_target: bool) -> Batch:
    given = Given(engine, [grants.c.tenant_id, grants.c.grant_sha256])
    found = given.rows.join(
        grants, and_(grants.c.tenant_id == given.c.tenant_id, grants.c.grant_sha256 == given.c.grant_sha256)
    )
    if not with_target:
        return selecting(engine, select(*GRANT_COLUMNS).select_from(found), given)
    found = (
        found.outerjoin(cards, and_(cards.c.tenant_id == grants.c.tenant_id, cards.c.token == grants.c.token))
        .outerjoin(
            card_secrets,
            and_(card_secrets.c.tenant_id == cards.c.tenant_id, card_secrets.c.token == cards.c.token),
        )
        .outerjoin(consents, and_(read_cards.is_consent_of_card(engine), not_withdrawn()))
        .outerjoin(
            once_keys, and_(once_keys.c.tenant_id == grants.c.tenant_id, once_keys.c.once_id == grants.c.once_id)
        )
    )
    return selecting(engine, select(*GRANT_COLUMNS, *TARGET_COLUMNS).select_from(found), given)


@cache
def _idempotency(engine: Engine) -> Batch:
    given = Given(engine, list(idempotency.primary_key.columns))
    statement = select(*IDEMPOTENCY_COLUMNS).join(
        given.rows, and_(*(idempotency.c[c.name] == given.c[c.name] for c in idempotency.primary_key.columns))
    )
    return selecting(engine, statement, given)


_SETTING = select(settings.c.value).where(settings.c.name == bindparam("wanted"))


class SqlReader:
    """Queries within one transaction. Implements `ports.Reader`; it has nothing that writes."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def list_cards(self, wanted: Sequence[CardsOf]) -> Sequence[Sequence[StoredCard]]:
        """The cards of each, oldest first."""
        return read_cards.pages(self._link, wanted)

    def cards(self, refs: Sequence[CardRef]) -> Mapping[CardRef, StoredCard]:
        """Those that exist and belong to that customer of that tenant."""
        found = self._link.batch_rows(
            _cards(self._link.engine), [(ref.tenant, ref.customer, ref.token) for ref in dict.fromkeys(refs)]
        )
        stored = self._link.read(as_domain.stored_card, found)
        return {CardRef(card.tenant, card.customer, card.token): card for card in stored}

    def default_cards(
        self, customers: Sequence[tuple[TenantId, CustomerId]]
    ) -> Mapping[tuple[TenantId, CustomerId], Token]:
        """The default card of each customer who has cards."""
        return read_cards.defaults(self._link, list(dict.fromkeys(customers)))

    def known_cards(
        self, fingerprints: Sequence[tuple[TenantId, Fingerprint]]
    ) -> Mapping[tuple[TenantId, Fingerprint], KnownCard]:
        """Stored cards by fingerprint."""
        wanted = {(tenant, mark.value): (tenant, mark) for tenant, mark in fingerprints}
        found = self._link.batch_rows(_known_cards(self._link.engine), list(wanted))
        return {
            wanted[TenantId(row.tenant_id), row.fingerprint]: KnownCard(Token(row.token), row.record_version)
            for row in found
        }

    def once_keys(self, ids: Sequence[tuple[TenantId, OnceId]]) -> Mapping[tuple[TenantId, OnceId], OnceKey]:
        """Those whose wrapped key still exists, expired or not."""
        found = self._link.batch_rows(_once_keys(self._link.engine), list(dict.fromkeys(ids)))
        keys = self._link.read(as_domain.once_key, found)
        return {(key.tenant, key.once_id): key for key in keys}

    def grants(self, keys: Sequence[GrantKey]) -> Mapping[bytes, Grant]:
        """Grants by their SHA-256, in whatever state."""
        found = self._link.batch_rows(_grants(self._link.engine, with_target=False), _pairs(keys))
        return {grant.grant_sha256: grant for grant in self._link.read(as_domain.grant, found)}

    def redeemables(self, keys: Sequence[GrantKey]) -> Mapping[bytes, Redeemable]:
        """Grants by their SHA-256 together with the wrapped keys they lead to."""
        found = self._link.batch_rows(_grants(self._link.engine, with_target=True), _pairs(keys))
        return {each.grant.grant_sha256: each for each in self._link.read(as_domain.redeemable, found)}

    def idempotency(self, ids: Sequence[IdempotencyId]) -> Mapping[IdempotencyId, IdempotencyRecord]:
        """Records by key, expired ones too."""
        wanted = [(each.tenant, each.method, each.key) for each in dict.fromkeys(ids)]
        found = self._link.batch_rows(_idempotency(self._link.engine), wanted)
        records = self._link.read(as_domain.idempotency_record, found)
        return {record.id: record for record in records}

    def consents_given(
        self, tenant: TenantId, customer: CustomerId, *, after: ConsentCursor | None, limit: int
    ) -> Sequence[GivenConsent]:
        """Every consent that the customer gave, also those withdrawn, oldest first."""
        return read_customer.given(self._link, tenant, customer, after, limit)

    def releases(
        self, tenant: TenantId, customer: CustomerId, *, after: ReleaseCursor | None, limit: int
    ) -> Sequence[Release]:
        """Every release of a stored card of the customer, also of cards erased since, oldest first."""
        return read_customer.releases(self._link, tenant, customer, after, limit)

    def setting(self, name: str) -> str | None:
        """A fact about this database."""
        found = self._link.rows(_SETTING, {"wanted": name})
        return found[0].value if found else None


def _pairs(keys: Sequence[GrantKey]) -> list[tuple[TenantId, bytes]]:
    return list(dict.fromkeys((tenant, key.grant_sha256) for key in keys for tenant in key.tenants))

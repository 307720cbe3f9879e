"""A malicious database administrator moves things between rows: nothing opens outside its own row.

The bulk runs the use cases over a real store and a real OpenBao login; a handful goes through the server.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from sqlalchemy import Connection, Table, delete, event, insert, select, text, update

from tests.integration.rpc.conftest import Shop
from tests.support.cards import TypedCard, fresh_card, fresh_holder_name, fresh_typed_card
from tests.support.requests import (
    TIMEOUT,
    grant_request,
    new_customer,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from tests.support.world import consent
from vault.domain.audit import OPEN_FAILED
from vault.domain.caller import Caller, Identity, Role
from vault.domain.card import CardDetails, HolderName
from vault.domain.consent import CardUse
from vault.domain.errors import KeyRefused, KeyRingUnavailable, NotAvailable, Refused
from vault.domain.grant import DEFAULT_LIFETIME, Money, OneTimeToken
from vault.domain.ids import CustomerId, OrderId, ProcessorName, RequestId, TenantId, Token
from vault.embedded.openbao import OpenBao
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.ports import KeyToUnwrap, ReleaseKeys
from vault.store.columns import Engine
from vault.store.engine import Limits, open_engines
from vault.store.sql_store import SqlStore
from vault.store.tables import audit_events, card_secrets, cards, consents, grants, once_keys
from vault.system import SystemClock, SystemEntropy
from vault.usecases.batch import World
from vault.usecases.detokenize import Detokenize, DetokenizeCommand, ReleasedCard
from vault.usecases.grants import IssuedGrant, IssueGrant, IssueGrantCommand, StoredCardSubject
from vault.usecases.tokenize import Tokenize, TokenizeCommand, Tokenized

SHOP_A, SHOP_B = TenantId("shop-a"), TenantId("shop-b")
PROCESSOR = ProcessorName("acquirer")
AMOUNT = Money(4900, "EUR")
BATCH = 200

EXCHANGED = (
    "ciphertext",
    "wrapped_key",
    "token",
    "customer_id",
    "tenant_id",
    "consent_id",
    "record_version",
    "fingerprint",
)
BOUND = tuple(name for name in EXCHANGED if name != "fingerprint")
"""What a card opens under. The fingerprint finds a card again, and opens nothing."""
SUBSETS = [
    frozenset(chosen) for count in range(len(EXCHANGED) + 1) for chosen in itertools.combinations(EXCHANGED, count)
]


@contextmanager
def unguarded(url: str) -> Iterator[Connection]:
    """One transaction without foreign keys and triggers."""
    engines = open_engines(url, Limits(pool_size=2))
    if engines.kind is Engine.SQLITE:
        event.listen(engines.writer, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=OFF").close())
    try:
        with engines.writer.begin() as connection:
            if engines.kind is Engine.POSTGRESQL:
                connection.execute(text("SET LOCAL session_replication_role = replica"))
            yield connection
    finally:
        engines.dispose()


# --- rows -----------------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def _rows(connection: Connection, table: Table, tenant: str, token: str) -> Row:
    found = connection.execute(select(table).where(table.c.tenant_id == tenant, table.c.token == token))
    return dict(found.mappings().one())


@dataclass(frozen=True, slots=True)
class Rows:
    """What the database holds of one card."""

    card: Row
    secret: Row

    @property
    def bound(self) -> tuple[Any, ...]:
        """Everything that the seal and the wrap are tied to, with what they tie."""
        both = {**self.card, **self.secret}
        return tuple(both[name] for name in BOUND)


def take(connection: Connection, tenant: str, token: str) -> Rows:
    """Read the rows of one card and remove them."""
    rows = Rows(_rows(connection, cards, tenant, token), _rows(connection, card_secrets, tenant, token))
    for table in (card_secrets, cards):
        connection.execute(delete(table).where(table.c.tenant_id == tenant, table.c.token == token))
    return rows


def exchange(one: Rows, other: Rows, names: frozenset[str]) -> tuple[Rows, Rows]:
    """The two with some columns exchanged, in both tables where they stand in both."""

    def mixed(mine: Row, theirs: Row) -> Row:
        return {name: theirs[name] if name in names else value for name, value in mine.items()}

    return (
        Rows(mixed(one.card, other.card), mixed(one.secret, other.secret)),
        Rows(mixed(other.card, one.card), mixed(other.secret, one.secret)),
    )


def put(connection: Connection, rows: Rows) -> None:
    """Insert; the ledger gets a copy of the consent wherever the row's tenant lacks it."""
    tenant, consent_id = rows.card["tenant_id"], rows.card["consent_id"]
    known = connection.execute(select(consents).where(consents.c.consent_id == consent_id)).mappings().all()
    if tenant not in {entry["tenant_id"] for entry in known}:
        connection.execute(insert(consents).values({**known[0], "tenant_id": tenant}))
    connection.execute(insert(cards).values(rows.card))
    connection.execute(insert(card_secrets).values(rows.secret))


# --- use cases on the real things -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vault:
    """The use cases of one environment."""

    url: str
    tokenize: Tokenize
    issue: IssueGrant
    detokenize: Detokenize

    def stored(self, wanted: Sequence[tuple[TenantId, CustomerId, CardDetails]]) -> list[Token]:
        commands = [
            TokenizeCommand(
                caller=checkout_of(tenant),
                idempotency_key=None,
                customer=customer,
                card=card,
                consent=consent(),
                order=None,
            )
            for tenant, customer, card in wanted
        ]
        tokens = []
        for done in in_batches(self.tokenize, commands):
            assert isinstance(done, Tokenized)
            assert done.stored is not None
            tokens.append(done.stored.token)
        return tokens

    def issued(self, wanted: Sequence[tuple[TenantId, StoredCardSubject | OneTimeToken, OrderId]]) -> list[Any]:
        """`IssuedGrant` or an error for each."""
        return in_batches(
            self.issue,
            [
                IssueGrantCommand(
                    caller=checkout_of(tenant),
                    idempotency_key=None,
                    subject=subject,
                    order=order,
                    amount=AMOUNT,
                    purpose=CardUse.CUSTOMER_INITIATED,
                    processor=PROCESSOR,
                    lifetime=DEFAULT_LIFETIME,
                )
                for tenant, subject, order in wanted
            ],
        )

    def redeemed(self, wanted: Sequence[tuple[IssuedGrant, OrderId]]) -> list[Any]:
        """`ReleasedCard` or an error for each."""
        return in_batches(
            self.detokenize,
            [
                DetokenizeCommand(caller=processor(), grant=issued.grant, order=order, amount=AMOUNT)
                for issued, order in wanted
            ],
        )

    def alarms(self) -> dict[str, str]:
        """Outcome of every `card.open_failed` by order."""
        with unguarded(self.url) as connection:
            query = select(audit_events.c.order_id, audit_events.c.outcome).where(audit_events.c.event == OPEN_FAILED)
            return {row.order_id: row.outcome for row in connection.execute(query)}


def in_batches(use_case: Any, commands: Sequence[Any]) -> list[Any]:
    answers: list[Any] = []
    for start in range(0, len(commands), BATCH):
        answers += use_case(commands[start : start + BATCH])
    return answers


def _caller(identity: Identity) -> Caller:
    return Caller(identity, identity.uri, "ab" * 32, "127.0.0.1", RequestId.from_random(secrets.token_bytes(16)))


def checkout_of(tenant: TenantId) -> Caller:
    return _caller(Identity(f"spiffe://test.localhost/{tenant}", Role.CHECKOUT, (tenant,), None))


def processor() -> Caller:
    return _caller(Identity("spiffe://test.localhost/acquirer", Role.PROCESSOR, (SHOP_A, SHOP_B), PROCESSOR))


@pytest.fixture(params=["sqlite", "postgresql"])
def own_url(request: pytest.FixtureRequest) -> str:
    """A database of this test's own, once for each engine."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@contextmanager
def open_vault(url: str, openbao: OpenBao, *, environment: str = "test") -> Iterator[Vault]:
    with ExitStack() as stack:
        store = stack.enter_context(closing(SqlStore(url)))
        sessions = [
            stack.enter_context(closing(VaultSession(address=openbao.address, login=openbao.login(name))))
            for name in (LoginName.INTAKE, LoginName.RELEASE)
        ]
        intake = IntakeTransit(sessions[0])
        release = stack.enter_context(closing(ReleaseTransit(sessions[1])))
        world = World(environment=environment, store=store, clock=SystemClock(), entropy=SystemEntropy())
        yield Vault(
            url=url,
            tokenize=Tokenize(world=world, keys=intake),
            issue=IssueGrant(world=world, processors={PROCESSOR: frozenset({SHOP_A, SHOP_B})}),
            detokenize=Detokenize(world=world, keys=release),
        )


@pytest.fixture
def vault(own_url: str, openbao: OpenBao) -> Iterator[Vault]:
    with open_vault(own_url, openbao) as opened:
        yield opened


@dataclass(frozen=True, slots=True)
class Pair:
    """Two cards between which something is exchanged."""

    names: frozenset[str]
    tenants: tuple[TenantId, TenantId]
    customers: tuple[CustomerId, CustomerId]
    numbers: tuple[str, str]
    tokens: tuple[Token, Token]


OWNERS: dict[str, tuple[tuple[TenantId, str], tuple[TenantId, str]]] = {
    "of one customer": ((SHOP_A, "ada"), (SHOP_A, "ada")),
    "of two customers": ((SHOP_A, "ada"), (SHOP_A, "bob")),
    "of two shops": ((SHOP_A, "ada"), (SHOP_B, "bob")),
}


def pairs_of(vault: Vault, owners: str) -> list[Pair]:
    """One pair for every set of columns. The second card of each pair was stored twice: its record version is 2."""
    (tenant, name), (other_tenant, other_name) = OWNERS[owners]
    drawn = [
        (
            names,
            (tenant, other_tenant),
            (CustomerId(f"{name}-{number}"), CustomerId(f"{other_name}-{number}")),
            (fresh_card(), fresh_card()),
        )
        for number, names in enumerate(SUBSETS)
    ]
    first = vault.stored([(tenants[0], owner[0], two[0]) for _, tenants, owner, two in drawn])
    vault.stored([(tenants[1], owner[1], two[1]) for _, tenants, owner, two in drawn])
    second = vault.stored([(tenants[1], owner[1], two[1]) for _, tenants, owner, two in drawn])
    return [
        Pair(names, tenants, owner, (two[0].pan.reveal(), two[1].pan.reveal()), tokens)
        for (names, tenants, owner, two), tokens in zip(drawn, zip(first, second, strict=True), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Named:
    """What a grant is asked for, and what came of it."""

    columns: frozenset[str]
    tenant: TenantId
    customer: CustomerId
    token: Token


@pytest.mark.parametrize(
    ("own_url", "owners"),
    [*(("sqlite", owners) for owners in OWNERS), ("postgresql", "of two shops")],
    indirect=["own_url"],
)
def test_nothing_opens_after_any_exchange_between_two_rows(vault: Vault, owners: str) -> None:
    pairs = pairs_of(vault, owners)
    orders = itertools.count()
    redeemable: list[tuple[Named, OrderId, IssuedGrant]] = []

    def issue(names: Sequence[Named]) -> None:
        wanted = [
            (each.tenant, StoredCardSubject(each.customer, each.token), OrderId(f"order-{next(orders)}"))
            for each in names
        ]
        for each, (_, _, order), issued in zip(names, wanted, vault.issued(wanted), strict=True):
            if isinstance(issued, IssuedGrant):
                redeemable.append((each, order, issued))
            else:
                assert isinstance(issued, NotAvailable)

    # Grants from before the exchange, and grants that the attacker asks for by the names that the rows bear then.
    issue([Named(p.names, p.tenants[n], p.customers[n], p.tokens[n]) for p in pairs for n in (0, 1)])
    original: dict[tuple[Any, ...], str] = {}
    altered: list[tuple[Named, Rows]] = []
    with unguarded(vault.url) as connection:
        for pair in pairs:
            one, other = (take(connection, pair.tenants[side], pair.tokens[side]) for side in (0, 1))
            original |= {one.bound: pair.numbers[0], other.bound: pair.numbers[1]}
            for rows in exchange(one, other, pair.names):
                put(connection, rows)
                row = rows.card
                names = TenantId(row["tenant_id"]), CustomerId(row["customer_id"]), Token(row["token"])
                altered.append((Named(pair.names, *names), rows))
    issue([each for each, _ in altered])

    answers = vault.redeemed([(issued, order) for _, order, issued in redeemable])

    whole = {(each.tenant, each.token): original.get(rows.bound) for each, rows in altered}
    alarms = vault.alarms()
    opened = refused = 0
    for (each, order, _), answer in zip(redeemable, answers, strict=True):
        number = whole.get((each.tenant, each.token))
        if number is not None:
            # Whatever was exchanged, here all that belongs together stands together: the whole card, under its name.
            assert answer.card.pan.reveal() == number, sorted(each.columns)
            assert order not in alarms
            opened += 1
            continue
        assert isinstance(answer, Refused), sorted(each.columns)
        refused += 1
        if (each.tenant, each.token) in whole:
            assert alarms[order] == "error", sorted(each.columns)
    # Positive control: the pairs of which nothing or only the fingerprint was exchanged, at the least.
    assert opened >= 8
    assert refused >= 400


@pytest.mark.parametrize("column", ["token", "tenant_id"])
def test_a_secret_moved_to_another_display_row_does_not_open(vault: Vault, column: str) -> None:
    """Only `card_secrets` is touched: the display rows stay where they are."""
    tenants = (SHOP_A, SHOP_A if column == "token" else SHOP_B)
    owners = (CustomerId("ada"), CustomerId("bob"))
    tokens = vault.stored([(tenant, owner, fresh_card()) for tenant, owner in zip(tenants, owners, strict=True)])
    with unguarded(vault.url) as connection:
        one, other = (take(connection, tenant, token) for tenant, token in zip(tenants, tokens, strict=True))
        put(connection, Rows(one.card, {**other.secret, "token": tokens[0], "tenant_id": tenants[0]}))
        put(connection, Rows(other.card, {**one.secret, "token": tokens[1], "tenant_id": tenants[1]}))
    wanted = [
        (tenant, StoredCardSubject(owner, token), OrderId(f"order-{number}"))
        for number, (tenant, owner, token) in enumerate(zip(tenants, owners, tokens, strict=True))
    ]
    issued = vault.issued(wanted)

    answers = vault.redeemed([(grant, order) for grant, (_, _, order) in zip(issued, wanted, strict=True)])

    assert [type(answer) for answer in answers] == [Refused, Refused]
    assert vault.alarms() == {"order-0": "error", "order-1": "error"}


def test_an_older_sealing_put_back_does_not_open_under_the_newer_version(vault: Vault) -> None:
    """A card is sealed anew under another consent; its former ciphertext and wrapped key come back from a backup."""
    card, owner = fresh_card(), CustomerId("ada")
    (token,) = vault.stored([(SHOP_A, owner, card)])
    with unguarded(vault.url) as connection:
        former = _rows(connection, card_secrets, SHOP_A, token)
    assert vault.stored([(SHOP_A, owner, card)]) == [token]
    for names in (("ciphertext",), ("wrapped_key",), ("ciphertext", "wrapped_key"), ("record_version",)):
        with unguarded(vault.url) as connection:
            present = _rows(connection, card_secrets, SHOP_A, token)
            connection.execute(
                update(card_secrets).values({name: former[name] for name in names}).where(card_secrets.c.token == token)
            )
        order = OrderId("order-" + "-".join(names))
        (issued,) = vault.issued([(SHOP_A, StoredCardSubject(owner, token), order)])

        (answer,) = vault.redeemed([(issued, order)])

        assert isinstance(answer, Refused), names
        assert vault.alarms()[order] == "error"
        with unguarded(vault.url) as connection:
            connection.execute(update(card_secrets).values(present).where(card_secrets.c.token == token))
    (issued,) = vault.issued([(SHOP_A, StoredCardSubject(owner, token), OrderId("last"))])
    (answer,) = vault.redeemed([(issued, OrderId("last"))])
    assert answer.card.pan.reveal() == card.pan.reveal()


def test_a_card_of_another_environment_does_not_open(own_url: str, openbao: OpenBao) -> None:
    """The same Vault and the same rows, served under another label."""
    owner, order = CustomerId("ada"), OrderId("order-1")
    with open_vault(own_url, openbao, environment="test") as vault:
        (token,) = vault.stored([(SHOP_A, owner, fresh_card())])
    with open_vault(own_url, openbao, environment="live") as vault:
        (issued,) = vault.issued([(SHOP_A, StoredCardSubject(owner, token), order)])

        (answer,) = vault.redeemed([(issued, order)])

        assert isinstance(answer, Refused)
        assert vault.alarms() == {order: "error"}


class StoredMeanwhile:
    """Release keys during whose first answer something happens to the card."""

    def __init__(self, keys: ReleaseKeys, happens: Callable[[], object]) -> None:
        self._keys = keys
        self._happens = [happens]

    def unwrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[bytes | KeyRefused | KeyRingUnavailable]:
        answers = self._keys.unwrap(items)
        while self._happens:
            self._happens.pop()()
        return answers

    def check(self, canary: KeyToUnwrap | None) -> None:
        self._keys.check(canary)


def test_a_sealing_that_was_replaced_while_its_key_was_unwrapped_is_not_opened(vault: Vault) -> None:
    owner, order = CustomerId("ada"), OrderId("order-1")
    card = fresh_card()
    renewed = replace(card, holder_name=HolderName.parse(fresh_holder_name()))
    (token,) = vault.stored([(SHOP_A, owner, card)])
    (issued,) = vault.issued([(SHOP_A, StoredCardSubject(owner, token), order)])
    late = Detokenize(
        world=vault.detokenize._world,
        keys=StoredMeanwhile(vault.detokenize._keys, lambda: vault.stored([(SHOP_A, owner, renewed)])),
    )

    (answer,) = late([DetokenizeCommand(caller=processor(), grant=issued.grant, order=order, amount=AMOUNT)])

    assert isinstance(answer, ReleasedCard)
    assert answer.card.holder_name == renewed.holder_name
    assert vault.alarms() == {}


def test_a_row_that_cannot_be_made_sense_of_harms_nobody_else(vault: Vault) -> None:
    owner = CustomerId("ada")
    spoiled: list[dict[str, Any]] = [
        {"wrapped_key": "garbage"},
        {"wrapped_key": "vault:v9:" + "A" * 80},
        {"ciphertext": b""},
        {"ciphertext": bytes(300)},
        {"record_version": 2**40},
        {"record_version": -1},
    ]
    wanted = [fresh_card() for _ in range(2 * len(spoiled))]
    tokens = vault.stored([(SHOP_A, owner, card) for card in wanted])
    named = [
        (SHOP_A, StoredCardSubject(owner, token), OrderId(f"order-{number}")) for number, token in enumerate(tokens)
    ]
    issued = vault.issued(named)
    with unguarded(vault.url) as connection:
        for token, values in zip(tokens[::2], spoiled, strict=True):
            connection.execute(update(card_secrets).values(values).where(card_secrets.c.token == token))

    answers = vault.redeemed([(grant, order) for grant, (_, _, order) in zip(issued, named, strict=True)])

    assert [type(answer) for answer in answers] == [Refused, ReleasedCard] * len(spoiled)
    assert [answer.card.pan.reveal() for answer in answers[1::2]] == [card.pan.reveal() for card in wanted[1::2]]
    assert vault.alarms() == {order: "error" for _, _, order in named[::2]}


# --- one-time tokens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Once:
    """A one-time token in the caller's hand."""

    card: CardDetails
    order: OrderId
    token: OneTimeToken


def once_tokens(vault: Vault, count: int) -> list[Once]:
    wanted = [(fresh_card(with_security_code=True), OrderId(new_order())) for _ in range(count)]
    commands = [
        TokenizeCommand(
            caller=checkout_of(SHOP_A), idempotency_key=None, customer=None, card=card, consent=None, order=order
        )
        for card, order in wanted
    ]
    return [
        Once(card, order, done.one_time_token)
        for (card, order), done in zip(wanted, in_batches(vault.tokenize, commands), strict=True)
    ]


def test_nothing_opens_after_any_exchange_between_two_one_time_keys(vault: Vault) -> None:
    columns = ("wrapped_key", "order_id", "expires_at", "once_id")
    subsets = [frozenset(c) for count in range(len(columns) + 1) for c in itertools.combinations(columns, count)]
    # Two calls, so that the two of a pair end at different moments.
    made = [*once_tokens(vault, len(subsets)), *once_tokens(vault, len(subsets))]
    pairs = list(zip(subsets, made[: len(subsets)], made[len(subsets) :], strict=True))
    original: dict[tuple[Any, ...], CardDetails] = {}
    with unguarded(vault.url) as connection:
        for names, one, other in pairs:
            two = []
            for each in (one, other):
                here = once_keys.c.once_id == each.token.once_id
                row = dict(connection.execute(select(once_keys).where(here)).mappings().one())
                original[tuple(row[name] for name in columns)] = each.card
                two.append(row)
                connection.execute(delete(once_keys).where(here))
            assert two[0]["expires_at"] != two[1]["expires_at"]
            for mine, theirs in (two, two[::-1]):
                mixed: Mapping[str, Any] = {name: (theirs if name in names else mine)[name] for name in mine}
                connection.execute(insert(once_keys).values(mixed))
        now = {
            row.once_id: tuple(row._mapping[name] for name in columns)
            for row in connection.execute(select(once_keys)).all()
        }
    wanted = [
        # By its own order, and by that which its row names now.
        (SHOP_A, each.token, OrderId(order))
        for _, one, other in pairs
        for each in (one, other)
        for order in {each.order, now[each.token.once_id][columns.index("order_id")]}
    ]
    issued = vault.issued(wanted)
    assert all(isinstance(grant, IssuedGrant | NotAvailable) for grant in issued)
    redeemable = [
        (once, grant, order)
        for (_, once, order), grant in zip(wanted, issued, strict=True)
        if isinstance(grant, IssuedGrant)
    ]

    answers = vault.redeemed([(grant, order) for _, grant, order in redeemable])

    alarms = vault.alarms()
    opened = 0
    for (once, _, order), answer in zip(redeemable, answers, strict=True):
        card = original.get(now[once.once_id])
        if card is None:
            assert isinstance(answer, Refused)
            assert alarms[order] == "error"
        else:
            assert answer.card.pan.reveal() == card.pan.reveal()
            assert any(each.token.once_id == once.once_id and each.card is card for each in made)
            opened += 1
    assert opened == 4  # nothing exchanged, and everything exchanged: the same rows again
    assert len(answers) - opened >= 20


def test_a_longer_life_written_into_the_row_of_a_one_time_token_does_not_open_it(vault: Vault) -> None:
    (once,) = once_tokens(vault, 1)
    with unguarded(vault.url) as connection:
        connection.execute(update(once_keys).values(expires_at=datetime.now(UTC) + timedelta(days=300)))
    (issued,) = vault.issued([(SHOP_A, once.token, once.order)])

    (answer,) = vault.redeemed([(issued, once.order)])

    assert isinstance(answer, Refused)
    assert vault.alarms() == {once.order: "error"}


# --- through the server ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """A card stored through the server."""

    card: TypedCard
    customer: str
    token: str


def kept(shop: Shop) -> Kept:
    card, customer = fresh_typed_card(), new_customer()
    token = shop.checkout.checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT).card.token
    return Kept(card, customer, token)


def granted(shop: Shop, one: Kept) -> tuple[str, str]:
    order = new_order()
    request = grant_request(order=order, customer=one.customer, token=one.token)
    return shop.checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant, order


def refusal(shop: Shop, grant: str, order: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    error: Any = caught.value
    return error.code(), error.details()


def events_about(url: str, order: str) -> list[tuple[str, str]]:
    with unguarded(url) as connection:
        query = select(audit_events.c.event, audit_events.c.outcome).where(audit_events.c.order_id == order)
        return sorted((row.event, row.outcome) for row in connection.execute(query))


@pytest.mark.parametrize(
    "names",
    [
        {"ciphertext"},
        {"wrapped_key"},
        {"ciphertext", "wrapped_key"},
        {"customer_id"},
        {"consent_id"},
        {"ciphertext", "wrapped_key", "consent_id", "record_version"},
        {"ciphertext", "wrapped_key", "customer_id", "consent_id", "record_version", "fingerprint"},
    ],
    ids=lambda names: "+".join(sorted(names)),
)
def test_the_server_refuses_and_raises_an_alarm(shop: Shop, names: set[str]) -> None:
    url = shop.installation.database_url
    one, other, third = kept(shop), kept(shop), kept(shop)
    before = granted(shop, one)
    with unguarded(url) as connection:
        for rows in exchange(
            take(connection, "shop", one.token), take(connection, "shop", other.token), frozenset(names)
        ):
            put(connection, rows)
    named = Kept(one.card, other.customer if "customer_id" in names else one.customer, one.token)
    after = granted(shop, named)
    control = granted(shop, third)

    answers = [refusal(shop, *before), refusal(shop, *after)]

    assert answers == [(grpc.StatusCode.PERMISSION_DENIED, "refused")] * 2
    for _, order in (before, after):
        assert ("card.open_failed", "error") in events_about(url, order)
    released = shop.processor.processor.Detokenize(redeem_request(*control), timeout=TIMEOUT)
    assert released.pan == third.card.pan


def test_a_grant_set_back_to_open_releases_nothing_a_second_time(shop: Shop) -> None:
    url = shop.installation.database_url
    one, other = kept(shop), kept(shop)
    grant, order = granted(shop, one)
    shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    with unguarded(url) as connection:
        connection.execute(update(grants).values(state="open", closed_at=None).where(grants.c.order_id == order))
    good = [granted(shop, other) for _ in range(5)]

    futures = [
        shop.processor.processor.Detokenize.future(redeem_request(*each), timeout=TIMEOUT)
        for each in [*good[:3], (grant, order), *good[3:]]
    ]

    ends = [future.code() for future in futures]
    # The database refuses a second `card.released` for one grant; nobody else in the batch is harmed.
    assert ends.pop(3) is grpc.StatusCode.UNAVAILABLE
    assert ends == [grpc.StatusCode.OK] * 5
    assert events_about(url, order).count(("card.released", "ok")) == 1


def test_a_spent_one_time_key_set_back_to_open_opens_nothing(shop: Shop) -> None:
    """Its wrapped key is destroyed, so the administrator must put in another."""
    url = shop.installation.database_url
    order, other_order = new_order(), new_order()
    checkout = shop.checkout.checkout
    once = checkout.Tokenize(once_request(fresh_typed_card(), order), timeout=TIMEOUT).one_time_token
    checkout.Tokenize(once_request(fresh_typed_card(), other_order), timeout=TIMEOUT)
    grant = checkout.IssueGrant(grant_request(order=order, one_time_token=once), timeout=TIMEOUT).grant
    shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    with unguarded(url) as connection:
        here = once_keys.c.order_id == order
        assert connection.execute(select(once_keys.c.wrapped_key).where(here)).scalar_one() is None
        another = connection.execute(
            select(once_keys.c.wrapped_key).where(once_keys.c.order_id == other_order)
        ).scalar_one()
        connection.execute(update(once_keys).values(state="open", wrapped_key=another).where(here))
    fresh = checkout.IssueGrant(grant_request(order=order, one_time_token=once), timeout=TIMEOUT).grant

    assert refusal(shop, fresh, order) == (grpc.StatusCode.PERMISSION_DENIED, "refused")
    assert ("card.open_failed", "error") in events_about(url, order)

"""A rotation's whole world at one moment: a transit mount of its own, a database, and cards whose numbers are known.

Every trial gets a fresh one, so that trials cannot disturb each other: mounts are cheap, and what a trial does to its
keys stays in its mount.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.cards import fresh_card
from tests.support.world import consent
from vault.cleanroom import open_sealed
from vault.domain.binding import stored_card_binding
from vault.domain.caller import Caller, Identity, Role
from vault.domain.card import CardDetails
from vault.domain.ids import RANDOM_BYTES, CustomerId, RequestId, TenantId
from vault.domain.pan import Pan
from vault.embedded.files import policies_dir
from vault.embedded.openbao import OpenBao
from vault.keyring.login import TokenFileLogin, VaultAddress
from vault.keyring.operator import OperatorTransit
from vault.keyring.session import VaultSession
from vault.keyring.setup import configure
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.ports import KeyName, KeyToUnwrap
from vault.ports_operator import CardKey, Selection
from vault.store import SqlStore
from vault.system import SystemClock, SystemEntropy
from vault.usecases.batch import World
from vault.usecases.operating import PAGE, Operator, OperatorWorld
from vault.usecases.tokenize import Tokenize, TokenizeCommand, Tokenized

ENVIRONMENT = "test"
SHOPS = (TenantId("shop-a"), TenantId("shop-b"))

_mounts = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """Where a trial happens; can be handed to another process."""

    database_url: str
    vault_address: str
    vault_ca: Path
    token_file: Path
    mount: str

    @contextmanager
    def open(self) -> Iterator[Tools]:
        """Everything that commands need, under one all-powerful login: who may do what is tested elsewhere."""
        address = VaultAddress(address=self.vault_address, ca_file=self.vault_ca, mount=self.mount)
        with ExitStack() as stack:
            login = TokenFileLogin(path=self.token_file)
            session = stack.enter_context(closing(VaultSession(address=address, login=login)))
            store = stack.enter_context(closing(SqlStore(self.database_url)))
            yield Tools(
                store=store,
                operator=OperatorTransit(session),
                intake=IntakeTransit(session),
                release=stack.enter_context(closing(ReleaseTransit(session))),
            )


@dataclass(frozen=True)
class Tools:
    """Opened parts."""

    store: SqlStore
    operator: OperatorTransit
    intake: IntakeTransit
    release: ReleaseTransit

    @property
    def world(self) -> OperatorWorld:
        return OperatorWorld(environment=ENVIRONMENT, store=self.store, clock=SystemClock(), entropy=SystemEntropy())

    def operator_now(self, reason: str = "test") -> Operator:
        return Operator(
            name="operator:test",
            reason=reason,
            command_id=RequestId.from_random(SystemEntropy().bytes(RANDOM_BYTES)),
        )

    def store_cards(self, count: int, *, shops: Sequence[TenantId] = SHOPS) -> Mapping[CardKey, Pan]:
        """Store fresh cards of two shops, or of these; returns their numbers."""
        cards = [fresh_card() for _ in range(count)]
        return dict(zip(self.store_again(cards, shops=shops), (card.pan for card in cards), strict=True))

    def store_again(self, cards: Sequence[CardDetails], *, shops: Sequence[TenantId] = SHOPS) -> Sequence[CardKey]:
        """Store these, each for the customer of its place in the sequence; returns their names."""
        world = World(environment=ENVIRONMENT, store=self.store, clock=SystemClock(), entropy=SystemEntropy())
        commands = []
        for number, card in enumerate(cards):
            tenant = shops[number % len(shops)]
            identity = Identity(f"spiffe://test.localhost/{tenant}", Role.CHECKOUT, (tenant,), None)
            request_id = RequestId.from_random(world.entropy.bytes(RANDOM_BYTES))
            commands.append(
                TokenizeCommand(
                    caller=Caller(identity, identity.uri, "", "", request_id),
                    idempotency_key=None,
                    customer=CustomerId(f"customer-{number}"),
                    card=card,
                    consent=consent(),
                    order=None,
                )
            )
        names: list[CardKey] = []
        for done in Tokenize(world=world, keys=self.intake)(commands):
            if isinstance(done, Exception):
                raise done
            assert isinstance(done, Tokenized)
            assert done.stored is not None
            names.append(CardKey(done.stored.tenant, done.stored.token))
        return names

    def opened(self) -> Mapping[CardKey, Pan | str]:
        """Every stored card as it opens now: its number, or what went wrong."""
        found: dict[CardKey, Pan | str] = {}
        after: CardKey | None = None
        while True:
            with self.store.reading() as tx:
                page = tx.secrets(Selection(), after=after, limit=PAGE)
            if not page:
                return found
            bindings = [
                stored_card_binding(
                    environment=ENVIRONMENT,
                    tenant=s.wrap.card.tenant,
                    customer=s.wrap.customer,
                    token=s.wrap.card.token,
                    consent=s.wrap.consent,
                    record_version=s.wrap.record_version,
                )
                for s in page
            ]
            keys = self.release.unwrap(
                [
                    KeyToUnwrap(KeyName.CARDS, s.wrap.key, binding.wrap_context())
                    for s, binding in zip(page, bindings, strict=True)
                ]
            )
            for secret, binding, key in zip(page, bindings, keys, strict=True):
                if isinstance(key, bytes):
                    found[secret.wrap.card] = open_sealed(secret.ciphertext, data_key=key, binding=binding).pan
                else:
                    found[secret.wrap.card] = type(key).__name__
            after = page[-1].wrap.card


def new_place(openbao: OpenBao, database_url: str) -> Place:
    """A transit mount of its own with fresh keys."""
    mount = f"trial-{next(_mounts)}"
    with closing(openbao.root()) as root:
        configure(root.client, mount=mount, policies_dir=policies_dir())
    return Place(
        database_url=database_url,
        vault_address=openbao.address.address,
        vault_ca=openbao.address.ca_file,
        token_file=openbao.files.root_token,
        mount=mount,
    )

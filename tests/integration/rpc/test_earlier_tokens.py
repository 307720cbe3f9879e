"""A card whose token an earlier version drew stays good: those had no beginning in common, and so fewer letters."""

from __future__ import annotations

import secrets
from contextlib import closing
from typing import Self

import pytest

from tests.integration.rpc.conftest import Shop
from tests.support.cards import fresh_card, fresh_typed_card
from tests.support.installation import ENVIRONMENT, SHOP, uri_of
from tests.support.requests import (
    TIMEOUT,
    grant_request,
    new_customer,
    new_order,
    redeem_request,
    store_request,
)
from tests.support.world import consent
from vault.domain.caller import Caller, Identity, Role
from vault.domain.card import CardDetails
from vault.domain.ids import CustomerId, RequestId, TenantId, Token
from vault.embedded.openbao import OpenBao
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.keyring.transit import IntakeTransit
from vault.store.sql_store import SqlStore
from vault.system import SystemClock, SystemEntropy
from vault.usecases.batch import World
from vault.usecases.tokenize import Tokenize, TokenizeCommand, Tokenized
from vault.v1 import account_pb2


class EarlierToken(Token):
    """As earlier versions drew them."""

    @classmethod
    def drawn(cls, shared: bytes, raw: bytes) -> Self:
        """Without what is shared."""
        return cls.from_random(raw)


@pytest.fixture
def stored(shop: Shop, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> tuple[str, CardDetails, list[str]]:
    """A customer, a card, and the tokens of two of the customer's cards, the first of them that card."""
    monkeypatch.setattr("vault.usecases.tokenize.Token", EarlierToken)
    tenant, customer, cards = TenantId(SHOP), new_customer(), [fresh_card(), fresh_card()]
    identity = Identity(uri_of("checkout"), Role.CHECKOUT, (tenant,), None)
    caller = Caller(identity, identity.uri, "ab" * 32, "127.0.0.1", RequestId.from_random(secrets.token_bytes(16)))
    with (
        closing(SqlStore(shop.installation.database_url)) as store,
        closing(VaultSession(address=openbao.address, login=openbao.login(LoginName.INTAKE))) as session,
    ):
        keys = IntakeTransit(session)
        world = World(environment=ENVIRONMENT, store=store, clock=SystemClock(), entropy=SystemEntropy())
        answers = [
            Tokenize(world=world, keys=keys)(
                [
                    TokenizeCommand(
                        caller=caller,
                        idempotency_key=None,
                        customer=CustomerId(customer),
                        card=card,
                        consent=consent(),
                        order=None,
                    )
                ]
            )[0]
            for card in cards
        ]
    tokens = [answer.stored.token for answer in answers if isinstance(answer, Tokenized) and answer.stored]
    assert [len(token) for token in tokens] == [4 + 34] * 2
    return customer, cards[0], [str(token) for token in tokens]


def test_a_card_with_an_earlier_token_is_listed_released_kept_and_erased(
    shop: Shop, stored: tuple[str, CardDetails, list[str]]
) -> None:
    customer, card, tokens = stored
    newer = shop.checkout.checkout.Tokenize(store_request(fresh_typed_card(), customer), timeout=TIMEOUT).card.token
    assert len(newer) == 4 + 42

    pages, page_token = [], ""
    for _ in range(3):
        request = account_pb2.ListCardsRequest(customer_id=customer, page_size=1, page_token=page_token)
        page = shop.account.account.ListCards(request, timeout=TIMEOUT)
        pages += [each.token for each in page.cards]
        page_token = page.next_page_token
    exported, page_token = [], ""
    for _ in range(3):
        export = account_pb2.ExportCustomerRequest(customer_id=customer, page_size=1, page_token=page_token)
        part = shop.account.account.ExportCustomer(export, timeout=TIMEOUT)
        exported += [each.token for each in part.cards]
        page_token = part.next_page_token
    assert pages == exported == [*tokens, newer]

    order = new_order()
    grant = shop.checkout.checkout.IssueGrant(
        grant_request(order=order, customer=customer, token=tokens[0]), timeout=TIMEOUT
    ).grant
    released = shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    assert released.pan == card.pan.reveal()

    for token in (tokens[0], newer):
        erasing = account_pb2.DeleteCardRequest(customer_id=customer, token=token)
        shop.account.account.DeleteCard(erasing, timeout=TIMEOUT)
    left = shop.account.account.ListCards(account_pb2.ListCardsRequest(customer_id=customer), timeout=TIMEOUT)
    assert [each.token for each in left.cards] == [tokens[1]]

"""Not there, not yours, erased, expired, spent: whatever the cause, the caller sees one answer, byte for byte."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, select, update

from tests.integration.rpc.conftest import Shop
from tests.support.cards import TypedCard, fresh_typed_card
from tests.support.installation import SECOND_ACQUIRER
from tests.support.requests import (
    TIMEOUT,
    consent,
    grant_request,
    money,
    new_customer,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from vault.domain.grant import GrantText
from vault.domain.ids import ConsentId, Token
from vault.rpc.errors import ERROR_ID_KEY
from vault.store.engine import Limits, open_engines
from vault.store.tables import audit_events, cards, consents, grants, once_keys
from vault.v1 import account_pb2, cards_pb2, checkout_pb2

PAST = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Said:
    """All that a caller sees of a refusal, but for the error id, which differs from call to call."""

    code: grpc.StatusCode
    text: str
    metadata_keys: tuple[str, ...]
    details: bytes


REFUSED = Said(grpc.StatusCode.PERMISSION_DENIED, "refused", (ERROR_ID_KEY,), b"")
NOT_AVAILABLE = Said(grpc.StatusCode.NOT_FOUND, "not available", (ERROR_ID_KEY,), b"")


def said(stub: Callable[..., Any], request: Message) -> tuple[Said, str]:
    """What a refused call is told, and its error id."""
    with pytest.raises(grpc.RpcError) as caught:
        stub(request, timeout=TIMEOUT)
    error: Any = caught.value
    metadata = dict(error.trailing_metadata() or ())
    answer = Said(
        error.code(), error.details(), tuple(sorted(metadata)), bytes(metadata.get("grpc-status-details-bin", b""))
    )
    return answer, str(metadata[ERROR_ID_KEY])


@contextmanager
def direct(url: str) -> Iterator[Connection]:
    """One transaction on the database itself, past all of our own code."""
    engines = open_engines(url, Limits(pool_size=2))
    try:
        with engines.writer.begin() as connection:
            yield connection
    finally:
        engines.dispose()


def reason_of(url: str, error_id: str) -> str:
    """What the audit log knows of a refusal, and nobody else."""
    with direct(url) as connection:
        found = connection.execute(select(audit_events.c.reason).where(audit_events.c.request_id == error_id)).all()
    (row,) = found
    return str(row.reason)


# --- redemptions ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Prepared:
    """A grant that would release its card, for a test to spoil."""

    shop: Shop
    card: TypedCard
    customer: str
    token: str
    once: str
    order: str
    grant: str

    @property
    def url(self) -> str:
        return self.shop.installation.database_url

    def redeem(self, *, client: str = "processor", **changes: Any) -> tuple[Said, str]:
        processor = self.shop.processor if client == "processor" else self.shop.installation.client(client)
        request = redeem_request(self.grant, self.order)
        for name, value in changes.items():
            request.ClearField(name)  # type: ignore[arg-type]
            request.MergeFrom(type(request)(**{name: value}))
        return said(processor.processor.Detokenize, request)

    def alter(self, statement: Any) -> None:
        """Change one row behind the server's back."""
        with direct(self.url) as connection:
            assert connection.execute(statement).rowcount == 1


def stored(shop: Shop) -> Prepared:
    """For a stored card."""
    card, customer, order = fresh_typed_card(), new_customer(), new_order()
    checkout = shop.checkout.checkout
    token = checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT).card.token
    grant = checkout.IssueGrant(grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT).grant
    return Prepared(shop, card, customer, token, "", order, grant)


def once(shop: Shop) -> Prepared:
    """For a one-time token."""
    card, order = fresh_typed_card(with_security_code=True), new_order()
    checkout = shop.checkout.checkout
    text = checkout.Tokenize(once_request(card, order), timeout=TIMEOUT).one_time_token
    grant = checkout.IssueGrant(grant_request(order=order, one_time_token=text), timeout=TIMEOUT).grant
    return Prepared(shop, card, "", "", text, order, grant)


def _unknown(p: Prepared) -> tuple[Said, str]:
    """Well-formed and never issued."""
    return p.redeem(grant=GrantText.draw(secrets.token_bytes(16), None).reveal_text())


def _mistyped(p: Prepared) -> tuple[Said, str]:
    last = "b" if p.grant[-1] != "b" else "c"
    return p.redeem(grant=p.grant[:-1] + last)


def _spent(p: Prepared) -> tuple[Said, str]:
    p.shop.processor.processor.Detokenize(redeem_request(p.grant, p.order), timeout=TIMEOUT)
    return p.redeem()


def _revoked(p: Prepared) -> tuple[Said, str]:
    p.shop.checkout.checkout.RevokeGrant(checkout_pb2.RevokeGrantRequest(grant=p.grant), timeout=TIMEOUT)
    return p.redeem()


def _expired(p: Prepared) -> tuple[Said, str]:
    p.alter(update(grants).values(expires_at=PAST).where(grants.c.order_id == p.order))
    return p.redeem()


def _erased(p: Prepared) -> tuple[Said, str]:
    p.shop.account.account.DeleteCard(
        account_pb2.DeleteCardRequest(customer_id=p.customer, token=p.token), timeout=TIMEOUT
    )
    return p.redeem()


def _customer_erased(p: Prepared) -> tuple[Said, str]:
    p.shop.account.account.EraseCustomer(account_pb2.EraseCustomerRequest(customer_id=p.customer), timeout=TIMEOUT)
    return p.redeem()


def _card_expired(p: Prepared) -> tuple[Said, str]:
    p.alter(update(cards).values(expiry_year=2020).where(cards.c.token == p.token))
    return p.redeem()


def _card_pending(p: Prepared) -> tuple[Said, str]:
    """Pending, and the payment is one that the shop starts."""
    p.alter(update(cards).values(state=2).where(cards.c.token == p.token))
    p.alter(update(grants).values(purpose=2).where(grants.c.order_id == p.order))
    return p.redeem()


def _consent_ended(p: Prepared) -> tuple[Said, str]:
    """Another consent of the customer, which has ended; the ledger itself cannot be changed."""
    with direct(p.url) as connection:
        row = connection.execute(select(consents).where(consents.c.token == p.token)).mappings().one()
        ended = {**row, "consent_id": ConsentId.from_random(secrets.token_bytes(16)), "agreed_until": PAST}
        connection.execute(consents.insert().values(ended))
        connection.execute(update(cards).values(consent_id=ended["consent_id"]).where(cards.c.token == p.token))
    return p.redeem()


def _consent_runs_out(p: Prepared) -> tuple[Said, str]:
    """A consent that ends a moment later."""
    ends = Timestamp()
    ends.FromDatetime(datetime.now(UTC) + timedelta(seconds=0.6))
    checkout = p.shop.checkout.checkout
    checkout.Tokenize(store_request(p.card, p.customer, consent=consent(agreed_until=ends)), timeout=TIMEOUT)
    while datetime.now(UTC) < ends.ToDatetime(tzinfo=UTC) + timedelta(milliseconds=20):
        time.sleep(0.01)
    return p.redeem()


def _other_use(p: Prepared) -> tuple[Said, str]:
    """The grant is for a use that the consent under which the card is stored now does not name."""
    uses = [cards_pb2.CARD_USE_RECURRING]
    p.shop.checkout.checkout.Tokenize(store_request(p.card, p.customer, consent=consent(*uses)), timeout=TIMEOUT)
    return p.redeem()


def _gone_over_time(p: Prepared) -> tuple[Said, str]:
    p.alter(update(once_keys).values(expires_at=PAST).where(once_keys.c.order_id == p.order))
    return p.redeem()


def _voided(p: Prepared) -> tuple[Said, str]:
    p.alter(update(once_keys).values(state="spent", wrapped_key=None).where(once_keys.c.order_id == p.order))
    return p.redeem()


def _another_inside(p: Prepared) -> tuple[Said, str]:
    """A grant whose first half is ours and whose one-time token is another's."""
    mine, _, _ = p.grant.removeprefix("grant_").partition("_")
    other = once(p.shop)
    return p.redeem(grant=f"grant_{mine}_{other.once.removeprefix('once_')}")


Spoil = Callable[[Prepared], tuple[Said, str]]

ANY: dict[str, tuple[Spoil, str]] = {
    "unknown": (_unknown, "unknown_grant"),
    "mistyped": (_mistyped, "malformed_grant"),
    "no grant": (lambda p: p.redeem(grant=""), "malformed_grant"),
    "something else": (lambda p: p.redeem(grant=p.token or p.once), "malformed_grant"),
    "spent": (_spent, "grant_used"),
    "revoked": (_revoked, "grant_revoked"),
    "expired": (_expired, "grant_expired"),
    "another processor": (lambda p: p.redeem(client="second-processor"), "wrong_processor"),
    "wrong order": (lambda p: p.redeem(order_id=new_order()), "wrong_order"),
    "wrong amount": (lambda p: p.redeem(amount=money(4901)), "wrong_amount"),
    "no amount": (lambda p: p.redeem(amount=money(0)), "wrong_amount"),
    "wrong currency": (lambda p: p.redeem(amount=money(currency="USD")), "wrong_amount"),
    "not a processor": (lambda p: p.redeem(client="checkout"), "role"),
}
STORED: dict[str, tuple[Spoil, str]] = {
    "card erased": (_erased, "grant_revoked"),
    "customer erased": (_customer_erased, "grant_revoked"),
    "card expired": (_card_expired, "card_expired"),
    "card pending": (_card_pending, "card_pending"),
    "consent ended": (_consent_ended, "consent_missing"),
    "consent ran out": (_consent_runs_out, "consent_missing"),
    "consent for another use": (_other_use, "consent_missing"),
}
ONCE: dict[str, tuple[Spoil, str]] = {
    "one-time token expired": (_gone_over_time, "one_time_token_expired"),
    "one-time token voided": (_voided, "card_gone"),
    "another one-time token": (_another_inside, "unknown_grant"),
}


@pytest.mark.parametrize("cause", [*ANY, *STORED])
def test_every_refused_redemption_of_a_stored_card_has_one_answer(shop: Shop, cause: str) -> None:
    spoil, reason = {**ANY, **STORED}[cause]

    answer, error_id = spoil(stored(shop))

    assert answer == REFUSED
    assert reason_of(shop.installation.database_url, error_id) == reason


@pytest.mark.parametrize("cause", [*ANY, *ONCE])
def test_every_refused_redemption_of_a_one_time_token_has_one_answer(shop: Shop, cause: str) -> None:
    spoil, reason = {**ANY, **ONCE}[cause]

    answer, error_id = spoil(once(shop))

    assert answer == REFUSED
    assert reason_of(shop.installation.database_url, error_id) == reason


def test_a_grant_of_a_shop_that_the_processor_does_not_serve_is_refused_likewise(shop: Shop) -> None:
    card, order = fresh_typed_card(), new_order()
    checkout = shop.installation.client("other-checkout").checkout
    text = checkout.Tokenize(once_request(card, order), timeout=TIMEOUT).one_time_token
    grant = checkout.IssueGrant(grant_request(order=order, one_time_token=text), timeout=TIMEOUT).grant
    stranger = shop.installation.client("second-processor").processor

    answer, error_id = said(stranger.Detokenize, redeem_request(grant, order))

    assert answer == REFUSED
    assert reason_of(shop.installation.database_url, error_id) == "unknown_grant"
    assert shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT).pan == card.pan


def test_a_grant_that_was_refused_for_its_caller_is_still_good_for_the_right_one(shop: Shop) -> None:
    for prepared in (stored(shop), once(shop)):
        for spoil, reason in ANY.values():
            if reason in ("grant_used", "grant_revoked", "grant_expired"):
                continue
            assert spoil(prepared)[0] == REFUSED

        released = shop.processor.processor.Detokenize(redeem_request(prepared.grant, prepared.order), timeout=TIMEOUT)

        assert released.pan == prepared.card.pan


# --- cards ----------------------------------------------------------------------------------------------------------


def _requests_about(customer: str, token: str) -> dict[str, tuple[str, str, Message]]:
    """Every call that names a card: service, method, request."""
    year = datetime.now(UTC).year + 2
    return {
        "GetCard": ("account", "GetCard", account_pb2.GetCardRequest(customer_id=customer, token=token)),
        "UpdateCard": (
            "account",
            "UpdateCard",
            account_pb2.UpdateCardRequest(
                customer_id=customer, token=token, expiry=cards_pb2.Expiry(month=1, year=year)
            ),
        ),
        "SetDefaultCard": (
            "account",
            "SetDefaultCard",
            account_pb2.SetDefaultCardRequest(customer_id=customer, token=token),
        ),
        "DeleteCard": ("account", "DeleteCard", account_pb2.DeleteCardRequest(customer_id=customer, token=token)),
        "IssueGrant": (
            "checkout",
            "IssueGrant",
            grant_request(order=new_order(), customer=customer, token=token),
        ),
    }


@pytest.mark.parametrize("method", ["GetCard", "UpdateCard", "SetDefaultCard", "DeleteCard", "IssueGrant"])
def test_a_card_that_is_not_there_not_yours_or_erased_has_one_answer(shop: Shop, method: str) -> None:
    mine, other, gone = stored(shop), stored(shop), stored(shop)
    shop.account.account.DeleteCard(
        account_pb2.DeleteCardRequest(customer_id=gone.customer, token=gone.token), timeout=TIMEOUT
    )
    last = "b" if mine.token[-1] != "b" else "c"
    named = {
        "unknown": (mine.customer, Token.from_random(secrets.token_bytes(16))),
        "mistyped": (mine.customer, mine.token[:-1] + last),
        "empty": (mine.customer, ""),
        "something else": (mine.customer, "tok_"),
        "a grant": (mine.customer, mine.grant),
        "another customer's": (mine.customer, other.token),
        "unknown customer": (new_customer(), mine.token),
        "erased": (gone.customer, gone.token),
    }

    answers = {}
    for cause, (customer, token) in named.items():
        service, name, request = _requests_about(customer, token)[method]
        client = getattr(shop, service)
        answers[cause] = said(getattr(getattr(client, service), name), request)[0]
    service, name, request = _requests_about(mine.customer, mine.token)[method]
    stranger = shop.installation.client(f"other-{service}")
    answers["another shop's"] = said(getattr(getattr(stranger, service), name), request)[0]

    assert answers == dict.fromkeys(answers, NOT_AVAILABLE)
    assert shop.account.account.GetCard(
        account_pb2.GetCardRequest(customer_id=mine.customer, token=mine.token), timeout=TIMEOUT
    ).card.last4 == (mine.card.last4)


def test_a_grant_for_whatever_cannot_be_paid_with_has_one_answer(shop: Shop) -> None:
    url = shop.installation.database_url
    old, pending, spent, late, elsewhere = stored(shop), stored(shop), once(shop), once(shop), once(shop)
    with direct(url) as connection:
        connection.execute(update(cards).values(expiry_year=2020).where(cards.c.token == old.token))
        connection.execute(update(cards).values(state=2).where(cards.c.token == pending.token))
        connection.execute(update(once_keys).values(expires_at=PAST).where(once_keys.c.order_id == late.order))
    shop.processor.processor.Detokenize(redeem_request(spent.grant, spent.order), timeout=TIMEOUT)
    last = "b" if elsewhere.once[-1] != "b" else "c"
    requests = {
        "card expired": grant_request(order=new_order(), customer=old.customer, token=old.token),
        "card pending": grant_request(
            order=new_order(),
            customer=pending.customer,
            token=pending.token,
            purpose=cards_pb2.CARD_USE_RECURRING,
        ),
        "one-time token spent": grant_request(order=spent.order, one_time_token=spent.once),
        "one-time token expired": grant_request(order=late.order, one_time_token=late.once),
        "one-time token of another order": grant_request(order=new_order(), one_time_token=elsewhere.once),
        "one-time token mistyped": grant_request(order=elsewhere.order, one_time_token=elsewhere.once[:-1] + last),
        "not a one-time token": grant_request(order=elsewhere.order, one_time_token="once_"),
    }

    answers = {cause: said(shop.checkout.checkout.IssueGrant, request)[0] for cause, request in requests.items()}
    stranger = shop.installation.client("other-checkout").checkout
    answers["another shop's one-time token"] = said(
        stranger.IssueGrant, grant_request(order=elsewhere.order, one_time_token=elsewhere.once)
    )[0]

    assert answers == dict.fromkeys(answers, NOT_AVAILABLE)


def test_a_grant_that_is_not_yours_to_revoke_has_one_answer(shop: Shop) -> None:
    mine = stored(shop)
    stranger = shop.installation.client("other-checkout").checkout
    last = "b" if mine.grant[-1] != "b" else "c"
    lifetime = Duration(seconds=10)
    kept = shop.checkout.checkout.IssueGrant(
        grant_request(order=new_order(), customer=mine.customer, token=mine.token, lifetime=lifetime), timeout=TIMEOUT
    )

    answers = [
        said(stranger.RevokeGrant, checkout_pb2.RevokeGrantRequest(grant=kept.grant))[0],
        said(shop.checkout.checkout.RevokeGrant, checkout_pb2.RevokeGrantRequest(grant=mine.grant[:-1] + last))[0],
        said(shop.checkout.checkout.RevokeGrant, checkout_pb2.RevokeGrantRequest(grant=mine.token))[0],
        said(shop.checkout.checkout.RevokeGrant, checkout_pb2.RevokeGrantRequest())[0],
    ]

    assert answers == [NOT_AVAILABLE] * 4


def test_the_second_processor_is_known_and_yet_gets_nothing_of_anothers_grant(shop: Shop) -> None:
    prepared = stored(shop)
    order = new_order()
    theirs = shop.checkout.checkout.IssueGrant(
        grant_request(order=order, customer=prepared.customer, token=prepared.token, processor=SECOND_ACQUIRER),
        timeout=TIMEOUT,
    ).grant

    answer, _ = said(shop.processor.processor.Detokenize, redeem_request(theirs, order))
    released = shop.installation.client("second-processor").processor.Detokenize(
        redeem_request(theirs, order), timeout=TIMEOUT
    )

    assert answer == REFUSED
    assert released.pan == prepared.card.pan

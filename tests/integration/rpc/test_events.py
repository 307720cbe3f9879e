"""Every effect and every refusal is one event: who, what, when, and nothing about the card.

Reading display columns is no effect: `ListCards` and `GetCard` leave an event only where they are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message
from sqlalchemy import Connection, select, update

from tests.integration.rpc.conftest import Shop
from tests.support.cards import TypedCard, fresh_typed_card
from tests.support.installation import ACQUIRER, IDENTITIES, SHOP, uri_of
from tests.support.requests import (
    TIMEOUT,
    card_input,
    consent,
    grant_request,
    money,
    new_customer,
    new_key,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from vault.rpc.errors import ERROR_ID_KEY
from vault.store.engine import Limits, open_engines
from vault.store.tables import audit_events, card_secrets, cards, consents, erasures, grants, once_keys
from vault.v1 import account_pb2, cards_pb2, checkout_pb2, processor_pb2

Event = Mapping[str, Any]


@contextmanager
def direct(url: str) -> Iterator[Connection]:
    """One transaction on the database itself, past all of our own code."""
    engines = open_engines(url, Limits(pool_size=2))
    try:
        with engines.writer.begin() as connection:
            yield connection
    finally:
        engines.dispose()


def event_ids(url: str) -> set[str]:
    with direct(url) as connection:
        return {row.event_id for row in connection.execute(select(audit_events.c.event_id))}


def events_since(url: str, before: set[str]) -> list[Event]:
    """What was added, but for the server's own sweeping."""
    with direct(url) as connection:
        rows = connection.execute(select(audit_events)).mappings().all()
    return [dict(row) for row in rows if row["event_id"] not in before and row["role"] != "server"]


@dataclass(slots=True)
class Scene:
    """A shop with one card of each kind, for one call that is looked at."""

    shop: Shop
    card: TypedCard
    customer: str
    token: str
    order: str
    grant: str
    once_order: str
    once: str
    once_grant: str

    def call(self, who: str, service: str, method: str, request: Message) -> tuple[list[Event], str]:
        """The events of one call, and its error id if it was refused."""
        client = self.shop.installation.client(who)
        url = self.shop.installation.database_url
        before = event_ids(url)
        error_id = ""
        try:
            getattr(getattr(client, service), method)(request, timeout=TIMEOUT)
        except grpc.RpcError as refused:
            trailing: Any = refused
            error_id = str(dict(trailing.trailing_metadata() or ())[ERROR_ID_KEY])
        return events_since(url, before), error_id


@pytest.fixture
def scene(shop: Shop) -> Scene:
    card = fresh_typed_card(with_security_code=True)
    customer, order, once_order = new_customer(), new_order(), new_order()
    checkout = shop.checkout.checkout
    token = checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT).card.token
    grant = checkout.IssueGrant(grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT).grant
    once = checkout.Tokenize(once_request(card, once_order), timeout=TIMEOUT).one_time_token
    once_grant = checkout.IssueGrant(grant_request(order=once_order, one_time_token=once), timeout=TIMEOUT).grant
    return Scene(shop, card, customer, token, order, grant, once_order, once, once_grant)


@dataclass(frozen=True, slots=True)
class Case:
    """One call and the event that it must leave."""

    who: str
    service: str
    method: str
    request: Callable[[Scene], Message]
    event: str
    outcome: str
    reason: str = ""
    facts: Callable[[Scene], dict[str, Any]] = field(default=lambda scene: {})
    prepare: Callable[[Scene], object] = field(default=lambda scene: None)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _store(s: Scene, *, code: bool = False, pan: str = "", **changes: Any) -> checkout_pb2.TokenizeRequest:
    request = store_request(s.card, s.customer, **changes)
    request.card.CopyFrom(card_input(s.card, security_code=code))
    request.card.pan = pan or s.card.pan
    return request


def _redeem(s: Scene, **changes: Any) -> Message:
    return redeem_request(s.grant, s.order, **changes)


def _of_grant(s: Scene) -> dict[str, Any]:
    return {
        "tenant_id": SHOP,
        "customer_id": s.customer,
        "target": s.token,
        "order_id": s.order,
        "processor": ACQUIRER,
        "grant_sha256": _sha256(s.grant),
    }


def _of_card(s: Scene) -> dict[str, Any]:
    return {"customer_id": s.customer, "target": s.token}


def _delete(s: Scene) -> object:
    request = account_pb2.DeleteCardRequest(customer_id=s.customer, token=s.token)
    return s.shop.account.account.DeleteCard(request, timeout=TIMEOUT)


def _use(s: Scene) -> object:
    return s.shop.processor.processor.Detokenize(redeem_request(s.grant, s.order), timeout=TIMEOUT)


def _report(s: Scene, **changes: Any) -> processor_pb2.ReportOutcomeRequest:
    facts = {"grant": s.grant, "order_id": s.order, "outcome": processor_pb2.OUTCOME_APPROVED}
    return processor_pb2.ReportOutcomeRequest(**{**facts, **changes})


def _say(s: Scene) -> object:
    return s.shop.processor.processor.ReportOutcome(_report(s), timeout=TIMEOUT)


def _revoke(s: Scene) -> object:
    return s.shop.checkout.checkout.RevokeGrant(checkout_pb2.RevokeGrantRequest(grant=s.grant), timeout=TIMEOUT)


def _expire(s: Scene) -> None:
    with direct(s.shop.installation.database_url) as connection:
        past = datetime(2020, 1, 1, tzinfo=UTC)
        connection.execute(update(grants).values(expires_at=past).where(grants.c.order_id == s.order))


def _break(s: Scene) -> None:
    with direct(s.shop.installation.database_url) as connection:
        connection.execute(
            update(card_secrets)
            .values(ciphertext=b"\x01" + bytes(12) + bytes(208))
            .where(card_secrets.c.token == s.token)
        )


def _unwrap_nothing(s: Scene) -> None:
    with direct(s.shop.installation.database_url) as connection:
        connection.execute(
            update(card_secrets).values(wrapped_key="vault:v1:" + "A" * 80).where(card_secrets.c.token == s.token)
        )


def _year() -> int:
    return datetime.now(UTC).year + 2


KEY = new_key()


def _store_with(key: str) -> Callable[[Scene], checkout_pb2.TokenizeRequest]:
    return lambda s: store_request(s.card, s.customer, idempotency_key=key + s.customer)


def _prepare_key(s: Scene) -> object:
    other = store_request(fresh_typed_card(), s.customer, idempotency_key=KEY + s.customer)
    return s.shop.checkout.checkout.Tokenize(other, timeout=TIMEOUT)


def _same_key(s: Scene) -> object:
    return s.shop.checkout.checkout.Tokenize(_store_with(KEY)(s), timeout=TIMEOUT)


CASES: dict[str, Case] = {
    # --- effects
    "a card is stored": Case(
        "checkout", "checkout", "Tokenize",
        lambda s: store_request(s.card, s.customer),
        "card.tokenized", "ok", facts=_of_card,
    ),
    "the same under one key again": Case(
        "checkout", "checkout", "Tokenize", _store_with(KEY),
        "card.tokenized", "ok", facts=lambda s: {**_of_card(s), "details": {"repeat": 1}}, prepare=_same_key,
    ),
    "a one-time token is made": Case(
        "checkout", "checkout", "Tokenize",
        lambda s: once_request(s.card, s.order),
        "card.tokenized", "ok", facts=lambda s: {"customer_id": "", "order_id": s.order},
    ),
    "both are made": Case(
        "checkout", "checkout", "Tokenize",
        lambda s: _store(s, code=True, order_id=s.order),
        "card.tokenized", "ok", facts=lambda s: {**_of_card(s), "order_id": s.order},
    ),
    "a grant is issued": Case(
        "checkout", "checkout", "IssueGrant",
        lambda s: grant_request(order=s.once_order, customer=s.customer, token=s.token, amount=money(12)),
        "grant.issued", "ok",
        facts=lambda s: {
            **_of_card(s),
            "order_id": s.once_order,
            "processor": ACQUIRER,
            "details": {"purpose": "customer_initiated", "minor_units": 12, "currency": "EUR"},
        },
    ),
    "a grant for a one-time token is issued": Case(
        "checkout", "checkout", "IssueGrant",
        lambda s: grant_request(order=s.once_order, one_time_token=s.once),
        "grant.issued", "ok", facts=lambda s: {"customer_id": "", "order_id": s.once_order, "processor": ACQUIRER},
    ),
    "a grant is revoked": Case(
        "checkout", "checkout", "RevokeGrant",
        lambda s: checkout_pb2.RevokeGrantRequest(grant=s.grant),
        "grant.revoked", "ok", facts=_of_grant,
    ),
    "a card is released": Case(
        "processor", "processor", "Detokenize", _redeem, "card.released", "ok", facts=_of_grant,
    ),
    "a one-time card is released": Case(
        "processor", "processor", "Detokenize",
        lambda s: redeem_request(s.once_grant, s.once_order),
        "card.released", "ok",
        facts=lambda s: {
            "tenant_id": SHOP,
            "customer_id": "",
            "order_id": s.once_order,
            "processor": ACQUIRER,
            "grant_sha256": _sha256(s.once_grant),
        },
    ),
    "an expiry date is changed": Case(
        "account", "account", "UpdateCard",
        lambda s: account_pb2.UpdateCardRequest(
            customer_id=s.customer, token=s.token, expiry=cards_pb2.Expiry(month=1, year=_year())
        ),
        "card.updated", "ok", facts=_of_card,
    ),
    "a default card is set": Case(
        "account", "account", "SetDefaultCard",
        lambda s: account_pb2.SetDefaultCardRequest(customer_id=s.customer, token=s.token),
        "card.default_set", "ok", facts=_of_card,
    ),
    "a card is erased": Case(
        "account", "account", "DeleteCard",
        lambda s: account_pb2.DeleteCardRequest(customer_id=s.customer, token=s.token),
        "card.erased", "ok", facts=lambda s: {**_of_card(s), "details": {"cards": 1, "grants_revoked": 1}},
    ),
    "a customer is erased": Case(
        "account", "account", "EraseCustomer",
        lambda s: account_pb2.EraseCustomerRequest(customer_id=s.customer),
        "customer.erased", "ok",
        facts=lambda s: {"customer_id": s.customer, "target": "", "details": {"cards": 1, "grants_revoked": 1}},
    ),
    "a customer without cards is erased": Case(
        "account", "account", "EraseCustomer",
        lambda s: account_pb2.EraseCustomerRequest(customer_id=s.customer + "-none"),
        "customer.erased", "ok", facts=lambda s: {"details": {"cards": 0, "grants_revoked": 0}},
    ),
    "a customer is exported": Case(
        "account", "account", "ExportCustomer",
        lambda s: account_pb2.ExportCustomerRequest(customer_id=s.customer),
        "customer.exported", "ok",
        facts=lambda s: {
            "customer_id": s.customer, "target": "", "details": {"cards": 1, "consents": 1, "releases": 1},
        },
        prepare=_use,
    ),
    "a customer whom nobody knows is exported": Case(
        "account", "account", "ExportCustomer",
        lambda s: account_pb2.ExportCustomerRequest(customer_id=s.customer + "-none"),
        "customer.exported", "ok", facts=lambda s: {"details": {"cards": 0, "consents": 0, "releases": 0}},
    ),
    "an outcome is reported": Case(
        "processor", "processor", "ReportOutcome", lambda s: _report(s),
        "outcome.reported", "ok",
        facts=lambda s: {**_of_grant(s), "details": {"outcome": "approved", "card": "unchanged"}}, prepare=_use,
    ),
    "the same outcome again": Case(
        "processor", "processor", "ReportOutcome", lambda s: _report(s),
        "outcome.reported", "ok",
        facts=lambda s: {**_of_grant(s), "details": {"outcome": "approved", "repeat": 1}},
        prepare=lambda s: (_use(s), _say(s)),
    ),
    # --- refusals behind the door
    "another outcome": Case(
        "processor", "processor", "ReportOutcome", lambda s: _report(s, outcome=processor_pb2.OUTCOME_DECLINED),
        "outcome.reported", "refused", "other_outcome", facts=_of_grant, prepare=lambda s: (_use(s), _say(s)),
    ),
    "an outcome of a payment that was not made": Case(
        "processor", "processor", "ReportOutcome", lambda s: _report(s),
        "outcome.reported", "refused", "grant_unused", facts=_of_grant,
    ),
    "an outcome of another processor's payment": Case(
        "second-processor", "processor", "ReportOutcome", lambda s: _report(s),
        "outcome.reported", "refused", "wrong_processor",
        facts=lambda s: {**_of_grant(s), "processor": "second"}, prepare=_use,
    ),
    "an outcome of a mistyped grant": Case(
        "processor", "processor", "ReportOutcome", lambda s: _report(s, grant="grant_x"),
        "outcome.reported", "refused", "malformed_grant", facts=lambda s: {"processor": ACQUIRER},
    ),
    "another request under one key": Case(
        "checkout", "checkout", "Tokenize", _store_with(KEY),
        "card.tokenized", "refused", "idempotency_key_reused", prepare=_prepare_key,
    ),
    "a grant for a card that is gone": Case(
        "checkout", "checkout", "IssueGrant",
        lambda s: grant_request(order=s.order, customer=s.customer, token=s.token),
        "grant.issued", "refused", "card_gone",
        facts=lambda s: {**_of_card(s), "order_id": s.order, "processor": ACQUIRER}, prepare=_delete,
    ),
    "a grant without consent for its use": Case(
        "checkout", "checkout", "IssueGrant",
        lambda s: grant_request(
            order=s.order, customer=s.customer, token=s.token, purpose=cards_pb2.CARD_USE_RECURRING
        ),
        "grant.issued", "refused", "consent_not_covering", facts=_of_card,
    ),
    "a grant for an unknown processor": Case(
        "checkout", "checkout", "IssueGrant",
        lambda s: grant_request(order=s.order, customer=s.customer, token=s.token, processor="nobody"),
        "grant.issued", "refused", "invalid_field", facts=_of_card,
    ),
    "a used grant is not revoked": Case(
        "checkout", "checkout", "RevokeGrant",
        lambda s: checkout_pb2.RevokeGrantRequest(grant=s.grant),
        "grant.revoked", "refused", "grant_used",
        facts=lambda s: {"target": s.token, "grant_sha256": _sha256(s.grant)}, prepare=_use,
    ),
    "an unknown grant is not revoked": Case(
        "other-checkout", "checkout", "RevokeGrant",
        lambda s: checkout_pb2.RevokeGrantRequest(grant=s.grant),
        "grant.revoked", "refused", "unknown_grant", facts=lambda s: {"customer_id": "", "target": ""},
    ),
    "a spent grant": Case(
        "processor", "processor", "Detokenize", _redeem,
        "card.released", "refused", "grant_used", facts=_of_grant, prepare=_use,
    ),
    "a revoked grant": Case(
        "processor", "processor", "Detokenize", _redeem,
        "card.released", "refused", "grant_revoked", facts=_of_grant, prepare=_revoke,
    ),
    "an expired grant": Case(
        "processor", "processor", "Detokenize", _redeem,
        "card.released", "refused", "grant_expired", facts=_of_grant, prepare=_expire,
    ),
    "a grant of an erased card": Case(
        "processor", "processor", "Detokenize", _redeem,
        "card.released", "refused", "grant_revoked", facts=_of_grant, prepare=_delete,
    ),
    "a grant for another amount": Case(
        "processor", "processor", "Detokenize",
        lambda s: _redeem(s, amount=money(1)), "card.released", "refused", "wrong_amount", facts=_of_grant,
    ),
    "a grant for another order": Case(
        "processor", "processor", "Detokenize",
        lambda s: redeem_request(s.grant, s.once_order),
        "card.released", "refused", "wrong_order", facts=_of_grant,
    ),
    "another processor's grant": Case(
        "second-processor", "processor", "Detokenize", _redeem,
        "card.released", "refused", "wrong_processor", facts=lambda s: {**_of_grant(s), "processor": "second"},
    ),
    "an altered ciphertext": Case(
        "processor", "processor", "Detokenize", _redeem,
        "card.open_failed", "error", "seal_broken", facts=_of_grant, prepare=_break,
    ),
    "an altered wrapped key": Case(
        "processor", "processor", "Detokenize", _redeem,
        "card.open_failed", "error", "key_refused", facts=_of_grant, prepare=_unwrap_nothing,
    ),
    "no such card to update": Case(
        "account", "account", "UpdateCard",
        lambda s: account_pb2.UpdateCardRequest(
            customer_id=s.customer, token=s.token, expiry=cards_pb2.Expiry(month=1, year=_year())
        ),
        "card.updated", "refused", "card_gone", facts=_of_card, prepare=_delete,
    ),
    "no such card to make the default": Case(
        "account", "account", "SetDefaultCard",
        lambda s: account_pb2.SetDefaultCardRequest(customer_id=s.customer, token=s.token),
        "card.default_set", "refused", "card_gone", facts=_of_card, prepare=_delete,
    ),
    "no such card to erase": Case(
        "account", "account", "DeleteCard",
        lambda s: account_pb2.DeleteCardRequest(customer_id=s.customer, token=s.token),
        "card.erased", "refused", "card_gone", facts=_of_card, prepare=_delete,
    ),
    "no such card to show": Case(
        "account", "account", "GetCard",
        lambda s: account_pb2.GetCardRequest(customer_id=s.customer, token=s.token),
        "card.shown", "refused", "card_gone", facts=lambda s: {"details": {"method": "GetCard"}}, prepare=_delete,
    ),
    # --- refusals at the door
    "a bad number": Case(
        "checkout", "checkout", "Tokenize",
        lambda s: _store(s, pan="12"),
        "card.tokenized", "refused", "invalid_field",
        facts=lambda s: {"details": {"method": "Tokenize", "field": "card.pan"}},
    ),
    "neither consent nor order": Case(
        "checkout", "checkout", "Tokenize",
        lambda s: checkout_pb2.TokenizeRequest(card=card_input(s.card)),
        "card.tokenized", "refused", "invalid_field",
        facts=lambda s: {"details": {"method": "Tokenize", "field": "consent"}},
    ),
    "a security code to be kept": Case(
        "checkout", "checkout", "Tokenize",
        lambda s: _store(s, code=True),
        "card.tokenized", "refused", "invalid_field",
        facts=lambda s: {"details": {"method": "Tokenize", "field": "card.security_code"}},
    ),
    "a page too long": Case(
        "account", "account", "ListCards",
        lambda s: account_pb2.ListCardsRequest(customer_id=s.customer, page_size=101),
        "cards.listed", "refused", "invalid_field",
        facts=lambda s: {"details": {"method": "ListCards", "field": "page_size"}},
    ),
    "a mistyped grant": Case(
        "processor", "processor", "Detokenize",
        lambda s: redeem_request("grant_x", s.order),
        "card.released", "refused", "malformed_grant", facts=lambda s: {"processor": ACQUIRER},
    ),
    "an account that redeems": Case(
        "account", "processor", "Detokenize", _redeem, "card.released", "refused", "role",
    ),
    "a processor that lists": Case(
        "processor", "account", "ListCards",
        lambda s: account_pb2.ListCardsRequest(customer_id=s.customer),
        "cards.listed", "refused", "role", facts=lambda s: {"tenant_id": "", "processor": ACQUIRER},
    ),
    "an account that stores": Case(
        "account", "checkout", "Tokenize",
        lambda s: store_request(s.card, s.customer), "card.tokenized", "refused", "role",
    ),
    "a checkout that erases": Case(
        "checkout", "account", "EraseCustomer",
        lambda s: account_pb2.EraseCustomerRequest(customer_id=s.customer), "customer.erased", "refused", "role",
    ),
    "nobody that we know": Case(
        "nobody", "account", "GetCard",
        lambda s: account_pb2.GetCardRequest(customer_id=s.customer, token=s.token),
        "card.shown", "refused", "unmapped_identity", facts=lambda s: {"tenant_id": "", "role": ""},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_effect_and_each_refusal_is_one_event(scene: Scene, name: str) -> None:
    case = CASES[name]
    case.prepare(scene)
    started = datetime.now(UTC)

    events, error_id = scene.call(case.who, case.service, case.method, case.request(scene))

    (event,) = events if case.reason != "seal_broken" else [e for e in events if e["event"] != "card.released"]
    assert (event["event"], event["outcome"], event["reason"]) == (case.event, case.outcome, case.reason)
    assert started - timedelta(seconds=1) <= event["occurred_at"] <= datetime.now(UTC) + timedelta(seconds=1)
    assert event["event_id"].startswith("evt_")
    assert event["request_id"].startswith("req_")
    assert bool(error_id) == (case.outcome != "ok")
    if error_id:
        assert event["request_id"] == error_id
    assert event["actor"] == uri_of(case.who)
    assert event["actor_certificate"] == _thumbprint(scene.shop, case.who)
    assert event["peer"].startswith(("ipv4:127.0.0.1:", "ipv6:"))
    identity = IDENTITIES.get(case.who, {})
    expected = {
        "role": identity.get("role", ""),
        "tenant_id": identity.get("tenant", event["tenant_id"]),
        **case.facts(scene),
    }
    wanted_details = expected.pop("details", {})
    assert {name: event[name] for name in expected} == expected
    assert dict(event["details"]) | wanted_details == dict(event["details"])


def _thumbprint(shop: Shop, who: str) -> str:
    certificate = x509.load_pem_x509_certificate(shop.installation.ca.issue_client(uri_of(who)).cert_file.read_bytes())
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def test_a_release_that_does_not_open_leaves_the_release_and_its_failure(scene: Scene) -> None:
    _break(scene)

    events, error_id = scene.call("processor", "processor", "Detokenize", _redeem(scene))

    assert sorted((e["event"], e["outcome"]) for e in events) == [
        ("card.open_failed", "error"),
        ("card.released", "ok"),
    ]
    assert {e["request_id"] for e in events} == {error_id}


@pytest.mark.parametrize("method", ["ListCards", "GetCard"])
def test_showing_cards_leaves_no_event(scene: Scene, method: str) -> None:
    request: Message = (
        account_pb2.ListCardsRequest(customer_id=scene.customer)
        if method == "ListCards"
        else account_pb2.GetCardRequest(customer_id=scene.customer, token=scene.token)
    )

    events, error_id = scene.call("account", "account", method, request)

    assert (events, error_id) == ([], "")


@pytest.mark.parametrize(
    ("service", "method", "request_type", "who"),
    [
        ("checkout", "BatchTokenize", checkout_pb2.BatchTokenizeRequest, "checkout"),
        ("account", "ExportCustomer", account_pb2.ExportCustomerRequest, "account"),
        ("processor", "ReportOutcome", processor_pb2.ReportOutcomeRequest, "processor"),
    ],
)
def test_every_method_is_refused_to_the_wrong_role_with_an_event(
    scene: Scene, service: str, method: str, request_type: type[Message], who: str
) -> None:
    wrong = "account" if who != "account" else "checkout"

    events, error_id = scene.call(wrong, service, method, request_type())

    (event,) = events
    assert (event["outcome"], event["reason"], event["request_id"]) == ("refused", "role", error_id)
    assert dict(event["details"]) == {"method": method}


@pytest.mark.parametrize("is_stored", [False, True])
def test_every_event_of_a_one_time_token_names_its_owner_where_the_shop_did(scene: Scene, is_stored: bool) -> None:
    shop, order, customer = scene.shop, new_order(), new_customer()
    checkout, processor = shop.checkout.checkout, shop.processor.processor
    before = event_ids(shop.installation.database_url)
    facts: dict[str, Any] = {"consent": consent()} if is_stored else {}
    made = checkout.Tokenize(once_request(scene.card, order, customer_id=customer, **facts), timeout=TIMEOUT)
    request = grant_request(order=order, one_time_token=made.one_time_token)
    revoked = checkout.IssueGrant(request, timeout=TIMEOUT).grant
    checkout.RevokeGrant(checkout_pb2.RevokeGrantRequest(grant=revoked), timeout=TIMEOUT)
    with pytest.raises(grpc.RpcError):
        checkout.IssueGrant(grant_request(order=new_order(), one_time_token=made.one_time_token), timeout=TIMEOUT)
    grant = checkout.IssueGrant(request, timeout=TIMEOUT).grant
    processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    processor.ReportOutcome(
        processor_pb2.ReportOutcomeRequest(grant=grant, order_id=order, outcome=processor_pb2.OUTCOME_APPROVED),
        timeout=TIMEOUT,
    )

    events = events_since(shop.installation.database_url, before)

    assert sorted(each["event"] for each in events) == [
        "card.released", "card.tokenized", "grant.issued", "grant.issued", "grant.issued", "grant.revoked",
        "outcome.reported",
    ]  # fmt: skip
    assert {each["customer_id"] for each in events} == {customer}
    (released,) = [each for each in events if each["event"] == "card.released"]
    assert released["details"] == ({"token": made.card.token} if is_stored else {})


def test_one_event_for_each_of_many_calls_at_once(scene: Scene) -> None:
    checkout, processor = scene.shop.checkout.checkout, scene.shop.processor.processor
    orders = [new_order() for _ in range(30)]
    url = scene.shop.installation.database_url
    before = event_ids(url)

    issued = [
        future.result().grant
        for future in [
            checkout.IssueGrant.future(
                grant_request(order=order, customer=scene.customer, token=scene.token), timeout=TIMEOUT
            )
            for order in orders
        ]
    ]
    for future in [
        processor.Detokenize.future(redeem_request(grant, order), timeout=TIMEOUT)
        for grant, order in zip(issued, orders, strict=True)
    ]:
        assert future.result().pan == scene.card.pan

    events = events_since(url, before)
    assert sorted((e["event"], e["order_id"]) for e in events) == sorted(
        (event, order) for order in orders for event in ("grant.issued", "card.released")
    )
    assert len({e["request_id"] for e in events}) == 60


def test_no_event_and_no_other_column_holds_anything_of_the_card(scene: Scene) -> None:
    """Everything that can be done was done to this card; then every column of every table is read."""
    checkout, account = scene.shop.checkout.checkout, scene.shop.account.account
    checkout.Tokenize(
        _store(
            scene,
            code=True,
            order_id=new_order(),
            consent=consent(cards_pb2.CARD_USE_CUSTOMER_INITIATED, cards_pb2.CARD_USE_RECURRING),
        ),
        timeout=TIMEOUT,
    )
    for grant, order in ((scene.grant, scene.order), (scene.once_grant, scene.once_order)):
        scene.shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
        scene.call("processor", "processor", "Detokenize", redeem_request(grant, order))
    account.SetDefaultCard(
        account_pb2.SetDefaultCardRequest(customer_id=scene.customer, token=scene.token), timeout=TIMEOUT
    )
    smuggled = store_request(scene.card, scene.card.pan)
    scene.call("checkout", "checkout", "Tokenize", smuggled)
    account.DeleteCard(account_pb2.DeleteCardRequest(customer_id=scene.customer, token=scene.token), timeout=TIMEOUT)

    with direct(scene.shop.installation.database_url) as connection:
        events = connection.execute(select(audit_events)).all()
        others: list[Sequence[Any]] = [
            row
            for table in (cards, card_secrets, consents, once_keys, grants, erasures)
            for row in connection.execute(select(table)).all()
        ]

    card = scene.card
    secret = [card.pan, card.holder_name, scene.once.removeprefix("once_"), scene.grant, scene.once_grant]
    for row in (*events, *others):
        text = json.dumps([_readable(value) for value in row])
        assert not [number for number, word in enumerate(secret) if word in text]
    # Of the number not even the digits that may be shown, nor the date.
    mine = [row for row in events if row.customer_id == scene.customer or row.order_id == scene.once_order]
    assert len(mine) >= 8
    for row in mine:
        details = json.dumps(dict(row.details))
        assert card.last4 not in details
        assert "expiry" not in details
        assert card.security_code not in dict(row.details).values()


def _readable(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)

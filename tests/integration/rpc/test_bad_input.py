"""Bad input: refused by the field's name and never its value, and nothing of it is left anywhere."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.rpc.conftest import Shop
from tests.support.answers import Refusal, Rows, raw_call, rows_of
from tests.support.cards import PUBLISHED_VISA, TypedCard, fresh_digits, fresh_typed_card
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
from vault.domain import letters
from vault.domain.brand import Brand
from vault.domain.caller import Role
from vault.domain.grant import GrantText
from vault.domain.ids import RANDOM_BYTES, Token
from vault.rpc.access import SERVICES, path_of
from vault.rpc.server import MAX_MESSAGE_BYTES
from vault.v1 import access_pb2, account_pb2, cards_pb2, checkout_pb2, processor_pb2

METHODS: dict[str, MethodDescriptor] = {m.name: m for service in SERVICES.values() for m in service.methods}
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
BY_ITEM = {"BatchTokenize"}
"""Refuses items in an answer of its own: see `test_batch_tokenize`."""
PART, LONG_PART = 6, 10
"""So many characters in a row of a bad value are a part of it; in records, where times stand as well, the longer."""

ARABIC_DIGITS = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
FULL_WIDTH_DIGITS = str.maketrans("0123456789", "０１２３４５６７８９")


# --- looking on -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Onlooker:
    """Sends calls to the first server of a shop and sees what they leave behind."""

    shop: Shop
    rows: Rows

    def send(self, method: MethodDescriptor, request: bytes) -> Refusal | None:
        """Under the role that may."""
        role = Role(method.GetOptions().Extensions[access_pb2.access].roles[0])
        client = {Role.CHECKOUT: self.shop.checkout, Role.ACCOUNT: self.shop.account}.get(role, self.shop.processor)
        return raw_call(client.channel, path_of(method), request)

    def refused(self, method_name: str, request: Message | bytes, *secret: str, is_recorded: bool = False) -> Refusal:
        """The refusal, after looking that nothing is left of the call: no row but one event, no part of a secret."""
        method = METHODS[method_name]
        before, events_before = self.rows.counts(), self.rows.total_events()
        logs = [(server.log, server.log.stat().st_size) for server in self.shop.installation.servers]

        refusal = self.send(method, request if isinstance(request, bytes) else request.SerializeToString())

        assert refusal is not None, "it was accepted"
        assert refusal.error_id
        assert self.rows.counts() == before
        assert self.rows.total_events() == events_before + 1
        [event] = self.rows.events(refusal.error_id)
        assert event["outcome"] == "refused"
        assert event["event"] == method.GetOptions().Extensions[access_pb2.access].event
        assert parts_in(refusal.everything(), secret, size=PART) == []
        assert is_recorded or parts_in(repr(sorted(event.items())).encode(), secret) == []
        for log, size in logs:
            assert parts_in(log.read_bytes()[size:], secret) == []
        return refusal


@pytest.fixture(scope="module")
def rows_by_url() -> Iterator[Callable[[str], Rows]]:
    with ExitStack() as stack:
        yield cache(lambda url: stack.enter_context(rows_of(url)))


@pytest.fixture
def onlooker(shop: Shop, rows_by_url: Callable[[str], Rows]) -> Onlooker:
    return Onlooker(shop, rows_by_url(shop.installation.database_url))


@pytest.fixture
def sqlite_onlooker(sqlite_shop: Shop, rows_by_url: Callable[[str], Rows]) -> Onlooker:
    """For what is refused before any database could make a difference."""
    return Onlooker(sqlite_shop, rows_by_url(sqlite_shop.installation.database_url))


def parts_in(text: bytes, secret: tuple[str, ...], *, size: int = LONG_PART) -> list[str]:
    """Parts of secrets that stand in a text, also as JSON or Python would write them."""
    found = []
    for value in secret:
        for part in {value[i : i + size] for i in range(max(1, len(value) - size + 1))}:
            forms = {part.encode(), ascii(part)[1:-1].encode()}
            found += [part for form in forms if form in text]
    return found


# --- one wrong field after the other --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """One wrong field."""

    method: str
    field: str
    """As BadRequest must name it; empty where the answer names none on purpose."""
    build: Callable[[str], Message]
    """Builds the request around a bad value."""
    value: Callable[[], str]
    """Makes the bad value."""
    code: grpc.StatusCode = INVALID
    is_recorded: bool = False
    """Whether the audit event names it on purpose: it is well-formed and no secret."""


def marked(pattern: str) -> Callable[[], str]:
    """A value with a mark in it that stands nowhere else."""
    return lambda: pattern.replace("?", f"zq{secrets.token_hex(5)}")


def digits(change: Callable[[str], str]) -> Callable[[], str]:
    """A changed card number, which nobody has."""
    return lambda: change(fresh_digits())


def wrong_check_digit(pan: str) -> str:
    return pan[:-1] + str((int(pan[-1]) + 1) % 10)


def without_value() -> str:
    return secrets.token_hex(8)


def typed(**changes: Any) -> cards_pb2.CardInput:
    card = card_input(fresh_typed_card())
    for name, value in changes.items():
        if isinstance(value, Message):
            getattr(card, name).CopyFrom(value)
        else:
            setattr(card, name, value)
    return card


def storing(**changes: Any) -> checkout_pb2.TokenizeRequest:
    facts: dict[str, Any] = {"idempotency_key": new_key(), "customer_id": new_customer(), "card": typed()}
    return checkout_pb2.TokenizeRequest(**{**facts, "consent": consent(), **changes})


def paying(**changes: Any) -> checkout_pb2.TokenizeRequest:
    return checkout_pb2.TokenizeRequest(**{"card": typed(), "order_id": new_order(), **changes})


def some_token() -> str:
    return Token.from_random(secrets.token_bytes(RANDOM_BYTES))


def some_grant() -> str:
    return GrantText.draw(secrets.token_bytes(RANDOM_BYTES), None).reveal_text()


def granting(**changes: Any) -> checkout_pb2.IssueGrantRequest:
    facts = {"order": new_order(), "customer": new_customer(), "token": some_token(), "idempotency_key": new_key()}
    if "order_id" in changes:
        del facts["order"]
        return grant_request(order="", **facts, **changes)
    return grant_request(**{**facts, **changes})


def redeeming(**changes: Any) -> processor_pb2.DetokenizeRequest:
    facts = {"grant": some_grant(), "order": new_order(), **changes}
    return redeem_request(facts.pop("grant"), facts.pop("order"), **facts)


def reporting(**changes: Any) -> processor_pb2.ReportOutcomeRequest:
    facts = {"grant": some_grant(), "order_id": new_order(), "outcome": processor_pb2.OUTCOME_APPROVED}
    return processor_pb2.ReportOutcomeRequest(**{**facts, **changes})


def updating(**changes: Any) -> account_pb2.UpdateCardRequest:
    facts: dict[str, Any] = {
        "idempotency_key": new_key(),
        "customer_id": new_customer(),
        "token": some_token(),
        "expiry": cards_pb2.Expiry(month=1, year=datetime.now(UTC).year + 2),
    }
    return account_pb2.UpdateCardRequest(**{**facts, **changes})


def tokenize(field: str, build: Callable[[str], Message], value: Callable[[], str] = without_value) -> Case:
    return Case("Tokenize", field, build, value)


BAD_NUMBERS: dict[str, Callable[[], str]] = {
    "check digit": digits(wrong_check_digit),
    "too short": digits(lambda pan: pan[:11]),
    "too long": digits(lambda pan: pan + "0000"),
    "a length its scheme has not": digits(lambda pan: pan[:14]),
    "spaces": digits(lambda pan: " ".join(pan[i : i + 4] for i in range(0, 16, 4))),
    "dashes": digits(lambda pan: "-".join(pan[i : i + 4] for i in range(0, 16, 4))),
    "a blank before": digits(lambda pan: " " + pan),
    "a newline behind": digits(lambda pan: pan + "\n"),
    "a null byte": digits(lambda pan: pan + "\0"),
    "Arabic digits": digits(lambda pan: pan.translate(ARABIC_DIGITS)),
    "full-width digits": digits(lambda pan: pan.translate(FULL_WIDTH_DIGITS)),
    "one full-width digit": digits(lambda pan: pan[:8] + pan[8].translate(FULL_WIDTH_DIGITS) + pan[9:]),
    "a sign": digits(lambda pan: "+" + pan),
    "track data": digits(lambda pan: f";{pan}=30121010000?"),
    "letters": marked("?????"),
    "no known scheme": digits(lambda pan: "0000" + pan[4:]),
}

BAD_NAMES: dict[str, Callable[[], str]] = {
    "a card number": digits(lambda pan: f"Ada {pan}"),
    "a card number in groups": digits(lambda pan: "Ada " + " ".join(pan[i : i + 4] for i in range(0, 16, 4))),
    "a full-width card number": digits(lambda pan: "Ada " + pan.translate(FULL_WIDTH_DIGITS)),
    "an Arabic card number": digits(lambda pan: "Ada " + pan.translate(ARABIC_DIGITS)),
    "track one": digits(lambda pan: f"%B{pan}^ADA/EXAMPLE^30121010000?"),
    "a code behind": marked("Ada ? 123"),
    "too long": marked("?" * 8),
    "too many bytes": lambda: "쀀" * 63 + "q",
    "a null byte": marked("Ada?\0x"),
    "an escape": marked("Ada?\x1b[2J"),
    "an override of direction": marked("Ada?\u202e"),
}

MONTHS_AGO = cards_pb2.Expiry(month=datetime.now(UTC).month, year=datetime.now(UTC).year - 1)

TOKENIZE_CASES = {
    **{
        f"number: {what}": tokenize("card.pan", lambda v: storing(card=typed(pan=v)), value)
        for what, value in BAD_NUMBERS.items()
    },
    "number: none": tokenize("card.pan", lambda _: storing(card=typed(pan=""))),
    "no card": tokenize("card.pan", lambda _: checkout_pb2.TokenizeRequest(order_id=new_order())),
    **{
        f"name: {what}": tokenize("card.holder_name", lambda v: storing(card=typed(holder_name=v)), value)
        for what, value in BAD_NAMES.items()
    },
    "expiry: none": tokenize(
        "card.expiry.month", lambda _: storing(card=cards_pb2.CardInput(pan=fresh_digits(), holder_name="Ada"))
    ),
    "expiry: month": tokenize(
        "card.expiry.month",
        lambda v: storing(card=typed(expiry=cards_pb2.Expiry(month=int(v), year=2030))),
        lambda: "1300013",
    ),
    "expiry: negative month": tokenize(
        "card.expiry.month",
        lambda v: storing(card=typed(expiry=cards_pb2.Expiry(month=int(v), year=2030))),
        lambda: "-700071",
    ),
    "expiry: two digits": tokenize(
        "card.expiry.year", lambda _: storing(card=typed(expiry=cards_pb2.Expiry(month=1, year=30)))
    ),
    "expiry: huge year": tokenize(
        "card.expiry.year",
        lambda v: storing(card=typed(expiry=cards_pb2.Expiry(month=1, year=int(v)))),
        lambda: "2147483647",
    ),
    "expiry: too far ahead": tokenize(
        "card.expiry.year",
        lambda _: storing(card=typed(expiry=cards_pb2.Expiry(month=1, year=datetime.now(UTC).year + 21))),
    ),
    "expiry: past": tokenize("card.expiry", lambda _: storing(card=typed(expiry=MONTHS_AGO))),
    "code: without an order": tokenize("card.security_code", lambda _: storing(card=typed(security_code="123"))),
    "code: short": tokenize("card.security_code", lambda _: paying(card=typed(security_code="12"))),
    "code: of another scheme": tokenize("card.security_code", lambda _: paying(card=typed(security_code="1234"))),
    "code: three for four": tokenize(
        "card.security_code",
        lambda _: paying(card=typed(pan=fresh_digits(brand=Brand.AMEX), security_code="123")),
    ),
    "code: Arabic": tokenize(
        "card.security_code", lambda _: paying(card=typed(security_code="123".translate(ARABIC_DIGITS)))
    ),
    "code: long": tokenize("card.security_code", lambda v: paying(card=typed(security_code=v)), lambda: "987612345"),
    "neither consent nor order": tokenize("consent", lambda _: checkout_pb2.TokenizeRequest(card=typed())),
    "consent without a customer": tokenize("customer_id", lambda _: storing(customer_id="")),
    "customer: letters": tokenize("customer_id", lambda v: storing(customer_id=v), marked("cus tomer?")),
    "customer: not ASCII": tokenize("customer_id", lambda v: storing(customer_id=v), marked("ü?")),
    "customer: long": tokenize("customer_id", lambda v: storing(customer_id=v), marked("?" * 11)),
    "customer: a newline": tokenize("customer_id", lambda v: storing(customer_id=v), marked("?\n")),
    "order: letters": tokenize("order_id", lambda v: paying(order_id=v), marked("?'; DROP TABLE cards;--")),
    "order: long": tokenize("order_id", lambda v: paying(order_id=v), marked("?" * 6)),
    "key: letters": tokenize("idempotency_key", lambda v: storing(idempotency_key=v), marked("key?/")),
    "key: long": tokenize("idempotency_key", lambda v: storing(idempotency_key=v), marked("?" * 6)),
    "terms: none": tokenize("consent.terms_version", lambda _: storing(consent=consent(terms_version=""))),
    "terms: long": tokenize(
        "consent.terms_version", lambda v: storing(consent=consent(terms_version=v)), marked("?" * 6)
    ),
    "terms: letters": tokenize(
        "consent.terms_version", lambda v: storing(consent=consent(terms_version=v)), marked("?<b>")
    ),
    "terms: no hash": tokenize("consent.terms_sha256", lambda _: storing(consent=consent(terms_sha256=b""))),
    "terms: hash in hex": tokenize(
        "consent.terms_sha256", lambda v: storing(consent=consent(terms_sha256=v.encode())), lambda: "7f3a9c" * 10
    ),
    "uses: none": tokenize("consent.uses", lambda _: storing(consent=consent(uses=[]))),
    "uses: unspecified": tokenize("consent.uses", lambda _: storing(consent=consent(uses=[0]))),
    "uses: unknown": tokenize("consent.uses", lambda v: storing(consent=consent(uses=[1, int(v)])), lambda: "1234567"),
    "uses: negative": tokenize("consent.uses", lambda _: storing(consent=consent(uses=[-1]))),
    "uses: twice": tokenize("consent.uses", lambda _: storing(consent=consent(uses=[1, 1]))),
    "channel: none": tokenize("consent.channel", lambda _: storing(consent=consent(channel=0))),
    "channel: unknown": tokenize(
        "consent.channel", lambda v: storing(consent=consent(channel=int(v))), lambda: "1234567"
    ),
    "locale: none": tokenize("consent.locale", lambda _: storing(consent=consent(locale=""))),
    "locale: odd": tokenize("consent.locale", lambda v: storing(consent=consent(locale=v)), marked("de_?")),
    "locale: long": tokenize("consent.locale", lambda v: storing(consent=consent(locale=v)), marked("de-?" * 4)),
    "until: past": tokenize(
        "consent.agreed_until",
        lambda v: storing(consent=consent(agreed_until=timestamp_pb2.Timestamp(seconds=int(v)))),
        lambda: "1111111111",
    ),
    "until: no time": tokenize(
        "consent.agreed_until",
        lambda v: storing(consent=consent(agreed_until=timestamp_pb2.Timestamp(seconds=int(v)))),
        lambda: "999999999999999999",
    ),
    "until: before all time": tokenize(
        "consent.agreed_until",
        lambda v: storing(consent=consent(agreed_until=timestamp_pb2.Timestamp(seconds=int(v)))),
        lambda: "-9223372036854775808",
    ),
    "until: no nanoseconds": tokenize(
        "consent.agreed_until",
        lambda v: storing(consent=consent(agreed_until=timestamp_pb2.Timestamp(seconds=4000000000, nanos=int(v)))),
        lambda: "-1234567",
    ),
}


def grant_case(field: str, build: Callable[[str], Message], value: Callable[[], str] = without_value) -> Case:
    return Case("IssueGrant", field, build, value)


def lifetime(seconds: int, nanos: int = 0) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=seconds, nanos=nanos)


GRANT_CASES = {
    "subject: none": grant_case("subject", lambda _: checkout_pb2.IssueGrantRequest(order_id=new_order())),
    "subject: customer": grant_case("stored_card.customer_id", lambda v: granting(customer=v), marked("cus tomer?")),
    "subject: no customer": grant_case("stored_card.customer_id", lambda _: granting(customer="")),
    "order: none": grant_case("order_id", lambda _: granting(order="")),
    "order: letters": grant_case("order_id", lambda v: granting(order=v), marked("or der?")),
    "amount: none": grant_case("amount.currency", lambda _: granting(amount=cards_pb2.Money())),
    "amount: negative": grant_case(
        "amount.minor_units", lambda v: granting(amount=money(int(v))), lambda: "-987654321"
    ),
    "amount: huge": grant_case("amount.minor_units", lambda v: granting(amount=money(int(v))), lambda: "1000000000007"),
    "amount: largest": grant_case(
        "amount.minor_units", lambda v: granting(amount=money(int(v))), lambda: str(2**63 - 1)
    ),
    "currency: small": grant_case("amount.currency", lambda v: granting(amount=money(1, v)), lambda: "eur"),
    "currency: four": grant_case("amount.currency", lambda v: granting(amount=money(1, v)), marked("?")),
    "currency: not ASCII": grant_case("amount.currency", lambda v: granting(amount=money(1, v)), lambda: "ÄÖÜ"),
    "purpose: none": grant_case("purpose", lambda _: granting(purpose=0)),
    "purpose: unknown": grant_case("purpose", lambda v: granting(purpose=int(v)), lambda: "1234567"),
    "processor: none": grant_case("processor", lambda _: granting(processor="")),
    "processor: letters": grant_case("processor", lambda v: granting(processor=v), marked("Acquirer ?")),
    "processor: unknown": Case(
        "IssueGrant", "processor", lambda v: granting(processor=v), marked("acquirer-?"), is_recorded=True
    ),
    "lifetime: short": grant_case("lifetime", lambda _: granting(lifetime=lifetime(9, 999_999_999))),
    "lifetime: long": grant_case("lifetime", lambda _: granting(lifetime=lifetime(900, 1_000))),
    "lifetime: negative": grant_case("lifetime", lambda v: granting(lifetime=lifetime(int(v))), lambda: "-87654321"),
    "lifetime: no duration": grant_case(
        "lifetime", lambda v: granting(lifetime=lifetime(int(v))), lambda: str(2**63 - 1)
    ),
    "key: letters": grant_case("idempotency_key", lambda v: granting(idempotency_key=v), marked("key?/")),
    "token: garbled": Case("IssueGrant", "", lambda v: granting(token=v), marked("tok_?"), NOT_FOUND),
    "one-time token: garbled": Case(
        "IssueGrant", "", lambda v: grant_request(order=new_order(), one_time_token=v), marked("once_?"), NOT_FOUND
    ),
    "grant to revoke: garbled": Case(
        "RevokeGrant", "", lambda v: checkout_pb2.RevokeGrantRequest(grant=v), marked("grant_?"), NOT_FOUND
    ),
    "grant to revoke: unknown": Case(
        "RevokeGrant", "", lambda v: checkout_pb2.RevokeGrantRequest(grant=v), some_grant, NOT_FOUND
    ),
}


def page(**facts: Any) -> account_pb2.ListCardsRequest:
    return account_pb2.ListCardsRequest(**{"customer_id": new_customer(), **facts})


def exporting(**facts: Any) -> account_pb2.ExportCustomerRequest:
    return account_pb2.ExportCustomerRequest(**{"customer_id": new_customer(), **facts})


def one(kind: Callable[..., Message], **facts: Any) -> Message:
    return kind(**{"customer_id": new_customer(), "token": some_token(), **facts})


ONE_CARD: dict[str, Callable[..., Message]] = {
    "GetCard": account_pb2.GetCardRequest,
    "SetDefaultCard": account_pb2.SetDefaultCardRequest,
    "DeleteCard": account_pb2.DeleteCardRequest,
    "UpdateCard": lambda **facts: updating(**facts),
}

ACCOUNT_CASES = {
    "list: no customer": Case("ListCards", "customer_id", lambda _: page(customer_id=""), without_value),
    "list: customer": Case("ListCards", "customer_id", lambda v: page(customer_id=v), marked("%?")),
    "list: negative size": Case("ListCards", "page_size", lambda v: page(page_size=int(v)), lambda: "-7654321"),
    "list: huge size": Case("ListCards", "page_size", lambda v: page(page_size=int(v)), lambda: "2147483647"),
    "list: 101": Case("ListCards", "page_size", lambda _: page(page_size=101), without_value),
    "list: cursor": Case("ListCards", "page_token", lambda v: page(page_token=v), marked("?")),
    "list: a token as cursor": Case("ListCards", "page_token", lambda v: page(page_token=v), some_token),
    "list: a cursor beyond time": Case(
        "ListCards",
        "page_token",
        lambda v: page(page_token=v),
        lambda: Token.from_random(b"\xff" * RANDOM_BYTES).removeprefix("tok_"),
    ),
    "export: no customer": Case("ExportCustomer", "customer_id", lambda _: exporting(customer_id=""), without_value),
    "export: customer": Case("ExportCustomer", "customer_id", lambda v: exporting(customer_id=v), marked("%?")),
    "export: 101": Case("ExportCustomer", "page_size", lambda _: exporting(page_size=101), without_value),
    "export: negative size": Case(
        "ExportCustomer", "page_size", lambda v: exporting(page_size=int(v)), lambda: "-7654321"
    ),
    "export: cursor": Case("ExportCustomer", "page_token", lambda v: exporting(page_token=v), marked("?")),
    "export: a token as cursor": Case("ExportCustomer", "page_token", lambda v: exporting(page_token=v), some_token),
    "export: a cursor of an unknown kind": Case(
        "ExportCustomer",
        "page_token",
        lambda v: exporting(page_token=v),
        lambda: letters.encode(b"\x04" + bytes(7) + secrets.token_bytes(1) + secrets.token_bytes(RANDOM_BYTES)),
    ),
    "export: a cursor beyond time": Case(
        "ExportCustomer",
        "page_token",
        lambda v: exporting(page_token=v),
        lambda: letters.encode(b"\x01" + b"\xff" * 8 + secrets.token_bytes(RANDOM_BYTES)),
    ),
    **{
        f"{name}: {what}": Case(
            name,
            field if code is INVALID else "",
            lambda v, kind=kind, field=field: one(kind, **{field: v}),  # type: ignore[misc]
            value,
            code,
            is_recorded=what == "unknown token",
        )
        for name, kind in ONE_CARD.items()
        for what, field, value, code in (
            ("no customer", "customer_id", lambda: "", INVALID),
            ("customer", "customer_id", marked("cus\ttomer?"), INVALID),
            ("no token", "token", lambda: "", NOT_FOUND),
            ("garbled token", "token", marked("tok_?"), NOT_FOUND),
            ("unknown token", "token", some_token, NOT_FOUND),
            ("another thing's name", "token", some_grant, NOT_FOUND),
            ("key", "idempotency_key", marked("key ?"), INVALID),
        )
        if field != "idempotency_key" or name != "GetCard"
    },
    "UpdateCard: no expiry": Case(
        "UpdateCard",
        "expiry.month",
        lambda _: account_pb2.UpdateCardRequest(customer_id=new_customer(), token=some_token()),
        without_value,
    ),
    "UpdateCard: past": Case("UpdateCard", "expiry", lambda _: updating(expiry=MONTHS_AGO), without_value),
    "UpdateCard: year": Case(
        "UpdateCard",
        "expiry.year",
        lambda v: updating(expiry=cards_pb2.Expiry(month=1, year=int(v))),
        lambda: "1234567",
    ),
    "EraseCustomer: none": Case(
        "EraseCustomer", "customer_id", lambda _: account_pb2.EraseCustomerRequest(), without_value
    ),
    "EraseCustomer: letters": Case(
        "EraseCustomer",
        "customer_id",
        lambda v: account_pb2.EraseCustomerRequest(customer_id=v),
        marked("?*"),
    ),
    "EraseCustomer: key": Case(
        "EraseCustomer",
        "idempotency_key",
        lambda v: account_pb2.EraseCustomerRequest(customer_id=new_customer(), idempotency_key=v),
        marked("?*"),
    ),
}

PROCESSOR_CASES = {
    "order: none": Case("Detokenize", "order_id", lambda _: redeeming(order=""), without_value),
    "order: letters": Case("Detokenize", "order_id", lambda v: redeeming(order=v), marked("or der?")),
    "amount: negative": Case(
        "Detokenize", "amount.minor_units", lambda v: redeeming(amount=money(int(v))), lambda: "-987654321"
    ),
    "currency": Case("Detokenize", "amount.currency", lambda v: redeeming(amount=money(1, v)), marked("?")),
    "no amount": Case(
        "Detokenize",
        "amount.currency",
        lambda v: processor_pb2.DetokenizeRequest(grant=v, order_id=new_order()),
        some_grant,
    ),
    "grant: none": Case("Detokenize", "", lambda _: redeeming(grant=""), without_value, PERMISSION_DENIED),
    "grant: garbled": Case("Detokenize", "", lambda v: redeeming(grant=v), marked("grant_?"), PERMISSION_DENIED),
    "grant: unknown": Case("Detokenize", "", lambda v: redeeming(grant=v), some_grant, PERMISSION_DENIED),
    "grant: a garbled one-time token in it": Case(
        "Detokenize", "", lambda v: redeeming(grant=v), lambda: some_grant() + "_bcdf", PERMISSION_DENIED
    ),
    "grant: a number": Case("Detokenize", "", lambda v: redeeming(grant=v), fresh_digits, PERMISSION_DENIED),
}

OUTCOME_CASES = {
    "order: none": Case("ReportOutcome", "order_id", lambda _: reporting(order_id=""), without_value),
    "order: letters": Case("ReportOutcome", "order_id", lambda v: reporting(order_id=v), marked("or der?")),
    "outcome: none": Case("ReportOutcome", "outcome", lambda _: reporting(outcome=0), without_value),
    "outcome: unknown": Case("ReportOutcome", "outcome", lambda _: reporting(outcome=3), without_value),
    "reference: letters": Case(
        "ReportOutcome", "network_transaction_id", lambda v: reporting(network_transaction_id=v), marked("id ?")
    ),
    "reference: too long": Case(
        "ReportOutcome",
        "network_transaction_id",
        lambda v: reporting(network_transaction_id=v),
        lambda: marked("?")().ljust(65, "x"),
    ),
    "reference: a number": Case(
        "ReportOutcome", "network_transaction_id", lambda v: reporting(network_transaction_id=v), fresh_digits
    ),
    "grant: none": Case("ReportOutcome", "", lambda _: reporting(grant=""), without_value, PERMISSION_DENIED),
    "grant: garbled": Case("ReportOutcome", "", lambda v: reporting(grant=v), marked("grant_?"), PERMISSION_DENIED),
    "grant: unknown": Case("ReportOutcome", "", lambda v: reporting(grant=v), some_grant, PERMISSION_DENIED),
}

CASES = {
    **{f"Tokenize {name}": case for name, case in TOKENIZE_CASES.items()},
    **{f"IssueGrant {name}": case for name, case in GRANT_CASES.items()},
    **ACCOUNT_CASES,
    **{f"Detokenize {name}": case for name, case in PROCESSOR_CASES.items()},
    **{f"ReportOutcome {name}": case for name, case in OUTCOME_CASES.items()},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_wrong_field_is_named_and_its_value_is_nowhere(onlooker: Onlooker, case: Case) -> None:
    value = case.value()
    secret = (value,) if len(value) >= PART else ()

    refusal = onlooker.refused(case.method, case.build(value), *secret, is_recorded=case.is_recorded)

    assert refusal.code is case.code
    assert refusal.fields == ((case.field,) if case.field else ())
    if not case.field:
        assert refusal.text == {NOT_FOUND: "not available", PERMISSION_DENIED: "refused"}[case.code]


def test_what_was_nearly_refused_is_accepted(shop: Shop) -> None:
    """The bounds themselves are inside."""
    far = cards_pb2.Expiry(month=12, year=datetime.now(UTC).year + 20)
    now = cards_pb2.Expiry(month=datetime.now(UTC).month, year=datetime.now(UTC).year)
    longest = checkout_pb2.TokenizeRequest(
        idempotency_key=new_key().ljust(64, "x"),
        customer_id=new_customer().ljust(128, "x"),
        card=typed(expiry=far, holder_name="é" * 64),
        consent=consent(terms_version="v" * 64, uses=[1, 2, 3, 4], locale="zh-Hant-HK"),
        order_id=new_order().ljust(64, "x"),
    )

    stored = shop.checkout.checkout.Tokenize(longest, timeout=TIMEOUT)
    this_month = shop.checkout.checkout.Tokenize(storing(card=typed(expiry=now)), timeout=TIMEOUT)
    grants = [
        shop.checkout.checkout.IssueGrant(
            grant_request(
                order=new_order(),
                customer=longest.customer_id,
                token=stored.card.token,
                lifetime=lifetime(seconds),
                amount=money(units),
            ),
            timeout=TIMEOUT,
        )
        for seconds, units in ((10, 0), (900, 999_999_999_999))
    ]

    assert stored.card.expiry == far
    assert not this_month.card.expired
    assert len({issued.grant for issued in grants}) == 2


# --- a card number in every other field -----------------------------------------------------------------------------


def text_fields(message: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Paths to every field that can hold text or bytes, also inside other messages."""
    for field in message.fields:
        if field.message_type is not None:
            yield from text_fields(field.message_type, (*path, field))
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            yield (*path, field)


def dotted(path: tuple[FieldDescriptor, ...]) -> str:
    return ".".join(field.name for field in path)


SMUGGLING = [
    (method, path)
    for method in METHODS.values()
    if method.name not in BY_ITEM
    for path in text_fields(method.input_type)
    if dotted(path) != "card.pan"
]

DISGUISES: dict[str, Callable[[str], str]] = {
    "plain": lambda pan: pan,
    "dashes": lambda pan: "-".join(pan[i : i + 4] for i in range(0, len(pan), 4)),
    "inside": lambda pan: f"a-{pan}-b",
    "as a locale": lambda pan: f"en-{pan[:8]}-{pan[8:]}",
    "as a hash": lambda pan: (pan * 2)[:32],
    "among blanks": lambda pan: f"v {pan} v",
}

VALID: dict[str, Callable[[], Message]] = {
    "Tokenize": lambda: storing(order_id=new_order()),
    "IssueGrant": granting,
    "RevokeGrant": lambda: checkout_pb2.RevokeGrantRequest(grant=some_grant()),
    "ListCards": page,
    **{name: lambda kind=kind: one(kind) for name, kind in ONE_CARD.items()},  # type: ignore[misc]
    "EraseCustomer": lambda: account_pb2.EraseCustomerRequest(customer_id=new_customer()),
    "ExportCustomer": exporting,
    "Detokenize": redeeming,
    "ReportOutcome": lambda: reporting(network_transaction_id="id-1"),
}


@pytest.mark.parametrize(("method", "path"), SMUGGLING, ids=lambda v: v.name if hasattr(v, "name") else dotted(v))
def test_a_card_number_in_any_other_field_is_refused(
    sqlite_onlooker: Onlooker, method: MethodDescriptor, path: tuple[FieldDescriptor, ...]
) -> None:
    for disguise in DISGUISES.values():
        pan = fresh_digits()
        request = VALID[method.name]()
        target: Any = request
        for field in path[:-1]:
            target = getattr(target, field.name)
        text = disguise(pan)
        setattr(target, path[-1].name, text.encode() if path[-1].type == FieldDescriptor.TYPE_BYTES else text)

        refusal = sqlite_onlooker.refused(method.name, request, pan, text)

        assert refusal.code in (INVALID, NOT_FOUND, PERMISSION_DENIED)
        if refusal.code is INVALID:
            assert refusal.fields == (dotted(path),)


# --- bytes that are no request --------------------------------------------------------------------------------------

BROKEN = {
    "a thousand groups deep": b"\x0b" * 1000 + b"\x0c" * 1000,
    "random": bytes.fromhex("fa8c9e01ffe7b1d2c3aa5599deadbeef"),
    "a field's number is zero": b"\x00\x01",
    "an end without a beginning": b"\x0c",
    "a length beyond the end": b"\x0a\x7fabc",
    "a number without an end": b"\x08" + b"\xff" * 11,
    "text that is no UTF-8": b"\x0a\x02\xc3\x28",
    "a group without an end": b"\x0b\x0b\x0b",
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_bytes_that_are_no_message_are_an_invalid_argument(sqlite_onlooker: Onlooker, method: MethodDescriptor) -> None:
    begins_with_text = method.input_type.fields[0].message_type is None
    for what, broken in BROKEN.items():
        if what == "text that is no UTF-8" and not begins_with_text:
            continue

        refusal = sqlite_onlooker.refused(method.name, broken)

        assert (refusal.code, refusal.fields) == (INVALID, ("request",)), what
        assert refusal.text == "request: is not a valid message"


@pytest.mark.parametrize("name", sorted(set(METHODS) - BY_ITEM))
def test_a_truncated_request_is_never_an_effect(sqlite_onlooker: Onlooker, name: str) -> None:
    whole = VALID[name]().SerializeToString()

    codes = set()
    for length in range(0, len(whole) - 1, 9):
        before = sqlite_onlooker.rows.counts()
        refusal = sqlite_onlooker.send(METHODS[name], whole[:length])
        if refusal is not None:
            codes.add(refusal.code)
            assert sqlite_onlooker.rows.counts() == before

    assert codes <= {INVALID, NOT_FOUND, PERMISSION_DENIED}
    assert codes or name in {"ListCards", "EraseCustomer", "ExportCustomer"}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_empty_message_is_refused(onlooker: Onlooker, name: str) -> None:
    refusal = onlooker.refused(name, b"")

    assert refusal.code is (NOT_FOUND if name == "RevokeGrant" else INVALID)


def test_a_known_field_of_the_wrong_kind_is_an_empty_field(onlooker: Onlooker) -> None:
    pan = fresh_digits()
    number_where_text_belongs = b"\x10" + bytes((0xFF, 0xFF, 0x03))

    refusal = onlooker.refused("ListCards", b"\x08\x07" + number_where_text_belongs, pan)

    assert (refusal.code, refusal.fields) == (INVALID, ("page_size",))


def test_unknown_fields_are_dropped_and_change_nothing(shop: Shop, onlooker: Onlooker) -> None:
    request, pan = storing(), fresh_digits()
    unknown = b"\xc2\x3e" + bytes((len(pan),)) + pan.encode()
    plain = request.SerializeToString()

    assert onlooker.send(METHODS["Tokenize"], plain + unknown) is None

    # The same key and the same known fields: the same request.
    assert onlooker.send(METHODS["Tokenize"], plain) is None
    cards = shop.account.account.ListCards(page(customer_id=request.customer_id), timeout=TIMEOUT).cards
    assert len(cards) == 1
    assert unknown not in b"".join(card.SerializeToString() for card in cards)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_message_above_the_limit_is_refused_unheard(sqlite_onlooker: Onlooker, name: str) -> None:
    before = sqlite_onlooker.rows.counts(), sqlite_onlooker.rows.total_events()
    filler = b"\xc2\x3e" + b"\xfe\xff\x03" + b"z" * MAX_MESSAGE_BYTES

    refusal = sqlite_onlooker.send(METHODS[name], filler)

    assert refusal is not None
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert b"zzz" not in refusal.everything()
    assert (sqlite_onlooker.rows.counts(), sqlite_onlooker.rows.total_events()) == before


def test_the_largest_message_is_heard(onlooker: Onlooker) -> None:
    refusal = onlooker.refused("RevokeGrant", checkout_pb2.RevokeGrantRequest(grant="b" * (MAX_MESSAGE_BYTES - 100)))

    assert refusal.code is NOT_FOUND


def test_metadata_above_the_limit_is_refused(shop: Shop) -> None:
    metadata = [("x-filler", "z" * 40_000)]

    refusal = raw_call(shop.account.channel, path_of(METHODS["ListCards"]), b"", metadata=metadata)

    assert refusal is not None
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- fuzzing --------------------------------------------------------------------------------------------------------

FIXED_CARD = TypedCard(PUBLISHED_VISA, 12, datetime.now(UTC).year + 3, "Ada Example", "123")
FIXED_TOKEN = Token.from_random(bytes(RANDOM_BYTES))
FIXED_GRANT = GrantText.draw(bytes(RANDOM_BYTES), None).reveal_text()
FUZZ_CUSTOMER, FUZZ_ORDER = "fuzzed", "fuzzed-1"

SEEDS: dict[str, tuple[Message, ...]] = {
    "Tokenize": (
        store_request(FIXED_CARD, FUZZ_CUSTOMER, idempotency_key="fuzzed"),
        once_request(FIXED_CARD, FUZZ_ORDER),
    ),
    "BatchTokenize": (
        checkout_pb2.BatchTokenizeRequest(
            items=[
                checkout_pb2.BatchTokenizeItem(
                    customer_id=FUZZ_CUSTOMER, card=card_input(FIXED_CARD), consent=consent(), idempotency_key="fuzzed"
                )
            ]
            * 2
        ),
    ),
    "IssueGrant": (
        grant_request(order=FUZZ_ORDER, customer=FUZZ_CUSTOMER, token=FIXED_TOKEN, lifetime=lifetime(60)),
        grant_request(order=FUZZ_ORDER, one_time_token=FIXED_GRANT.replace("grant_", "once_")),
    ),
    "RevokeGrant": (checkout_pb2.RevokeGrantRequest(grant=FIXED_GRANT),),
    "ListCards": (account_pb2.ListCardsRequest(customer_id=FUZZ_CUSTOMER, page_size=5, page_token="bcdf"),),
    "GetCard": (account_pb2.GetCardRequest(customer_id=FUZZ_CUSTOMER, token=FIXED_TOKEN),),
    "UpdateCard": (updating(customer_id=FUZZ_CUSTOMER, token=FIXED_TOKEN, idempotency_key="fuzzed"),),
    "SetDefaultCard": (account_pb2.SetDefaultCardRequest(customer_id=FUZZ_CUSTOMER, token=FIXED_TOKEN),),
    "DeleteCard": (account_pb2.DeleteCardRequest(customer_id=FUZZ_CUSTOMER, token=FIXED_TOKEN),),
    "EraseCustomer": (account_pb2.EraseCustomerRequest(customer_id=FUZZ_CUSTOMER, idempotency_key="fuzzed"),),
    "ExportCustomer": (account_pb2.ExportCustomerRequest(customer_id=FUZZ_CUSTOMER, page_size=5),),
    "Detokenize": (redeem_request(FIXED_GRANT, FUZZ_ORDER),),
    "ReportOutcome": (processor_pb2.ReportOutcomeRequest(grant=FIXED_GRANT, order_id=FUZZ_ORDER),),
}

DEFINITE = {
    INVALID,
    NOT_FOUND,
    PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
}


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """A valid request with a few wounds."""
    raw = bytearray(draw(st.sampled_from(SEEDS[name])).SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        match draw(st.sampled_from(["flip", "insert", "cut", "drop", "repeat"])):
            case "flip" if at < len(raw):
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                raw[at:at] = draw(st.binary(min_size=1, max_size=6))
            case "cut":
                del raw[at:]
            case "drop":
                del raw[at : at + draw(st.integers(1, 8))]
            case _:
                raw[at:at] = raw[max(0, at - 12) : at]
    return bytes(raw)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_mutated_requests_get_definite_answers(onlooker: Onlooker, name: str) -> None:
    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(raw=mutated(name))
    def send(raw: bytes) -> None:
        refusal = onlooker.send(METHODS[name], raw)

        if refusal is not None:
            assert refusal.code in DEFINITE
            assert refusal.error_id

    send()

    assert set(SEEDS) == set(METHODS)


def values_of(message: Descriptor) -> st.SearchStrategy[Message]:
    """Any message of a kind, with strange texts and numbers."""
    kinds: dict[int, st.SearchStrategy[Any]] = {
        FieldDescriptor.TYPE_STRING: st.one_of(
            st.text(max_size=20), st.sampled_from(["ada", "EUR", "acquirer", FIXED_TOKEN, FIXED_GRANT, "order-1"])
        ),
        FieldDescriptor.TYPE_BYTES: st.binary(max_size=32),
        FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.TYPE_ENUM: st.integers(-2, 6),
    }

    def of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
        value = values_of(field.message_type) if field.message_type is not None else kinds[field.type]
        return st.lists(value, max_size=3) if field.is_repeated else value

    def build(facts: dict[str, Any]) -> Message:
        return GetMessageClass(message)(**facts)

    return st.fixed_dictionaries({}, optional={field.name: of(field) for field in message.fields}).map(build)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_well_formed_nonsense_gets_definite_answers(onlooker: Onlooker, name: str) -> None:
    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(message=values_of(METHODS[name].input_type))
    def send(message: Message) -> None:
        refusal = onlooker.send(METHODS[name], message.SerializeToString())

        if refusal is not None:
            assert refusal.code in DEFINITE
            assert refusal.error_id

    send()


def test_after_all_this_a_good_call_succeeds(shop: Shop) -> None:
    card, customer = fresh_typed_card(), new_customer()

    stored = shop.checkout.checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT)

    assert stored.card.last4 == card.last4

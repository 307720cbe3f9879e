"""Protobuf to domain and back. A card number becomes a `Pan` here at once; every limit is the domain types' own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TypeVar

from google.protobuf import duration_pb2, timestamp_pb2

from vault.domain import letters
from vault.domain.audit import InclusionProof
from vault.domain.card import CardDetails, Expiry, HolderName, SecurityCode, StoredCard
from vault.domain.consent import CardUse, Consent, ConsentEntry
from vault.domain.errors import CardVaultError, InvalidField
from vault.domain.grant import GrantText, Money, OneTimeToken, parse_lifetime
from vault.domain.ids import ConsentId, CustomerId, EventId, IdempotencyKey, OrderId, ProcessorName, Token
from vault.domain.pan import Pan
from vault.ports import PageCursor
from vault.rpc.door import Call
from vault.rpc.errors import CODES, reason_told
from vault.usecases.accounts import (
    CardCommand,
    CardPage,
    EraseCommand,
    ErasureReceipt,
    ListCardsQuery,
    UpdateCardCommand,
)
from vault.usecases.batch_tokenize import MAX_ITEMS, BatchTokenizeCommand, Results
from vault.usecases.grants import IssuedGrant, IssueGrantCommand, RevokeGrantCommand, StoredCardSubject
from vault.usecases.tokenize import TokenizeCommand, Tokenized
from vault.v1 import account_pb2, cards_pb2, checkout_pb2

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECONDS_OF_A_DAY = 86400

_Name = TypeVar("_Name", Token, ConsentId, EventId)

_brand, _state, _use = cards_pb2.Brand.ValueType, cards_pb2.CardState.ValueType, cards_pb2.CardUse.ValueType

# --- shared pieces --------------------------------------------------------------------------------------------------


def decode_key(text: str, *, field: str = "idempotency_key") -> IdempotencyKey | None:
    """An idempotency key, or None where none was given."""
    return IdempotencyKey.parse(text, field=field) if text else None


def decode_expiry(message: cards_pb2.Expiry, *, now: datetime, field: str) -> Expiry:
    """An expiry date that is not past."""
    return Expiry.parse(year=message.year, month=message.month, now=now, field=field)


def decode_money(message: cards_pb2.Money) -> Money:
    """An amount."""
    return Money.parse(minor_units=message.minor_units, currency=message.currency)


def decode_use(value: int, *, field: str) -> CardUse:
    """One use; unspecified and unknown ones are refused."""
    try:
        return CardUse(value)
    except ValueError:
        raise InvalidField(field, "must be a known use") from None


def encode_expiry(expiry: Expiry) -> cards_pb2.Expiry:
    """An expiry date."""
    return cards_pb2.Expiry(month=expiry.month, year=expiry.year)


def encode_time(moment: datetime) -> timestamp_pb2.Timestamp:
    """A moment, to the microsecond."""
    message = timestamp_pb2.Timestamp()
    _put_time(moment, message)
    return message


def encode_card(card: StoredCard, *, now: datetime) -> cards_pb2.Card:
    """A stored card as it may be shown."""
    message = cards_pb2.Card()
    put_card(card, message, now=now)
    return message


# Parts are written where they belong: one that is made apart is copied into the whole, which takes twice as long.


def put_card(card: StoredCard, message: cards_pb2.Card, *, now: datetime) -> None:
    """The same, into an empty message."""
    message.token = card.token
    message.brand = _brand(card.brand)
    message.last4 = card.last4
    message.expiry.month = card.expiry.month
    message.expiry.year = card.expiry.year
    message.expired = card.expiry.is_past(now)
    message.is_default = card.is_default
    message.state = _state(card.state)
    _put_time(card.created_at, message.created_at)
    put_consent(card.consent, message.consent, withdrawn_at=None)


def put_consent(entry: ConsentEntry, message: cards_pb2.ConsentSummary, *, withdrawn_at: datetime | None) -> None:
    """What a consent says, as it may be shown, into an empty message."""
    message.consent_id = entry.consent_id
    message.terms_version = entry.consent.terms_version
    message.uses.extend(map(_use, entry.consent.uses))
    _put_time(entry.agreed_at, message.agreed_at)
    if entry.consent.agreed_until is not None:
        _put_time(entry.consent.agreed_until, message.agreed_until)
    if withdrawn_at is not None:
        _put_time(withdrawn_at, message.withdrawn_at)


def _put_time(moment: datetime, message: timestamp_pb2.Timestamp) -> None:
    since = moment - _EPOCH
    message.seconds = since.days * _SECONDS_OF_A_DAY + since.seconds
    message.nanos = since.microseconds * 1000


def _decode_moment(message: timestamp_pb2.Timestamp, *, field: str) -> datetime:
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidField(field, "must be a valid time") from None


def _decode_card(message: cards_pb2.CardInput, *, now: datetime, field: str = "card") -> CardDetails:
    pan = Pan.parse(message.pan, field=f"{field}.pan")
    return CardDetails(
        pan=pan,
        expiry=decode_expiry(message.expiry, now=now, field=f"{field}.expiry"),
        holder_name=HolderName.parse(message.holder_name, field=f"{field}.holder_name"),
        security_code=SecurityCode.parse(message.security_code, brand=pan.brand, field=f"{field}.security_code"),
    )


def _decode_consent(message: cards_pb2.Consent, *, now: datetime, field: str = "consent") -> Consent:
    until = message.agreed_until if message.HasField("agreed_until") else None
    return Consent.parse(
        terms_version=message.terms_version,
        terms_sha256=message.terms_sha256,
        uses=message.uses,
        channel=message.channel,
        locale=message.locale,
        agreed_until=_decode_moment(until, field=f"{field}.agreed_until") if until is not None else None,
        now=now,
        field=field,
    )


# --- CheckoutService ------------------------------------------------------------------------------------------------


def decode_tokenize(request: checkout_pb2.TokenizeRequest, call: Call, *, now: datetime) -> TokenizeCommand:
    """A card with consent, an order, or both."""
    consented = request.HasField("consent")
    if not consented and not request.order_id:
        raise InvalidField("consent", "give consent to store the card, order_id to pay an order, or both")
    if request.card.security_code and not request.order_id:
        raise InvalidField("card.security_code", "needs an order_id: a security code is never stored")
    if consented and not request.customer_id:
        raise InvalidField("customer_id", "is required with consent")
    return TokenizeCommand(
        caller=call.caller,
        idempotency_key=decode_key(request.idempotency_key),
        customer=CustomerId.parse(request.customer_id, field="customer_id") if request.customer_id else None,
        card=_decode_card(request.card, now=now),
        consent=_decode_consent(request.consent, now=now) if consented else None,
        order=OrderId.parse(request.order_id, field="order_id") if request.order_id else None,
    )


def encode_tokenized(done: Tokenized, *, now: datetime) -> checkout_pb2.TokenizeResponse:
    """The card as it may be shown, and the one-time token if one was asked for."""
    response = checkout_pb2.TokenizeResponse()
    if done.stored is not None:
        put_card(done.stored, response.card, now=now)
    else:
        response.card.brand = _brand(done.card.pan.brand)
        response.card.last4 = done.card.pan.last4()
        response.card.expiry.month = done.card.expiry.month
        response.card.expiry.year = done.card.expiry.year
    if done.one_time_token is not None and done.one_time_expires_at is not None:
        response.one_time_token = done.one_time_token.reveal_text()
        _put_time(done.one_time_expires_at, response.one_time_token_expires_at)
    return response


def decode_batch(request: checkout_pb2.BatchTokenizeRequest, call: Call, *, now: datetime) -> BatchTokenizeCommand:
    """Consented cards; an item that fails its checks becomes its error."""
    if not 1 <= len(request.items) <= MAX_ITEMS:
        raise InvalidField("items", f"must be 1 to {MAX_ITEMS}")
    items: list[TokenizeCommand | CardVaultError] = []
    consents: dict[bytes, Consent] = {}
    for item in request.items:
        try:
            items.append(_decode_item(item, call, consents, now=now))
        except CardVaultError as error:
            items.append(error)
    return BatchTokenizeCommand(caller=call.caller, items=tuple(items))


def _decode_item(
    item: checkout_pb2.BatchTokenizeItem, call: Call, consents: dict[bytes, Consent], *, now: datetime
) -> TokenizeCommand:
    """Most items of a call have the same consent: `consents` has those that passed, by their bytes."""
    if not item.HasField("consent"):
        raise InvalidField("consent", "is required")
    if item.card.security_code:
        raise InvalidField("card.security_code", "must be empty: a security code is never stored")
    key = decode_key(item.idempotency_key)
    customer = CustomerId.parse(item.customer_id, field="customer_id")
    card = _decode_card(item.card, now=now)
    raw = item.consent.SerializeToString()
    if raw not in consents:
        consents[raw] = _decode_consent(item.consent, now=now)
    return TokenizeCommand(
        caller=call.caller, idempotency_key=key, customer=customer, card=card, consent=consents[raw], order=None
    )


def encode_batch(results: Results, call: Call, *, now: datetime) -> checkout_pb2.BatchTokenizeResponse:
    """A card or a reason for each item."""
    response = checkout_pb2.BatchTokenizeResponse()
    for result in results:
        message = response.results.add()
        if isinstance(result, CardVaultError):
            message.failure.code = CODES[result.kind].value[0]
            message.failure.field = result.field
            message.failure.message = result.message
            message.failure.reason = reason_told(result)
            message.failure.error_id = call.caller.request_id
        else:
            assert result.stored is not None, "every item has consent"
            put_card(result.stored, message.card, now=now)
    return response


def decode_issue_grant(request: checkout_pb2.IssueGrantRequest, call: Call) -> IssueGrantCommand:
    """The scope of one release."""
    subject: StoredCardSubject | OneTimeToken
    match request.WhichOneof("subject"):
        case "stored_card":
            subject = StoredCardSubject(
                customer=CustomerId.parse(request.stored_card.customer_id, field="stored_card.customer_id"),
                token=Token.parse(request.stored_card.token),
            )
        case "one_time_token":
            subject = OneTimeToken.parse(request.one_time_token)
        case _:
            raise InvalidField("subject", "give stored_card or one_time_token")
    return IssueGrantCommand(
        caller=call.caller,
        idempotency_key=decode_key(request.idempotency_key),
        subject=subject,
        order=OrderId.parse(request.order_id, field="order_id"),
        amount=decode_money(request.amount),
        purpose=decode_use(request.purpose, field="purpose"),
        processor=ProcessorName.parse(request.processor, field="processor"),
        lifetime=parse_lifetime(_decode_duration(request.lifetime) if request.HasField("lifetime") else None),
    )


def _decode_duration(message: duration_pb2.Duration) -> timedelta:
    try:
        return message.ToTimedelta()
    except (ValueError, OverflowError):
        raise InvalidField("lifetime", "must be a valid duration") from None


def encode_issued_grant(issued: IssuedGrant) -> checkout_pb2.IssueGrantResponse:
    """The grant, for the caller's eyes only."""
    return checkout_pb2.IssueGrantResponse(grant=issued.grant.reveal_text(), expires_at=encode_time(issued.expires_at))


def decode_revoke_grant(request: checkout_pb2.RevokeGrantRequest, call: Call) -> RevokeGrantCommand:
    """A grant to be taken back."""
    return RevokeGrantCommand(caller=call.caller, grant=GrantText.parse_for_issuer(request.grant))


# --- AccountService -------------------------------------------------------------------------------------------------


def decode_list_cards(request: account_pb2.ListCardsRequest, call: Call) -> ListCardsQuery:
    """One page."""
    return ListCardsQuery(
        caller=call.caller,
        limit=decode_page_size(request.page_size),
        customer=CustomerId.parse(request.customer_id, field="customer_id"),
        after=_decode_cursor(request.page_token) if request.page_token else None,
    )


def decode_page_size(asked: int) -> int:
    """How many items a page may have."""
    if not 0 <= asked <= MAX_PAGE_SIZE:
        raise InvalidField("page_size", f"must be 1 to {MAX_PAGE_SIZE}")
    return asked or DEFAULT_PAGE_SIZE


def encode_card_page(page: CardPage, *, now: datetime) -> account_pb2.ListCardsResponse:
    """One page."""
    response = account_pb2.ListCardsResponse()
    for card in page.cards:
        put_card(card, response.cards.add(), now=now)
    if page.next is not None:
        response.next_page_token = _encode_cursor(page.next)
    return response


def _encode_cursor(cursor: PageCursor) -> str:
    return letters.encode(pack_place(cursor.created_at, cursor.token.raw()))


def _decode_cursor(text: str) -> PageCursor:
    return PageCursor(*unpack_place(letters.decode(text), Token))


def pack_place(moment: datetime, raw: bytes) -> bytes:
    """A place in a list that is ordered by time and then by a drawn name."""
    return ((moment - _EPOCH) // _MICROSECOND).to_bytes(8, "big") + raw


def unpack_place(packed: bytes | None, kind: type[_Name]) -> tuple[datetime, _Name]:
    """What `pack_place` made of a name of this kind. Raises `InvalidField`."""
    if packed is None or len(packed) - 8 not in kind.sizes:
        raise InvalidField("page_token", "is not one of ours")
    try:
        moment = _EPOCH + timedelta(microseconds=int.from_bytes(packed[:8], "big"))
    except OverflowError:
        raise InvalidField("page_token", "is not one of ours") from None
    return moment, kind.from_random(packed[8:])


def decode_get_card(request: account_pb2.GetCardRequest, call: Call) -> CardCommand:
    """Which card."""
    return CardCommand(
        caller=call.caller,
        customer=CustomerId.parse(request.customer_id, field="customer_id"),
        token=Token.parse(request.token),
    )


def decode_update_card(request: account_pb2.UpdateCardRequest, call: Call, *, now: datetime) -> UpdateCardCommand:
    """Which card, and its new expiry."""
    return UpdateCardCommand(
        caller=call.caller,
        idempotency_key=decode_key(request.idempotency_key),
        customer=CustomerId.parse(request.customer_id, field="customer_id"),
        expiry=decode_expiry(request.expiry, now=now, field="expiry"),
        token=Token.parse(request.token),
    )


def decode_set_default_card(request: account_pb2.SetDefaultCardRequest, call: Call) -> CardCommand:
    """Which card."""
    return CardCommand(
        caller=call.caller,
        idempotency_key=decode_key(request.idempotency_key),
        customer=CustomerId.parse(request.customer_id, field="customer_id"),
        token=Token.parse(request.token),
    )


def decode_delete_card(request: account_pb2.DeleteCardRequest, call: Call) -> EraseCommand:
    """Which card."""
    return EraseCommand(
        caller=call.caller,
        idempotency_key=decode_key(request.idempotency_key),
        customer=CustomerId.parse(request.customer_id, field="customer_id"),
        token=Token.parse(request.token),
    )


def decode_erase_customer(request: account_pb2.EraseCustomerRequest, call: Call) -> EraseCommand:
    """Whom."""
    return EraseCommand(
        caller=call.caller,
        idempotency_key=decode_key(request.idempotency_key),
        customer=CustomerId.parse(request.customer_id, field="customer_id"),
        token=None,
    )


def encode_receipt(receipt: ErasureReceipt) -> account_pb2.ErasureReceipt:
    """What was erased."""
    return account_pb2.ErasureReceipt(
        event_id=receipt.event_id,
        erased_at=encode_time(receipt.erased_at),
        cards=receipt.erased.cards,
        grants_revoked=receipt.erased.grants_revoked,
        proof=None if receipt.proof is None else encode_proof(receipt.proof),
    )


def encode_proof(proof: InclusionProof) -> account_pb2.InclusionProof:
    """That an event stands in the signed log."""
    return account_pb2.InclusionProof(
        leaf=proof.leaf,
        leaf_index=proof.index,
        tree_size=proof.size,
        path=proof.path,
        checkpoint=proof.checkpoint,
    )

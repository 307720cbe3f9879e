"""The codec of a customer's export."""

from __future__ import annotations

from datetime import datetime

from vault.domain import letters
from vault.domain.errors import InvalidField
from vault.domain.ids import ConsentId, CustomerId, EventId, Token
from vault.ports import ConsentCursor, PageCursor, Release, ReleaseCursor
from vault.rpc.codec import decode_page_size, encode_time, pack_place, put_card, put_consent, unpack_place
from vault.rpc.door import Call
from vault.usecases.export import ExportCursor, ExportPage, ExportQuery
from vault.v1 import account_pb2

_CARDS, _CONSENTS, _RELEASES = 1, 2, 3


def decode_export(request: account_pb2.ExportCustomerRequest, call: Call) -> ExportQuery:
    """One page."""
    return ExportQuery(
        caller=call.caller,
        limit=decode_page_size(request.page_size),
        customer=CustomerId.parse(request.customer_id, field="customer_id"),
        after=_decode_cursor(request.page_token) if request.page_token else None,
    )


def encode_export(page: ExportPage, *, now: datetime) -> account_pb2.ExportCustomerResponse:
    """One page."""
    response = account_pb2.ExportCustomerResponse(
        releases=[_encode_release(release) for release in page.releases],
        next_page_token=_encode_cursor(page.next) if page.next is not None else "",
    )
    for card in page.cards:
        put_card(card, response.cards.add(), now=now)
    for given in page.consents:
        put_consent(given.entry, response.consents.add(), withdrawn_at=given.withdrawn_at)
    return response


def _encode_release(release: Release) -> account_pb2.Release:
    return account_pb2.Release(
        token=release.token or "",
        order_id=release.order,
        processor=release.processor,
        released_at=encode_time(release.released_at),
        by_one_time_token=release.by_one_time_token,
    )


def _encode_cursor(cursor: ExportCursor) -> str:
    match cursor:
        case PageCursor():
            packed = bytes((_CARDS,)) + pack_place(cursor.created_at, cursor.token.raw())
        case ConsentCursor():
            packed = bytes((_CONSENTS,)) + pack_place(cursor.agreed_at, cursor.consent.raw())
        case _:
            packed = bytes((_RELEASES,)) + pack_place(cursor.released_at, cursor.event.raw())
    return letters.encode(packed)


def _decode_cursor(text: str) -> ExportCursor:
    packed = letters.decode(text)
    kind, place = (packed[0], packed[1:]) if packed else (0, None)
    if kind == _CARDS:
        return PageCursor(*unpack_place(place, Token))
    if kind == _CONSENTS:
        return ConsentCursor(*unpack_place(place, ConsentId))
    if kind == _RELEASES:
        return ReleaseCursor(*unpack_place(place, EventId))
    raise InvalidField("page_token", "is not one of ours")

"""The services: each handler decodes, runs one use case, and encodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import structlog

from vault.domain.card import StoredCard
from vault.domain.errors import CardVaultError
from vault.ports import Clock
from vault.rpc import codec, codec_export, codec_processor
from vault.rpc.coalescer import Coalescer
from vault.rpc.door import Call
from vault.usecases.accounts import (
    CardCommand,
    CardPage,
    EraseCommand,
    ErasureReceipt,
    ListCardsQuery,
)
from vault.usecases.batch_tokenize import BatchTokenizeCommand, Results
from vault.usecases.detokenize import DetokenizeCommand, ReleasedCard
from vault.usecases.export import ExportPage, ExportQuery
from vault.usecases.grants import IssuedGrant, IssueGrantCommand, RevokedGrant, RevokeGrantCommand
from vault.usecases.outcomes import OutcomeNoted, ReportOutcomeCommand
from vault.usecases.tokenize import TokenizeCommand, Tokenized
from vault.v1 import account_pb2, cards_pb2, checkout_pb2, processor_pb2

_log = structlog.get_logger()

Q = TypeVar("Q")
R = TypeVar("R")


class RunWork(Protocol):
    """Runs a function on a worker thread."""

    def __call__(self, work: Callable[[Q], R], argument: Q, /) -> Awaitable[R]:
        """Its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutServicer:
    """CheckoutService."""

    clock: Clock
    work: RunWork
    tokenize: Coalescer[TokenizeCommand, Tokenized]
    batch_tokenize: Coalescer[BatchTokenizeCommand, Results]
    issue_grant: Coalescer[IssueGrantCommand, IssuedGrant]
    revoke_grant: Coalescer[RevokeGrantCommand, RevokedGrant]

    async def Tokenize(self, request: checkout_pb2.TokenizeRequest, call: Call) -> checkout_pb2.TokenizeResponse:
        """See the proto."""
        command = codec.decode_tokenize(request, call, now=self.clock.now())
        done = await self.tokenize.submit(command, budget=call.budget)
        return codec.encode_tokenized(done, now=self.clock.now())

    async def BatchTokenize(
        self, request: checkout_pb2.BatchTokenizeRequest, call: Call
    ) -> checkout_pb2.BatchTokenizeResponse:
        """See the proto."""
        # On a worker: so many cards at once would hold up all other calls.
        command = await self.work(partial(codec.decode_batch, request, now=self.clock.now()), call)
        results = await self.batch_tokenize.submit(command, budget=call.budget)
        failed = [result for result in results if isinstance(result, CardVaultError)]
        if failed:
            _log.info(
                "batch.items_refused",
                method="BatchTokenize",
                count=len(failed),
                reason=failed[0].reason,
                field=failed[0].field,
                error_id=call.caller.request_id,
                identity=call.caller.known.uri,
            )
        return await self.work(partial(codec.encode_batch, results, now=self.clock.now()), call)

    async def IssueGrant(self, request: checkout_pb2.IssueGrantRequest, call: Call) -> checkout_pb2.IssueGrantResponse:
        """See the proto."""
        command = codec.decode_issue_grant(request, call)
        return codec.encode_issued_grant(await self.issue_grant.submit(command, budget=call.budget))

    async def RevokeGrant(
        self, request: checkout_pb2.RevokeGrantRequest, call: Call
    ) -> checkout_pb2.RevokeGrantResponse:
        """See the proto."""
        await self.revoke_grant.submit(codec.decode_revoke_grant(request, call), budget=call.budget)
        return checkout_pb2.RevokeGrantResponse()


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountServicer:
    """AccountService."""

    clock: Clock
    list_cards: Coalescer[ListCardsQuery, CardPage]
    get_card: Coalescer[CardCommand, StoredCard]
    update_card: Coalescer[CardCommand, StoredCard]
    set_default_card: Coalescer[CardCommand, StoredCard]
    erase: Coalescer[EraseCommand, ErasureReceipt]
    export: Coalescer[ExportQuery, ExportPage]

    async def ListCards(self, request: account_pb2.ListCardsRequest, call: Call) -> account_pb2.ListCardsResponse:
        """See the proto."""
        page = await self.list_cards.submit(codec.decode_list_cards(request, call), budget=call.budget)
        return codec.encode_card_page(page, now=self.clock.now())

    async def GetCard(self, request: account_pb2.GetCardRequest, call: Call) -> account_pb2.GetCardResponse:
        """See the proto."""
        card = await self.get_card.submit(codec.decode_get_card(request, call), budget=call.budget)
        return account_pb2.GetCardResponse(card=self._shown(card))

    async def UpdateCard(self, request: account_pb2.UpdateCardRequest, call: Call) -> account_pb2.UpdateCardResponse:
        """See the proto."""
        command = codec.decode_update_card(request, call, now=self.clock.now())
        card = await self.update_card.submit(command, budget=call.budget)
        return account_pb2.UpdateCardResponse(card=self._shown(card))

    async def SetDefaultCard(
        self, request: account_pb2.SetDefaultCardRequest, call: Call
    ) -> account_pb2.SetDefaultCardResponse:
        """See the proto."""
        card = await self.set_default_card.submit(codec.decode_set_default_card(request, call), budget=call.budget)
        return account_pb2.SetDefaultCardResponse(card=self._shown(card))

    async def DeleteCard(self, request: account_pb2.DeleteCardRequest, call: Call) -> account_pb2.DeleteCardResponse:
        """See the proto."""
        receipt = await self.erase.submit(codec.decode_delete_card(request, call), budget=call.budget)
        return account_pb2.DeleteCardResponse(receipt=codec.encode_receipt(receipt))

    async def EraseCustomer(
        self, request: account_pb2.EraseCustomerRequest, call: Call
    ) -> account_pb2.EraseCustomerResponse:
        """See the proto."""
        receipt = await self.erase.submit(codec.decode_erase_customer(request, call), budget=call.budget)
        return account_pb2.EraseCustomerResponse(receipt=codec.encode_receipt(receipt))

    async def ExportCustomer(
        self, request: account_pb2.ExportCustomerRequest, call: Call
    ) -> account_pb2.ExportCustomerResponse:
        """See the proto."""
        page = await self.export.submit(codec_export.decode_export(request, call), budget=call.budget)
        return codec_export.encode_export(page, now=self.clock.now())

    def _shown(self, card: StoredCard) -> cards_pb2.Card:
        return codec.encode_card(card, now=self.clock.now())


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorServicer:
    """ProcessorService."""

    clock: Clock
    detokenize: Coalescer[DetokenizeCommand, ReleasedCard]
    report_outcome: Coalescer[ReportOutcomeCommand, OutcomeNoted]

    async def Detokenize(
        self, request: processor_pb2.DetokenizeRequest, call: Call
    ) -> processor_pb2.DetokenizeResponse:
        """See the proto."""
        command = codec_processor.decode_detokenize(request, call, now=self.clock.now())
        released = await self.detokenize.submit(command, budget=call.budget)
        return codec_processor.encode_released_card(released)

    async def ReportOutcome(
        self, request: processor_pb2.ReportOutcomeRequest, call: Call
    ) -> processor_pb2.ReportOutcomeResponse:
        """See the proto."""
        await self.report_outcome.submit(codec_processor.decode_report_outcome(request, call), budget=call.budget)
        return processor_pb2.ReportOutcomeResponse()

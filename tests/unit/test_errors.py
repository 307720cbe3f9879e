"""What a caller is told of an error."""

from __future__ import annotations

import grpc
import pytest

from vault.client.errors import Failure
from vault.domain.errors import CardVaultError, Contention, Exhausted, KeyRingUnavailable, StoreUnavailable
from vault.domain.ids import RequestId
from vault.rpc.errors import Answer, answer_to

REQUEST = RequestId.from_random(bytes(16))


class _Received:
    """An answer as gRPC hands it over."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def code(self) -> grpc.StatusCode:
        return self._answer.code

    def details(self) -> str:
        return self._answer.text

    def trailing_metadata(self) -> object:
        return self._answer.trailing_metadata


@pytest.mark.parametrize(
    ("error", "says_when"),
    [
        (StoreUnavailable("database_unreachable"), True),
        (KeyRingUnavailable("vault_sealed"), True),
        (Exhausted("queue_full"), True),
        (Contention("too_many_rounds"), True),
        # It may have happened: a redemption that is repeated would then stand in the log as a refused one.
        (StoreUnavailable("commit_unknown"), False),
    ],
)
def test_a_caller_is_told_when_to_repeat_what_did_not_happen(error: CardVaultError, *, says_when: bool) -> None:
    failure = Failure.of(_Received(answer_to(error, REQUEST)))

    assert (failure.retry_after is not None) is says_when

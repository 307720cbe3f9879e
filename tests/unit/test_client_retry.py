"""What the client repeats, after which pause, and with which error it gives up."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from tests.support.cards import fresh_digits
from vault.client import (
    CallError,
    CardInput,
    CardUse,
    Checkout,
    ClientClosed,
    Conflict,
    Consent,
    ConsentChannel,
    ConsentRequired,
    Contention,
    DidNotHappen,
    Expiry,
    ImportItem,
    InvalidArgument,
    NotAvailable,
    NotServed,
    Options,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    Refused,
    Unavailable,
)
from vault.client.calls import Call, Effect, Request
from vault.client.clients import _read
from vault.client.errors import Failure
from vault.client.retry import Attempts, Budget
from vault.v1 import checkout_pb2
from vault.v1.account_pb2 import ListCardsResponse

Code = grpc.StatusCode
T = TypeVar("T")
UNKNOWN_CODES = [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNKNOWN, Code.INTERNAL]
DEFINITE = {
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.PERMISSION_DENIED: Refused,
    Code.NOT_FOUND: NotAvailable,
    Code.FAILED_PRECONDITION: PreconditionFailed,
    Code.ALREADY_EXISTS: Conflict,
    Code.ABORTED: Contention,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.UNIMPLEMENTED: NotServed,
}
SAID_BEFORE_LOOKING = [
    *(Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.UNIMPLEMENTED),
    *(Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT),
]
NO_CONNECTION = Failure(Code.UNAVAILABLE, "failed to connect to all addresses; last error: …")
LOST = Failure(Code.UNAVAILABLE, "Socket closed")
SOON = timedelta(milliseconds=200)


def attempts(effect: Effect = Effect.WRITE, *, key: str = "key_x", budget: Budget | None = None) -> Attempts:
    call = Call("/s/M", Request(b""), bytes, effect, timedelta(seconds=10), key)
    return Attempts(call, Options(), budget or Budget(20), now=100.0)


def error_after(*failures: Failure, effect: Effect = Effect.WRITE, last: float = 100.0) -> CallError:
    tried = attempts(effect)
    for failure in failures[:-1]:
        assert isinstance(tried.pause_after(failure, 100.0), float)
    ended = tried.pause_after(failures[-1], last)
    assert isinstance(ended, CallError)
    return ended


@pytest.mark.parametrize("code", UNKNOWN_CODES)
@pytest.mark.parametrize("effect", [Effect.READ, Effect.WRITE])
def test_an_unknown_outcome_is_repeated(code: grpc.StatusCode, effect: Effect) -> None:
    assert isinstance(attempts(effect).pause_after(Failure(code), 100.0), float)


@pytest.mark.parametrize("code", DEFINITE)
@pytest.mark.parametrize("effect", Effect)
def test_a_definite_answer_is_never_repeated_unless_the_server_says_when(code: grpc.StatusCode, effect: Effect) -> None:
    error = attempts(effect).pause_after(Failure(code), 100.0)

    assert type(error) is DEFINITE[code]
    assert isinstance(error, DidNotHappen)


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.ABORTED])
@pytest.mark.parametrize("effect", Effect)
def test_a_server_that_says_when_is_asked_then_and_not_before(code: grpc.StatusCode, effect: Effect) -> None:
    pauses = [attempts(effect).pause_after(Failure(code, retry_after=SOON), 100.0) for _ in range(50)]

    assert all(isinstance(pause, float) and 0.2 <= pause <= 0.25 for pause in pauses)
    assert len(set(pauses)) > 1


CLOSED = Failure(Code.CANCELLED, "this client is closed", is_closed=True)


@pytest.mark.parametrize("effect", Effect)
def test_a_client_that_is_closed_did_nothing_and_repeats_nothing(effect: Effect) -> None:
    error = attempts(effect).pause_after(CLOSED, 100.0)

    assert type(error) is ClientClosed
    assert isinstance(error, RuntimeError), "as it was before"


@pytest.mark.parametrize(("lost", "kind"), [(LOST, OutcomeUnknown), (NO_CONNECTION, ClientClosed)])
def test_a_client_that_was_closed_between_two_attempts_knows_what_the_first_one_left(
    lost: Failure, kind: type[CallError]
) -> None:
    assert type(error_after(lost, CLOSED)) is kind
    assert type(error_after(lost, CLOSED, effect=Effect.READ)) is ClientClosed


def _batch(*failed: int) -> bytes:
    failures = [checkout_pb2.BatchTokenizeFailure(code=code, message="no") for code in failed]
    results = [checkout_pb2.BatchTokenizeResult(failure=each) for each in failures]
    return checkout_pb2.BatchTokenizeResponse(results=results).SerializeToString()


class _Described(Checkout):
    """Says what it would send."""

    def __init__(self) -> None:
        self.described: list[Call[Any]] = []

    def run(self, described: Call[T], /) -> T:
        self.described.append(described)
        return described.answer(_batch(3))


def test_an_item_of_a_batch_whose_first_answer_was_lost_may_have_been_stored() -> None:
    checkout = _Described()
    consent = Consent(
        terms_version="1",
        terms_sha256=bytes(32),
        uses=(CardUse.CUSTOMER_INITIATED,),
        channel=ConsentChannel.WEB,
        locale="en",
    )
    card = CardInput(fresh_digits(), expiry=Expiry(year=2050, month=1))
    item = ImportItem(customer="ada", card=card, consent=consent)
    checkout.batch_tokenize([item])
    (described,) = checkout.described
    codes = [code.value[0] for code in DEFINITE]

    for code, kind in zip(codes, DEFINITE.values(), strict=True):
        first, after_loss = (_read(described, _batch(code), after_loss=lost) for lost in (False, True))

        assert isinstance(first, tuple)
        assert isinstance(after_loss, tuple)
        assert type(first[0][0].error) is kind
        expected = OutcomeUnknown if error_after(LOST, Failure(_code(code))).__class__ is OutcomeUnknown else kind
        assert type(after_loss[0][0].error) is expected
        assert after_loss[0][0].error.idempotency_key == first[0][0].error.idempotency_key
    assert {error_after(LOST, Failure(code)).__class__ for code in SAID_BEFORE_LOOKING} == {OutcomeUnknown}


def _code(number: int) -> grpc.StatusCode:
    return next(each for each in grpc.StatusCode if each.value[0] == number)


def test_pauses_are_random_and_grow_to_a_bound() -> None:
    tried = [attempts(budget=Budget(1000)) for _ in range(200)]
    longest = []
    for _ in range(9):
        pauses = [each.pause_after(LOST, 100.0) for each in tried]
        assert all(isinstance(pause, float) for pause in pauses)
        longest.append(max(pause for pause in pauses if isinstance(pause, float)))

    assert longest[0] <= 0.05
    assert longest[2] > 0.05
    assert 1.0 < max(longest) <= 2.0


def test_no_attempt_outlives_the_call() -> None:
    tried = attempts()

    assert tried.seconds(100.0) == 5.0
    assert tried.seconds(108.0) == 2.0
    assert tried.seconds(111.0) == 0.0
    assert isinstance(
        tried.pause_after(Failure(Code.UNAVAILABLE, retry_after=timedelta(seconds=3)), 108.0), Unavailable
    )


def test_a_redemption_has_all_the_time_at_once() -> None:
    assert attempts(Effect.REDEEM).seconds(100.0) == 10.0


def test_the_budget_stops_repeats_and_fills_again_by_successes() -> None:
    budget = Budget(20)

    repeated = [isinstance(attempts(budget=budget).pause_after(LOST, 100.0), float) for _ in range(15)]
    for _ in range(70):
        attempts(budget=budget).succeeded()

    assert repeated == [True] * 9 + [False] * 6
    assert isinstance(attempts(budget=budget).pause_after(LOST, 100.0), float)


@pytest.mark.parametrize("failure", [Failure(Code.NOT_FOUND), NO_CONNECTION])
def test_what_burdens_no_server_does_not_use_up_the_budget(failure: Failure) -> None:
    budget = Budget(20)

    for _ in range(100):
        attempts(budget=budget).pause_after(failure, 100.0)

    assert isinstance(attempts(budget=budget).pause_after(LOST, 100.0), float)


def test_under_lasting_trouble_a_client_sends_hardly_more_than_it_is_asked_to() -> None:
    budget, sent = Budget(20), 0
    for call in range(1000):
        tried = attempts(budget=budget)
        sent += 1
        while isinstance(tried.pause_after(LOST, 100.0), float) and sent < 10_000:
            sent += 1
        if call % 2:
            tried.succeeded()

    assert sent <= 1000 * 1.5


# --- redemptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", UNKNOWN_CODES)
def test_a_redemption_whose_answer_was_lost_is_not_repeated(code: grpc.StatusCode) -> None:
    error = error_after(Failure(code, "Socket closed"), effect=Effect.REDEEM)

    assert isinstance(error, OutcomeUnknown)
    assert "ask the shop for a new grant" in str(error)


@pytest.mark.parametrize(
    "failure", [NO_CONNECTION, Failure(Code.UNAVAILABLE, "unavailable", "req_x", retry_after=SOON)]
)
def test_a_redemption_that_the_vault_did_not_carry_out_is_repeated(failure: Failure) -> None:
    assert isinstance(attempts(Effect.REDEEM).pause_after(failure, 100.0), float)


def test_a_refusal_after_an_unknown_attempt_does_not_pass_for_a_bad_grant() -> None:
    maybe = Failure(Code.UNAVAILABLE, "unavailable", "req_x", retry_after=SOON)
    refused = Failure(Code.PERMISSION_DENIED, "refused", "req_y")

    assert type(error_after(maybe, refused, effect=Effect.REDEEM)) is OutcomeUnknown
    assert type(error_after(NO_CONNECTION, refused, effect=Effect.REDEEM)) is Refused
    assert type(error_after(refused, effect=Effect.REDEEM)) is Refused


def test_a_redemption_that_was_never_sent_has_not_used_up_the_grant() -> None:
    error = error_after(NO_CONNECTION, NO_CONNECTION, effect=Effect.REDEEM, last=109.99)

    assert type(error) is Unavailable
    assert "new grant" not in str(error)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", SAID_BEFORE_LOOKING)
def test_that_the_second_attempt_did_nothing_says_nothing_of_the_first(code: grpc.StatusCode) -> None:
    assert type(error_after(LOST, Failure(code))) is OutcomeUnknown
    assert type(error_after(NO_CONNECTION, Failure(code))) is DEFINITE[code]
    assert type(error_after(LOST, Failure(code), effect=Effect.READ)) is DEFINITE[code]


def test_an_answer_that_looks_at_the_first_attempt_is_definite() -> None:
    assert type(error_after(LOST, Failure(Code.NOT_FOUND))) is NotAvailable
    assert type(error_after(LOST, Failure(Code.ALREADY_EXISTS))) is Conflict


def test_an_unknown_outcome_carries_the_key_to_repeat_it_with() -> None:
    error = error_after(LOST, LOST, last=109.99)

    assert (error.idempotency_key, error.method) == ("key_x", "M")
    assert "same idempotency key" in str(error)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("CONSENT_NOT_COVERING", ConsentRequired),
        ("CONSENT_ENDED", ConsentRequired),
        ("ONE_TIME_TOKEN_FOR_MERCHANT", ConsentRequired),
        ("GRANT_USED", PreconditionFailed),
    ],
)
def test_a_failed_precondition_is_known_by_its_reason(reason: str, kind: type[CallError]) -> None:
    assert Failure(Code.FAILED_PRECONDITION, reason=reason).kind is kind


@pytest.mark.parametrize("code", [Code.DATA_LOSS, Code.OUT_OF_RANGE, Code.DEADLINE_EXCEEDED])
def test_whatever_is_not_known_to_be_definite_is_unknown(code: grpc.StatusCode) -> None:
    assert Failure(code).kind is OutcomeUnknown


class _WireError:
    """An error as gRPC hands it over."""

    def __init__(self, text: str, *details: any_pb2.Any, error_id: str = "req_x") -> None:
        self._text = text
        status = status_pb2.Status(code=3, details=details)
        self._metadata = (("cardvault-error-id", error_id), ("grpc-status-details-bin", status.SerializeToString()))

    def code(self) -> grpc.StatusCode:
        return Code.INVALID_ARGUMENT

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata


def _packed(message: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def test_details_of_an_answer_are_read() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="card.pan", description="must be 12 to 19 digits")
    error = Failure.of(
        _WireError(
            "card.pan: must be 12 to 19 digits",
            _packed(error_details_pb2.BadRequest(field_violations=[violation])),
            _packed(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))),
        )
    )

    assert error.violations[0].field == "card.pan"
    assert error.retry_after == timedelta(seconds=1.5)
    assert error.error_id == "req_x"


@pytest.mark.parametrize("seconds", [-(2**62), 2**62])
def test_a_wait_that_no_clock_can_hold_is_still_an_error_of_ours(seconds: int) -> None:
    told = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds))

    failure = Failure.of(_WireError("unavailable", _packed(told)))

    assert failure.retry_after in (timedelta(), timedelta(days=1))


@pytest.mark.parametrize(
    "read", [lambda _: ListCardsResponse.FromString(b"\xff"), lambda _: Timestamp(seconds=2**60).ToDatetime()]
)
def test_an_answer_that_cannot_be_read_leaves_the_outcome_unknown(read: Callable[[bytes], Any]) -> None:
    found = _read(Call("/s/M", Request(b""), read, Effect.WRITE, None), b"answer")

    assert found == Failure(Code.INTERNAL, "the answer cannot be read")


def test_no_time_at_all_is_not_the_default_time() -> None:
    call = Call("/s/M", Request(b""), bytes, Effect.READ, timedelta())

    assert Attempts(call, Options(), Budget(20), now=100.0).seconds(100.0) == 0


@pytest.mark.parametrize("write", [str, " ".join, "-".join, lambda digits: f"x{digits}y{digits}"])
def test_a_number_in_a_foreign_text_is_withheld(write: type[str]) -> None:
    digits = fresh_digits()
    violation = error_details_pb2.BadRequest.FieldViolation(field="f", description=write(digits))
    packed = _packed(error_details_pb2.BadRequest(field_violations=[violation]))

    failure = Failure.of(_WireError(f"odd: {write(digits)}", packed, error_id=write(digits)))

    assert digits[4:12] not in "".join(c for c in repr(failure) + str(InvalidArgument(failure)) if c.isdigit())


def test_errors_survive_the_way_between_processes() -> None:
    error = error_after(Failure(Code.NOT_FOUND, "not available", "req_x"))

    again = pickle.loads(pickle.dumps(error))

    assert (type(again), str(again), again.error_id) == (NotAvailable, str(error), "req_x")

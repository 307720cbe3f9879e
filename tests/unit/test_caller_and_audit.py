"""Who is calling, what an audit event takes from it, and what errors say."""

from __future__ import annotations

import dataclasses
import inspect
import os

import pytest

from tests.support.world import NOW, PROCESSOR, TENANT, caller, checkout_identity, processor_identity
from vault.domain import errors
from vault.domain.audit import RELEASED, AuditEvent, Outcome, event_by
from vault.domain.caller import Caller, Role
from vault.domain.errors import CardVaultError, InvalidField, Kind, NotAvailable, Refused
from vault.domain.ids import EventId


def _event(by: Caller, **changes: object) -> AuditEvent:
    event = event_by(by, event_id=EventId.from_random(os.urandom(16)), now=NOW, event=RELEASED)
    return dataclasses.replace(event, **changes)  # type: ignore[arg-type]


def test_a_checkout_speaks_for_its_one_tenant() -> None:
    assert checkout_identity().tenant == TENANT


def test_a_processor_has_no_tenant_of_its_own() -> None:
    with pytest.raises(TypeError):
        _ = processor_identity().tenant


def test_behind_the_door_an_unknown_caller_is_a_mistake() -> None:
    identity = checkout_identity()

    assert caller(identity).known is identity
    with pytest.raises(TypeError):
        _ = caller(None).known


def test_an_event_takes_who_and_where_from_the_call() -> None:
    by = caller(checkout_identity())

    event = _event(by)

    assert (event.actor, event.role, event.tenant, event.processor) == (checkout_identity().uri, "checkout", TENANT, "")
    assert (event.actor_certificate, event.peer, event.request_id) == (by.certificate_sha256, by.peer, by.request_id)
    assert (event.outcome, event.reason, event.occurred_at) == (Outcome.OK, "", NOW)


def test_an_event_of_a_processor_names_it_and_no_tenant_unless_told() -> None:
    by = caller(processor_identity())
    told = event_by(by, event_id=EventId.from_random(bytes(16)), now=NOW, event=RELEASED, tenant=TENANT)

    assert (_event(by).processor, _event(by).tenant) == (PROCESSOR, "")
    assert told.tenant == TENANT


def test_an_event_of_an_unknown_caller_names_what_was_presented() -> None:
    event = _event(caller(None))

    assert (event.actor, event.role, event.tenant, event.processor) == ("spiffe://example.test/nobody", "", "", "")


def test_an_event_has_no_place_for_card_data() -> None:
    names = {field.name for field in dataclasses.fields(AuditEvent)}

    assert names.isdisjoint({"pan", "last4", "expiry", "holder_name", "security_code", "grant", "one_time_token"})


@pytest.mark.parametrize("role", Role)
def test_roles_are_written_in_small_letters(role: Role) -> None:
    assert role.label == role.name.lower()


ERRORS = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, CardVaultError) and error is not CardVaultError
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_every_error_has_a_kind_and_tells_the_caller_fixed_words(error: type[CardVaultError]) -> None:
    raised = InvalidField("some.field", "is wrong") if error is InvalidField else error("secret_reason")

    assert isinstance(raised.kind, Kind)
    assert "secret_reason" not in raised.message
    assert raised.args == (raised.reason,)


def test_whatever_is_not_available_or_refused_is_so_in_the_same_words() -> None:
    assert {NotAvailable(reason).message for reason in ("unknown", "foreign", "erased")} == {"not available"}
    assert {Refused(reason).message for reason in ("used", "expired", "unknown_grant")} == {"refused"}

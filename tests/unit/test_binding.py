"""The binding: no two different ones share an encoding, and the bytes are those of the golden vectors."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cards import PUBLISHED_VISA
from tests.vectors import make_vectors
from vault import cleanroom
from vault.domain.binding import Binding, fingerprint_message, one_time_binding, stored_card_binding
from vault.domain.ids import ConsentId, CustomerId, OnceId, OrderId, TenantId, Token
from vault.domain.pan import Pan

VECTORS = Path(__file__).parents[1] / "vectors"
STORED = json.loads((VECTORS / "stored_card.json").read_text())
ONCE = json.loads((VECTORS / "one_time_token.json").read_text())

# Values shorter and stranger than any that is accepted, so that what one field loses another can gain.
fields = st.tuples(*[st.text("ab\0", max_size=3)] * 5)


def _stored(values: tuple[str, ...], record_version: int = 1) -> Binding:
    environment, tenant, customer, token, consent = values
    return stored_card_binding(
        environment=environment,
        tenant=TenantId(tenant),
        customer=CustomerId(customer),
        token=Token(token),
        consent=ConsentId(consent),
        record_version=record_version,
    )


def _once(values: tuple[str, ...], expires_at: datetime) -> Binding:
    environment, tenant, once_id, order = values[:4]
    return one_time_binding(
        environment=environment,
        tenant=TenantId(tenant),
        once_id=OnceId(once_id),
        order=OrderId(order),
        expires_at=expires_at,
    )


moments = st.datetimes(min_value=datetime(1971, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds UTC


@given(fields, fields)
def test_different_fields_give_different_bindings(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert (_stored(one).encoded == _stored(other).encoded) == (one == other)


@given(fields, fields, moments, moments)
def test_different_one_time_fields_give_different_bindings(
    one: tuple[str, ...], other: tuple[str, ...], soon: datetime, later: datetime
) -> None:
    same = one[:4] == other[:4] and soon == later

    assert (_once(one, soon).encoded == _once(other, later).encoded) == same


@given(fields, fields, moments)
def test_a_stored_card_and_a_one_time_token_never_share_a_binding(
    one: tuple[str, ...], other: tuple[str, ...], moment: datetime
) -> None:
    assert _stored(one).encoded != _once(other, moment).encoded


@given(st.tuples(*[st.text("ab1", max_size=3)] * 4), st.tuples(*[st.text("ab1", max_size=3)] * 4))
def test_different_owners_or_numbers_give_different_fingerprint_messages(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    def message(values: tuple[str, ...]) -> bytes:
        environment, tenant, customer, digits = values
        return fingerprint_message(
            environment=environment, tenant=TenantId(tenant), customer=CustomerId(customer), digits=digits
        )

    assert (message(one) == message(other)) == (one == other)


@given(fields, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_the_record_version_changes_the_associated_data_and_not_the_wrap(
    values: tuple[str, ...], one: int, other: int
) -> None:
    first, second = _stored(values, one), _stored(values, other)

    assert first.wrap_context() == second.wrap_context()
    assert (first.aad(1) == second.aad(1)) == (one == other)


@given(fields, st.integers(0, 255), st.integers(0, 255))
def test_the_suite_changes_the_associated_data(values: tuple[str, ...], one: int, other: int) -> None:
    binding = _stored(values)

    assert (binding.aad(one) == binding.aad(other)) == (one == other)


def test_a_microsecond_of_the_expiry_changes_the_binding() -> None:
    moment = datetime(2026, 6, 15, tzinfo=UTC)

    assert (
        _once(("e", "t", "i", "o"), moment).encoded
        != _once(("e", "t", "i", "o"), moment + timedelta(microseconds=1)).encoded
    )


def test_a_field_too_long_for_its_length_prefix_is_refused() -> None:
    with pytest.raises(OverflowError):
        _stored(("a" * 65536, "", "", "", ""))


# --- golden vectors ---


def stored_vector_binding() -> Binding:
    """The binding of the golden stored card."""
    given = STORED["given"]
    return stored_card_binding(
        environment=given["environment"],
        tenant=TenantId(given["tenant"]),
        customer=CustomerId(given["customer"]),
        token=Token.from_random(bytes.fromhex(given["token"])),
        consent=ConsentId.from_random(bytes.fromhex(given["consent"])),
        record_version=given["record_version"],
    )


def once_vector_binding() -> Binding:
    """The binding of the golden one-time token."""
    given = ONCE["given"]
    return one_time_binding(
        environment=given["environment"],
        tenant=TenantId(given["tenant"]),
        once_id=OnceId.from_random(bytes.fromhex(given["once_id"])),
        order=OrderId(given["order"]),
        expires_at=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=given["expires_at_microseconds"]),
    )


@pytest.mark.parametrize(
    ("binding", "vector"),
    [(stored_vector_binding(), STORED), (once_vector_binding(), ONCE)],
    ids=["stored card", "one-time token"],
)
def test_binding_context_and_associated_data_are_those_of_the_golden_vectors(
    binding: Binding, vector: dict[str, str]
) -> None:
    assert binding.encoded.hex() == vector["binding"]
    assert binding.wrap_context().hex() == vector["wrap_context"]
    assert binding.aad(1).hex() == vector["aad"]


def test_the_fingerprint_message_is_that_of_the_golden_vector() -> None:
    given = STORED["given"]

    message = cleanroom.fingerprint_message(
        Pan.parse(PUBLISHED_VISA),
        environment=given["environment"],
        tenant=TenantId(given["tenant"]),
        customer=CustomerId(given["customer"]),
    )

    assert message.hex() == STORED["fingerprint_message"]


def test_the_vectors_are_what_their_script_makes() -> None:
    made = make_vectors.make()

    kept = {name: json.loads((VECTORS / name).read_text()) for name in made}

    assert kept == json.loads(json.dumps(made))

"""The cleanroom: what is sealed opens in its own row, whole, or not at all."""

from __future__ import annotations

import itertools
import json
import os
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cards import made_up_digits
from tests.support.problems import problem_of
from tests.support.world import FixedEntropy, SystemEntropy
from tests.unit.test_binding import once_vector_binding, stored_vector_binding
from vault.cleanroom import DATA_KEY_BYTES, DataKey, OpenedCard, fingerprint_message, open_sealed
from vault.domain.binding import Binding, one_time_binding, stored_card_binding
from vault.domain.brand import Brand
from vault.domain.card import CardDetails, Expiry, HolderName, SecurityCode
from vault.domain.errors import BrokenSeal
from vault.domain.ids import ConsentId, CustomerId, OnceId, OrderId, TenantId, Token
from vault.domain.pan import Pan

VECTORS = Path(__file__).parents[1] / "vectors"
ENTROPY = SystemEntropy()
LENGTHS = range(12, 20)


def _card(digits: str | None = None, *, name: str = "Zoë Example", code: str = "") -> CardDetails:
    pan = Pan.parse(digits or made_up_digits(brand=Brand.VISA, length=16))
    return CardDetails(pan, Expiry(year=2030, month=9), HolderName.parse(name), SecurityCode(code))


def _binding(**changes: Any) -> Binding:
    given: dict[str, Any] = {
        "environment": "test",
        "tenant": TenantId("shop-a"),
        "customer": CustomerId("customer-1"),
        "token": Token.from_random(bytes(16)),
        "consent": ConsentId.from_random(bytes(16)),
        "record_version": 1,
    }
    return stored_card_binding(**given | changes)


def _once_binding(**changes: Any) -> Binding:
    given: dict[str, Any] = {
        "environment": "test",
        "tenant": TenantId("shop-a"),
        "once_id": OnceId.from_random(bytes(16)),
        "order": OrderId("order-1"),
        "expires_at": datetime(2026, 6, 15, tzinfo=UTC),
    }
    return one_time_binding(**given | changes)


def _seal(card: CardDetails, binding: Binding) -> tuple[bytes, bytes]:
    key = DataKey(ENTROPY)
    return key.seal_stored(card, binding, ENTROPY), key.for_wrapping()


def _opens(sealed: bytes, data_key: bytes, binding: Binding) -> bool:
    try:
        open_sealed(sealed, data_key=data_key, binding=binding)
    except BrokenSeal:
        return False
    return True


# --- there and back ---


names = st.text(max_size=64).filter(lambda text: problem_of(HolderName.parse, text) is None)


@given(st.integers(0, 2**64).map(random.Random), names)
def test_a_stored_card_opens_to_number_and_name_without_code_and_expiry(rng: random.Random, name: str) -> None:
    card = _card(made_up_digits(rng=rng), name=name, code="123")
    sealed, key = _seal(card, _binding())

    opened = open_sealed(sealed, data_key=key, binding=_binding())

    assert opened == OpenedCard(card.pan, None, card.holder_name, SecurityCode(""))


@given(st.integers(0, 2**64).map(random.Random), names, st.sampled_from(["", "123", "1234"]))
def test_a_one_time_token_opens_to_the_whole_card(rng: random.Random, name: str, code: str) -> None:
    card = _card(made_up_digits(rng=rng), name=name, code=code)
    key = DataKey(ENTROPY)

    sealed = key.seal_once(card, _once_binding(), ENTROPY)
    opened = open_sealed(sealed, data_key=key.for_wrapping(), binding=_once_binding())

    assert opened == OpenedCard(card.pan, card.expiry, card.holder_name, card.security_code)


def test_the_security_code_is_not_in_what_is_sealed_for_storage() -> None:
    card = _card(code="987")
    key = DataKey(ENTROPY)
    sealed = key.seal_stored(card, _binding(), ENTROPY)

    plaintext = AESGCM(key.for_wrapping()).decrypt(sealed[1:13], sealed[13:], _binding().aad(1))

    pan, name = card.pan.reveal().encode(), card.holder_name.reveal_text().encode()
    assert plaintext.rstrip(b"\0") == b"\x01" + bytes((16,)) + pan + b"\0" + bytes((len(name),)) + name


def test_an_opened_card_does_not_print_itself() -> None:
    card = _card(code="987")
    key = DataKey(ENTROPY)
    sealed = key.seal_once(card, _once_binding(), ENTROPY)

    shown = repr(open_sealed(sealed, data_key=key.for_wrapping(), binding=_once_binding()))

    assert card.pan.reveal()[:6] not in shown
    assert "Zoë" not in shown
    assert "987" not in shown.replace(card.pan.last4(), "")


# --- a row exchanged or altered ---


@dataclass(frozen=True)
class _Row:
    fields: dict[str, Any]
    ciphertext: bytes
    data_key: bytes


def _matrix(one: _Row, other: _Row, make: Any) -> dict[tuple[str, ...], bool]:
    """For each combination of exchanged fields, whether the row still opens."""
    columns = [*one.fields, "ciphertext", "data_key"]
    result = {}
    for choice in itertools.product((False, True), repeat=len(columns)):
        taken = dict(zip(columns, choice, strict=True))
        binding = make(**{name: (other if taken[name] else one).fields[name] for name in one.fields})
        ciphertext = (other if taken["ciphertext"] else one).ciphertext
        data_key = (other if taken["data_key"] else one).data_key
        exchanged = tuple(name for name in columns if taken[name])
        result[exchanged] = _opens(ciphertext, data_key, binding)
    return result


def test_every_exchange_between_two_stored_cards_breaks_the_seal() -> None:
    one, other = (
        {
            "environment": environment,
            "tenant": TenantId(f"shop-{environment}"),
            "customer": CustomerId(f"customer-{environment}"),
            "token": Token.from_random(os.urandom(16)),
            "consent": ConsentId.from_random(os.urandom(16)),
            "record_version": version,
        }
        for environment, version in (("test", 1), ("prod", 2))
    )

    matrix = _matrix(
        _Row(one, *_seal(_card(), _binding(**one))), _Row(other, *_seal(_card(), _binding(**other))), _binding
    )

    assert len(matrix) == 2**8
    assert [exchanged for exchanged, opens in matrix.items() if opens] == [(), (*one, "ciphertext", "data_key")]


def test_every_exchange_between_two_one_time_tokens_breaks_the_seal() -> None:
    moment = datetime(2026, 6, 15, tzinfo=UTC)
    one, other = (
        {
            "environment": environment,
            "tenant": TenantId(f"shop-{environment}"),
            "once_id": OnceId.from_random(os.urandom(16)),
            "order": OrderId(f"order-{environment}"),
            "expires_at": expires_at,
        }
        for environment, expires_at in (("test", moment), ("prod", moment + timedelta(microseconds=1)))
    )
    rows = []
    for fields in (one, other):
        key = DataKey(ENTROPY)
        rows.append(_Row(fields, key.seal_once(_card(), _once_binding(**fields), ENTROPY), key.for_wrapping()))

    matrix = _matrix(rows[0], rows[1], _once_binding)

    assert len(matrix) == 2**7
    assert [exchanged for exchanged, opens in matrix.items() if opens] == [(), (*one, "ciphertext", "data_key")]


def test_a_sealed_card_does_not_open_as_a_one_time_token() -> None:
    sealed, key = _seal(_card(), _binding())

    assert not _opens(sealed, key, _once_binding())


def test_every_flipped_bit_breaks_the_seal() -> None:
    sealed, key = _seal(_card(), _binding())

    opened = []
    for bit in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        if _opens(bytes(flipped), key, _binding()):
            opened.append(bit)

    assert opened == []


def test_a_sealed_card_cut_short_or_made_longer_does_not_open() -> None:
    sealed, key = _seal(_card(), _binding())

    opened = [n for n in range(len(sealed)) if _opens(sealed[:n], key, _binding())]

    assert opened == []
    assert not _opens(sealed + b"\0", key, _binding())


def test_every_flipped_bit_of_the_data_key_breaks_the_seal() -> None:
    sealed, key = _seal(_card(), _binding())

    opened = [
        bit
        for bit in range(len(key) * 8)
        if _opens(sealed, bytes(b ^ (1 << bit % 8 if i == bit // 8 else 0) for i, b in enumerate(key)), _binding())
    ]

    assert opened == []


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_a_data_key_of_another_length_is_a_broken_seal(length: int) -> None:
    sealed, _ = _seal(_card(), _binding())

    with pytest.raises(BrokenSeal):
        open_sealed(sealed, data_key=bytes(length), binding=_binding())


def test_an_unknown_suite_is_refused_before_anything_is_tried() -> None:
    sealed, key = _seal(_card(), _binding())

    for suite in (0, 2, 255):
        with pytest.raises(BrokenSeal, match="unknown suite"):
            open_sealed(bytes((suite,)) + sealed[1:], data_key=key, binding=_binding())


@pytest.mark.parametrize("plaintext", [b"", b"\x01", b"\x02" + bytes(191), bytes(192), b"\x01" + bytes(192)])
def test_a_plaintext_of_another_format_is_a_broken_seal(plaintext: bytes) -> None:
    key, nonce = bytes(32), bytes(12)
    sealed = b"\x01" + nonce + AESGCM(key).encrypt(nonce, plaintext, _binding().aad(1))

    with pytest.raises(BrokenSeal, match="unknown plaintext format"):
        open_sealed(sealed, data_key=key, binding=_binding())


@given(st.binary(max_size=300), st.binary(min_size=32, max_size=32))
def test_whatever_was_not_sealed_here_is_a_broken_seal(sealed: bytes, key: bytes) -> None:
    with pytest.raises(BrokenSeal) as caught:
        open_sealed(sealed, data_key=key, binding=_binding())

    assert caught.value.args in (("unknown suite",), ("does not open under its binding",))
    assert caught.value.__cause__ is None


# --- keys, nonces, lengths ---


def test_a_data_key_seals_once() -> None:
    key = DataKey(ENTROPY)
    key.seal_stored(_card(), _binding(), ENTROPY)

    for seal in (key.seal_stored, key.seal_once):
        with pytest.raises(AssertionError, match="once"):
            seal(_card(), _binding(), ENTROPY)


def test_every_key_and_every_nonce_is_drawn_anew() -> None:
    card, binding = _card(), _binding()
    keys = [DataKey(ENTROPY) for _ in range(5_000)]
    sealed = [key.seal_stored(card, binding, ENTROPY) for key in keys]

    assert len({key.for_wrapping() for key in keys}) == 5_000
    assert len({record[1:13] for record in sealed}) == 5_000
    assert {len(key.for_wrapping()) for key in keys} == {DATA_KEY_BYTES}


def test_a_data_key_does_not_print_itself() -> None:
    key = DataKey(FixedEntropy(b"K" * 32))

    assert "KKKK" not in repr(key)


def test_sealed_cards_have_one_length_whatever_is_in_them() -> None:
    longest = "字" * 42 + "é"
    contents = ["", "x", "Zoë Example", "x" * 26, "x" * 64, "é" * 64, longest]

    stored, once = set(), set()
    for digits, name, code in itertools.product(
        [made_up_digits(length=n) for n in LENGTHS], contents, ["", "123", "1234"]
    ):
        card = _card(digits, name=name, code=code)
        stored.add(len(DataKey(ENTROPY).seal_stored(card, _binding(), ENTROPY)))
        once.add(len(DataKey(ENTROPY).seal_once(card, _once_binding(), ENTROPY)))

    assert stored == once == {1 + 12 + 192 + 16}


@settings(max_examples=30)
@given(names)
def test_sealed_cards_have_one_length_for_any_name(name: str) -> None:
    sealed, _ = _seal(_card(name=name), _binding())

    assert len(sealed) == 221


def test_a_fingerprint_message_is_a_digest_of_owner_and_number() -> None:
    one, other = Pan.parse(made_up_digits()), Pan.parse(made_up_digits())

    def message(pan: Pan, tenant: str = "shop-a", customer: str = "c", environment: str = "test") -> bytes:
        return fingerprint_message(pan, environment=environment, tenant=TenantId(tenant), customer=CustomerId(customer))

    different = [
        message(one),
        message(other),
        message(one, tenant="shop-b"),
        message(one, customer="d"),
        message(one, environment="prod"),
    ]

    assert message(one) == message(Pan.parse(one.reveal()))
    assert len(set(different)) == 5
    assert {len(m) for m in different} == {32}


# --- golden vectors ---


def _vector(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / name).read_text())
    return loaded


def test_the_golden_stored_card_opens_and_is_sealed_to_the_same_bytes() -> None:
    vector = _vector("stored_card.json")
    key, nonce = bytes.fromhex(vector["given"]["data_key"]), bytes.fromhex(vector["given"]["nonce"])
    card = _card(vector["given"]["pan"], name=vector["given"]["holder_name"])

    sealed = DataKey(FixedEntropy(key)).seal_stored(card, stored_vector_binding(), FixedEntropy(nonce))
    opened = open_sealed(bytes.fromhex(vector["sealed"]), data_key=key, binding=stored_vector_binding())

    assert sealed.hex() == vector["sealed"]
    assert (opened.pan, opened.holder_name, opened.expiry) == (card.pan, card.holder_name, None)


def test_the_golden_one_time_token_opens_and_is_sealed_to_the_same_bytes() -> None:
    vector = _vector("one_time_token.json")
    key, nonce = bytes.fromhex(vector["given"]["data_key"]), bytes.fromhex(vector["given"]["nonce"])
    card = _card(vector["given"]["pan"], name=vector["given"]["holder_name"], code=vector["given"]["security_code"])

    sealed = DataKey(FixedEntropy(key)).seal_once(card, once_vector_binding(), FixedEntropy(nonce))
    opened = open_sealed(bytes.fromhex(vector["sealed"]), data_key=key, binding=once_vector_binding())

    assert sealed.hex() == vector["sealed"]
    assert opened == OpenedCard(card.pan, Expiry(year=2030, month=9), card.holder_name, SecurityCode("123"))

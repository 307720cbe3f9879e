"""Rotation, rewrapping, retirement and signatures on the real OpenBao."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vault.domain.errors import KeyRefused, KeyRingUnavailable
from vault.domain.grant import SealedKey
from vault.embedded.openbao import OpenBao
from vault.keyring.admin import Administrator
from vault.keyring.operator import CheckpointerTransit, OperatorTransit
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.ports import KeyName, KeyToUnwrap, KeyToWrap
from vault.ports_operator import OperatorKeys, Signer


@pytest.fixture
def operator(own_openbao: OpenBao, open_session: Callable[..., VaultSession]) -> OperatorTransit:
    return OperatorTransit(open_session(own_openbao, own_openbao.login(LoginName.OPERATOR)))


@pytest.fixture
def checkpointer(own_openbao: OpenBao, open_session: Callable[..., VaultSession]) -> CheckpointerTransit:
    return CheckpointerTransit(open_session(own_openbao, own_openbao.login(LoginName.CHECKPOINTER)))


def wrapped(intake: IntakeTransit, count: int) -> tuple[list[KeyToWrap], list[KeyToUnwrap]]:
    keys = [KeyToWrap(os.urandom(32), os.urandom(32)) for _ in range(count)]
    sealed = intake.protect(cards=keys, once=[], fingerprints=[]).cards
    return keys, [KeyToUnwrap(KeyName.CARDS, s, k.context) for s, k in zip(sealed, keys, strict=True)]


def test_they_are_what_the_ports_ask_for(operator: OperatorTransit, checkpointer: CheckpointerTransit) -> None:
    asked: tuple[OperatorKeys, Signer] = (operator, checkpointer)

    assert asked


@pytest.mark.parametrize("name", list(KeyName))
def test_a_rotation_adds_one_version_with_its_time(operator: OperatorTransit, name: KeyName) -> None:
    before = operator.versions(name)

    operator.rotate(name)

    after = operator.versions(name)
    assert (before.latest, after.latest) == (1, 2)
    # Of hmac keys Vault does not tell when their versions were made.
    assert set(after.created) == (set() if name is KeyName.FINGERPRINT else {1, 2})
    assert all(abs(moment - datetime.now(UTC)) < timedelta(minutes=1) for moment in after.created.values())


def test_rewrapped_keys_open_to_the_same_data_keys_under_the_newest_version(
    own_openbao: OpenBao,
    operator: OperatorTransit,
    open_intake: Callable[[OpenBao], IntakeTransit],
    open_release: Callable[[OpenBao], ReleaseTransit],
) -> None:
    keys, items = wrapped(open_intake(own_openbao), 200)
    operator.rotate(KeyName.CARDS)

    answers = operator.rewrap(items)

    fresh = [answer for answer in answers if isinstance(answer, SealedKey)]
    assert {key.kek_version for key in fresh} == {2}
    opened = open_release(own_openbao).unwrap(
        [KeyToUnwrap(KeyName.CARDS, key, item.context) for key, item in zip(fresh, items, strict=True)]
    )
    assert list(opened) == [key.data_key for key in keys]


def test_a_refused_item_is_reported_in_its_place_and_the_others_are_rewrapped(
    own_openbao: OpenBao, operator: OperatorTransit, open_intake: Callable[[OpenBao], IntakeTransit]
) -> None:
    _, items = wrapped(open_intake(own_openbao), 5)
    bad = KeyToUnwrap(KeyName.CARDS, items[2].key, os.urandom(32))
    operator.rotate(KeyName.CARDS)

    answers = operator.rewrap([*items[:2], bad, *items[3:]])

    assert [type(answer) for answer in answers] == [SealedKey, SealedKey, KeyRefused, SealedKey, SealedKey]


def test_a_wrap_that_is_no_text_is_refused_in_its_place_like_any_other(
    own_openbao: OpenBao, operator: OperatorTransit, open_intake: Callable[[OpenBao], IntakeTransit]
) -> None:
    _, items = wrapped(open_intake(own_openbao), 3)
    # As SQLite's rows come whose bytes are no UTF-8.
    bad = KeyToUnwrap(KeyName.CARDS, SealedKey(f"{items[1].key.wrapped}\udcff"), items[1].context)
    operator.rotate(KeyName.CARDS)

    answers = operator.rewrap([items[0], bad, items[2]])

    assert [type(answer) for answer in answers] == [SealedKey, KeyRefused, SealedKey]


def test_a_wrap_under_a_retired_version_stops_the_rewrap_and_is_no_refused_card(
    own_openbao: OpenBao, operator: OperatorTransit, open_intake: Callable[[OpenBao], IntakeTransit]
) -> None:
    _, items = wrapped(open_intake(own_openbao), 3)
    operator.rotate(KeyName.CARDS)
    operator.set_minimums(KeyName.CARDS, decryption=2, encryption=2)

    with pytest.raises(KeyRingUnavailable) as stopped:
        operator.rewrap(items)
    operator.set_minimums(KeyName.CARDS, decryption=1, encryption=1)

    assert stopped.value.reason == "vault_key_version_retired"
    assert [type(answer) for answer in operator.rewrap(items)] == [SealedKey] * 3


def test_retired_versions_are_refused_and_trimmed_ones_are_gone(
    own_openbao: OpenBao,
    operator: OperatorTransit,
    open_intake: Callable[[OpenBao], IntakeTransit],
    open_release: Callable[[OpenBao], ReleaseTransit],
) -> None:
    _, items = wrapped(open_intake(own_openbao), 1)
    release = open_release(own_openbao)
    operator.rotate(KeyName.CARDS)

    operator.set_minimums(KeyName.CARDS, decryption=2, encryption=2)
    (retired,) = release.unwrap(items)
    operator.set_minimums(KeyName.CARDS, decryption=1, encryption=1)
    (back,) = release.unwrap(items)
    operator.set_minimums(KeyName.CARDS, decryption=2, encryption=2)
    operator.trim(KeyName.CARDS, below=2)

    versions = operator.versions(KeyName.CARDS)
    assert isinstance(retired, KeyRingUnavailable)
    assert isinstance(back, bytes)
    assert (versions.latest, versions.min_decryption, versions.min_available) == (2, 2, 2)
    with pytest.raises(KeyRingUnavailable):
        operator.set_minimums(KeyName.CARDS, decryption=1, encryption=1)


def test_a_signature_verifies_offline_with_the_public_key_also_after_a_rotation(
    operator: OperatorTransit, checkpointer: CheckpointerTransit
) -> None:
    first = checkpointer.sign(b"first")
    operator.rotate(KeyName.AUDIT)
    second = checkpointer.sign(b"second")

    keys = checkpointer.public_keys()

    assert (first[0], second[0], set(keys)) == (1, 2, {1, 2})
    Ed25519PublicKey.from_public_bytes(keys[1]).verify(first[1], b"first")
    Ed25519PublicKey.from_public_bytes(keys[2]).verify(second[1], b"second")


def test_a_sealed_vault_is_unavailable_to_operators_too(
    own_openbao: OpenBao, own_root: Administrator, operator: OperatorTransit, cleanup: ExitStack
) -> None:
    operator.versions(KeyName.CARDS)
    own_root.client.sys.seal()

    with pytest.raises(KeyRingUnavailable):
        operator.versions(KeyName.CARDS)
    with pytest.raises(KeyRingUnavailable):
        operator.rotate(KeyName.CARDS)


def test_the_operators_login_finds_nothing_wrong(operator: OperatorTransit) -> None:
    assert operator.inspect_keys() == []

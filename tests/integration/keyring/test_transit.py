"""Wrapping, fingerprinting and unwrapping on the real OpenBao."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from vault.domain.errors import KeyRefused, KeyRingUnavailable
from vault.domain.grant import SealedKey
from vault.embedded.openbao import OpenBao
from vault.keyring.admin import Administrator
from vault.keyring.login import TokenFileLogin
from vault.keyring.session import VaultSession
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.ports import IntakeKeys, KeyName, KeyToUnwrap, KeyToWrap, Protected, ReleaseKeys

FINGERPRINT_KEY = f"transit/keys/{KeyName.FINGERPRINT}"


def some_keys(count: int) -> list[KeyToWrap]:
    return [KeyToWrap(os.urandom(32), os.urandom(32)) for _ in range(count)]


def wrap_one(intake: IntakeTransit, key: KeyToWrap, name: KeyName = KeyName.CARDS) -> KeyToUnwrap:
    is_card = name is KeyName.CARDS
    wrapped = intake.protect(cards=[key] if is_card else [], once=[] if is_card else [key], fingerprints=[])
    return KeyToUnwrap(name, (*wrapped.cards, *wrapped.once)[0], key.context)


def test_the_key_rings_are_what_the_ports_ask_for(intake: IntakeTransit, release: ReleaseTransit) -> None:
    asked: tuple[IntakeKeys, ReleaseKeys] = (intake, release)

    assert asked


@pytest.mark.parametrize("name", [KeyName.CARDS, KeyName.ONCE])
def test_a_wrapped_key_unwraps_under_its_own_context(
    name: KeyName, intake: IntakeTransit, release: ReleaseTransit
) -> None:
    (key,) = some_keys(1)

    answers = release.unwrap([wrap_one(intake, key, name)])

    assert list(answers) == [key.data_key]


def test_the_same_key_never_wraps_to_the_same_text_twice(intake: IntakeTransit) -> None:
    (key,) = some_keys(1)

    assert wrap_one(intake, key).key != wrap_one(intake, key).key


def test_more_than_one_batch_comes_back_in_order(intake: IntakeTransit, release: ReleaseTransit) -> None:
    cards, once, messages = some_keys(405), some_keys(201), [os.urandom(32) for _ in range(230)]

    protected = intake.protect(cards=cards, once=once, fingerprints=messages)

    assert [len(protected.cards), len(protected.once), len(protected.fingerprints)] == [405, 201, 230]
    for index in (0, 199, 200, 399, 400, 404):
        item = KeyToUnwrap(KeyName.CARDS, protected.cards[index], cards[index].context)
        assert list(release.unwrap([item])) == [cards[index].data_key]
    for index in (0, 200, 229):
        again = intake.protect(cards=[], once=[], fingerprints=[messages[index]])
        assert again.fingerprints[0] == protected.fingerprints[index]


def test_nothing_is_sent_for_nothing(intake: IntakeTransit, release: ReleaseTransit, openbao: OpenBao) -> None:
    before = openbao.files.audit_log.stat().st_size

    protected = intake.protect(cards=[], once=[], fingerprints=[])
    answers = release.unwrap([])

    assert (protected, list(answers)) == (Protected(cards=[], once=[], fingerprints=()), [])
    assert openbao.files.audit_log.stat().st_size == before


def test_a_key_is_refused_under_any_other_binding_and_its_neighbours_are_not(
    intake: IntakeTransit, release: ReleaseTransit
) -> None:
    (key,) = some_keys(1)
    good = wrap_one(intake, key)
    text = good.key.wrapped
    flipped = text[:-10] + ("A" if text[-10] != "A" else "B") + text[-9:]
    spoilt = [
        KeyToUnwrap(KeyName.CARDS, good.key, os.urandom(32)),
        KeyToUnwrap(KeyName.ONCE, good.key, key.context),
        KeyToUnwrap(KeyName.CARDS, SealedKey(flipped), key.context),
        KeyToUnwrap(KeyName.CARDS, SealedKey(re.sub(r":v\d+:", ":v9999:", text)), key.context),
        KeyToUnwrap(KeyName.CARDS, SealedKey(text[:60]), key.context),
        KeyToUnwrap(KeyName.CARDS, SealedKey("vault:v1:"), key.context),
        KeyToUnwrap(KeyName.CARDS, SealedKey("garbage"), key.context),
    ]

    answers = release.unwrap([good, *spoilt, good])

    assert [answers[0], answers[-1]] == [key.data_key, key.data_key]
    assert [type(answer) for answer in answers[1:-1]] == [KeyRefused] * len(spoilt)


def test_a_plaintext_of_another_length_is_refused(release: ReleaseTransit, intake: IntakeTransit) -> None:
    short = KeyToWrap(os.urandom(31), os.urandom(32))

    with pytest.raises(KeyRingUnavailable):
        wrap_one(intake, KeyToWrap(b"", os.urandom(32)))
    (answer,) = release.unwrap([wrap_one(intake, short)])

    assert isinstance(answer, KeyRefused)


def test_each_unwrapped_key_leaves_its_own_line_in_vaults_audit_log(
    intake: IntakeTransit, release: ReleaseTransit, openbao: OpenBao
) -> None:
    items = [wrap_one(intake, key) for key in some_keys(5)]

    release.unwrap(items)

    log = openbao.files.audit_log.read_text()
    for item in items:
        assert sum(item.key.wrapped in line and '"type":"request"' in line for line in log.splitlines()) == 1


def test_fingerprints_stay_findable_across_rotation_newest_first(
    own_openbao: OpenBao, own_root: Administrator, open_intake: Callable[[OpenBao], IntakeTransit]
) -> None:
    intake = open_intake(own_openbao)
    messages = [os.urandom(32) for _ in range(201)]
    before = intake.protect(cards=[], once=[], fingerprints=messages).fingerprints

    own_root.client.write_data(f"{FINGERPRINT_KEY}/rotate")
    after = intake.protect(cards=[], once=[], fingerprints=messages).fingerprints

    assert [[fp.version for fp in row] for row in before] == [[1]] * 201
    assert [[fp.version for fp in row] for row in after] == [[2, 1]] * 201
    assert [row[1] for row in after] == [row[0] for row in before]
    assert len({fp.value for row in after for fp in row}) == 402
    assert {len(fp.value) for row in after for fp in row} == {32}


def test_a_retired_fingerprint_version_is_no_longer_used(
    own_openbao: OpenBao, own_root: Administrator, open_intake: Callable[[OpenBao], IntakeTransit]
) -> None:
    intake = open_intake(own_openbao)
    own_root.client.write_data(f"{FINGERPRINT_KEY}/rotate")
    message = os.urandom(32)
    assert len(intake.protect(cards=[], once=[], fingerprints=[message]).fingerprints[0]) == 2

    own_root.client.write_data(f"{FINGERPRINT_KEY}/config", data={"min_decryption_version": 2})
    row = intake.protect(cards=[], once=[], fingerprints=[message]).fingerprints[0]

    assert [fp.version for fp in row] == [2]


def test_wraps_under_an_older_version_still_open_after_rotation(
    own_openbao: OpenBao,
    own_root: Administrator,
    open_intake: Callable[[OpenBao], IntakeTransit],
    open_release: Callable[[OpenBao], ReleaseTransit],
) -> None:
    intake, release = open_intake(own_openbao), open_release(own_openbao)
    old, new = some_keys(2)
    old_item = wrap_one(intake, old)
    own_root.client.write_data(f"transit/keys/{KeyName.CARDS}/rotate")
    new_item = wrap_one(intake, new)

    assert (old_item.key.kek_version, new_item.key.kek_version) == (1, 2)
    assert list(release.unwrap([old_item, new_item])) == [old.data_key, new.data_key]

    # An operator who retires a version too early made no row false: trouble, which heals, not a refusal.
    own_root.client.write_data(f"transit/keys/{KeyName.CARDS}/config", data={"min_decryption_version": 2})
    retired, fine = release.unwrap([old_item, new_item])
    assert isinstance(retired, KeyRingUnavailable)
    assert retired.reason == "vault_key_version_retired"
    assert fine == new.data_key


def test_a_missing_key_is_trouble_and_no_refusal_and_is_never_made(
    own_openbao: OpenBao,
    own_root: Administrator,
    open_intake: Callable[[OpenBao], IntakeTransit],
    open_release: Callable[[OpenBao], ReleaseTransit],
) -> None:
    intake, release = open_intake(own_openbao), open_release(own_openbao)
    item = wrap_one(intake, some_keys(1)[0])
    path = f"transit/keys/{KeyName.CARDS}"
    own_root.client.write_data(f"{path}/config", data={"deletion_allowed": True})
    own_root.client.delete(path)

    (answer,) = release.unwrap([item])
    # Encrypting under a key that is not there would be creating it, which the policy forbids before transit is asked.
    with pytest.raises(KeyRingUnavailable, match="vault_forbidden"):
        intake.check()

    assert isinstance(answer, KeyRingUnavailable)
    assert answer.reason == "vault_key_missing"
    assert own_root.client.read(path) is None


def test_readiness_is_a_real_wrap_and_a_real_unwrap(intake: IntakeTransit, release: ReleaseTransit) -> None:
    canary = wrap_one(intake, some_keys(1)[0])
    foreign = KeyToUnwrap(canary.name, canary.key, os.urandom(32))

    intake.check()
    release.check(canary)

    with pytest.raises(KeyRingUnavailable, match="vault_no_canary"):
        release.check(None)
    with pytest.raises(KeyRingUnavailable, match="vault_canary_refused"):
        release.check(foreign)


def test_many_threads_share_one_key_ring(intake: IntakeTransit, release: ReleaseTransit) -> None:
    everybody = threading.Barrier(16)

    def one_round(_: int) -> bool:
        everybody.wait()
        keys, message = some_keys(5), os.urandom(32)
        protected = intake.protect(cards=keys, once=keys, fingerprints=[message] * 3)
        items = [
            KeyToUnwrap(KeyName.CARDS, wrapped, key.context) for wrapped, key in zip(protected.cards, keys, strict=True)
        ]
        return list(release.unwrap(items)) == [key.data_key for key in keys]

    with ThreadPoolExecutor(16) as callers:
        outcomes = list(callers.map(one_round, range(32)))

    assert all(outcomes)


def test_the_start_check_accepts_what_the_set_up_made(intake: IntakeTransit, release: ReleaseTransit) -> None:
    assert (intake.inspect_keys(), release.inspect_keys()) == ([], [])


@pytest.mark.parametrize(
    ("name", "creation", "config", "complaint"),
    [
        (KeyName.CARDS, {"type": "aes256-gcm96"}, {}, "derived must be true"),
        (KeyName.CARDS, {"type": "chacha20-poly1305", "derived": True}, {}, "type must be aes256-gcm96"),
        (KeyName.ONCE, {"type": "aes128-gcm96", "derived": True}, {}, "type must be aes256-gcm96"),
        (KeyName.ONCE, {"derived": True, "exportable": True}, {}, "exportable must be false"),
        (KeyName.CARDS, {"derived": True}, {"allow_plaintext_backup": True}, "allow_plaintext_backup must be false"),
        (KeyName.CARDS, {"derived": True}, {"deletion_allowed": True}, "deletion_allowed must be false"),
        (KeyName.FINGERPRINT, {"type": "aes256-gcm96"}, {}, "type must be hmac"),
        (KeyName.FINGERPRINT, {"type": "hmac", "key_size": 32, "exportable": True}, {}, "exportable must be false"),
        (KeyName.FINGERPRINT, None, {}, "does not exist"),
    ],
)
def test_the_start_check_names_the_key_and_what_is_wrong_with_it(
    name: KeyName,
    creation: dict[str, str | bool] | None,
    config: dict[str, bool],
    complaint: str,
    own_openbao: OpenBao,
    own_root: Administrator,
    open_intake: Callable[[OpenBao], IntakeTransit],
) -> None:
    path = f"transit/keys/{name}"
    own_root.client.write_data(f"{path}/config", data={"deletion_allowed": True})
    own_root.client.delete(path)
    if creation is not None:
        own_root.client.write_data(path, data=creation)
    if config:
        own_root.client.write_data(f"{path}/config", data=config)

    problems = open_intake(own_openbao).inspect_keys()

    assert any(str(name) in problem and complaint in problem for problem in problems), problems


def test_the_start_check_refuses_a_root_token(openbao: OpenBao, open_session: Callable[..., VaultSession]) -> None:
    session = open_session(openbao, TokenFileLogin(path=openbao.files.root_token))

    with closing(ReleaseTransit(session)) as release:
        problems = release.inspect_keys()

    assert len(problems) == 1
    assert "root token" in problems[0]

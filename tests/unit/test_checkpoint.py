"""Checkpoints as text, and leaves as bytes."""

from __future__ import annotations

import base64
import json
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.world import NOW
from vault.audit import leaf
from vault.audit.checkpoint import BadCheckpoint, Checkpoint, VerifierKey, note, opened, parse_keys, read
from vault.domain.audit import AuditEvent, Outcome
from vault.domain.ids import EventId, RequestId

ORIGIN = "cardvault/test"
CHECKPOINT = Checkpoint(ORIGIN, 1234, bytes(range(32)))


def _signer(name: str = ORIGIN) -> tuple[Ed25519PrivateKey, VerifierKey]:
    private = Ed25519PrivateKey.generate()
    return private, VerifierKey(name, private.public_key().public_bytes_raw())


def _signed(checkpoint: Checkpoint = CHECKPOINT) -> tuple[str, VerifierKey]:
    private, key = _signer()
    return note(checkpoint, key, private.sign(checkpoint.body().encode())), key


def test_the_published_example_of_a_verifier_key_is_understood() -> None:
    # From the documentation of golang.org/x/mod/sumdb/note.
    text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"

    key = VerifierKey.parse(text)

    assert (key.name, key.key_id.hex(), str(key)) == ("PeterNeumann", "c74f20a3", text)


def test_the_published_example_of_a_signed_note_is_understood() -> None:
    key = VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    body = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    line = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    raw = base64.b64decode(line)
    assert raw[:4] == key.key_id
    Ed25519PublicKey.from_public_bytes(key.public_key).verify(raw[4:], body.encode())


def test_a_signed_checkpoint_is_read_back() -> None:
    text, key = _signed()

    assert opened(text, [key], origin=ORIGIN) == CHECKPOINT == read(text)
    assert text.splitlines()[:3] == [ORIGIN, "1234", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]
    assert text.splitlines()[4].startswith(f"\N{EM DASH} {ORIGIN} ")


def test_a_witness_may_sign_beside_us() -> None:
    text, key = _signed()
    private, witness = _signer("witness.example/w1")
    cosigned = text + note(CHECKPOINT, witness, private.sign(CHECKPOINT.body().encode())).splitlines()[-1] + "\n"

    assert opened(cosigned, [key]) == opened(cosigned, [witness]) == CHECKPOINT


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("1234", "1235"),
        lambda text: text.replace("AAEC", "AAED"),
        lambda text: text.replace(ORIGIN, "cardvault/other"),
        lambda text: text.replace("\n1234\n", "\n01234\n"),
        lambda text: text.replace("\n\n", "\nextension\n\n"),
        lambda text: text.partition("\n\n")[0] + "\n\n",
        lambda text: text[:-1],
        lambda text: text.replace("\n\n", "\n"),
        lambda text: "",
        lambda text: text[:-10] + "AAAAAAAA=\n",
    ],
)
def test_a_checkpoint_that_was_altered_is_refused(change: object) -> None:
    text, key = _signed()
    assert callable(change)

    with pytest.raises(BadCheckpoint):
        opened(change(text), [key])


def test_another_key_another_log_and_no_key_are_refused() -> None:
    text, key = _signed()
    _, other = _signer()

    for keys, origin in (([other], None), ([key], "cardvault/production"), ([], None)):
        with pytest.raises(BadCheckpoint):
            opened(text, keys, origin=origin)


def test_a_file_of_keys_has_one_a_line() -> None:
    _, first = _signer()
    _, second = _signer()

    assert parse_keys(f"# comment\n{first}\n\n{second}\n") == (first, second)
    for text in ("", "# nothing\n", "name+00000000+AAAA", f"{first}x"):
        with pytest.raises(BadCheckpoint):
            parse_keys(text)


texts = st.text(max_size=40)
events = st.builds(
    AuditEvent,
    event_id=st.just(EventId("evt_a")),
    occurred_at=st.integers(1, 10**10).map(lambda micros: NOW + timedelta(microseconds=micros)),
    event=texts,
    outcome=st.sampled_from(Outcome),
    reason=texts,
    actor=texts,
    actor_certificate=texts,
    role=texts,
    peer=texts,
    request_id=st.just(RequestId("req_a")),
    tenant=texts,
    customer=texts,
    target=texts,
    order=texts,
    processor=texts,
    grant_sha256=st.none() | st.binary(min_size=32, max_size=32),
    details=st.dictionaries(texts, texts | st.integers(), max_size=4),
)


@given(events)
def test_an_event_has_one_form_and_comes_back_from_it(event: AuditEvent) -> None:
    raw = leaf.encode(event)

    assert leaf.decode(raw) == event
    assert raw.isascii()
    assert b"\n" not in raw


@settings(max_examples=10)
@given(events)
def test_the_form_is_that_of_pythons_own_json(event: AuditEvent) -> None:
    for code in range(0x100):  # whatever one library escapes and another may not
        raw = leaf.encode(replace(event, customer=chr(code), details={f"a{chr(code)}": chr(code)}))

        assert raw.decode() == json.dumps(json.loads(raw), separators=(",", ":"), ensure_ascii=True, sort_keys=True)


def test_the_form_is_this_one_for_ever() -> None:
    made = AuditEvent(
        event_id=EventId("evt_x"),
        occurred_at=datetime(2026, 1, 2, 3, 4, 5, 60, timezone(timedelta(hours=1))),
        event="card.tokenized",
        outcome=Outcome.OK,
        reason="",
        actor="spiffe://example.test/checkout",
        actor_certificate="ab" * 32,
        role="checkout",
        peer="ipv4:127.0.0.1:1",
        request_id=RequestId("req_x"),
        tenant="shop-a",
        customer="ada",
        target="tok_x",
        order="order-1",
        processor="acme-pay",
        grant_sha256=bytes(32),
        details={"ü": "•", "b": 2, "a": "x"},
    )

    assert leaf.encode(made) == (
        b'{"actor":"spiffe://example.test/checkout","actor_certificate":"' + b"ab" * 32 + b'","customer":"ada",'
        b'"details":{"a":"x","b":2,"\\u00fc":"\\u2022"},"event":"card.tokenized","event_id":"evt_x",'
        b'"grant_sha256":"' + b"00" * 32 + b'","occurred_at":"2026-01-02T02:04:05.000060Z","order":"order-1",'
        b'"outcome":"ok","peer":"ipv4:127.0.0.1:1","processor":"acme-pay","reason":"","request_id":"req_x",'
        b'"role":"checkout","target":"tok_x","tenant":"shop-a","v":1}'
    )


@given(events, st.data())
def test_every_field_is_in_the_leaf(event: AuditEvent, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([each.name for each in fields(AuditEvent)]))
    values: dict[str, Any] = {
        "occurred_at": NOW - timedelta(microseconds=1),
        "outcome": next(each for each in Outcome if each is not event.outcome),
        "grant_sha256": b"other grant's hash, 32 bytes long"[:32],
        "details": {"other": 1},
    }

    other: dict[str, Any] = {name: values.get(name, "another value that no strategy makes, as it is too long")}
    changed = replace(event, **other)

    assert leaf.encode(changed) != leaf.encode(event)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw + b" ",
        lambda raw: raw.replace(b'"v":1', b'"v":2'),
        lambda raw: json.dumps(json.loads(raw)).encode(),
        lambda raw: raw[:-1] + b',"zz":1}',
        lambda raw: b"[]",
        lambda raw: b"\xff",
        lambda raw: b"[" * 100_000,
    ],
)
def test_bytes_that_are_not_exactly_an_event_are_refused(change: object) -> None:
    event = AuditEvent(
        EventId("evt_a"), NOW, "card.released", Outcome.OK, "", "actor", "", "role", "", RequestId("req_a")
    )
    assert callable(change)

    with pytest.raises(leaf.BadLeaf):
        leaf.decode(change(leaf.encode(event)))

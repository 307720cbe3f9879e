"""With the database alone nothing of a number beyond its last four digits can be had, not even by guessing.

A thief has every file of a SQLite installation, and tries the right numbers against all that stands in it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pysqlite3 import dbapi2 as sqlite

from tests.fixtures_db import sqlite_url_of
from tests.support.cards import fresh_card
from tests.support.world import SystemEntropy, caller, checkout_identity, consent, processor_identity
from vault.domain.binding import fingerprint_message
from vault.domain.card import CardDetails
from vault.domain.consent import CardUse
from vault.domain.grant import DEFAULT_LIFETIME, Money, OneTimeToken
from vault.domain.ids import CustomerId, IdempotencyKey, OrderId, ProcessorName, TenantId
from vault.embedded.openbao import OpenBao
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.store import SqlStore, upgrade
from vault.system import SystemClock
from vault.usecases.batch import World
from vault.usecases.detokenize import Detokenize, DetokenizeCommand, ReleasedCard
from vault.usecases.grants import IssuedGrant, IssueGrant, IssueGrantCommand, StoredCardSubject
from vault.usecases.tokenize import Tokenize, TokenizeCommand, Tokenized

TENANTS = (TenantId("shop-a"), TenantId("shop-b"))
CUSTOMERS = (CustomerId("ada"), CustomerId("bob"))
PROCESSOR = ProcessorName("acme-pay")
AMOUNT = Money(4900, "EUR")
HASHES = ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b")


@dataclass(frozen=True, slots=True)
class Loot:
    """What a thief carries off, and what a test knows besides."""

    files: tuple[Path, ...]
    cards: tuple[CardDetails, ...]
    """The first of them is stored for every customer of every shop."""
    rows: Mapping[str, list[dict[str, Any]]]
    """By table."""

    def values(self) -> Iterator[tuple[str, Any]]:
        """Every value in the database with the name of its column."""
        for table, rows in self.rows.items():
            for row in rows:
                for column, value in row.items():
                    if value is not None:
                        yield f"{table}.{column}", value


@pytest.fixture(scope="module")
def loot(tmp_path_factory: pytest.TempPathFactory, openbao: OpenBao) -> Loot:
    path = tmp_path_factory.mktemp("stolen") / "vault.db"
    url = sqlite_url_of(path)
    upgrade(url)
    cards = tuple(fresh_card(with_security_code=True) for _ in range(4))
    with ExitStack() as stack:
        store = stack.enter_context(closing(SqlStore(url)))
        _use(store, cards, openbao, stack)
        # Taken while the server runs, with its write-ahead log.
        files = tuple(sorted(path.parent.iterdir()))
        with closing(sqlite.connect(str(path))) as connection:
            connection.row_factory = sqlite.Row
            names = [row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            rows = {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in names}
        contents = [file.read_bytes() for file in files]
    copies = []
    for file, content in zip(files, contents, strict=True):
        copy = path.parent / f"copy-of-{file.name}"
        copy.write_bytes(content)
        copies.append(copy)
    return Loot(tuple(copies), cards, rows)


def _use(store: SqlStore, cards: tuple[CardDetails, ...], openbao: OpenBao, stack: ExitStack) -> None:
    """Store cards for several owners, make a one-time token, issue grants and redeem one."""
    sessions = {
        name: stack.enter_context(closing(VaultSession(address=openbao.address, login=openbao.login(name))))
        for name in (LoginName.INTAKE, LoginName.RELEASE)
    }
    intake = IntakeTransit(sessions[LoginName.INTAKE])
    release = stack.enter_context(closing(ReleaseTransit(sessions[LoginName.RELEASE])))
    world = World(environment="test", store=store, clock=SystemClock(), entropy=SystemEntropy())
    owned = [(tenant, customer, cards[0]) for tenant in TENANTS for customer in CUSTOMERS]
    owned += [(TENANTS[0], CUSTOMERS[0], card) for card in cards[1:]]
    tokenize = Tokenize(world=world, keys=intake)
    stored = tokenize(
        [
            TokenizeCommand(
                caller=caller(checkout_identity(tenant)),
                idempotency_key=IdempotencyKey(f"key-{number}"),
                customer=customer,
                card=card,
                consent=consent(),
                order=OrderId(f"order-{number}"),
            )
            for number, (tenant, customer, card) in enumerate(owned)
        ]
    )
    assert all(isinstance(done, Tokenized) for done in stored)
    first = stored[0]
    assert isinstance(first, Tokenized)
    assert first.stored is not None
    assert first.one_time_token is not None
    subjects: tuple[StoredCardSubject | OneTimeToken, ...] = (
        StoredCardSubject(CUSTOMERS[0], first.stored.token),
        first.one_time_token,
    )
    issue = IssueGrant(world=world, processors={PROCESSOR: frozenset(TENANTS)})
    issued = issue(
        [
            IssueGrantCommand(
                caller=caller(checkout_identity(TENANTS[0])),
                idempotency_key=IdempotencyKey(f"grant-{number}"),
                subject=subject,
                order=OrderId("order-0"),
                amount=AMOUNT,
                purpose=CardUse.CUSTOMER_INITIATED,
                processor=PROCESSOR,
                lifetime=DEFAULT_LIFETIME,
            )
            for number, subject in enumerate(subjects)
        ]
    )
    redeem = Detokenize(world=world, keys=release)
    for grant in issued:
        assert isinstance(grant, IssuedGrant)
        command = DetokenizeCommand(
            caller=caller(processor_identity(*TENANTS, name=PROCESSOR)),
            grant=grant.grant,
            order=OrderId("order-0"),
            amount=AMOUNT,
        )
        (released,) = redeem([command])
        assert isinstance(released, ReleasedCard)
        assert released.card.pan.reveal() == cards[0].pan.reveal()


def _forms(value: Any) -> set[bytes]:
    """A value as bytes, and the bytes that a text may stand for."""
    if isinstance(value, bytes):
        return {value}
    text = str(value)
    found = {text.encode()}
    # Of `vault:v1:…` and the like also what comes last; of JSON every string.
    for part in {text, text.rsplit(":", 1)[-1], text.rsplit("_", 1)[-1], *re.findall(r'"([^"]+)"', text)}:
        found.add(part.encode())
        for decode in (bytes.fromhex, lambda t: base64.b64decode(t, validate=True), base64.urlsafe_b64decode):
            try:
                found.add(decode(part))
            except ValueError:
                continue
    return {form for form in found if form}


def test_no_value_holds_more_of_a_number_than_its_last_four(loot: Loot) -> None:
    for card in loot.cards:
        digits = card.pan.reveal()
        # Fewer digits in a row stand in times and hashes by chance.
        pieces = {digits[start : start + 7] for start in range(len(digits) - 6)}
        for column, value in loot.values():
            text = value.hex() if isinstance(value, bytes) else str(value)
            assert not [1 for piece in pieces if piece in text], column
    assert {row["last4"] for row in loot.rows["cards"]} == {card.pan.last4() for card in loot.cards}


def test_no_file_holds_a_number_a_name_or_a_code(loot: Loot) -> None:
    assert len(loot.files) >= 2
    for file in loot.files:
        content = file.read_bytes()
        for card in loot.cards:
            digits, name = card.pan.reveal(), card.holder_name.reveal_text()
            for word in (digits, digits[:-4], digits[:8], name, name.split()[0]):
                for form in (word.encode(), word.encode("utf-16-le"), base64.b64encode(word.encode()).rstrip(b"=")):
                    assert form not in content


def test_no_column_is_named_after_what_must_not_be_kept(loot: Loot) -> None:
    names = {f"{table}.{column}" for table, rows in loot.rows.items() for row in rows[:1] for column in row}

    assert len(names) > 60
    assert not [name for name in names if re.search(r"\bpan\b|number|cvc|cvv|code|holder|track|pin|bin\b", name)]


def test_no_hash_of_a_number_stands_in_the_database(loot: Loot) -> None:
    """Plain, and with whatever looks like a secret in the database as key or as salt."""
    stored: set[bytes] = set()
    salts: set[bytes] = {b"", b"test"}
    for column, value in loot.values():
        for form in _forms(value):
            stored.add(form)
            if len(form) >= 3 and not column.startswith("alembic"):
                salts.add(form)
    assert len(salts) > 150
    # A hash may stand cut short, or in the middle of something.
    prefixes = {form[start : start + 12] for form in stored for start in range(max(1, len(form) - 11))}
    tried = 0
    for card in loot.cards[:2]:
        for message in _guesses(card):
            for name in HASHES:
                for made in _digests(name, message, salts):
                    assert made[:12] not in prefixes
                    assert made.hex()[:12].encode() not in prefixes
                    tried += 1
    assert tried > 10_000


def _guesses(card: CardDetails) -> list[bytes]:
    digits = card.pan.reveal()
    expiry = f"{card.expiry.month:02}{card.expiry.year % 100:02}"
    return [digits.encode(), digits.encode("utf-16-le"), int(digits).to_bytes(8, "big"), (digits + expiry).encode()]


def _digests(name: str, message: bytes, salts: set[bytes]) -> Iterator[bytes]:
    for salt in salts:
        yield hmac.digest(salt, message, name)
        yield hashlib.new(name, salt + message, usedforsecurity=False).digest()
        yield hashlib.new(name, message + salt, usedforsecurity=False).digest()


def test_the_search_would_find_a_hash(loot: Loot) -> None:
    """The positive control: with a row that does keep one, the same search fails."""
    salt = loot.rows["card_secrets"][0]["fingerprint"]
    kept = hmac.digest(salt, loot.cards[0].pan.reveal().encode(), "sha256")
    rows = {**loot.rows, "leak": [{"tenant_id": "shop-a", "value": kept.hex()}]}

    with pytest.raises(AssertionError):
        test_no_hash_of_a_number_stands_in_the_database(Loot(loot.files, loot.cards, rows))


def test_what_the_fingerprint_is_made_of_is_no_fingerprint(loot: Loot) -> None:
    """Who knows every field, and the code, still lacks the key that is in Vault."""
    stored = {row["fingerprint"] for row in loot.rows["card_secrets"]}
    assert all(len(fingerprint) == 32 for fingerprint in stored)
    for tenant, customer, card in itertools.product(TENANTS, CUSTOMERS, loot.cards):
        message = fingerprint_message(environment="test", tenant=tenant, customer=customer, digits=card.pan.reveal())
        assert message not in stored
        assert hashlib.sha256(message).digest() not in stored


def test_one_card_of_several_owners_cannot_be_recognised(loot: Loot) -> None:
    """The first card is stored four times: no column but what may be shown is the same for two of them."""
    owners: dict[str, dict[str, set[Any]]] = defaultdict(lambda: defaultdict(set))
    last4 = loot.cards[0].pan.last4()
    tokens = {row["token"] for row in loot.rows["cards"] if row["last4"] == last4}
    assert len(tokens) >= 4
    for row in loot.rows["card_secrets"]:
        if row["token"] in tokens:
            for column in ("wrapped_key", "ciphertext", "fingerprint", "token"):
                owners[column][row[column]].add((row["tenant_id"], row["token"]))
    for column, values in owners.items():
        assert all(len(who) == 1 for who in values.values()), column
        assert len(values) == len(tokens), column


def test_every_sealed_card_has_the_same_length(loot: Loot) -> None:
    assert len({len(row["ciphertext"]) for row in loot.rows["card_secrets"]}) == 1
    assert len({len(row["wrapped_key"]) for row in loot.rows["card_secrets"]}) == 1


def test_no_grant_and_no_one_time_token_can_be_made_of_what_is_kept(loot: Loot) -> None:
    texts = [str(value) for _, value in loot.values() if not isinstance(value, bytes)]

    assert not [text for text in texts if re.search(r"grant_[a-z]{20}|once_[a-z]{20}", text)]
    assert {len(row["grant_sha256"]) for row in loot.rows["grants"]} == {32}
    spent = [row for row in loot.rows["once_keys"] if row["state"] == "spent"]
    assert [row["wrapped_key"] for row in spent] == [None]


def test_ids_are_random(loot: Loot) -> None:
    """No two have anything in common that would let one be guessed from another."""
    tokens = [row["token"].removeprefix("tok_") for row in loot.rows["cards"]]

    assert not any(character.isdigit() for token in tokens for character in token)
    # The first eight letters are for all that were stored in one batch.
    assert len({token[8:14] for token in tokens}) == len(tokens)

"""`cardvault consent show`: the evidence for a dispute, as an operator types it, on both databases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import fresh_typed_card
from tests.support.installation import SHOP, Installation, installed, uri_of
from tests.support.raw import rows
from tests.support.requests import TIMEOUT, consent, new_customer, store_request
from vault.embedded.openbao import OpenBao
from vault.v1 import account_pb2, cards_pb2

OK, NONE, USAGE = 0, 1, 2


@pytest.fixture
def installation(tmp_path: Path, openbao: OpenBao, database_url: str) -> Iterator[Installation]:
    with installed(tmp_path / "shop", openbao, database_url) as running:
        running.serve()
        yield running


def show(installation: Installation, customer: str, *more: str, tenant: str = SHOP) -> Any:
    return installation.command(
        "consent", "show", customer, "--tenant", tenant, "--config", str(installation.config()), *more
    )


def test_every_entry_is_shown_in_order_with_all_that_a_dispute_asks_for(installation: Installation) -> None:
    card, customer = fresh_typed_card(), new_customer()
    checkout = installation.client("checkout").checkout
    uses = (cards_pb2.CARD_USE_CUSTOMER_INITIATED, cards_pb2.CARD_USE_RECURRING)
    first = checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT).card
    second = checkout.Tokenize(
        store_request(
            card,
            customer,
            consent=consent(*uses, terms_version="2026-07", channel=cards_pb2.CONSENT_CHANNEL_PHONE, locale="de-AT"),
        ),
        timeout=TIMEOUT,
    ).card
    installation.client("account").account.DeleteCard(
        account_pb2.DeleteCardRequest(customer_id=customer, token=second.token), timeout=TIMEOUT
    )
    third = checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT).card

    done = show(installation, customer, "--reason", "dispute 7", "--json")
    read = show(installation, customer, "--reason", "dispute 7")

    assert (done.returncode, read.returncode) == (OK, OK), done.stderr + read.stderr
    entries = json.loads(done.stdout)["entries"]
    assert [entry["standing"] for entry in entries] == [
        "replaced by a later consent",
        "withdrawn",
        "a withdrawal",
        "in force",
    ]
    assert [entry["in_force"] for entry in entries] == [False, False, False, True]
    given, withdrawn = entries[1], entries[2]
    assert given == {
        "consent_id": second.consent.consent_id,
        "token": second.token,
        "recorded_at": f"{second.consent.agreed_at.ToDatetime():%Y-%m-%dT%H:%M:%S.%fZ}",
        "in_force": False,
        "standing": "withdrawn",
        "kind": "given",
        "recorded_by": uri_of("checkout"),
        "terms_version": "2026-07",
        "terms_sha256": hashlib.sha256(b"keep my card").hexdigest(),
        "uses": ["customer_initiated", "recurring"],
        "channel": "phone",
        "locale": "de-AT",
        "agreed_until": None,
    }
    assert (withdrawn["withdraws"], withdrawn["recorded_by"]) == (second.consent.consent_id, uri_of("account"))
    assert [entry["token"] for entry in entries] == [first.token, first.token, first.token, third.token]
    for entry in entries:
        assert entry["consent_id"] in read.stdout
    assert hashlib.sha256(b"keep my card").hexdigest() in read.stdout
    for printed in (done.stdout, read.stdout):
        assert card.pan not in printed
        assert card.holder_name not in printed


def test_each_look_is_an_audit_event_of_its_own(installation: Installation) -> None:
    customer = new_customer()
    installation.client("checkout").checkout.Tokenize(store_request(fresh_typed_card(), customer), timeout=TIMEOUT)

    codes = [show(installation, name, "--reason", "dispute 7").returncode for name in (customer, new_customer())]

    found = rows(
        installation.database_url,
        "SELECT tenant_id, customer_id, outcome, reason, role, details, substr(actor, 1, 9) FROM audit_events "
        "WHERE event = 'consent.shown' ORDER BY occurred_at",
    )
    assert codes == [OK, NONE]
    assert found[0] == (SHOP, customer, "ok", "dispute 7", "operator", '{"entries":1}', "operator:")
    assert [row[5] for row in found] == ['{"entries":1}', '{"entries":0}']


def test_another_shop_has_nothing_of_this_customer(installation: Installation) -> None:
    customer = new_customer()
    installation.client("checkout").checkout.Tokenize(store_request(fresh_typed_card(), customer), timeout=TIMEOUT)

    done = show(installation, customer, "--reason", "dispute 7", "--json", tenant="other")

    assert (done.returncode, json.loads(done.stdout)["entries"]) == (NONE, [])


@pytest.mark.parametrize("arguments", [("--reason", " "), (), ("--reason", "x", "--tenant", "Shop!")])
def test_a_look_without_a_reason_or_at_nobody_is_a_mistake(
    installation: Installation, arguments: tuple[str, ...]
) -> None:
    done = show(installation, new_customer(), *arguments)

    assert done.returncode == USAGE
    assert rows(installation.database_url, "SELECT 1 FROM audit_events WHERE event = 'consent.shown'") == []

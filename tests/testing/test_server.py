"""The vault that integrators' tests get: real, one for a run, a shop for each test."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest

from vault.client import CardUse, Consent, Money, NotAvailable, StoredCard, Unavailable
from vault.testing import CardVault, Shop, fresh_card

AMOUNT = Money(minor_units=100, currency="EUR")
CONSENT = Consent.to("Keep my card.", version="1", uses=[CardUse.CUSTOMER_INITIATED], locale="en")

A_SHOPS_TEST = """
from vault.client import CardUse, Consent, Money, StoredCard
from vault.testing import fresh_card

def test_a_customer_pays(cardvault):
    card = fresh_card()
    consent = Consent.to("Keep my card.", version="1", uses=[CardUse.CUSTOMER_INITIATED], locale="en")
    stored = cardvault.checkout.tokenize(card, customer="ada", consent=consent).card
    amount = Money(minor_units=100, currency="EUR")
    grant = cardvault.checkout.issue_grant(
        StoredCard("ada", stored.token), order="order-1", amount=amount, processor=cardvault.processor_name
    )
    released = cardvault.processor.detokenize(grant, order="order-1", amount=amount)
    assert released.number == card.number
    {more}

def test_another_shop_sees_nothing_of_it(cardvault):
    assert list(cardvault.account.list_cards("ada")) == []
"""

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("more", "verdict"), [("", "*leak scan: clean: *"), ("print(released.number.reveal())", "*leak: *stdout*plain*")]
)
def test_a_shops_own_tests_run_on_it_and_are_searched(pytester: pytest.Pytester, more: str, verdict: str) -> None:
    pytester.makepyfile(A_SHOPS_TEST.format(more=more))

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--cardvault-leaks", "-W", "error")

    result.assert_outcomes(passed=2)
    assert (result.ret == pytest.ExitCode.OK) is (not more)
    result.stdout.fnmatch_lines([verdict])


def test_without_pytest_it_leaves_nothing_behind_and_has_as_many_shops_as_asked() -> None:
    with CardVault.start(tenants=2) as vault:
        directory = vault.directory
        one, other = vault.shop(), vault.shop()
        token = one.checkout.tokenize(fresh_card(), customer="ada", consent=CONSENT)
        assert token.card is not None
        with pytest.raises(NotAvailable):
            other.account.get_card("ada", token.card.token)
        with pytest.raises(LookupError):
            vault.shop()

    assert directory.is_dir() is False


def test_outages_are_real_and_end(tmp_path: Path) -> None:
    with CardVault.start(tmp_path / "vault", tenants=1) as vault:
        shop = vault.shop()
        stored = shop.checkout.tokenize(fresh_card(), customer="ada", consent=CONSENT).card
        assert stored is not None

        with vault.keys_away():
            # Soon after its start OpenBao would open the seal by itself.
            time.sleep(6)
            with pytest.raises(Unavailable):
                shop.checkout.tokenize(fresh_card(), customer="ada", consent=CONSENT, deadline=timedelta(seconds=1))
            assert shop.account.get_card("ada", stored.token) == stored
        vault.kill_server()
        with pytest.raises(Unavailable):
            shop.account.get_card("ada", stored.token, deadline=timedelta(seconds=1))
        vault.start_server()

        grant = shop.checkout.issue_grant(
            StoredCard("ada", stored.token), order="o", amount=AMOUNT, processor=shop.processor_name
        )
        assert shop.processor.detokenize(grant, order="o", amount=AMOUNT).number.last4() == stored.last4


def test_the_clients_of_a_shop_are_of_its_tenant(cardvault: Shop, cardvault_server: CardVault) -> None:
    other = cardvault_server.shop()

    assert cardvault.tenant != other.tenant
    assert cardvault.tls("checkout") != other.tls("checkout")
    assert cardvault.checkout is cardvault.checkout

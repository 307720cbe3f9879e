"""The storefront in a real browser: the five steps of a shopper, and no card number anywhere afterwards."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.examples.conftest import Street
from tests.support.cards import REGISTRY, TypedCard, fresh_typed_card
from vault.testing.scan import Scanner

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1100,1400",
)
PATIENCE = 20


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a new profile, which lies outside of what the run's leak scan searches: it is not ours."""
    if CHROMIUM is None or DRIVER is None:
        if os.environ.get("CARDVAULT_CI"):
            pytest.fail("CI needs chromium and chromium-driver")
        pytest.skip("chromium and chromedriver are not installed")
    with tempfile.TemporaryDirectory(prefix="cardvault-browser-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


class Hands:
    """What a shopper does with a browser; keeps the source of every page after a form was sent."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        self._home = f"http://{address}"
        self.sources: list[str] = []

    def go(self, path: str) -> None:
        """Type an address."""
        self.browser.get(self._home + path)

    def find(self, css: str) -> WebElement:
        """The first such element."""
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        """All such elements."""
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def text(self) -> str:
        """What is to be read."""
        return self.find("main").text

    def send(self, css: str) -> None:
        """Press a button, and wait for the page that follows."""
        before = self.find("html")
        self.find(css).click()
        WebDriverWait(self.browser, PATIENCE).until(lambda _: self.find("html") != before)
        WebDriverWait(self.browser, PATIENCE).until(
            lambda _: self.browser.execute_script("return document.readyState") == "complete"
        )
        self.sources.append(self.browser.page_source)

    def sign_in(self, name: str) -> None:
        """As a customer."""
        self.go("/sign-in")
        self.find("#name").send_keys(name)
        self.send("main form button")

    def choose(self) -> None:
        """Fill the basket and go to the checkout."""
        self.go("/")
        self.send("[aria-label='Add Two cups to the basket']")
        self.go("/checkout")

    def type_card(self, card: TypedCard) -> None:
        """Into the form, digit after digit."""
        self.find("#number").send_keys(card.pan)
        self.find("#name").send_keys(card.holder_name)
        self.find("#expiry").send_keys(f"{card.month:02}/{card.year % 100:02}")
        self.find("#code").send_keys(card.security_code)

    def console(self) -> list[object]:
        """What the browser had to complain about since the last time: a breach of the content policy, say."""
        return list(self.browser.get_log("browser"))  # type: ignore[no-untyped-call]

    def remembered(self) -> list[str]:
        """Cookies and both storages of the browser, and the addresses it was at."""
        storages = "return JSON.stringify([Object.entries(localStorage), Object.entries(sessionStorage)])"
        entries = self.browser.execute_cdp_cmd("Page.getNavigationHistory", {})["entries"]
        return [
            json.dumps(self.browser.get_cookies()),
            self.browser.execute_script(storages),
            json.dumps(entries),
        ]


def test_a_shopper_buys_keeps_a_card_sees_four_digits_pays_again_and_removes_it(
    browser: webdriver.Chrome, street: Street, leaks: Callable[..., list[str]]
) -> None:
    hands = Hands(browser, street.storefront.shop.address)
    once, kept = (fresh_typed_card(with_security_code=True) for _ in range(2))
    hands.sign_in("Dora")

    # 1. Buy without opting in.
    hands.choose()
    assert hands.find("#keep").is_selected() is False
    assert "This is your choice, and you can buy without it." in hands.find("#terms").text
    hands.type_card(once)
    hands.send("#new-card button")
    assert "is paid" in hands.text()
    hands.go("/account")
    assert "No card is kept for you." in hands.text()

    # 2. Buy opting in.
    hands.choose()
    hands.type_card(kept)
    hands.find("#keep").click()
    hands.send("#new-card button")
    assert "Yes, as you asked." in hands.text()

    # 3. See only the last four digits.
    hands.go("/account")
    hands.sources.append(browser.page_source)
    assert hands.find(".plastic .number").text == f"•••• {kept.last4}"
    assert len(hands.all(".plastic")) == 1

    # 4. Pay again with the stored card.
    hands.choose()
    assert hands.find("#stored-card [name=token]").is_selected()
    assert hands.find("#number").is_displayed() is False
    hands.send("#stored-card button")
    assert "is paid" in hands.text()
    hands.go("/orders")
    hands.sources.append(browser.page_source)
    assert hands.text().count("approved by your bank") == 3
    assert "number given to the processor" in hands.text()

    # 5. Remove it.
    hands.go("/account")
    hands.send("[action='/account/remove'] button")
    assert "The card is removed." in hands.text()
    assert "No card is kept for you." in hands.text()

    console = hands.console()
    remembered = [json.dumps(console), *hands.remembered()]
    assert console == []
    vault = street.vault
    found = leaks(*(text.encode() for text in (*hands.sources, *remembered)), more=(vault.log, vault.directory))
    assert found == []


def test_a_mistyped_number_does_not_come_back_and_the_search_finds_one_that_does(
    browser: webdriver.Chrome, street: Street, leaks: Callable[..., list[str]], tmp_path: Path
) -> None:
    hands = Hands(browser, street.storefront.shop.address)
    card = fresh_typed_card(with_security_code=True)
    hands.sign_in("Emil")
    hands.choose()
    hands.type_card(TypedCard(card.pan, card.month, 2020, card.holder_name, card.security_code))

    before = browser.execute_script("return document.querySelector('#number').value")
    hands.send("#new-card button")

    assert hands.find("#expiry-mistake").text.startswith("This card has expired")
    assert hands.find("#number").get_attribute("value") == ""
    assert leaks(hands.sources[-1].encode(), *(text.encode() for text in hands.remembered())) == []
    assert [form for _, form, _ in Scanner(REGISTRY.canaries()).scan_bytes(before.encode())] != []

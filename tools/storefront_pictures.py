"""Makes the pictures of the storefront in the README: starts it in a folder of its own, shops, and looks.

    .venv/bin/python tools/storefront_pictures.py OUT

Needs chromium, chromedriver and a published test number, which is in here. OUT gets PNG files at two widths, in light
and dark.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from examples.storefront.stand import Storefront
from vault.testing import CardVault

NUMBER = "4242424242424242"
OTHER_NUMBER = "5555555555554444"
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
SIZES = {"wide": (1000, 760), "narrow": (390, 844)}


def _browser(profile: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.binary_location = "/usr/bin/chromium"
    return webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))


class _Shopper:
    def __init__(self, browser: webdriver.Chrome, home: str, out: Path) -> None:
        self._browser = browser
        self._home = home
        self._out = out

    def go(self, path: str) -> None:
        self._browser.get(self._home + path)

    def type(self, css: str, text: str) -> None:
        self._browser.find_element(By.CSS_SELECTOR, css).send_keys(text)

    def click(self, css: str) -> None:
        self._browser.find_element(By.CSS_SELECTOR, css).click()

    def send(self, css: str) -> None:
        before = self._browser.find_element(By.TAG_NAME, "html")
        self.click(css)
        WebDriverWait(self._browser, 20).until(lambda browser: browser.find_element(By.TAG_NAME, "html") != before)

    def type_card(self, number: str) -> None:
        self.type("#number", f"{number[:4]} {number[4:8]} {number[8:12]} {number[12:]}")
        self.type("#name", "Ada Example")
        self.type("#expiry", "12/30")
        self.type("#code", "123")

    def look(self, name: str) -> None:
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                self._see(width, height, scheme)
                tall = self._browser.execute_script("return document.documentElement.scrollHeight")
                self._see(width, max(int(tall), height // 2), scheme)
                self._browser.save_screenshot(str(self._out / f"{name}-{size}-{scheme}.png"))
        self._see(*SIZES["wide"], "light")

    def _see(self, width: int, height: int, scheme: str) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        # Without motion a button does not show a colour on its way to another.
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = {"features": [{"name": name, "value": value} for name, value in wanted.items()]}
        self._browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)


def _shop(shopper: _Shopper) -> None:
    shopper.go("/sign-in")
    shopper.look("sign-in")
    shopper.type("#name", "Ada")
    shopper.send("main form button")
    shopper.look("account-empty")
    shopper.go("/")
    shopper.look("catalogue")
    shopper.send("[aria-label^='Add Two cups']")
    shopper.send("[aria-label^='Add Reading lamp']")
    shopper.go("/basket")
    shopper.look("basket")
    shopper.go("/checkout")
    shopper.type_card(NUMBER)
    shopper.look("checkout")
    shopper.click("#keep")
    shopper.send("#new-card button")
    shopper.look("paid")
    shopper.go("/")
    shopper.send("[aria-label^='Add Morning kettle']")
    shopper.go("/checkout")
    shopper.look("checkout-stored")
    shopper.send("#stored-card button")
    shopper.go("/")
    shopper.send("[aria-label^='Add Unlucky notebook']")
    shopper.go("/checkout")
    shopper.click("summary")
    shopper.type_card(OTHER_NUMBER)
    shopper.click("#keep")
    shopper.send("#new-card button")
    shopper.look("declined")
    shopper.go("/orders")
    shopper.look("orders")
    shopper.go("/account")
    shopper.look("account")
    shopper.send("[action='/account/remove'] button")
    shopper.look("removed")


def main(out: Path) -> None:
    """Make all of them."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        directory = Path(made)
        with (
            CardVault.start(directory / "vault", tenants=1) as vault,
            Storefront(directory / "shop", vault=vault.address, pki=directory / "vault" / "pki") as storefront,
        ):
            browser = _browser(profile)
            try:
                _shop(_Shopper(browser, f"http://{storefront.shop.address}", out))
            finally:
                browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

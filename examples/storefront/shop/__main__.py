"""The shop's process."""

from __future__ import annotations

from examples.storefront.settings import Settings
from examples.storefront.shop.app import make_app
from examples.storefront.web import serve

told = Settings.parse()
serve(make_app(told), told.descriptor)

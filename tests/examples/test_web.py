"""What the shop does with an exception that nobody caught."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from examples.storefront.web import Guard
from tests.support.cards import fresh_digits


def test_an_uncaught_exception_tells_its_place_and_not_its_text(caplog: pytest.LogCaptureFixture) -> None:
    number = fresh_digits()
    sent: list[Any] = []

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError(f"invalid literal for int(): {number}")

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(Guard(broken)({"type": "http", "headers": []}, receive, send))

    assert sent[0]["status"] == 500
    assert b"Something went wrong" in sent[1]["body"]
    assert number not in caplog.text + repr(sent)
    assert "ValueError at" in caplog.text
    assert "test_web.py" in caplog.text

"""The shop's way to the payment processor: it hands over a grant, never a number."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Mapping

_TIMEOUT = 15.0
_ASK_FOR_A_NEW_GRANT = (409, 502)


class ProcessorAway(Exception):
    """No answer, so nobody knows."""


class NeedsAnotherGrant(Exception):
    """The grant releases nothing, or nothing any more. Nothing was paid."""


class VaultAway(Exception):
    """The processor could not reach the vault. Nothing was paid, and the grant is as good as before."""


class Acquirer:
    """Calls its API. Each call may be repeated: it pays an order once at most."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    async def pay(self, grant: str, *, order: str, minor_units: int, currency: str) -> Mapping[str, str]:
        """`outcome` and `network_transaction_id`."""
        told = {"grant": grant, "order": order, "minor_units": minor_units, "currency": currency}
        status, answer = await self._call("POST", "/payments", json.dumps(told))
        if status in _ASK_FOR_A_NEW_GRANT:
            raise NeedsAnotherGrant
        if status == http.client.SERVICE_UNAVAILABLE:
            raise VaultAway
        return _answer(status, answer)

    async def find(self, order: str) -> Mapping[str, str] | None:
        """What became of an order; None if the processor knows nothing of it."""
        status, answer = await self._call("GET", f"/payments/{order}")
        return None if status == http.client.NOT_FOUND else _answer(status, answer)

    async def cancel(self, order: str) -> Mapping[str, str]:
        """See to it that an order is not paid any more; tells if it was."""
        return _answer(*await self._call("DELETE", f"/payments/{order}"))

    async def _call(self, method: str, path: str, body: str | None = None) -> tuple[int, Mapping[str, str]]:
        return await asyncio.to_thread(self._blocking, method, path, body)

    def _blocking(self, method: str, path: str, body: str | None) -> tuple[int, Mapping[str, str]]:
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT)
        try:
            connection.request(method, path, body, self._headers)
            response = connection.getresponse()
            answer: Mapping[str, str] = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            answer = {}
        else:
            return response.status, answer
        finally:
            connection.close()
        # Out of the `except`: the error would drag the request along.
        raise ProcessorAway


def _answer(status: int, answer: Mapping[str, str]) -> Mapping[str, str]:
    if status != http.client.OK:
        raise ProcessorAway
    return answer

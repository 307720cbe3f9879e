"""The client's house rules: what is blocking and what is awaited are one thing, and importing it is light."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vault
from vault import client
from vault.client.clients import AsyncClient, BlockingClient
from vault.v1 import account_pb2, checkout_pb2, processor_pb2

PAIRS = [
    (client.Checkout, client.AsyncCheckout, checkout_pb2),
    (client.Account, client.AsyncAccount, account_pb2),
    (client.Processor, client.AsyncProcessor, processor_pb2),
]
DRIVERS = {"run", "arun"}


def _methods(kind: type) -> dict[str, Callable[..., object]]:
    found = inspect.getmembers(kind, inspect.isfunction)
    return {name: function for name, function in found if not name.startswith("_") and name not in DRIVERS}


@pytest.mark.parametrize(("blocking", "awaited", "proto"), PAIRS, ids=lambda each: getattr(each, "__name__", ""))
def test_both_kinds_of_client_have_the_same_methods_and_signatures(
    blocking: type[BlockingClient], awaited: type[AsyncClient], proto: object
) -> None:
    here, there = _methods(blocking), _methods(awaited)

    assert {name: str(inspect.signature(method)) for name, method in here.items()} == {
        name: str(inspect.signature(method)) for name, method in there.items()
    }
    assert {name for name, method in there.items() if inspect.iscoroutinefunction(method)} == there.keys() - {
        "list_cards"
    }
    assert not any(inspect.iscoroutinefunction(method) for method in here.values())
    assert all(method.__doc__ for method in (*here.values(), *there.values()))


@pytest.mark.parametrize(("blocking", "awaited", "proto"), PAIRS, ids=lambda each: getattr(each, "__name__", ""))
def test_each_rpc_of_the_contract_has_its_method(
    blocking: type[BlockingClient], awaited: type[AsyncClient], proto: object
) -> None:
    services = proto.DESCRIPTOR.services_by_name.values()  # type: ignore[attr-defined]
    rpcs = {method.name for service in services for method in service.methods}

    assert [service.full_name for service in services] == [blocking.service] == [awaited.service]
    assert {name.title().replace("_", "") for name in _methods(blocking)} - {"WaitReady", "Close"} == rpcs


def test_importing_the_client_brings_in_nothing_of_the_server() -> None:
    script = """
import sys, vault.client
print(*sorted({name for name in sys.modules if name.startswith("vault.")}))
print(*sorted(set(name.partition(".")[0] for name in sys.modules)))
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    ours, all_of_them = (set(line.split()) for line in said.splitlines())

    assert {name.split(".")[1] for name in ours} == {"client", "domain", "v1"}
    heavy = {"sqlalchemy", "hvac", "requests", "pydantic", "typer", "rich", "alembic", "psycopg", "structlog", "uvloop"}
    assert heavy & all_of_them == set()


def test_type_checkers_are_told_that_the_package_is_typed() -> None:
    assert (Path(vault.__file__).parent / "py.typed").is_file()


def test_all_that_is_promised_is_there() -> None:
    assert all(hasattr(client, name) for name in client.__all__)
    assert sorted(client.__all__) == list(client.__all__)

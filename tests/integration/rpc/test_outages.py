"""Vault sealed, killed or hanging, the database failing, the server killed: what still works, and what is left.

Every installation here is this module's own: with an OpenBao to seal and databases to spoil.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from sqlalchemy import Connection, text

from tests.fixtures_db import execute_as_admin, postgresql_url_of, sqlite_url_of
from tests.support.cards import TypedCard, fresh_typed_card
from tests.support.installation import (
    Client,
    Installation,
    ServerProcess,
    eventually,
    installed,
    wait_for_health,
    wait_until_ready,
)
from tests.support.requests import (
    TIMEOUT,
    grant_request,
    new_customer,
    new_key,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from tests.support.seal import seal
from vault.embedded.openbao import OpenBao
from vault.store.engine import Limits, open_engines
from vault.v1 import account_pb2, cards_pb2, checkout_pb2, processor_pb2

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
_numbers = itertools.count()

# Every row that must not stand alone, as queries that find it.
ORPHANS = {
    "card without consent": "SELECT count(*) FROM cards c LEFT JOIN consents k ON k.tenant_id = c.tenant_id "
    "AND k.consent_id = c.consent_id AND k.kind = 'given' WHERE k.consent_id IS NULL",
    "card without secret": "SELECT count(*) FROM cards c LEFT JOIN card_secrets s ON s.tenant_id = c.tenant_id "
    "AND s.token = c.token WHERE s.token IS NULL",
    "secret without card": "SELECT count(*) FROM card_secrets s LEFT JOIN cards c ON c.tenant_id = s.tenant_id "
    "AND c.token = s.token WHERE c.token IS NULL",
    "consent without event": "SELECT count(*) FROM consents k WHERE k.kind = 'given' AND NOT EXISTS "
    "(SELECT 1 FROM audit_events e WHERE e.event = 'card.tokenized' AND e.outcome = 'ok' AND e.target = k.token "
    "AND e.details LIKE '%' || k.consent_id || '%')",
    "consent without card": "SELECT count(*) FROM consents k WHERE k.kind = 'given' AND NOT EXISTS "
    "(SELECT 1 FROM cards c WHERE c.token = k.token) AND NOT EXISTS "
    "(SELECT 1 FROM erasures x WHERE x.token = k.token)",
    "event without card": "SELECT count(*) FROM audit_events e WHERE e.event = 'card.tokenized' AND e.outcome = 'ok' "
    "AND e.target LIKE 'tok%' AND NOT EXISTS (SELECT 1 FROM cards c WHERE c.token = e.target) "
    "AND NOT EXISTS (SELECT 1 FROM erasures x WHERE x.token = e.target)",
    "one-time key without event": "SELECT count(*) FROM once_keys o WHERE NOT EXISTS "
    "(SELECT 1 FROM audit_events e WHERE e.event = 'card.tokenized' AND e.details LIKE '%' || o.once_id || '%')",
    "grant without event": "SELECT count(*) FROM grants g WHERE NOT EXISTS (SELECT 1 FROM audit_events e "
    "WHERE e.event = 'grant.issued' AND e.outcome = 'ok' AND e.grant_sha256 = g.grant_sha256)",
    "used grant without release": "SELECT count(*) FROM grants g WHERE g.state = 'used' AND NOT EXISTS "
    "(SELECT 1 FROM audit_events e WHERE e.event = 'card.released' AND e.outcome = 'ok' "
    "AND e.grant_sha256 = g.grant_sha256)",
    "release without used grant": "SELECT count(*) FROM audit_events e WHERE e.event = 'card.released' "
    "AND e.outcome = 'ok' AND NOT EXISTS (SELECT 1 FROM grants g WHERE g.grant_sha256 = e.grant_sha256 "
    "AND g.state = 'used')",
    "tombstone without event": "SELECT count(*) FROM erasures x WHERE NOT EXISTS "
    "(SELECT 1 FROM audit_events e WHERE e.event_id = x.event_id)",
    "tombstone without withdrawal": "SELECT count(*) FROM erasures x WHERE NOT EXISTS "
    "(SELECT 1 FROM consents k WHERE k.kind = 'withdrawn' AND k.token = x.token)",
    "tombstone beside its card": "SELECT count(*) FROM erasures x JOIN cards c ON c.token = x.token",
    "open grant of an erased card": "SELECT count(*) FROM grants g JOIN erasures x ON x.token = g.token "
    "WHERE g.state = 'open'",
    "answer without card": "SELECT count(*) FROM idempotency i WHERE i.token IS NOT NULL AND NOT i.erased "
    "AND NOT EXISTS (SELECT 1 FROM cards c WHERE c.token = i.token)",
}


@contextmanager
def direct(url: str) -> Iterator[Connection]:
    """One transaction on the database itself, past all of our own code."""
    engines = open_engines(url, Limits(pool_size=2))
    try:
        with engines.writer.begin() as connection:
            yield connection
    finally:
        engines.dispose()


def assert_no_half_effects(url: str) -> None:
    with direct(url) as connection:
        found = {name: connection.execute(text(query)).scalar_one() for name, query in ORPHANS.items()}
    assert not {name: count for name, count in found.items() if count}


def counted(url: str) -> dict[str, int]:
    """How many rows each table has, but for the audit log and settings."""
    tables = ("cards", "card_secrets", "consents", "once_keys", "grants", "idempotency", "erasures")
    with direct(url) as connection:
        return {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in tables}


@dataclass(frozen=True, slots=True)
class Own:
    """An installation that may be broken."""

    installation: Installation
    server: ServerProcess
    checkout: Client
    account: Client
    processor: Client

    @property
    def url(self) -> str:
        return self.installation.database_url

    def store(self, card: TypedCard, customer: str, **changes: Any) -> str:
        request = store_request(card, customer, **changes)
        return self.checkout.checkout.Tokenize(request, timeout=TIMEOUT).card.token

    def grant(self, order: str, customer: str, token: str) -> str:
        request = grant_request(order=order, customer=customer, token=token)
        return self.checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant

    def release(self, grant: str, order: str) -> Any:
        return self.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)

    def health(self, service: str) -> int:
        name = f"vault.v1.{service}" if service else ""
        answer = self.account.health.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT)
        return int(answer.status)


@pytest.fixture(scope="module")
def sealable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """An OpenBao that tests may seal, stop and kill; what it keeps survives."""
    server = OpenBao(tmp_path_factory.mktemp("sealable") / "state", storage="raft", keep_root_token=True)
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sealable: OpenBao) -> Iterator[Own]:
    """One server on a database of this module's own; every test leaves it well."""
    directory = tmp_path_factory.mktemp(f"outages-{request.param}")
    with database_of_kind(request, request.param, directory) as url, installed(directory, sealable, url) as made:
        yield opened(made, made.serve(vault__timeout_seconds=1))


@contextmanager
def database_of_kind(request: pytest.FixtureRequest, kind: str, directory: Path) -> Iterator[str]:
    if kind == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), directory / "vault.db")
        yield sqlite_url_of(directory / "vault.db")
        return
    server = request.getfixturevalue("postgresql_server")
    name = f"outages_{next(_numbers)}"
    execute_as_admin(server, f"CREATE DATABASE {name} TEMPLATE {request.getfixturevalue('postgresql_template')}")
    yield postgresql_url_of(server, name)
    execute_as_admin(server, f"DROP DATABASE {name} WITH (FORCE)")


def opened(installation: Installation, server: ServerProcess) -> Own:
    clients = [installation.client(name, server) for name in ("checkout", "account", "processor")]
    return Own(installation, server, *clients)


def trouble(stub: Any, request: Message, *, timeout: float = TIMEOUT) -> grpc.StatusCode:
    """The code of a call that fails; of an UNAVAILABLE also that it says when to come back."""
    with pytest.raises(grpc.RpcError) as caught:
        stub(request, timeout=timeout)
    error: Any = caught.value
    code: grpc.StatusCode = error.code()
    if code is UNAVAILABLE:
        metadata = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
        assert error.details() == "unavailable"
    return code


@contextmanager
def sealed(openbao: OpenBao) -> Iterator[None]:
    seal(openbao)
    try:
        yield
    finally:
        openbao.unseal()


# --- Vault ----------------------------------------------------------------------------------------------------------


def test_while_vault_is_sealed_all_works_that_needs_no_key(own: Own, sealable: OpenBao) -> None:
    cards = [fresh_typed_card() for _ in range(3)]
    customer, order, other_order = new_customer(), new_order(), new_order()
    tokens = [own.store(card, customer) for card in cards]
    leaving = new_customer()
    own.store(cards[0], leaving)
    grant = own.grant(order, customer, tokens[0])
    paid_order = new_order()
    paid = own.grant(paid_order, customer, tokens[0])
    own.release(paid, paid_order)
    account, checkout = own.account.account, own.checkout.checkout
    known = counted(own.url)

    with sealed(sealable):
        assert trouble(checkout.Tokenize, store_request(fresh_typed_card(), customer)) is UNAVAILABLE
        assert trouble(checkout.Tokenize, once_request(fresh_typed_card(), new_order())) is UNAVAILABLE
        keyed = store_request(fresh_typed_card(), customer, idempotency_key=new_key())
        assert trouble(checkout.Tokenize, keyed) is UNAVAILABLE
        for _ in range(3):
            assert trouble(own.processor.processor.Detokenize, redeem_request(grant, order)) is UNAVAILABLE
        assert counted(own.url) == known

        listed = account.ListCards(account_pb2.ListCardsRequest(customer_id=customer), timeout=TIMEOUT).cards
        shown = account.GetCard(account_pb2.GetCardRequest(customer_id=customer, token=tokens[0]), timeout=TIMEOUT)
        expiry = cards_pb2.Expiry(month=2, year=cards[0].year + 1)
        changed = account.UpdateCard(
            account_pb2.UpdateCardRequest(customer_id=customer, token=tokens[0], expiry=expiry), timeout=TIMEOUT
        )
        default = account.SetDefaultCard(
            account_pb2.SetDefaultCardRequest(customer_id=customer, token=tokens[1]), timeout=TIMEOUT
        )
        another = own.grant(other_order, customer, tokens[0])
        checkout.RevokeGrant(checkout_pb2.RevokeGrantRequest(grant=another), timeout=TIMEOUT)
        deleted = account.DeleteCard(
            account_pb2.DeleteCardRequest(customer_id=customer, token=tokens[2]), timeout=TIMEOUT
        )
        erased = account.EraseCustomer(account_pb2.EraseCustomerRequest(customer_id=leaving), timeout=TIMEOUT)
        exported = account.ExportCustomer(account_pb2.ExportCustomerRequest(customer_id=customer), timeout=TIMEOUT)
        own.processor.processor.ReportOutcome(
            processor_pb2.ReportOutcomeRequest(grant=paid, order_id=paid_order, outcome=processor_pb2.OUTCOME_APPROVED),
            timeout=TIMEOUT,
        )

    assert [release.order_id for release in exported.releases] == [paid_order]
    assert [card.token for card in exported.cards] == tokens[:2]
    assert [card.token for card in listed] == tokens
    assert shown.card.last4 == cards[0].last4
    assert changed.card.expiry == expiry
    assert default.card.is_default
    assert (deleted.receipt.cards, erased.receipt.cards) == (1, 1)
    wait_until_ready(own.checkout)
    released = own.release(grant, order)
    assert (released.pan, released.expiry) == (cards[0].pan, expiry)
    token = checkout.Tokenize(keyed, timeout=TIMEOUT).card.token
    assert checkout.Tokenize(keyed, timeout=TIMEOUT).card.token == token
    assert_no_half_effects(own.url)


def test_health_says_which_service_can_work(own: Own, sealable: OpenBao) -> None:
    with sealed(sealable):
        for service in ("CheckoutService", "ProcessorService"):
            wait_for_health(own.account, NOT_SERVING, service=f"vault.v1.{service}")
        wait_for_health(own.account, NOT_SERVING)

        assert own.health("AccountService") == SERVING
        assert own.health("") == SERVING

    for service in ("CheckoutService", "ProcessorService", "AccountService"):
        wait_until_ready(own.account, service=f"vault.v1.{service}")
    wait_until_ready(own.account)


def test_after_vault_was_killed_and_came_back_everything_opens(own: Own, sealable: OpenBao) -> None:
    card, customer, order = fresh_typed_card(), new_customer(), new_order()
    token = own.store(card, customer)
    grant = own.grant(order, customer, token)

    sealable.kill()
    try:
        codes = [
            trouble(own.checkout.checkout.Tokenize, store_request(fresh_typed_card(), customer)),
            trouble(own.processor.processor.Detokenize, redeem_request(grant, order)),
        ]
    finally:
        sealable.start()

    assert codes == [UNAVAILABLE] * 2
    wait_until_ready(own.checkout)
    assert own.release(grant, order).pan == card.pan
    assert own.store(card, customer) == token
    assert_no_half_effects(own.url)


def test_a_hanging_vault_stalls_nobody_who_needs_no_key(own: Own, sealable: OpenBao) -> None:
    card, customer = fresh_typed_card(), new_customer()
    token = own.store(card, customer)
    orders = [new_order() for _ in range(40)]
    grants = {order: own.grant(order, customer, token) for order in orders}
    tokenize, redeem = own.checkout.checkout.Tokenize, own.processor.processor.Detokenize
    listing = account_pb2.ListCardsRequest(customer_id=customer)
    warm = new_order()
    own.release(own.grant(warm, customer, token), warm)

    os.kill(sealable.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        redeeming = {order: redeem.future(redeem_request(grants[order], order), timeout=20) for order in orders}
        storing = [tokenize.future(store_request(fresh_typed_card(), customer), timeout=2) for _ in orders]
        waits = []
        while time.monotonic() < started + 1.5:
            before = time.monotonic()
            own.account.account.ListCards(listing, timeout=TIMEOUT)
            own.grant(new_order(), customer, token)
            waits.append(time.monotonic() - before)
        stored = {future.code() for future in storing}
        ended = time.monotonic() - started
        first = redeeming[orders[0]].code()
    finally:
        os.kill(sealable.pid, signal.SIGCONT)

    assert max(waits) < 1
    assert len(waits) > 10
    assert ended < 4
    assert stored <= {UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert first is UNAVAILABLE
    ends = {order: future.code() for order, future in redeeming.items()}
    assert set(ends.values()) <= {UNAVAILABLE, OK}
    wait_until_ready(own.checkout)
    # Whoever was told so has a grant that is good still.
    told = [order for order, end in ends.items() if end is UNAVAILABLE]
    assert all(own.release(grants[order], order).pan == card.pan for order in told)
    assert_no_half_effects(own.url)


# --- the database ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["postgresql"], indirect=True)
def test_a_server_whose_database_is_frozen_is_not_ready_until_it_answers(own: Own) -> None:
    card, customer = fresh_typed_card(), new_customer()
    token = own.store(card, customer)
    with psycopg.connect(own.url, autocommit=True) as link:
        rows = link.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database()").fetchall()
        backends = [pid for (pid,) in rows if pid != link.info.backend_pid]

    for pid in backends:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_for_health(own.checkout, NOT_SERVING)
        alive = own.health("")
    finally:
        for pid in backends:
            os.kill(pid, signal.SIGCONT)

    assert alive == SERVING
    wait_until_ready(own.checkout)
    assert own.store(card, customer) == token


@contextmanager
def failing_audit(url: str, marker: str) -> Iterator[None]:
    """The audit log takes every event but those about one customer or order."""
    condition = f"NEW.customer_id = '{marker}' OR NEW.order_id = '{marker}'"
    if url.startswith("sqlite"):
        raising = "BEGIN SELECT RAISE(ABORT, 'spoiled'); END"
        made = [f"CREATE TRIGGER spoiled BEFORE INSERT ON audit_events WHEN {condition} {raising}"]
        undone = ["DROP TRIGGER spoiled"]
    else:
        raising = f"BEGIN IF {condition} THEN RAISE EXCEPTION 'spoiled'; END IF; RETURN NEW; END"
        made = [
            f"CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ {raising} $$",
            "CREATE TRIGGER spoiled BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION spoil()",
        ]
        undone = ["DROP TRIGGER spoiled ON audit_events", "DROP FUNCTION spoil()"]
    with direct(url) as connection:
        for statement in made:
            connection.execute(text(statement))
    try:
        yield
    finally:
        with direct(url) as connection:
            for statement in undone:
                connection.execute(text(statement))


def test_a_card_whose_event_cannot_be_written_is_not_stored_and_its_neighbours_are(own: Own) -> None:
    marker = new_customer()
    customers = [new_customer() for _ in range(20)]
    with failing_audit(own.url, marker):
        futures = [
            own.checkout.checkout.Tokenize.future(store_request(fresh_typed_card(), customer), timeout=TIMEOUT)
            for customer in [*customers[:10], marker, *customers[10:]]
        ]
        codes = [future.code() for future in futures]
        alone = trouble(own.checkout.checkout.Tokenize, store_request(fresh_typed_card(), marker))

    assert codes.pop(10) is UNAVAILABLE
    assert codes == [OK] * 20
    assert alone is UNAVAILABLE
    listed = own.account.account.ListCards(account_pb2.ListCardsRequest(customer_id=marker), timeout=TIMEOUT)
    assert not listed.cards
    assert_no_half_effects(own.url)


def test_no_number_leaves_whose_release_cannot_be_recorded(own: Own) -> None:
    customer, marker = new_customer(), new_order()
    card = fresh_typed_card()
    token = own.store(card, customer)
    orders = [new_order() for _ in range(10)]
    grants = {order: own.grant(order, customer, token) for order in [*orders, marker]}
    once_order = new_order()
    once = own.checkout.checkout.Tokenize(once_request(card, once_order), timeout=TIMEOUT).one_time_token
    once_grant = own.checkout.checkout.IssueGrant(
        grant_request(order=once_order, one_time_token=once), timeout=TIMEOUT
    ).grant
    redeem = own.processor.processor.Detokenize

    with failing_audit(own.url, marker):
        futures = {o: redeem.future(redeem_request(grants[o], o), timeout=TIMEOUT) for o in (*orders[:5], marker)}
        codes = {order: future.code() for order, future in futures.items()}
        alone = trouble(redeem, redeem_request(grants[marker], marker))
        refused = trouble(redeem, redeem_request("grant_x" + grants[marker], marker))
    with failing_audit(own.url, once_order):
        not_once = trouble(redeem, redeem_request(once_grant, once_order))

    assert codes.pop(marker) is UNAVAILABLE
    assert set(codes.values()) == {OK}
    assert alone is UNAVAILABLE
    assert refused is grpc.StatusCode.PERMISSION_DENIED
    assert not_once is UNAVAILABLE
    # Nothing was burned.
    assert own.release(grants[marker], marker).pan == card.pan
    assert own.release(once_grant, once_order).pan == card.pan
    assert_no_half_effects(own.url)


def test_nothing_changes_whose_event_cannot_be_written(own: Own) -> None:
    marker = new_customer()
    card, order = fresh_typed_card(), new_order()
    token = own.store(card, marker)
    grant = own.grant(order, marker, token)
    account, checkout = own.account.account, own.checkout.checkout
    before = counted(own.url)

    with failing_audit(own.url, marker):
        codes = [
            trouble(
                account.UpdateCard,
                account_pb2.UpdateCardRequest(
                    customer_id=marker, token=token, expiry=cards_pb2.Expiry(month=1, year=card.year + 1)
                ),
            ),
            trouble(account.SetDefaultCard, account_pb2.SetDefaultCardRequest(customer_id=marker, token=token)),
            trouble(account.DeleteCard, account_pb2.DeleteCardRequest(customer_id=marker, token=token)),
            trouble(account.EraseCustomer, account_pb2.EraseCustomerRequest(customer_id=marker)),
            trouble(checkout.IssueGrant, grant_request(order=new_order(), customer=marker, token=token)),
            trouble(checkout.RevokeGrant, checkout_pb2.RevokeGrantRequest(grant=grant)),
            trouble(checkout.Tokenize, store_request(card, marker)),
        ]
        shown = account.GetCard(account_pb2.GetCardRequest(customer_id=marker, token=token), timeout=TIMEOUT).card

    assert codes == [UNAVAILABLE] * 7
    assert (shown.expiry.month, shown.expiry.year) == (card.month, card.year)
    assert counted(own.url) == before
    assert own.release(grant, order).pan == card.pan
    assert_no_half_effects(own.url)


def test_a_server_whose_database_connections_were_cut_recovers(
    request: pytest.FixtureRequest, tmp_path: Path, openbao: OpenBao
) -> None:
    with database_of_kind(request, "postgresql", tmp_path) as url, installed(tmp_path, openbao, url) as made:
        own = opened(made, made.serve())
        customer = new_customer()
        acknowledged: dict[str, str] = {}
        codes = set()
        stop = threading.Event()

        def cut() -> None:
            with psycopg.connect(url, autocommit=True) as admin:
                while not stop.wait(0.1):
                    admin.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            for _ in range(15):
                batch = []
                for _ in range(8):
                    card = fresh_typed_card()
                    wanted = store_request(card, customer, idempotency_key=new_key())
                    batch.append((own.checkout.checkout.Tokenize.future(wanted, timeout=TIMEOUT), card))
                for future, card in batch:
                    codes.add(future.code())
                    if future.code() is OK:
                        acknowledged[future.result().card.token] = card.last4
        finally:
            stop.set()
            cutter.join()

        eventually(lambda: own.health("CheckoutService") == SERVING)
        assert codes <= {OK, UNAVAILABLE}
        assert acknowledged
        assert own.store(fresh_typed_card(), customer)
        shown = all_cards(own, customer)
        assert acknowledged.items() <= shown.items()
        assert_no_half_effects(url)


def all_cards(own: Own, customer: str) -> dict[str, str]:
    """Last four digits by token, over all pages."""
    found: dict[str, str] = {}
    page = ""
    while True:
        listed = own.account.account.ListCards(
            account_pb2.ListCardsRequest(customer_id=customer, page_size=100, page_token=page), timeout=TIMEOUT
        )
        found |= {card.token: card.last4 for card in listed.cards}
        page = listed.next_page_token
        if not page:
            return found


# --- the server -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_after_the_server_was_killed_every_acknowledged_write_is_there_and_none_is_half(
    request: pytest.FixtureRequest, tmp_path: Path, openbao: OpenBao, kind: str
) -> None:
    with database_of_kind(request, kind, tmp_path) as url, installed(tmp_path, openbao, url) as made:
        customer = new_customer()
        stored: dict[str, TypedCard] = {}
        unknown: list[tuple[str, TypedCard]] = []
        erased: set[str] = set()
        used: dict[str, str] = {}
        for round_number in range(2):
            own = opened(made, made.serve())
            _load_until_killed(own, customer, stored, unknown, erased, used, seconds=0.4 + 0.2 * round_number)

        own = opened(made, made.serve())
        shown = all_cards(own, customer)
        alive = {token: card for token, card in stored.items() if token not in erased}
        assert len(alive) > 5
        assert {token: card.last4 for token, card in alive.items()}.items() <= shown.items()
        assert not erased & shown.keys()
        # What nobody answered is settled by repeating it under its key.
        for key, card in unknown:
            token = own.store(card, customer, idempotency_key=key)
            assert own.store(card, customer, idempotency_key=key) == token
        for order, grant in used.items():
            assert trouble(own.processor.processor.Detokenize, redeem_request(grant, order)) is (
                grpc.StatusCode.PERMISSION_DENIED
            )
        for token, card in list(alive.items())[:5]:
            order = new_order()
            assert own.release(own.grant(order, customer, token), order).pan == card.pan
        assert_no_half_effects(url)


def _load_until_killed(
    own: Own,
    customer: str,
    stored: dict[str, TypedCard],
    unknown: list[tuple[str, TypedCard]],
    erased: set[str],
    used: dict[str, str],
    *,
    seconds: float,
) -> None:
    """Stores, erasures and releases side by side until the server is gone; only what was answered is noted."""
    lock = threading.Lock()
    ready = threading.Barrier(5)

    def work() -> None:
        ready.wait()
        for number in itertools.count():
            card, key, order = fresh_typed_card(), new_key(), new_order()
            try:
                token = own.store(card, customer, idempotency_key=key)
            except grpc.RpcError:
                with lock:
                    unknown.append((key, card))
                return
            with lock:
                stored[token] = card
            try:
                grant = own.grant(order, customer, token)
                own.release(grant, order)
                with lock:
                    used[order] = grant
                if number % 3 == 0:
                    with lock:
                        erased.add(token)  # from here on it may be gone
                    own.account.account.DeleteCard(
                        account_pb2.DeleteCardRequest(customer_id=customer, token=token), timeout=TIMEOUT
                    )
            except grpc.RpcError:
                with lock:
                    if token in erased:
                        # Nobody knows whether it is erased.
                        erased.discard(token)
                        del stored[token]
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    time.sleep(seconds)
    own.server.kill()
    for thread in threads:
        thread.join()

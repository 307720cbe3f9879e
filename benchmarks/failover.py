"""A fail-over, for real: three Patroni nodes with synchronous replication, our server under load, the primary killed.

    python -m benchmarks.failover --patroni VENV/bin/patroni --postgresql /usr/lib/postgresql/15/bin --rounds 3

Patroni is no dependency of ours: `pip install 'patroni[raft]' 'psycopg[binary]'` into an environment of its own.
PostgreSQL does not run as root, so as root give `--user postgres`. Everything listens on loopback and is ended at the
end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psycopg

from tests.support.cards import TypedCard, made_up_digits
from tests.support.installation import Client, Installation, installed
from tests.support.requests import grant_request, new_customer, new_key, new_order, redeem_request, store_request
from vault.domain.brand import Brand
from vault.embedded.openbao import OpenBao
from vault.store import upgrade
from vault.v1 import account_pb2

UNKNOWN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}
CUT = 2.0
"""Seconds before the kill in which nothing reaches the standbys: without synchronous replication they are lost."""
LEASE = 20
"""Seconds after which a dead primary's lease ends: the least that Patroni takes."""


def free_port() -> int:
    """One that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class Node:
    """One Patroni with its PostgreSQL."""

    name: str
    folder: Path
    port: int
    rest: int
    raft: int
    process: subprocess.Popen[bytes] | None = None


class Cluster:
    """Three nodes on loopback."""

    def __init__(self, folder: Path, *, patroni: Path, binaries: Path, user: str | None, synchronous: bool) -> None:
        self._patroni, self._binaries, self._user, self._synchronous = patroni, binaries, user, synchronous
        self.nodes = [Node(f"node{n}", folder / f"node{n}", free_port(), free_port(), free_port()) for n in range(1, 4)]
        for node in self.nodes:
            node.folder.mkdir(parents=True)
            (node.folder / "patroni.json").write_text(json.dumps(self._config(node)))
            if user is not None:
                subprocess.run(["chown", "-R", user, str(node.folder)], check=True)

    @property
    def url(self) -> str:
        """All hosts; libpq finds the one that takes writes."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def start(self, node: Node) -> None:
        """Start or start again."""
        log = (node.folder / "log").open("ab")
        node.process = subprocess.Popen(
            [str(self._patroni), str(node.folder / "patroni.json")],
            stdout=log,
            stderr=log,
            user=self._user,
            cwd=node.folder,
            env={"PATH": f"{self._binaries}:/usr/bin:/bin", "HOME": str(node.folder), "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        log.close()

    def members(self) -> list[dict[str, Any]]:
        """What the first node that answers says of all."""
        for node in self.nodes:
            with suppress(OSError, ValueError, KeyError), self._ask(node) as answer:
                members: list[dict[str, Any]] = json.load(answer)["members"]
                return members
        return []

    def _ask(self, node: Node) -> Any:
        return urllib.request.urlopen(f"http://127.0.0.1:{node.rest}/cluster", timeout=2)

    def primary(self) -> Node | None:
        """The leader."""
        names = {member["name"] for member in self.members() if member["role"] == "leader"}
        return next((node for node in self.nodes if node.name in names), None)

    def wait(self, *, standbys: int, timeout: float = 120) -> Node:
        """Until there is a leader and so many synchronous standbys."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = self.members()
            kinds = ("sync_standby", "quorum_standby") if self._synchronous else ("replica",)
            ready = [m for m in found if m["role"] in kinds and m["state"] == "streaming"]
            primary = self.primary()
            if primary is not None and len(ready) >= standbys:
                return primary
            time.sleep(0.2)
        raise TimeoutError(f"the cluster did not come together: {self.members()}")

    def kill(self, node: Node, *, cut: float = 0) -> None:
        """Like a power cut: Patroni and every process of its PostgreSQL, SIGKILL, at once.

        `cut`: for so many seconds before, nothing reaches the standbys, as if their network had gone first.
        """
        assert node.process is not None
        postmaster = int((node.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        children = [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
        if cut:
            for pid in children:
                if b"walsender" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(cut)
            children = [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
        for pid in (node.process.pid, postmaster, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.process.wait()

    def stop(self) -> None:
        """End everything that was started."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.terminate()
        for node in self.nodes:
            if node.process is None:
                continue
            try:
                node.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                with suppress(OSError, IndexError):
                    self.kill(node)

    def _config(self, node: Node) -> dict[str, Any]:
        return {
            "scope": "cardvault",
            "name": node.name,
            "restapi": {"listen": f"127.0.0.1:{node.rest}"},
            "raft": {
                "data_dir": str(node.folder / "raft"),
                "self_addr": f"127.0.0.1:{node.raft}",
                "partner_addrs": [f"127.0.0.1:{other.raft}" for other in self.nodes if other is not node],
            },
            "bootstrap": {
                "dcs": {
                    "ttl": LEASE,
                    "loop_wait": 2,
                    "retry_timeout": 5,
                    "synchronous_mode": self._synchronous,
                    "synchronous_mode_strict": self._synchronous,
                    "synchronous_node_count": 1,
                    "postgresql": {
                        "use_pg_rewind": True,
                        "parameters": {"synchronous_commit": "on", "fsync": "on", "full_page_writes": "on"},
                    },
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"],
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{node.port}",
                "connect_address": f"127.0.0.1:{node.port}",
                "data_dir": str(node.folder / "data"),
                "bin_dir": str(self._binaries),
                "pgpass": str(node.folder / "pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres"},
                    "replication": {"username": "replicator"},
                    "rewind": {"username": "postgres"},
                },
                "parameters": {"unix_socket_directories": str(node.folder), "max_connections": 60},
            },
        }


@dataclass(slots=True)
class Ledger:
    """What callers were told."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    stored: list[tuple[str, str]] = field(default_factory=list)
    """Customer and token of every acknowledged card."""
    released: list[str] = field(default_factory=list)
    """Orders whose card reached the processor."""
    twice: list[str] = field(default_factory=list)
    """Orders whose card reached it again."""
    burnt: int = 0
    """Grants whose answer was lost and whose repeat was refused."""
    forgotten: int = 0
    """Cards that were acknowledged and then not known to the next call."""
    repeats: int = 0
    writes: list[float] = field(default_factory=list)
    """When each write was acknowledged."""


class Customers:
    """Threads that store, grant, release, and try each release again."""

    def __init__(self, site: Installation, ledger: Ledger, *, threads: int) -> None:
        self._ledger = ledger
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._shop, args=(site.client("checkout"), site.client("processor")), daemon=True)
            for _ in range(threads)
        ]

    def __enter__(self) -> Customers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=90)
            assert not thread.is_alive(), "a customer waits for ever"

    def _shop(self, checkout: Client, processor: Client) -> None:
        while not self._stop.is_set():
            customer, order = new_customer(), new_order()
            card = TypedCard(made_up_digits(brand=Brand.VISA, length=16), 12, 2030, "Ada Example", "")
            request = store_request(card, customer, idempotency_key=new_key())
            token = self._until_known(checkout.checkout.Tokenize, request).card.token
            with self._ledger.lock:
                self._ledger.stored.append((customer, token))
                self._ledger.writes.append(time.monotonic())
            wanted = grant_request(order=order, customer=customer, token=token, idempotency_key=new_key())
            try:
                grant = self._until_known(checkout.checkout.IssueGrant, wanted).grant
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                with self._ledger.lock:
                    self._ledger.forgotten += 1
                continue
            self._redeem(processor, redeem_request(grant, order=order), order)

    def _redeem(self, processor: Client, request: Any, order: str) -> None:
        got = 0
        for _ in range(2):
            try:
                self._until_known(processor.processor.Detokenize, request)
                got += 1
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                    raise
        with self._ledger.lock:
            if got:
                self._ledger.released.append(order)
            else:
                self._ledger.burnt += 1
            if got > 1:
                self._ledger.twice.append(order)

    def _until_known(self, call: Callable[..., Any], request: Any) -> Any:
        """Repeat what is unknown with the same key, as every client must."""
        while True:
            try:
                return call(request, timeout=5)
            except grpc.RpcError as error:
                if error.code() not in UNKNOWN:
                    raise
                with self._ledger.lock:
                    self._ledger.repeats += 1
                time.sleep(0.1)


def trial(cluster: Cluster, site: Installation, *, before: float, after: float) -> dict[str, Any]:
    """One fail-over under load; what came of it."""
    primary = cluster.wait(standbys=1)
    ledger = Ledger()
    with Customers(site, ledger, threads=8):
        time.sleep(before)
        cluster.kill(primary, cut=CUT)
        killed_at = time.monotonic()
        deadline = killed_at + 180
        while not any(at > killed_at + 1 for at in ledger.writes[-50:]):
            if time.monotonic() > deadline:
                raise TimeoutError("no write within three minutes")
            time.sleep(0.05)
        back_at = min(at for at in ledger.writes if at > killed_at + 1)
        time.sleep(after)
    now = cluster.wait(standbys=0)
    account = site.client("account")
    lost = [
        token
        for customer, token in ledger.stored
        if token not in {c.token for c in account.account.ListCards(_list(customer), timeout=10).cards}
    ]
    with psycopg.connect(f"host=127.0.0.1 port={now.port} user=postgres dbname=postgres") as connection:
        releases = connection.execute(
            "SELECT order_id, count(*) FROM audit_events"
            " WHERE event = 'card.released' AND outcome = 'ok' GROUP BY order_id"
        ).fetchall()
    recorded = {str(order): int(count) for order, count in releases}
    cluster.start(primary)
    return {
        "killed": primary.name,
        "new primary": now.name,
        "cards acknowledged": len(ledger.stored),
        "acknowledged cards lost": len(lost),
        "of them not known to the next call": ledger.forgotten,
        "releases answered": len(ledger.released),
        "released twice": len(ledger.twice) + sum(count > 1 for count in recorded.values()),
        "released without a record": sum(order not in recorded for order in ledger.released),
        "answers lost after the release was recorded": ledger.burnt,
        "calls repeated": ledger.repeats,
        "seconds until writes worked again": round(back_at - killed_at, 1),
    }


def _list(customer: str) -> account_pb2.ListCardsRequest:
    return account_pb2.ListCardsRequest(customer_id=customer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Exit 0: nothing was lost, released twice or unrecorded; with --control: something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patroni", type=Path, required=True)
    parser.add_argument("--postgresql", type=Path, required=True, help="the folder of its programs")
    parser.add_argument("--user")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of load before each kill and after it")
    parser.add_argument("--control", action="store_true", help="without synchronous replication, which must lose cards")
    given = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="failover-")))
        folder.chmod(0o755)
        cluster = Cluster(
            folder / "nodes",
            patroni=given.patroni,
            binaries=given.postgresql,
            user=given.user,
            synchronous=not given.control,
        )
        stack.callback(cluster.stop)
        for node in cluster.nodes:
            cluster.start(node)
        cluster.wait(standbys=1)
        upgrade(cluster.url)
        openbao = OpenBao(folder / "openbao", storage="inmem")
        openbao.start()
        stack.callback(openbao.stop)
        site = stack.enter_context(installed(folder / "site", openbao, cluster.url))
        site.serve()
        rounds = []
        for number in range(given.rounds):
            found = trial(cluster, site, before=given.seconds, after=given.seconds)
            rounds.append(found)
            print(f"round {number + 1}: " + ", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
            cluster.wait(standbys=1)
        if given.control:
            return 0 if any(found["acknowledged cards lost"] for found in rounds) else 1
        bad = (
            "acknowledged cards lost",
            "of them not known to the next call",
            "released twice",
            "released without a record",
        )
        return 0 if all(found[name] == 0 for found in rounds for name in bad) else 1


if __name__ == "__main__":
    sys.exit(main())

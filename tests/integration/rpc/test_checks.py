"""A check of readiness that is stuck has not passed, and is not begun a second time beside itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from structlog.testing import capture_logs

from vault.embedded.pki import DevelopmentCa
from vault.rpc.door import Door, Limits
from vault.rpc.identity import Identities
from vault.rpc.server import Check, Server, TlsFiles
from vault.system import SystemEntropy
from vault.usecases.refusals import RefusedCall


def made(directory: Path, threads: ThreadPoolExecutor, **probes: Callable[[], None]) -> Server:
    """The real server with health alone."""

    async def forget(_: RefusedCall) -> None: ...

    files = DevelopmentCa.load_or_create(directory / "pki").issue_server()
    return Server(
        door=Door(identities=Identities({}), limits=Limits(), entropy=SystemEntropy(), record_refusal=forget),
        servicers={},
        tls=TlsFiles(certificate=files.cert_file, private_key=files.key_file, client_ca=files.ca_file),
        address="127.0.0.1:0",
        checks=[Check(name=name, services=frozenset(), probe=probe) for name, probe in probes.items()],
        executor=threads,
        check_patience=timedelta(seconds=0.1),
    )


def test_what_is_stuck_has_not_passed_until_it_ends_and_is_begun_once(tmp_path: Path) -> None:
    frozen = threading.Event()
    begun: list[str] = []

    def freeze() -> None:
        begun.append("database")
        assert frozen.wait(30)

    def work() -> None:
        begun.append("vault")
        # Longer than is left for all of them together.
        time.sleep(0.2)

    async def rounds() -> tuple[list[dict[str, bool]], float]:
        with ThreadPoolExecutor(2) as threads:
            server = made(tmp_path, threads, database=freeze, vault=work)
            found = []
            try:
                await server.check_now()
                found.append(dict(server.passed))
                since = time.monotonic()
                await server.check_now()
                found.append(dict(server.passed))
                took = time.monotonic() - since
            finally:
                frozen.set()
            await asyncio.sleep(0.2)
            for _ in range(2):
                await server.check_now()
                found.append(dict(server.passed))
            return found, took

    with capture_logs() as logs:
        found, took = asyncio.run(rounds())

    stuck, well = {"database": False, "vault": True}, {"database": True, "vault": True}
    assert found == [stuck, stuck, well, well]
    assert begun == ["database", *["vault"] * 3, "database", "vault"]
    assert [line["service"] for line in logs if line["event"] == "ready.check_stuck"] == ["database"]
    # The second round did not wait for it anew.
    assert took < 0.9

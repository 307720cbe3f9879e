"""`cardvault serve`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import typer

from vault.config import Settings
from vault.config_file import ConfigProblems, load, with_workers
from vault.hardening import harden

if TYPE_CHECKING:
    from vault.app import App
    from vault.app_log import LogProcess

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2


ENDING = timedelta(seconds=15)
"""What a worker may take to end beyond its drain: batches that were begun are carried out."""


def check(config: Path, workers: int | None = None) -> int:
    """List every problem of a configuration file."""
    try:
        _load(config, workers)
    except ConfigProblems as e:
        return _refuse(e.problems)
    typer.echo(f"{config}: no problems found")
    return EXIT_OK


def run(config: Path, workers: int | None = None) -> int:
    """Serve one configuration file until a signal. `workers` goes before what the file says."""
    try:
        settings = _load(config, workers)
    except ConfigProblems as e:
        return _refuse(e.problems)

    def announce(port: int) -> None:
        typer.echo(f"cardvault is listening on port {port}")

    return (
        serve_many(settings, announce=announce) if settings.server.workers > 1 else serve(settings, announce=announce)
    )


def _load(config: Path, workers: int | None) -> Settings:
    settings = load(config)
    return settings if workers is None else with_workers(settings, workers)


def serve_many(settings: Settings, *, announce: Callable[[int], None]) -> int:
    """Serve by worker processes that share one port. Until they are forked nothing that has threads may be imported."""
    from vault.prefork import Patience, SharedPort, Workers
    from vault.telemetry import configure_logs

    harden()
    configure_logs(level=settings.log_level, as_json=not sys.stderr.isatty())
    server = settings.server
    try:
        shared = SharedPort(server.listen)
    except OSError as e:
        return _refuse([f"server.listen: cannot listen on {server.listen} ({e.strerror or e})"])
    own = settings.model_copy(update={"server": server.model_copy(update={"listen": shared.address})})

    def work(number: int, started: Callable[[], None]) -> int:
        return serve(own, announce=lambda _: started(), shares_port=True, worker=number)

    grace = timedelta(seconds=server.drain_seconds) + ENDING
    try:
        return Workers(work, count=server.workers, patience=Patience(grace=grace)).run(lambda: announce(shared.port))
    finally:
        shared.close()


def serve(
    settings: Settings,
    *,
    announce: Callable[[int], None],
    shares_port: bool = False,
    worker: int = 0,
    log_process: LogProcess | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT. `announce` is called with the port once calls are answered.

    Whoever has threads already brings the `log_process` that was forked before.
    """
    from vault.app_log import LogProcess, keeps_log
    from vault.telemetry import configure_logs

    harden()
    configure_logs(level=settings.log_level, as_json=not sys.stderr.isatty())
    if log_process is None and worker == 0 and keeps_log(settings):
        # Before gRPC is imported, and before anything else has threads.
        try:
            log_process = LogProcess.fork(lambda: settings)
        except OSError as e:
            return _refuse([f"server: cannot start ({e.strerror})"])
    try:
        return _serve(settings, log_process, announce=announce, shares_port=shares_port, worker=worker)
    finally:
        if log_process is not None:
            log_process.end()


def _serve(
    settings: Settings,
    log_process: LogProcess | None,
    *,
    announce: Callable[[int], None],
    shares_port: bool,
    worker: int,
) -> int:
    from vault.app import App, StartRefused
    from vault.rpc.access import PolicyGap
    from vault.store import DatabaseRefused
    from vault.system import settle_memory

    async def main() -> int:
        # gRPC binds its server to the running loop, so everything is built inside it.
        try:
            app = App(settings, log_process=log_process, shares_port=shares_port, worker=worker)
        except PolicyGap as e:
            return _refuse(e.gaps)
        except DatabaseRefused as e:
            return _refuse([f"database: {e}"])
        except OSError as e:
            return _refuse([f"server: cannot start ({e.strerror})"])
        except RuntimeError:
            return _refuse([f"server.listen: cannot listen on {settings.server.listen}"])
        try:
            app.preflight()
        except StartRefused as e:
            app.close()
            return _refuse(e.problems)
        settle_memory()
        return await _until_signal(app, settings, announce)

    return _run(main())


async def _until_signal(app: App, settings: Settings, announce: Callable[[int], None]) -> int:
    log = structlog.get_logger()
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await app.start()
    log.info("server.started", address=settings.server.listen, services=list(settings.server.services))
    announce(app.port)
    end, hopeless = asyncio.ensure_future(asked.wait()), asyncio.ensure_future(app.hopeless())
    await asyncio.wait((end, hopeless), return_when=asyncio.FIRST_COMPLETED)
    was_asked, problems = asked.is_set(), hopeless.result() if hopeless.done() else []
    end.cancel()
    hopeless.cancel()
    log.info("server.stopping")
    await app.stop()
    log.info("server.stopped")
    if was_asked:
        return EXIT_OK
    # What is listed must be mended first; otherwise whoever supervises this server may start another at once.
    return _refuse(problems) if problems else EXIT_FAILED


def _run(main: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop where there is one: an empty call costs a fifth less."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return int(uvloop.run(main))


def _refuse(problems: Sequence[str]) -> int:
    typer.echo("cardvault refuses to start:", err=True)
    for problem in problems:
        typer.echo(f"  - {problem}", err=True)
    return EXIT_REFUSED

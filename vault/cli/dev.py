"""`cardvault dev`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vault.cli.serve import EXIT_REFUSED, serve
from vault.config_file import load
from vault.domain.caller import Role
from vault.hardening import harden

if TYPE_CHECKING:
    from vault.app_log import LogProcess


def run(state: Path) -> int:
    """Prepare the stack, then serve until a signal."""
    from vault.app_log import LogProcess
    from vault.embedded.stack import CONFIG

    harden()
    # Before OpenBao is started, which takes a thread.
    log_process = LogProcess.fork(lambda: load(state / CONFIG))
    try:
        return _run(state, log_process)
    finally:
        log_process.end()


def _run(state: Path, log_process: LogProcess) -> int:
    from vault.embedded.process import OpenBaoFailed
    from vault.embedded.stack import PROCESSOR, TENANT, Stack, prepare

    typer.echo(f"Preparing a stack in {state}/ …")
    try:
        stack = prepare(state)
    except (OpenBaoFailed, OSError) as e:
        typer.echo(f"cardvault dev: {e}", err=True)
        return EXIT_REFUSED

    def announce(port: int) -> None:
        typer.echo(_how_to_connect(stack, port))

    def _how_to_connect(stack: Stack, port: int) -> str:
        files = stack.clients
        lines = [
            "",
            f"cardvault is up at localhost:{port} (gRPC over mutual TLS, TLS 1.3).",
            "",
            f"  server's CA          {files[Role.CHECKOUT].ca_file}",
        ]
        lines += [f"  {role.label:<10} client    {files[role].cert_file}  {files[role].key_file}" for role in Role]
        lines += [
            "",
            f"  tenant               {TENANT}",
            f"  processor            {PROCESSOR}",
            f"  database             {stack.database}",
            f"  OpenBao              {stack.openbao.address.address}",
            f"  configuration        {stack.config}",
            "",
            "State is kept; remove the folder to begin anew. Not for production: keys and data share one folder.",
            "Ctrl-C stops it.",
        ]
        return "\n".join(lines)

    try:
        return serve(load(stack.config), announce=announce, log_process=log_process)
    finally:
        stack.close()

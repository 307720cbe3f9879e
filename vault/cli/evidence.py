"""`cardvault evidence` and `check-evidence`: one signed report for the periodic audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import typer
from rich.table import Table

from vault.app_operator import MissingLogin, OperatorTools
from vault.audit.checkpoint import origin_of
from vault.audit.copy import Directory
from vault.audit.sequencer import verifier_keys
from vault.audit.verify import verify_store
from vault.cli.audit import run_with
from vault.cli.certificate import signed_statement
from vault.cli.operating import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Terminal, operator_now
from vault.usecases.evidence import FORMAT, GatherEvidence, Line, Looks
from vault.usecases.key_status import KeyStatus
from vault.usecases.retention import Retain

_MARKS = {True: "holds", False: "DOES NOT HOLD", None: ""}


def gather(config: Path, *, out: Path | None, reason: str, as_json: bool) -> int:
    """Look at everything, write the signed report."""

    def command(tools: OperatorTools, terminal: Terminal) -> int:
        signer = tools.signer()
        if signer is None:
            raise MissingLogin("checkpointer")
        operator = operator_now(tools, reason)
        with tools.world.store.writing() as tx:
            tx.append_events([tools.world.event(operator, "audit.read", target="evidence")])
        keys = tools.operator_keys()
        retain = Retain(world=tools.world, limits=tools.retention)

        def look_at_log() -> tuple[bool, str]:
            path = tools.audit_directory()
            copy = Directory(path) if path is not None else None
            result = verify_store(tools.log_store, verifier_keys(signer, origin_of(tools.world.environment)), copy=copy)
            signed = f"{result.size} events, {result.covered} under {result.checkpoints} signed checkpoints"
            return result.is_good and result.checkpoints > 0, "; ".join([signed, *(f.text for f in result.findings)])

        use_case = GatherEvidence(
            world=tools.world,
            signer=signer,
            looks=Looks(
                releasers=tools.releasers(),
                keys=KeyStatus(world=tools.world, keys=keys, intake=tools.intake(), release=tools.release()),
                log=look_at_log,
                overdue=lambda: {str(rule): count for rule, count in retain.verify(operator).items()},
                database=tools.database_problems,
                vault=keys.inspect_keys,
            ),
        )
        lines = use_case.lines()
        if out is not None:
            try:
                out.write_text(use_case.sign(lines) + "\n", encoding="utf-8")
            except OSError as e:
                terminal.trouble(f"cannot write {out}: {e.strerror}")
                return EXIT_USAGE
        terminal.result({"lines": [asdict(line) for line in lines]})
        if not as_json:
            _show(terminal, lines)
            if out is not None:
                terminal.say(f"{out}: signed; check it with `cardvault check-evidence`")
        return EXIT_FAILED if any(line.holds is False for line in lines) else EXIT_OK

    return run_with(config, as_json, command)


def _show(terminal: Terminal, lines: Sequence[Line]) -> None:
    table = Table("what", "found", "", "PCI DSS", "shown by", box=None, pad_edge=False)
    for line in lines:
        table.add_row(line.name, line.found, _MARKS[line.holds], ", ".join(line.requirements), line.command)
    terminal.out.print(table)


def check(file: Path, *, public_key: str | None) -> int:
    """Check a report offline."""
    facts = signed_statement(file, public_key=public_key, form=FORMAT)
    if isinstance(facts, int):
        return facts
    typer.echo(f"signed at {facts['issued_at']} for environment {facts['environment']}")
    for line in facts["lines"]:
        typer.echo(f"{line['name']}: {line['found']} {_MARKS[line['holds']]}".rstrip())
    return EXIT_OK

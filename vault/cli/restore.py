"""`cardvault restore …`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from vault.app_operator import OperatorTools
from vault.audit.copy import Directory
from vault.audit.restore import Reconcile
from vault.cli.audit import keys_for, run_with
from vault.cli.operating import EXIT_OK, EXIT_REFUSED, Terminal, Watch, confirmed, operator_now


def reconcile(
    config: Path, *, copy: Path | None, key_file: Path | None, reason: str, yes: bool, dry_run: bool, as_json: bool
) -> int:
    """Bring a restored database up to what the copy of its log knows."""

    def command(tools: OperatorTools, terminal: Terminal) -> int:
        folder = copy or tools.audit_directory()
        if folder is None:
            raise typer.BadParameter("name the copy of the log: --from DIR, or [audit] directory in the file")
        operator = operator_now(tools, reason)
        use_case = Reconcile(
            world=tools.world, store=tools.log_store, copy=Directory(folder), keys=keys_for(tools, key_file)
        )
        missing = use_case.missing()
        terminal.say(f"{folder}: knows {missing} events that the database lacks")
        if dry_run:
            terminal.result({"missing": missing})
            return EXIT_OK
        warning = "This revokes every open grant and destroys every one-time token, and erases again what was erased."
        if not confirmed(terminal, warning, yes=yes):
            return EXIT_REFUSED
        with Watch(terminal, "put back", max_rate=None) as watch:
            report = use_case(operator, watch=watch)
        terminal.result(asdict(report))
        terminal.say(
            f"{report.events} events put back, {report.cards_erased} cards erased again, "
            f"{report.grants_revoked} grants revoked, {report.once_keys_destroyed} one-time tokens destroyed"
        )
        if report.unsigned:
            terminal.say(f"{report.unsigned} of the copy's events are after its newest checkpoint: nobody signed them")
        if report.lost_cards:
            terminal.say(
                f"{len(report.lost_cards)} cards were stored after the backup and are lost (--json names them)"
            )
        if report.outdated_cards:
            terminal.say(
                f"{len(report.outdated_cards)} cards were stored again after the backup and are back under their "
                "former consent (--json names them)"
            )
        terminal.say("next: cardvault audit verify, then start the servers")
        return EXIT_OK

    return run_with(config, as_json, command)

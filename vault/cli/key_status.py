"""`cardvault keys status`: how every key is, for people and machines."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from vault.cli.operating import EXIT_DUE, EXIT_FAILED, EXIT_OK, EXIT_OVERDUE, Terminal, ending, operating
from vault.usecases.key_status import KeyStatus, Level, StatusReport

TABLE_COLUMNS = 140

_EXIT_OF_LEVEL = {
    Level.OK: EXIT_OK,
    Level.DUE: EXIT_DUE,
    Level.OVERDUE: EXIT_OVERDUE,
    Level.FAILED: EXIT_FAILED,
}


def status(config: Path, *, as_json: bool) -> int:
    """Show every key."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            report = KeyStatus(
                world=tools.world, keys=tools.operator_keys(), intake=tools.intake(), release=tools.release()
            )()
            terminal.result(_status_facts(report))
            if not as_json:
                _show_status(terminal, report)
                terminal.say(f"former wraps kept: {sum(report.former_wraps.values())}")
                needs = ": needs [vault.intake] and [vault.release] in the file"
                terminal.say(
                    f"canary wrap and unwrap: {report.canary}{needs if report.canary == 'not checked' else ''}"
                )
            return _EXIT_OF_LEVEL[report.level]

        return ending(terminal, command)


def _status_facts(report: StatusReport) -> dict[str, Any]:
    return {
        "level": report.level,
        "canary": report.canary,
        "former_wraps": report.former_wraps,
        "keys": [
            {
                "name": str(key.name),
                "level": key.level,
                "latest": key.versions.latest,
                "min_decryption": key.versions.min_decryption,
                "min_encryption": key.versions.min_encryption,
                "min_available": key.versions.min_available,
                "made_at": key.made_at,
                "due_at": key.due_at,
                "rows_by_version": key.rows,
                "notes": key.notes,
            }
            for key in report.keys
        ],
    }


def _show_status(terminal: Terminal, report: StatusReport) -> None:
    """A table where it fits; elsewhere, as in a mail or a log, lines."""
    if terminal.out.is_terminal and terminal.out.width >= TABLE_COLUMNS:
        terminal.out.print(_status_table(report))
        return
    for key in report.keys:
        rows = ", ".join(f"v{version}: {count}" for version, count in sorted(key.rows.items()))
        terminal.say(
            f"{key.name}  v{key.versions.latest}  usable from v{max(key.versions.min_decryption, 1)}  "
            f"made {_day(key.made_at)}  rotate by {_day(key.due_at)}  {key.level}"
        )
        for line in (*((f"rows by version: {rows}",) if rows else ()), *key.notes):
            terminal.say(f"    {line}")


def _status_table(report: StatusReport) -> Table:
    table = Table("key", "version", "usable from", "made", "rotate by", "rows by version", "state")
    for key in report.keys:
        rows = ", ".join(f"v{version}: {count}" for version, count in sorted(key.rows.items()))
        state = "; ".join((str(key.level), *key.notes))
        usable = f"v{max(key.versions.min_decryption, 1)}"
        table.add_row(key.name, f"v{key.versions.latest}", usable, _day(key.made_at), _day(key.due_at), rows, state)
    return table


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d}" if moment is not None else "unknown"

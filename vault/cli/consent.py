"""`cardvault consent …`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from vault.cli.operating import EXIT_FAILED, EXIT_OK, Terminal, ending, operating, operator_now
from vault.domain.consent import ConsentEntry, LedgerEntry, Standing, Withdrawal
from vault.domain.errors import InvalidField
from vault.domain.ids import CustomerId, TenantId
from vault.usecases.consents import Evidence, ShowConsents

TABLE_COLUMNS = 140


def show(config: Path, *, tenant: str, customer: str, reason: str, as_json: bool) -> int:
    """Show a customer's ledger."""
    terminal = Terminal(as_json)
    try:
        whose = TenantId.parse(tenant, field="--tenant"), CustomerId.parse(customer, field="CUSTOMER")
    except InvalidField as e:
        raise typer.BadParameter(e.message, param_hint=e.field) from None
    with operating(config) as tools:

        def command() -> int:
            evidence = ShowConsents(world=tools.world)(operator_now(tools, reason), *whose)
            terminal.result(_facts(evidence))
            if not evidence.entries:
                terminal.trouble("the ledger has nothing of this customer")
                return EXIT_FAILED
            _show(terminal, evidence)
            return EXIT_OK

        return ending(terminal, command)


def _facts(evidence: Evidence) -> dict[str, Any]:
    return {
        "tenant": evidence.tenant,
        "customer": evidence.customer,
        "shown_at": _iso(evidence.shown_at),
        "entries": [_entry_facts(entry, standing) for entry, standing in evidence.entries],
    }


def _entry_facts(entry: LedgerEntry, standing: Standing) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "consent_id": entry.consent_id,
        "token": entry.token,
        "recorded_at": _iso(entry.recorded_at),
        "in_force": standing is Standing.IN_FORCE,
        "standing": standing.value,
    }
    match entry.what:
        case ConsentEntry(consent=consent, recorded_by=by):
            return facts | {
                "kind": "given",
                "recorded_by": by,
                "terms_version": consent.terms_version,
                "terms_sha256": consent.terms_sha256.hex(),
                "uses": [use.name.lower() for use in consent.uses],
                "channel": consent.channel.name.lower(),
                "locale": consent.locale,
                "agreed_until": _iso(consent.agreed_until) if consent.agreed_until is not None else None,
            }
        case Withdrawal(consent=withdrawn, event=event, requested_by=by):
            return facts | {"kind": "withdrawn", "recorded_by": by, "withdraws": withdrawn, "event_id": event}


def _show(terminal: Terminal, evidence: Evidence) -> None:
    """A table where it fits; elsewhere, as in a mail or a file, lines."""
    if terminal.as_json:
        return
    lines = [(_headline(entry), _particulars(entry), standing) for entry, standing in evidence.entries]
    if terminal.out.is_terminal and terminal.out.width >= TABLE_COLUMNS:
        table = Table("entry", "particulars", "now", show_lines=True)
        for headline, particulars, standing in lines:
            table.add_row("\n".join(headline), "\n".join(particulars), standing.value)
        terminal.out.print(table, highlight=False, markup=False)
        return
    for headline, particulars, standing in lines:
        terminal.say(f"{'  '.join(headline)}  {standing.value}")
        for line in particulars:
            terminal.say(f"    {line}")


def _headline(entry: LedgerEntry) -> tuple[str, ...]:
    kind = "given" if isinstance(entry.what, ConsentEntry) else "withdrawn"
    return (f"{kind} {_iso(entry.recorded_at)}", entry.consent_id)


def _particulars(entry: LedgerEntry) -> tuple[str, ...]:
    match entry.what:
        case ConsentEntry(consent=consent, recorded_by=by):
            until = _iso(consent.agreed_until) if consent.agreed_until is not None else "withdrawn"
            return (
                f"card {entry.token}",
                f"terms {consent.terms_version}, sha256 {consent.terms_sha256.hex()}",
                f"uses {', '.join(use.name.lower() for use in consent.uses)}; until {until}",
                f"channel {consent.channel.name.lower()}, locale {consent.locale}, by {by}",
            )
        case Withdrawal(consent=withdrawn, event=event, requested_by=by):
            return (f"card {entry.token}", f"ends {withdrawn}", f"event {event}, by {by or 'unknown'}")


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")

"""`cardvault tenants …`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from vault.cli.operating import (
    EXIT_OK,
    EXIT_REFUSED,
    Patience,
    Terminal,
    Watch,
    confirmed,
    ending,
    operating,
    operator_now,
)
from vault.domain.ids import TenantId
from vault.usecases.decommission import DecommissionTenant


def erase(
    config: Path,
    *,
    tenant: str,
    reason: str,
    yes: bool,
    max_rate: float | None,
    give_up_after: float,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Erase every card of a tenant."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            use_case, name = DecommissionTenant(world=tools.world), TenantId(tenant)
            count = use_case.count(name)
            if count == 0:
                terminal.trouble(f"there is no card of tenant '{tenant}'")
                terminal.result({"cards": 0})
                return EXIT_REFUSED
            if dry_run:
                terminal.say(f"would erase {count} cards of {tenant}")
                terminal.result({"would_erase": count})
                return EXIT_OK
            if not confirmed(terminal, f"This erases {count} cards of {tenant} for good.", yes=yes):
                return EXIT_REFUSED
            with Watch(terminal, "erase", max_rate=max_rate) as watch:
                report = use_case(
                    operator_now(tools, reason),
                    name,
                    persist=Patience(terminal, timedelta(seconds=give_up_after)),
                    progress=watch,
                )
            terminal.result(asdict(report))
            terminal.say(
                f"{report.cards} cards of {report.customers} customers erased, {report.grants_revoked} grants revoked"
            )
            return EXIT_OK

        return ending(terminal, command)

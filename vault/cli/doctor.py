"""`cardvault doctor`: looks at a deployment and says what is not as it should be."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vault import hardening
from vault.certificates import first_to_end
from vault.config import CommonSettings, Settings
from vault.config_file import ConfigProblems, load, load_for_operator
from vault.domain.errors import CardVaultError

if TYPE_CHECKING:
    from vault.keyring.session import VaultSession
    from vault.store import SqlStore

EXIT_WELL, EXIT_WARNINGS, EXIT_UNFIT = 0, 1, 2
_CERTIFICATE_WARNING = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    area: str
    level: str
    """`ok`, `warning` or `problem`."""
    text: str


def run(config: Path, *, as_json: bool) -> int:
    """Look at everything that can be looked at without changing anything."""
    try:
        settings = _load(config)
    except ConfigProblems as e:
        findings = [Finding("configuration", "problem", problem) for problem in e.problems]
    else:
        kind = "a server's file" if isinstance(settings, Settings) else "an operator's file"
        findings = [Finding("configuration", "ok", f"{config}: {kind}")]
        if isinstance(settings, Settings):
            findings += _certificates(settings)
        for look in (_database, _vault, _machine):
            findings += look(settings)
    worst = {finding.level for finding in findings}
    if as_json:
        typer.echo(json.dumps([{"area": f.area, "level": f.level, "text": f.text} for f in findings], indent=2))
    else:
        _print(findings)
    return EXIT_UNFIT if "problem" in worst else EXIT_WARNINGS if "warning" in worst else EXIT_WELL


def _load(config: Path) -> CommonSettings:
    """A server's file, or one for operator commands if it speaks of no server."""
    try:
        return load(config)
    except ConfigProblems as e:
        if not any(problem.startswith("server: Field required") for problem in e.problems):
            raise
    return load_for_operator(config)


def _print(findings: Sequence[Finding]) -> None:
    marks = {"ok": "✓", "warning": "!", "problem": "✗"}
    width = max(len(finding.area) for finding in findings)
    for finding in findings:
        typer.echo(f"{marks[finding.level]} {finding.area:<{width}}  {finding.text}")


def _certificates(settings: Settings) -> list[Finding]:
    findings = []
    now = datetime.now(UTC)
    for path in (settings.server.certificate, settings.server.client_ca, settings.vault.ca_file):
        try:
            ends = first_to_end(path)
        except ValueError:
            findings.append(Finding("certificates", "problem", f"{path}: is no PEM certificate"))
            continue
        level = "problem" if ends <= now else "warning" if ends - now < _CERTIFICATE_WARNING else "ok"
        findings.append(Finding("certificates", level, f"{path.name}: valid until {ends:%Y-%m-%d %H:%M} UTC"))
    return findings


def _asked(area: str, ask: Callable[[], Sequence[str]], well: str) -> list[Finding]:
    try:
        problems = ask()
    except CardVaultError as e:
        return [Finding(area, "problem", e.reason)]
    return [Finding(area, "problem", problem) for problem in problems] or [Finding(area, "ok", well)]


def _database(settings: CommonSettings) -> list[Finding]:
    from vault.parts import open_store
    from vault.store import DatabaseRefused

    try:
        store = open_store(settings)
    except DatabaseRefused as e:
        return [Finding("database", "problem", str(e))]
    try:
        found = _asked("database", store.weaknesses, f"{store.kind}: settings and schema as they should be")
        if all(finding.level == "ok" for finding in found):

            def label() -> Sequence[str]:
                with store.reading() as tx:
                    known = tx.setting("environment")
                return [] if known in (None, settings.environment) else [f"belongs to environment '{known}'"]

            found += _asked("database", label, f"environment {settings.environment}")
            found += _retention(store)
            found += _compaction(store)
            found += _log(store, settings)
        return found
    finally:
        store.close()


def _retention(store: SqlStore) -> list[Finding]:
    from vault.domain.retention import SLACK
    from vault.usecases.retention import COMPLETED

    try:
        with store.reading() as tx:
            text = tx.setting(COMPLETED)
    except CardVaultError as e:
        return [Finding("retention", "problem", e.reason)]
    if text is None:
        return [Finding("retention", "ok", "no run has come to its end yet; servers do one after their start")]
    completed = datetime.fromisoformat(text)
    late = datetime.now(UTC) - completed > SLACK
    return [Finding("retention", "warning" if late else "ok", f"last run completed {completed:%Y-%m-%d %H:%M} UTC")]


def _compaction(store: SqlStore) -> list[Finding]:
    from vault.cli.retention import in_words_left
    from vault.usecases.compaction import left_over

    try:
        left = left_over(store)
    except CardVaultError as e:
        return [Finding("retention", "problem", e.reason)]
    return [Finding("retention", "warning", in_words_left(left))] if left is not None and not left.is_small else []


def _log(store: SqlStore, settings: CommonSettings) -> list[Finding]:
    from vault.audit.copy import CopyTrouble, Directory
    from vault.cli.status import Level, log_findings

    try:
        with store.reading() as tx:
            state = tx.log_state()
    except CardVaultError as e:
        return [Finding("audit log", "problem", e.reason)]
    findings = [
        Finding("audit log", "ok" if level is Level.OK else "warning", f"{text}: {todo}" if todo else text)
        for text, level, todo in log_findings(state, now=datetime.now(UTC))
    ]
    if settings.audit.directory is None:
        findings.append(
            Finding("audit log", "warning", "no second place for it: set [audit] directory (PCI DSS 10.3.3)")
        )
        return findings
    try:
        behind = state.size - Directory(settings.audit.directory).size()
    except CopyTrouble as e:
        return [*findings, Finding("audit log", "problem", str(e))]
    if behind < 0:
        findings.append(Finding("audit log", "problem", "the copy knows more than the database: it was restored"))
    return findings


def _vault(settings: CommonSettings) -> list[Finding]:
    from vault.keyring.keyflags import inspect_keys, inspect_login
    from vault.parts import open_vault
    from vault.ports import KeyName

    wraps = (KeyName.CARDS, KeyName.ONCE)
    findings = []
    for name, login, keys in (
        ("vault intake", settings.vault.intake, (*wraps, KeyName.FINGERPRINT)),
        ("vault release", settings.vault.release, wraps),
        ("vault operator", settings.vault.operator, tuple(KeyName)),
        ("vault checkpointer", settings.vault.checkpointer, (KeyName.AUDIT,)),
    ):
        if login is None:
            continue
        session = open_vault(settings, login, connections=2)

        def look(session: VaultSession = session, keys: tuple[KeyName, ...] = keys) -> Sequence[str]:
            return [*inspect_login(session), *inspect_keys(session, keys)]

        try:
            findings += _asked(name, look, "logs in; keys have the right kind and flags")
        finally:
            session.close()
    return findings


def _machine(_: CommonSettings) -> list[Finding]:
    found = [*hardening.swap_warnings(), *hardening.descriptor_warnings()]
    warnings = [Finding("machine", "warning", text) for text in found]
    return warnings or [Finding("machine", "ok", "no swap, enough open files")]

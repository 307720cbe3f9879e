"""`cardvault keys …`: rotation as commands that can be typed on a Friday."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from vault.app_operator import MissingLogin
from vault.cli.operating import (
    EXIT_DUE,
    EXIT_FAILED,
    EXIT_OK,
    EXIT_OVERDUE,
    EXIT_REFUSED,
    EXIT_USAGE,
    Patience,
    Terminal,
    Watch,
    confirmed,
    ending,
    operating,
    operator_now,
)
from vault.domain.ids import TenantId
from vault.ports import KeyName
from vault.ports_operator import Selection
from vault.usecases.certificate import FORMAT, IssueCertificate
from vault.usecases.key_status import KeyStatus, Level, StatusReport
from vault.usecases.maintain import MaintainOnceKey
from vault.usecases.operating import PAGE, Failure
from vault.usecases.rekey import RekeyCards
from vault.usecases.rewrap import MAX_BATCH, Proof, Rewrap
from vault.usecases.rotate import (
    RecoverWraps,
    RetireKey,
    RotateKey,
    TrimKey,
    UnretireKey,
    older_than,
    oldest_available,
    rows_by_version,
)
from vault.usecases.verify import VerifyCards

TABLE_COLUMNS = 140
SHOWN_FAILURES = 20

SHORT_NAMES = {name.removeprefix("cardvault-"): name for name in KeyName}

_EXIT_OF_LEVEL = {
    Level.OK: EXIT_OK,
    Level.DUE: EXIT_DUE,
    Level.OVERDUE: EXIT_OVERDUE,
    Level.FAILED: EXIT_FAILED,
}


def key_named(text: str) -> KeyName:
    """A transit key by its full or short name."""
    try:
        return SHORT_NAMES.get(text) or KeyName(text)
    except ValueError:
        raise typer.BadParameter(f"must be one of {', '.join(SHORT_NAMES)}") from None


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


def rotate(config: Path, *, key: str, reason: str, again: bool, dry_run: bool, as_json: bool) -> int:
    """Make one new version."""
    terminal, name = Terminal(as_json), key_named(key)
    with operating(config) as tools:

        def command() -> int:
            keys = tools.operator_keys()
            if dry_run:
                latest = keys.versions(name).latest
                terminal.say(f"would make version {latest + 1} of {name}")
                terminal.result({"key": name, "would_make": latest + 1})
                return EXIT_OK
            done = RotateKey(world=tools.world, keys=keys)(name, operator_now(tools, reason), again=again)
            terminal.result(asdict(done))
            if done.answer == "recent":
                terminal.say(
                    f"{name}: version {done.after} was made {_ago(tools.world.clock.now(), done.created)}; "
                    "nothing to do (--again for another one)"
                )
                return EXIT_OK
            terminal.say(f"{name}: version {done.before} -> {done.after}")
            if done.answer not in ("ok", "resumed"):
                terminal.say(f"Vault answered {done.answer}, but did it: the versions were read before and after")
            if name is KeyName.CARDS:
                terminal.say("next: take a Vault snapshot, then `cardvault keys rewrap`")
            return EXIT_OK

        return ending(terminal, command)


def _ago(now: datetime, then: datetime | None) -> str:
    return f"{int((now - then).total_seconds() // 60)} minutes ago" if then is not None else "a while ago"


def rewrap(
    config: Path,
    *,
    reason: str,
    proof: str,
    max_rate: float | None,
    give_up_after: float,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Move wraps to the newest version."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            keys, release = tools.operator_keys(), tools.release()
            if dry_run:
                latest = keys.versions(KeyName.CARDS).latest
                waiting = older_than(latest, rows_by_version(tools.world, KeyName.CARDS))
                terminal.say(f"would rewrap {waiting} cards to version {latest}")
                terminal.result({"would_rewrap": waiting, "version": latest})
                return EXIT_OK
            if release is None and Proof(proof) is not Proof.NONE:
                terminal.trouble(
                    "no release login here: new wraps are not opened; run `cardvault keys verify` where there is one"
                )
            with Watch(terminal, "rewrap", max_rate=max_rate) as watch:
                report = Rewrap(world=tools.world, keys=keys, release=release)(
                    operator_now(tools, reason),
                    proof=Proof(proof),
                    # Who asks for a pace asks to be spared: smaller transactions too.
                    batch=MAX_BATCH if max_rate is None else max(1, min(PAGE, int(max_rate))),
                    persist=Patience(terminal, timedelta(seconds=give_up_after)),
                    progress=watch,
                )
            terminal.result(asdict(report))
            terminal.say(
                f"{report.rewrapped} cards rewrapped to version {report.version}, {report.proven} proven by opening; "
                f"{report.superseded} changed meanwhile"
            )
            return _with_failures(terminal, report.failures)

        return ending(terminal, command)


def _with_failures(terminal: Terminal, failures: list[Failure]) -> int:
    for failure in failures[:SHOWN_FAILURES]:
        terminal.trouble(f"failed: {failure.card.tenant}/{failure.card.token}: {failure.reason}")
    if len(failures) > SHOWN_FAILURES:
        terminal.trouble(f"and {len(failures) - SHOWN_FAILURES} more (--json lists all)")
    return EXIT_FAILED if failures else EXIT_OK


def retire(config: Path, *, key: str, reason: str, settle: float, dry_run: bool, as_json: bool) -> int:
    """Stop older versions from being used."""
    terminal, name = Terminal(as_json), key_named(key)
    with operating(config) as tools:

        def command() -> int:
            keys = tools.operator_keys()
            if dry_run:
                latest = keys.versions(name).latest
                waiting = older_than(latest, rows_by_version(tools.world, name))
                terminal.say(f"would make version {latest} the oldest usable one of {name}; {waiting} rows need older")
                terminal.result({"key": name, "version": latest, "rows_that_need_older": waiting})
                return EXIT_REFUSED if waiting else EXIT_OK

            def wait() -> None:
                if settle > 0:
                    terminal.say(f"waiting {settle:g} s for calls under way to end …")
                    time.sleep(settle)

            done = RetireKey(world=tools.world, keys=keys)(name, operator_now(tools, reason), settle=wait)
            terminal.result(asdict(done))
            terminal.say(f"{name}: versions below {done.version} are retired; reversible until trimmed")
            return EXIT_OK

        return ending(terminal, command)


def unretire(config: Path, *, key: str, reason: str, dry_run: bool, as_json: bool) -> int:
    """Make retired versions usable again."""
    terminal, name = Terminal(as_json), key_named(key)
    with operating(config) as tools:

        def command() -> int:
            keys = tools.operator_keys()
            if dry_run:
                oldest = oldest_available(keys.versions(name))
                terminal.say(f"would make version {oldest} the oldest usable one of {name}")
                terminal.result({"key": name, "version": oldest})
                return EXIT_OK
            done = UnretireKey(world=tools.world, keys=keys)(name, operator_now(tools, reason))
            terminal.result(asdict(done))
            terminal.say(f"{name}: versions from {done.version} on are usable")
            return EXIT_OK

        return ending(terminal, command)


def trim(
    config: Path, *, key: str, reason: str, snapshot_confirmed: bool, yes: bool, dry_run: bool, as_json: bool
) -> int:
    """Destroy retired versions."""
    terminal, name = Terminal(as_json), key_named(key)
    with operating(config) as tools:

        def command() -> int:
            keys = tools.operator_keys()
            versions = keys.versions(name)
            warning = (
                f"This destroys every version of {name} below {versions.min_decryption} for good. Database backups "
                "older than the rewrap become unreadable, and with them erased cards that they still hold."
            )
            if dry_run:
                nothing = versions.min_decryption <= max(1, versions.min_available)
                terminal.say("nothing to trim" if nothing else warning.replace("This destroys", "This would destroy"))
                terminal.result({"key": name, "would_trim_below": 0 if nothing else versions.min_decryption})
                return EXIT_OK
            # Without a confirmed snapshot, or with nothing to destroy, the use case says so; then there is no question.
            will_destroy = snapshot_confirmed and versions.min_decryption > max(1, versions.min_available)
            if will_destroy and not confirmed(terminal, warning, yes=yes):
                return EXIT_REFUSED
            done = TrimKey(world=tools.world, keys=keys, release=tools.release())(
                name, operator_now(tools, reason), snapshot_confirmed=snapshot_confirmed
            )
            terminal.result(asdict(done))
            said = f"versions below {done.version} are destroyed" if done.trimmed else "nothing to trim"
            terminal.say(f"{name}: {said}")
            return EXIT_OK

        return ending(terminal, command)


def _selection(tenant: str | None, since: datetime | None, until: datetime | None) -> Selection:
    return Selection(
        tenant=TenantId(tenant) if tenant else None,
        since=since.astimezone() if since is not None else None,
        until=until.astimezone() if until is not None else None,
    )


def rekey(
    config: Path,
    *,
    reason: str,
    tenant: str | None,
    since: datetime | None,
    until: datetime | None,
    max_rate: float | None,
    give_up_after: float,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Fresh data keys and ciphertext."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            intake, release = tools.intake(), tools.release()
            if intake is None or release is None:
                raise MissingLogin("intake" if intake is None else "release")
            use_case = RekeyCards(world=tools.world, keys=tools.operator_keys(), intake=intake, release=release)
            selection = _selection(tenant, since, until)
            if dry_run:
                waiting = use_case.count(selection)
                terminal.say(f"would rekey {waiting} cards")
                terminal.result({"would_rekey": waiting})
                return EXIT_OK
            with Watch(terminal, "rekey", max_rate=max_rate) as watch:
                report = use_case(
                    operator_now(tools, reason),
                    selection,
                    persist=Patience(terminal, timedelta(seconds=give_up_after)),
                    progress=watch,
                )
            terminal.result(asdict(report))
            terminal.say(
                f"{report.rekeyed} cards have new data keys under version {report.version}; "
                f"{report.superseded} changed meanwhile"
            )
            if report.total == 0:
                terminal.say("nothing was due: cards are due after `cardvault keys rotate`")
            return _with_failures(terminal, report.failures)

        return ending(terminal, command)


def verify(
    config: Path,
    *,
    reason: str,
    tenant: str | None,
    since: datetime | None,
    until: datetime | None,
    max_rate: float | None,
    give_up_after: float,
    as_json: bool,
) -> int:
    """Open every card, printing none."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            release = tools.release()
            if release is None:
                raise MissingLogin("release")
            with Watch(terminal, "verify", max_rate=max_rate) as watch:
                report = VerifyCards(world=tools.world, release=release, intake=tools.intake())(
                    operator_now(tools, reason),
                    _selection(tenant, since, until),
                    persist=Patience(terminal, timedelta(seconds=give_up_after)),
                    progress=watch,
                )
            terminal.result(asdict(report))
            if tenant and report.total == 0:
                terminal.trouble(f"there is no card of tenant '{tenant}'")
                return EXIT_REFUSED
            by_version = ", ".join(f"{count} under version {v}" for v, count in sorted(report.by_version.items()))
            terminal.say(
                f"{report.opened} of {report.total} cards open ({by_version or 'none'}); "
                f"{report.fingerprints_checked} fingerprints checked; {report.gone} changed meanwhile"
            )
            return _with_failures(terminal, report.failures)

        return ending(terminal, command)


def maintain(config: Path, *, reason: str, as_json: bool) -> int:
    """Care for the one-time key."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            done = MaintainOnceKey(world=tools.world, keys=tools.operator_keys())(operator_now(tools, reason))
            terminal.result(asdict(done))
            terminal.say(
                f"cardvault-once: version {done.version}, {'rotated' if done.rotated else 'not due'}; "
                + (f"versions below {done.trimmed_below} destroyed" if done.trimmed_below else "nothing to destroy")
            )
            return EXIT_OK

        return ending(terminal, command)


def recover(config: Path, *, reason: str, dry_run: bool, as_json: bool) -> int:
    """After an older Vault snapshot was restored: put former wraps back."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            use_case = RecoverWraps(world=tools.world, keys=tools.operator_keys())
            waiting, _, latest = use_case.waiting()
            if dry_run:
                terminal.say(f"{waiting} cards are wrapped under versions that Vault does not have or allow")
                terminal.result({"beyond": waiting, "latest": latest})
                return EXIT_OK
            done = use_case(operator_now(tools, reason))
            if not waiting:
                terminal.say("0 cards are wrapped under versions that Vault does not have or allow")
                terminal.result({"beyond": 0, "latest": latest})
                return EXIT_OK
            terminal.result(asdict(done))
            terminal.say(f"{done.restored} cards are back under versions up to {done.latest}")
            if done.without_former_wrap:
                terminal.trouble(
                    f"{done.without_former_wrap} cards have no former wrap that opens: only the newer snapshot, "
                    "or `cardvault keys unretire`, opens them"
                )
                return EXIT_FAILED
            return EXIT_OK

        return ending(terminal, command)


def certificate(config: Path, *, out: Path) -> int:
    """Write the signed report on the newest rotation."""
    terminal = Terminal(as_json=False)
    with operating(config) as tools:

        def command() -> int:
            signer = tools.signer()
            if signer is None:
                raise MissingLogin("checkpointer")
            text = IssueCertificate(world=tools.world, keys=tools.operator_keys(), signer=signer)()
            try:
                out.write_text(text + "\n", encoding="utf-8")
            except OSError as e:
                terminal.trouble(f"cannot write {out}: {e.strerror}")
                return EXIT_USAGE
            terminal.say(f"{out}: signed; check it with `cardvault keys check-certificate`")
            return EXIT_OK

        return ending(terminal, command)


def check_certificate(file: Path, *, public_key: str | None) -> int:
    """Check a certificate offline."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        statement, signature = document["statement"].encode(), base64.b64decode(document["signature"])
        key = base64.b64decode(public_key or document["public_key"])
        Ed25519PublicKey.from_public_bytes(key).verify(signature, statement)
        facts = json.loads(statement)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        typer.echo(f"{file}: cannot be read as a certificate", err=True)
        return EXIT_USAGE
    except InvalidSignature:
        typer.echo(f"{file}: the signature does not match: it was altered, or signed by another key", err=True)
        return EXIT_FAILED
    if facts.get("format") != FORMAT:
        typer.echo(f"{file}: unknown format", err=True)
        return EXIT_USAGE
    if public_key is None:
        typer.echo("checked against the key inside the file; give --public-key to check who signed it", err=True)
    typer.echo(json.dumps(facts, indent=2))
    return EXIT_OK

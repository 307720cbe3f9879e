"""`cardvault keys …`: rotation as commands that can be typed on a Friday."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

import typer

from vault.app_operator import MissingLogin, OperatorTools
from vault.cli.operating import (
    EXIT_FAILED,
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
from vault.domain.errors import CardVaultError
from vault.domain.ids import TenantId
from vault.ports import KeyName
from vault.ports_operator import Selection
from vault.usecases.maintain import Due, MaintainOnceKey
from vault.usecases.operating import Failure
from vault.usecases.rekey import RekeyCards
from vault.usecases.rewrap import GENTLE_BATCH, MAX_BATCH, Proof, Rewrap
from vault.usecases.rotate import (
    OLDEST,
    ROTATION,
    RecoverWraps,
    RetireKey,
    Rotated,
    RotateKey,
    TrimKey,
    UnretireKey,
    older_than,
    oldest_available,
    rows_by_version,
)
from vault.usecases.verify import VerifyCards

SHOWN_FAILURES = 20
BEGINS_ANEW = "stopped: nothing is lost, and the same command goes over all cards from the beginning"

SHORT_NAMES = {name.removeprefix("cardvault-"): name for name in KeyName}


def key_named(text: str) -> KeyName:
    """A transit key by its full or short name."""
    try:
        return SHORT_NAMES.get(text) or KeyName(text)
    except ValueError:
        raise typer.BadParameter(f"must be one of {', '.join(SHORT_NAMES)}") from None


def rotate(config: Path, *, key: str, reason: str, again: bool, dry_run: bool, as_json: bool) -> int:
    """Make one new version."""
    terminal, name = Terminal(as_json), key_named(key)
    with operating(config) as tools:

        def command() -> int:
            keys = tools.operator_keys()
            use_case = RotateKey(world=tools.world, keys=keys)
            if dry_run:
                plan = use_case.plan(name, again=again)
                would_make = plan.after if plan.answer != "recent" else None
                terminal.result({"key": name, "would_make": would_make, "answer": plan.answer})
                if plan.answer == "recent":
                    terminal.say(_too_recent(tools.world.clock.now(), plan, "would do nothing"))
                elif plan.answer == "resumed":
                    terminal.say(f"would finish the rotation to version {plan.after} of {name} that was cut off")
                else:
                    terminal.say(f"would make version {plan.after} of {name}")
                return EXIT_OK
            done = use_case(name, operator_now(tools, reason), again=again)
            terminal.result(asdict(done))
            if done.answer == "recent":
                terminal.say(_too_recent(tools.world.clock.now(), done, "nothing to do"))
                return EXIT_OK
            terminal.say(f"{name}: version {done.before} -> {done.after}")
            if done.answer not in ("ok", "resumed"):
                terminal.say(f"Vault answered {done.answer}, but did it: the versions were read before and after")
            if name is KeyName.CARDS:
                terminal.say("next: take a Vault snapshot, then `cardvault keys rewrap`")
            return EXIT_OK

        return ending(terminal, command)


def _too_recent(now: datetime, found: Rotated, then: str) -> str:
    return f"{found.name}: version {found.after} was made {_ago(now, found.created)}; {then} (--again for another one)"


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
                    batch=MAX_BATCH if max_rate is None else max(1, min(GENTLE_BATCH, int(max_rate))),
                    persist=Patience(terminal, timedelta(seconds=give_up_after)),
                    progress=watch,
                )
            terminal.result(asdict(report))
            terminal.say(
                f"{report.rewrapped} cards rewrapped to version {report.version}, {report.proven} proven by opening; "
                f"{report.superseded} changed meanwhile"
            )
            if not report.failures:
                _say_next(terminal, tools, report.version, "`cardvault keys verify`")
            return _with_failures(terminal, report.failures)

        return ending(terminal, command)


def _say_next(terminal: Terminal, tools: OperatorTools, version: int, step: str) -> None:
    """The next step of a rotation of the cards' key, for people, while there is one: until older versions are retired.

    Said without Vault: `verify` may have no login that could ask.
    """
    prefix = f"{ROTATION}{KeyName.CARDS}."
    if terminal.as_json:
        return
    with suppress(CardVaultError), tools.world.store.reading() as tx:
        newest = max((int(name.removeprefix(prefix)) for name in tx.settings(prefix)), default=1)
        oldest = int(tx.setting(OLDEST + KeyName.CARDS) or 1)
        if oldest < version == newest:
            terminal.say(f"next: {step}")


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
            until = "and destroyed" if done.trimmed else "reversible until trimmed"
            terminal.say(f"{name}: versions below {done.version} are retired; {until}")
            if name is KeyName.CARDS and done.version > 1 and not done.trimmed:
                terminal.say(
                    "next: within 35 days, once no database backup older than the rewrap is needed, "
                    "`cardvault keys trim`"
                )
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
            if done.trimmed and name is KeyName.CARDS:
                terminal.say("next: `cardvault keys certificate`")
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
            elif not report.failures:
                _say_next(terminal, tools, report.version, "`cardvault keys verify`")
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
            everything = tenant is None and since is None and until is None
            if everything and not report.failures and len(report.by_version) == 1:
                (version,) = report.by_version
                _say_next(terminal, tools, version, "`cardvault keys retire`")
            return _with_failures(terminal, report.failures)

        return ending(terminal, command, stopped=BEGINS_ANEW)


def maintain(config: Path, *, reason: str, dry_run: bool, as_json: bool) -> int:
    """Care for the one-time key."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            use_case = MaintainOnceKey(world=tools.world, keys=tools.operator_keys())
            if dry_run:
                due = use_case.plan()
                terminal.result(asdict(due))
                terminal.say(f"cardvault-once: version {due.version}, {_in_words(due)}")
                return EXIT_OK
            done = use_case(operator_now(tools, reason))
            terminal.result(asdict(done))
            terminal.say(
                f"cardvault-once: version {done.version}, {'rotated' if done.rotated else 'not due'}; "
                + (f"versions below {done.trimmed_below} destroyed" if done.trimmed_below else "nothing to destroy")
            )
            return EXIT_OK

        return ending(terminal, command)


def _in_words(due: Due) -> str:
    if due.would_make:
        return f"would make version {due.would_make}"
    rotates = f"next rotation from {_minute(due.next_rotation)} on"
    if due.would_trim_below:
        return f"would retire and destroy versions below {due.would_trim_below}; {rotates}"
    if due.next_trim is not None:
        return f"would do nothing; older versions are destroyed from {_minute(due.next_trim)} on; {rotates}"
    waits = f"; {due.waits_for} one-time tokens still need older versions" if due.waits_for else ""
    return f"would do nothing{waits}; {rotates}"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


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

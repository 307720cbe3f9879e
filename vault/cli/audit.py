"""`cardvault audit …`: verify, prove, read and keep the log. What needs only a public key works offline."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import typer

from vault.app_operator import OperatorTools
from vault.audit import leaf, proof
from vault.audit.checkpoint import BadCheckpoint, VerifierKey, origin_of, parse_keys
from vault.audit.copy import CopyTrouble, Directory, LogShrank, Shipper
from vault.audit.keeper import set_back
from vault.audit.leaf import BadLeaf
from vault.audit.merkle import BadProof
from vault.audit.report import AuditReport, review
from vault.audit.sequencer import Checkpointer, Pace, Sequencer, verifier_keys
from vault.audit.verify import Verification, verify_directory, verify_store
from vault.cli.operating import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_USAGE,
    Terminal,
    Watch,
    ending,
    operating,
    operator_now,
)
from vault.domain.audit import AuditEvent
from vault.domain.errors import NotAvailable, StoreUnavailable
from vault.domain.ids import EventId
from vault.ports_operator import Busy

PAGE = 500
T = TypeVar("T")


def run_with(config: Path, as_json: bool, command: Callable[[OperatorTools, Terminal], int]) -> int:
    """One command beside the database; its troubles become words and exit codes."""
    terminal = Terminal(as_json)
    with operating(config) as tools:
        return ending(terminal, lambda: _worded(terminal, lambda: command(tools, terminal)))


def _worded(terminal: Terminal, command: Callable[[], int]) -> int:
    try:
        return command()
    except (CopyTrouble, BadCheckpoint, BadProof, BadLeaf) as e:
        text = str(e)
    except LogShrank:
        text = "the database's log is shorter than the copy: it was restored; see `cardvault restore reconcile`"
    terminal.trouble(text)
    terminal.result({"error": "audit", "message": text})
    return EXIT_FAILED


def _read_event(tools: OperatorTools, command: str, reason: str, *, about: str = "") -> None:
    """Reading the log is itself an event (PCI DSS 10.2.1.3)."""
    operator = operator_now(tools, reason)
    with tools.world.store.writing() as tx:
        tx.append_events([tools.world.event(operator, "audit.read", target=command, about=about)])


def keys_for(tools: OperatorTools, key_file: Path | None) -> tuple[VerifierKey, ...]:
    """Public keys: from a file kept elsewhere, else from Vault under the checkpointer's login."""
    if key_file is not None:
        return _keys_in(key_file)
    signer = tools.signer()
    if signer is None:
        raise typer.BadParameter(
            "give a file with the public keys, or configure [vault.checkpointer]", param_hint="--key"
        )
    return verifier_keys(signer, origin_of(tools.world.environment))


def _keys_in(key_file: Path) -> tuple[VerifierKey, ...]:
    try:
        return parse_keys(key_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise typer.BadParameter(f"{key_file} cannot be read", param_hint="--key") from None
    except BadCheckpoint as e:
        raise typer.BadParameter(f"{key_file} {e}", param_hint="--key") from None


def _notes(files: Sequence[Path]) -> list[tuple[str, str]]:
    try:
        return [(str(file), file.read_text(encoding="utf-8")) for file in files]
    except (OSError, UnicodeDecodeError):
        raise typer.BadParameter("a checkpoint file cannot be read", param_hint="--checkpoint") from None


# --- commands -------------------------------------------------------------------------------------------------------


def verify(
    config: Path | None,
    *,
    export: Path | None,
    key_file: Path | None,
    checkpoints: Sequence[Path],
    reason: str,
    as_json: bool,
) -> int:
    """Verify the log in the database, or an export offline."""
    kept = _notes(checkpoints)
    if export is not None:
        return _verify_export(export, key_file=key_file, kept=kept, as_json=as_json)
    if config is None:
        raise typer.BadParameter("give --config for the database or --export for a folder", param_hint="--config")

    def command(tools: OperatorTools, terminal: Terminal) -> int:
        keys = keys_for(tools, key_file)
        _read_event(tools, "verify", reason)
        copy = tools.audit_directory()
        with Watch(terminal, "verify", max_rate=None) as watch:
            result = verify_store(
                tools.log_store, keys, kept=kept, copy=Directory(copy) if copy is not None else None, watch=watch
            )
        return _verified(terminal, result)

    return run_with(config, as_json, command)


def _verify_export(export: Path, *, key_file: Path | None, kept: list[tuple[str, str]], as_json: bool) -> int:
    terminal = Terminal(as_json)
    directory = Directory(export)

    def command() -> int:
        if key_file is not None:
            keys = _keys_in(key_file)
        else:
            keys = directory.keys()
            terminal.trouble(
                "the public keys came with the export: whoever could change it could change them too; give --key"
            )
        if not keys:
            terminal.trouble(f"{export}: holds no log and no keys")
            return EXIT_USAGE
        with Watch(terminal, "verify", max_rate=None) as watch:
            result = verify_directory(directory, keys, kept=kept, watch=watch)
        return _verified(terminal, result)

    return _worded(terminal, command)


def _verified(terminal: Terminal, result: Verification) -> int:
    terminal.result({**asdict(result), "root": result.root.hex(), "good": result.is_good})
    for finding in result.findings:
        terminal.say(f"FOUND {finding.kind}: {finding.text}")
    rest = result.size - result.covered
    terminal.say(
        f"{result.size} events, {result.checkpoints} checkpoints; {result.covered} events under a signed checkpoint, "
        f"{rest} after it, {result.queued} waiting for their place"
    )
    if not result.is_good:
        terminal.say("The log is NOT intact.")
        return EXIT_FAILED
    if result.checkpoints == 0:
        terminal.trouble("No checkpoint has been signed yet, so nothing but the database itself speaks for this log.")
    else:
        terminal.say("The log is intact: nothing under a signed checkpoint was changed, added, taken out or cut off.")
    return EXIT_OK


def prove(config: Path, *, event: str, out: Path | None, reason: str, as_json: bool) -> int:
    """A proof that one event is in the log."""

    def command(tools: OperatorTools, terminal: Terminal) -> int:
        try:
            wanted = EventId.parse(event)
        except NotAvailable:
            # Nothing else is written down: what was typed here by mistake may be a card number.
            raise typer.BadParameter("is no event id (evt_ and letters)", param_hint="EVENT") from None
        _read_event(tools, "prove", reason, about=wanted)
        found = proof.prove(tools.log_store, wanted)
        if found is None:
            terminal.trouble(f"{event}: no signed checkpoint covers such an event; try again after the next one")
            terminal.result({"error": "not_covered", "event": event})
            return EXIT_FAILED
        _deliver(proof.to_json(found), out)
        if out is not None:
            terminal.say(f"{out}: event {found.index} of {found.size}; check it with `cardvault audit check-proof`")
        return EXIT_OK

    return run_with(config, as_json, command)


def consistency(config: Path, *, old: Path, new: Path, out: Path | None, reason: str) -> int:
    """A proof that the newer checkpoint's log continues the older one's."""

    def command(tools: OperatorTools, __: Terminal) -> int:
        (_, older), (_, newer) = _notes([old, new])
        _read_event(tools, "consistency", reason)
        _deliver(proof.prove_consistency(tools.log_store, older, newer), out)
        return EXIT_OK

    return run_with(config, False, command)


def check_proof(file: Path, *, key_file: Path) -> int:
    """Check a proof offline."""
    terminal = Terminal(False)

    def command() -> int:
        keys = _keys_in(key_file)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise BadProof(f"{file}: cannot be read") from None
        if proof.format_of(text) == proof.CONSISTENCY_FORMAT:
            older, newer = proof.check_consistency_file(text, keys)
            terminal.say(f"proven: the log of {newer.size} events continues the log of {older.size} events")
            return EXIT_OK
        found = proof.from_json(text)
        event = proof.check(found, keys)
        terminal.say(f"proven: event {found.index} of a signed log of {found.size}")
        terminal.say(_line(event))
        return EXIT_OK

    return _worded(terminal, command)


def _deliver(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text + "\n")
        return
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as e:
        raise CopyTrouble(f"{out}: cannot be written ({e.strerror})") from None


def tail(config: Path, *, count: int, follow: bool, reason: str, as_json: bool) -> int:
    """Show the newest events."""

    def command(tools: OperatorTools, _: Terminal) -> int:
        _read_event(tools, "tail", reason)
        _sequence_if_free(tools)
        with tools.log_store.reading() as tx:
            position = max(0, tx.log_head().size - count)
        try:
            while True:
                with tools.log_store.reading() as tx:
                    page = tx.logged_events(position, PAGE)
                for each in page:
                    _show(each.index, each.event, as_json=as_json)
                position += len(page)
                if not page and not follow:
                    return EXIT_OK
                if not page:
                    time.sleep(1)
                    _sequence_if_free(tools)
        except (KeyboardInterrupt, BrokenPipeError):
            return EXIT_OK

    return run_with(config, False, command)


def _sequence_if_free(tools: OperatorTools) -> None:
    """So that the newest events show; an auditor's role may not, and a server does it anyway.

    Never on a database that was set back: its log would part ways with the copy, and could not be reconciled any more.
    """
    path = tools.audit_directory()
    with suppress(Busy, StoreUnavailable, CopyTrouble):
        if path is not None and set_back(tools.log_store, Directory(path)):
            return
        Sequencer(tools.log_store)()


def _show(index: int, event: AuditEvent | None, *, as_json: bool) -> None:
    if event is None:
        sys.stdout.write(f"{index} the event is gone: run `cardvault audit verify`\n")
    elif as_json:
        sys.stdout.write(leaf.encode(event).decode("ascii") + "\n")
    else:
        sys.stdout.write(f"{index:>8} {_line(event)}\n")
    sys.stdout.flush()


def _line(event: AuditEvent) -> str:
    moment = event.occurred_at.strftime("%Y-%m-%d %H:%M:%S")
    words = [moment, event.event, event.outcome.value, event.reason, event.actor, event.tenant, event.customer]
    words += [event.target, event.order, event.processor, event.event_id]
    return " ".join(word for word in words if word)


def report(config: Path, *, since: str, reason: str, as_json: bool) -> int:
    """What somebody should look at."""
    length = parsed_duration(since)

    def command(tools: OperatorTools, terminal: Terminal) -> int:
        _read_event(tools, "report", reason, about=since)
        now = tools.world.clock.now()
        found = review(tools.log_store, since=now - length, until=now)
        terminal.result({**asdict(found), "findings": found.has_findings})
        _tell(terminal, found)
        return EXIT_FAILED if found.has_findings else EXIT_OK

    return run_with(config, as_json, command)


def _tell(terminal: Terminal, found: AuditReport) -> None:
    terminal.say(f"{found.events} events from {found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC")
    for name, count in sorted(found.by_event.items()):
        terminal.say(f"  {count:>8}  {name}")
    for processor, count in sorted(found.released.items()):
        terminal.say(f"  {count:>8}  cards released to {processor}")
    for event_id in found.failed_openings:
        terminal.say(f"CRITICAL a sealed card did not open, so a row was altered or moved: {event_id}")
    for who, count in sorted(found.refused_redemptions.items()):
        terminal.say(f"LOOK {count} refused redemptions: {who}")
    for actor in found.new_identities:
        terminal.say(f"LOOK never seen before: {actor}")
    for peak in found.peaks:
        terminal.say(f"LOOK peak: {peak}")
    if found.unreadable:
        terminal.say(f"LOOK {found.unreadable} rows are no events: run `cardvault audit verify`")
    if not found.has_findings:
        terminal.say("Nothing stands out.")


def export(config: Path, *, out: Path, reason: str, as_json: bool) -> int:
    """Write the log to a folder, or bring a folder up to date."""

    def command(tools: OperatorTools, terminal: Terminal) -> int:
        directory = Directory(out)
        _read_event(tools, "export", reason)
        _sequence_if_free(tools)
        signer = tools.signer()
        keys = verifier_keys(signer, origin_of(tools.world.environment)) if signer is not None else ()
        added = Shipper(store=tools.log_store, sink=directory)(keys)
        facts = {"folder": str(out), "added": added, "events": directory.size()}
        terminal.result({**facts, "newest_checkpoint": directory.newest_checkpoint()})
        terminal.say(
            f"{out}: {added} events added, {directory.size()} in all, signed up to {directory.newest_checkpoint()}"
        )
        return EXIT_OK

    return run_with(config, as_json, command)


def checkpoint(config: Path, *, out: Path | None, as_json: bool) -> int:
    """Sign what is in the log now; print the newest checkpoint."""

    def command(tools: OperatorTools, terminal: Terminal) -> int:
        signer = tools.signer()
        if signer is None:
            raise typer.BadParameter("this command needs [vault.checkpointer] in the configuration")
        _sequence_if_free(tools)
        Checkpointer(
            store=tools.log_store,
            signer=signer,
            clock=tools.world.clock,
            environment=tools.world.environment,
            pace=Pace(),
        )(now=True)
        with tools.log_store.reading() as tx:
            newest = tx.newest_checkpoint()
        if newest is None:
            terminal.trouble("the log is empty: there is nothing to sign")
            return EXIT_REFUSED
        terminal.result({"size": newest.size, "root": newest.root.hex(), "signed_at": newest.signed_at.isoformat()})
        if not as_json or out is not None:
            _deliver(newest.note.rstrip("\n"), out)
        return EXIT_OK

    return run_with(config, as_json, command)


def keys(config: Path) -> int:
    """Print the public keys."""

    def command(tools: OperatorTools, _: Terminal) -> int:
        for key in keys_for(tools, None):
            sys.stdout.write(f"{key}\n")
        return EXIT_OK

    return run_with(config, False, command)


def status(config: Path, *, as_json: bool) -> int:
    """How far the log is."""

    def command(tools: OperatorTools, terminal: Terminal) -> int:
        with tools.log_store.reading() as tx:
            state = tx.log_state()
        now, newest = tools.world.clock.now(), state.newest_checkpoint
        path = tools.audit_directory()
        copy = Directory(path) if path is not None else None
        facts: dict[str, Any] = {
            "events": state.size,
            "waiting": state.queued,
            "lag_seconds": _age(now, state.oldest_queued),
            "signed": newest.size if newest is not None else 0,
            "signed_age_seconds": _age(now, newest.signed_at if newest is not None else None),
            "copy": str(path) if path is not None else None,
            "copied": copy.size() if copy is not None else None,
            "copied_checkpoint": copy.newest_checkpoint() if copy is not None else None,
        }
        terminal.result(facts)
        for name, value in facts.items():
            terminal.say(f"{name.replace('_', ' '):<20} {'-' if value is None else value}")
        return EXIT_OK

    return run_with(config, as_json, command)


def _age(now: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else max(0.0, round((now - moment).total_seconds(), 1))


_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def parsed_duration(text: str) -> timedelta:
    """`30m`, `24h`, `7d`. Ends the command for anything else."""
    number, unit = text[:-1], text[-1:]
    if not number.isascii() or not number.isdigit() or unit not in _UNITS or not 0 < int(number) <= 100_000:
        raise typer.BadParameter("must look like 30m, 24h or 7d", param_hint="--since")
    return timedelta(**{_UNITS[unit]: int(number)})

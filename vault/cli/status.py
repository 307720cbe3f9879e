"""`cardvault status`: the whole installation on one screen, for somebody who was woken up.

Every part is looked at by itself and at the same time, so that one that is down neither hides nor delays another.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from vault.app_operator import MissingLogin, OperatorTools
from vault.certificates import first_to_end
from vault.cli.operating import EXIT_DUE, EXIT_FAILED, EXIT_OK, EXIT_USAGE, Terminal, in_words
from vault.config import OperatorSettings, Settings
from vault.config_file import ConfigProblems, load, load_for_operator
from vault.domain.errors import CardVaultError
from vault.domain.retention import SLACK
from vault.hardening import harden
from vault.store import DatabaseRefused
from vault.telemetry import where
from vault.usecases.key_status import KeyStatus, StatusReport
from vault.usecases.key_status import Level as KeyLevel
from vault.usecases.retention import COMPLETED

if TYPE_CHECKING:
    from vault.ports_audit import LogState

CERTIFICATE_SOON = timedelta(days=7)
LOG_LATE = timedelta(seconds=60)
"""How old an event without a place in the log may be, and how far its time may lie in the future."""
UNSIGNED_LATE = timedelta(minutes=5)
GIVE_UP = 20.0
"""Seconds after which a part that says nothing is not waited for any longer."""
_HANDSHAKE = 3.0


class Level(StrEnum):
    """How a part is."""

    OK = "ok"
    UNKNOWN = "-"
    """It cannot be seen from here."""
    DUE = "due"
    """It works, and somebody should do something."""
    FAILED = "FAIL"


_ORDER = (Level.OK, Level.UNKNOWN, Level.DUE, Level.FAILED)
_STYLES = {Level.OK: "green", Level.UNKNOWN: "dim", Level.DUE: "yellow", Level.FAILED: "bold red"}


@dataclass(slots=True)
class Part:
    """One line, or a few."""

    name: str
    level: Level = Level.OK
    lines: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    todo: list[str] = field(default_factory=list)

    def say(self, text: str, level: Level = Level.OK, *, todo: str = "") -> None:
        """One more line; the worst level is the part's."""
        self.lines.append(text)
        self.level = max(self.level, level, key=_ORDER.index)
        if todo:
            self.todo.append(todo)


Look = Callable[[Part], None]


def run(config: Path, *, as_json: bool) -> int:
    """Look at everything; changes nothing."""
    harden()
    terminal = Terminal(as_json)
    server, problems = _server_settings(config)
    try:
        tools = OperatorTools(settings := load_for_operator(config))
    except (ConfigProblems, DatabaseRefused) as e:
        for problem in e.problems if isinstance(e, ConfigProblems) else [str(e)]:
            typer.echo(f"  - {problem}", err=True)
        return EXIT_USAGE
    with closing(tools):
        parts = _look(_looks(tools, settings, server, problems))
    _show(terminal, settings.environment, parts)
    worst = max((part.level for part in parts), key=_ORDER.index)
    return {Level.FAILED: EXIT_FAILED, Level.DUE: EXIT_DUE}.get(worst, EXIT_OK)


def _server_settings(config: Path) -> tuple[Settings | None, Sequence[str]]:
    """What the file says of a server, or what is wrong with that; neither for an operator's file."""
    try:
        return load(config), ()
    except ConfigProblems as e:
        if any(problem.startswith("server: Field required") for problem in e.problems):
            return None, ()
        return None, e.problems


def _looks(
    tools: OperatorTools, settings: OperatorSettings, server: Settings | None, problems: Sequence[str]
) -> Mapping[str, Look]:
    return {
        "server": lambda part: _server(part, server, problems),
        "vault": lambda part: _vault(part, tools),
        "keys": lambda part: _keys(part, tools),
        "database": lambda part: _database(part, tools),
        "cards": lambda part: _cards(part, tools),
        "audit log": lambda part: _log(part, tools),
        "retention": lambda part: _retention(part, tools),
        "certificates": lambda part: _certificates(part, settings, server),
    }


def _look(looks: Mapping[str, Look]) -> list[Part]:
    parts = {name: Part(name) for name in looks}
    pool = ThreadPoolExecutor(len(looks))
    try:
        futures = {name: pool.submit(_guarded, look, parts[name]) for name, look in looks.items()}
        found = []
        for name, future in futures.items():
            try:
                future.result(timeout=GIVE_UP)
                found.append(parts[name])
            except TimeoutError:
                # Its own part may still be written to.
                silent = Part(name)
                silent.say(f"no answer within {GIVE_UP:.0f} seconds", Level.FAILED)
                found.append(silent)
        return found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _guarded(look: Look, part: Part) -> None:
    try:
        look(part)
    except MissingLogin as e:
        part.say(e.message, Level.UNKNOWN)
    except CardVaultError as e:
        is_database = e.reason.startswith("database_")
        part.say(
            in_words(e.reason),
            Level.FAILED,
            todo="bring the database back, or mend the way to it: until then nothing works" if is_database else "",
        )
        part.facts["reason"] = e.reason
    except Exception as e:  # noqa: BLE001 - the other parts are shown all the same
        part.say(f"cannot be looked at: {where(e)}", Level.FAILED)


# --- parts ----------------------------------------------------------------------------------------------------------


def _server(part: Part, settings: Settings | None, problems: Sequence[str]) -> None:
    for problem in problems:
        part.say(problem, Level.FAILED)
    if settings is None:
        if not problems:
            part.say("not in this file: give a server's", Level.UNKNOWN)
        return
    host, _, port = settings.server.listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - asked here, not listened on
    part.facts["address"] = settings.server.listen
    if port == "0":
        part.say("takes any free port, so it cannot be found from here", Level.UNKNOWN)
    else:
        try:
            _handshake(host, int(port), settings.server.client_ca)
        except OSError as e:
            part.say(
                f"does not answer on {settings.server.listen} ({type(e).__name__})",
                Level.FAILED,
                todo="start it, and read its log: `cardvault serve --config FILE`",
            )
            return
        part.say(f"answers on {settings.server.listen}")
    _readiness(part, settings)


def _handshake(host: str, port: int, client_ca: Path) -> None:
    """Speak TLS with it as a stranger: it ends that, but only after it has shown that it is there."""
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Whether there is somebody is asked, not who; nothing is sent.
    stranger.check_hostname = False
    stranger.verify_mode = ssl.CERT_NONE
    stranger.load_verify_locations(client_ca)
    stranger.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), timeout=_HANDSHAKE) as plain:
        stranger.wrap_socket(plain, server_hostname=host).close()


_CHECK = re.compile(r'^cardvault_check_passed\{check="([a-z-]+)"\} ([01])(?:\.0)?$', re.MULTILINE)


def _readiness(part: Part, settings: Settings) -> None:
    """What the metrics of each worker say of its checks."""
    asked = 0
    failing: set[str] = set()
    for worker in range(settings.server.workers):
        address = settings.metrics.address(worker)
        if address is None or not address[1]:
            continue
        try:
            with closing(http.client.HTTPConnection(*address, timeout=_HANDSHAKE)) as connection:
                connection.request("GET", "/metrics")
                page = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            part.say(f"metrics of worker {worker} do not answer on port {address[1]}", Level.FAILED)
            continue
        checks = dict(_CHECK.findall(page))
        failing |= {name for name, passes in checks.items() if passes != "1"} or (set() if checks else {"not checked"})
        asked += 1
    part.facts["failing_checks"] = sorted(failing) if asked else None
    if not asked:
        part.say("whether it is ready is not to be seen: set [metrics] listen", Level.UNKNOWN)
    elif failing:
        part.say(f"NOT READY: {', '.join(sorted(failing))}", Level.FAILED)
    else:
        part.say("ready")


def _vault(part: Part, tools: OperatorTools) -> None:
    health = tools.vault_health()
    if health is None:
        part.say(
            "does not answer", Level.FAILED, todo="start Vault, or mend the way to it: cards can neither come nor go"
        )
        return
    part.facts |= {"initialized": health.initialized, "sealed": health.sealed}
    if health.sealed or not health.initialized:
        part.say(
            "sealed" if health.initialized else "not initialised",
            Level.FAILED,
            todo="unseal Vault (`bao operator unseal`): until then no card comes or goes; the account page works",
        )
        return
    part.say("unsealed")
    logins: dict[str, float | None] = {}
    for name in tools.logins():
        try:
            problems, logins[name] = tools.inspect_login(name)
            for problem in problems:
                part.say(f"login {name}: {problem}", Level.FAILED)
        except CardVaultError as e:
            part.say(
                f"login {name}: {in_words(e.reason)}",
                Level.FAILED,
                todo=f"mend the login: `cardvault vault renew-login {name} …`",
            )
    part.facts["token_seconds"] = logins
    if logins:
        part.say("logs in as " + ", ".join(f"{name} ({_span(left)})" for name, left in logins.items()))
    elif not tools.logins():
        part.say("no login in this file", Level.UNKNOWN)


def _keys(part: Part, tools: OperatorTools) -> None:
    report: StatusReport = KeyStatus(
        world=tools.world, keys=tools.operator_keys(), intake=tools.intake(), release=tools.release()
    )()
    now = tools.world.clock.now()
    levels = {KeyLevel.OK: Level.OK, KeyLevel.DUE: Level.DUE}
    for key in report.keys:
        level = levels.get(key.level, Level.FAILED if key.level is KeyLevel.FAILED else Level.DUE)
        age = "age unknown" if key.made_at is None else f"{_span((now - key.made_at).total_seconds())} old"
        notes = "".join(f"; {note}" for note in key.notes if note != "age unknown")
        part.say(f"{key.name} v{key.versions.latest}, {age}{notes}", level)
        part.facts[str(key.name)] = {
            "version": key.versions.latest,
            "made_at": key.made_at,
            "due_at": key.due_at,
            "rows_by_version": key.rows,
            "notes": key.notes,
        }
    if report.canary not in ("ok", "not checked"):
        part.say(f"a wrap and unwrap fails: {in_words(report.canary)}", Level.FAILED)
    if part.level is not Level.OK:
        part.todo.append("`cardvault keys status`, then the runbook: planned rotation")


def _database(part: Part, tools: OperatorTools) -> None:
    problems = tools.database_problems()
    for problem in problems:
        part.say(problem, Level.FAILED, todo="`cardvault doctor`; for the schema `cardvault db upgrade`")
    if problems:
        return
    with tools.world.store.reading() as tx:
        label = tx.setting("environment")
    if label not in (None, tools.world.environment):
        part.say(f"belongs to environment '{label}'", Level.FAILED, todo="take the file of that environment")
    else:
        part.say("settings and schema as they should be")


def _cards(part: Part, tools: OperatorTools) -> None:
    with tools.world.store.reading() as tx:
        versions = tx.count_wraps()
        customers = tx.count_customers()
        open_grants = tx.count_open_grants()
    cards = sum(versions.values())
    part.facts |= {"cards": cards, "customers": customers, "by_kek_version": versions, "open_grants": open_grants}
    shown = ", ".join(f"v{version}: {count}" for version, count in sorted(versions.items()))
    part.say(f"{cards} of {customers} customers{f' ({shown})' if shown else ''}")
    part.say(f"{open_grants} grants open")


def _log(part: Part, tools: OperatorTools) -> None:
    from vault.audit.copy import CopyTrouble, Directory

    with tools.log_store.reading() as tx:
        state = tx.log_state()
    for text, level, todo in log_findings(state, now=tools.world.clock.now()):
        part.say(text, level, todo=todo)
    newest = state.newest_checkpoint
    part.facts |= {
        "events": state.size,
        "waiting": state.queued,
        "oldest_waiting": state.oldest_queued,
        "signed": newest.size if newest is not None else 0,
        "signed_at": newest.signed_at if newest is not None else None,
        "copy_behind": None,
    }
    directory = tools.audit_directory()
    if directory is None:
        part.say("no second place for it in this file", Level.UNKNOWN)
        return
    try:
        behind = state.size - Directory(directory).size()
    except CopyTrouble as e:
        part.say(str(e), Level.FAILED, todo="mend the place of the log's copy (PCI DSS 10.3.3)")
        return
    part.facts["copy_behind"] = behind
    if behind < 0:
        part.say(
            "the copy knows more than the database: it was restored",
            Level.FAILED,
            todo="stop all servers; the runbook: database restored from a backup",
        )
    else:
        part.say("the copy is complete" if not behind else f"the copy lacks {behind} events")


def log_findings(state: LogState, *, now: datetime) -> Iterator[tuple[str, Level, str]]:
    """What there is to say of the log: text, level, and what to do."""
    newest = state.newest_checkpoint
    signed = newest.size if newest is not None else 0
    yield f"{state.size} events, {state.queued} waiting, {signed} signed", Level.OK, ""
    look = "look at the servers' logs for audit.behind; `cardvault audit verify`"
    if state.oldest_queued is not None and now - state.oldest_queued > LOG_LATE:
        since = _span((now - state.oldest_queued).total_seconds())
        yield f"events have waited for their place for {since}", Level.FAILED, look
    elif state.queued and state.oldest_queued is None:
        yield "something waits that is no event: somebody removed or wrote it", Level.FAILED, "`cardvault audit verify`"
    if state.latest_queued is not None and state.latest_queued - now > LOG_LATE:
        ahead = _span((state.latest_queued - now).total_seconds())
        yield (
            f"a waiting event's time lies {ahead} ahead: a clock is wrong, or somebody wrote it",
            Level.FAILED,
            "compare the servers' clocks; `cardvault audit verify`",
        )
    if signed < state.size and (newest is None or now - newest.signed_at > UNSIGNED_LATE):
        yield (
            "nobody signs it (PCI DSS 10.3.4)",
            Level.DUE,
            "give a server [vault.checkpointer], or look at its log for audit.behind",
        )


def _retention(part: Part, tools: OperatorTools) -> None:
    now = tools.world.clock.now()
    with tools.world.store.reading() as tx:
        text = tx.setting(COMPLETED)
        due = {str(rule): count for rule, count in tx.count_due_rows(tools.retention.at(now)).items()}
    part.facts |= {"completed_at": text, "due_rows": due}
    if text is None:
        part.say("no run has come to its end yet", Level.UNKNOWN)
    else:
        since = now - datetime.fromisoformat(text)
        part.say(
            f"last run ended {_span(since.total_seconds())} ago",
            Level.DUE if since > SLACK else Level.OK,
            todo="`cardvault retention plan`, then `run`" if since > SLACK else "",
        )
    part.say(f"{sum(due.values())} rows due for removal beside cards")


def _certificates(part: Part, settings: OperatorSettings, server: Settings | None) -> None:
    files = {"vault_ca": settings.vault.ca_file}
    if server is not None:
        files |= {"server": server.server.certificate, "client_ca": server.server.client_ca}
    now = datetime.now(UTC)
    for name, path in files.items():
        try:
            ends = first_to_end(path)
        except (OSError, ValueError):
            part.say(f"{name}: {path} cannot be read", Level.FAILED)
            continue
        part.facts[name] = ends
        left = ends - now
        level = Level.FAILED if left <= timedelta() else Level.DUE if left < CERTIFICATE_SOON else Level.OK
        part.say(
            f"{name} ends {ends:%Y-%m-%d %H:%M} UTC",
            level,
            todo=f"replace {path}{'' if name == 'vault_ca' else ': servers read it again by themselves'}"
            if level is not Level.OK
            else "",
        )


def _span(seconds: float | None) -> str:
    """A length of time in its largest unit."""
    if seconds is None:
        return "no end"
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


# --- showing --------------------------------------------------------------------------------------------------------


def _show(terminal: Terminal, environment: str, parts: Sequence[Part]) -> None:
    todo = list(dict.fromkeys(each for part in parts for each in part.todo))
    worst = max((part.level for part in parts), key=_ORDER.index)
    terminal.result(
        {
            "environment": environment,
            "at": datetime.now(UTC),
            "level": _word(worst),
            "parts": {
                part.name.replace(" ", "_"): {"level": _word(part.level), "text": part.lines, **part.facts}
                for part in parts
            },
            "next": todo,
        }
    )
    if terminal.as_json:
        return
    terminal.say(f"cardvault, environment {environment}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    terminal.say("")
    for part in parts:
        for number, line in enumerate(part.lines):
            mark = Text(f"{part.level if not number else '':<4}", style=_STYLES[part.level])
            name = part.name if not number else ""
            terminal.out.print(mark.append(f"  {name:<12}  {line}", style="default"), soft_wrap=True)
    terminal.say("")
    terminal.say("next:" if todo else "nothing to do")
    for each in todo:
        terminal.say(f"  - {each}")


def _word(level: Level) -> str:
    return {Level.OK: "ok", Level.UNKNOWN: "unknown", Level.DUE: "due", Level.FAILED: "failed"}[level]

"""`cardvault retention …`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from vault.cli.operating import EXIT_FAILED, EXIT_OK, Patience, Terminal, Watch, ending, operating, operator_now
from vault.domain.retention import RULES, CardRule, RowRule, Rule
from vault.usecases.compaction import Compact, Left, left_over
from vault.usecases.retention import Retain, RetentionPlan, RetentionReport

_TEXTS: Mapping[Rule, str] = {
    CardRule.CONSENT_ENDED: "cards whose consent has ended",
    CardRule.PENDING: "cards that were never approved",
    CardRule.EXPIRED: "cards past their expiry month",
    CardRule.UNUSED: "cards not used for long",
    RowRule.ONCE_KEYS: "keys and rows of one-time tokens",
    RowRule.OPEN_GRANTS: "grants to be closed",
    RowRule.CLOSED_GRANTS: "rows of old grants",
    RowRule.IDEMPOTENCY: "remembered answers",
}


def plan(config: Path, *, as_json: bool) -> int:
    """Count what a run would remove."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            _show(terminal, Retain(world=tools.world, limits=tools.retention).plan())
            return EXIT_OK

        return ending(terminal, command)


def run(config: Path, *, max_rate: float | None, give_up_after: float, dry_run: bool, as_json: bool) -> int:
    """Remove what is due."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            use_case = Retain(world=tools.world, limits=tools.retention)
            persist = Patience(terminal, timedelta(seconds=give_up_after))
            planned = use_case.plan(persist=persist)
            if dry_run:
                _show(terminal, planned)
                return EXIT_OK
            operator = operator_now(tools, "retention")
            total = sum(planned.now[rule] for rule in CardRule)
            with Watch(terminal, "retention", max_rate=max_rate) as watch:
                report = use_case(operator, total=total, persist=persist, progress=watch)
            _report(terminal, report)
            return EXIT_FAILED if report.failures else EXIT_OK

        return ending(terminal, command)


def verify(config: Path, *, as_json: bool) -> int:
    """Say whether anything is overdue."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            use_case = Retain(world=tools.world, limits=tools.retention)
            overdue = use_case.verify(operator_now(tools, "retention verify"))
            late = {rule: count for rule, count in overdue.items() if count}
            left = left_over(tools.world.store)
            is_left = left is not None and not left.is_small
            terminal.result({"overdue": _plain(overdue), "not_compacted": asdict(left) if left and is_left else None})
            if left is not None and is_left:
                terminal.say(in_words_left(left))
            if not late:
                terminal.say("nothing is overdue")
                return EXIT_OK
            for rule, count in late.items():
                terminal.say(f"overdue: {count} {_TEXTS[rule]} ({rule})")
            return EXIT_FAILED

        return ending(terminal, command)


def compact(config: Path, *, reason: str, dry_run: bool, as_json: bool) -> int:
    """Write SQLite's file anew."""
    terminal = Terminal(as_json)
    with operating(config) as tools:

        def command() -> int:
            store = tools.world.store
            if dry_run:
                return _show_left(terminal, left_over(store), store.file_size())
            done = Compact(world=tools.world)(operator_now(tools, reason))
            terminal.result(asdict(done))
            terminal.say(
                f"{_size(done.bytes_before)} before, {_size(done.bytes_after)} now; nobody could write for "
                f"{done.seconds:.1f} s"
            )
            if done.is_clear:
                return EXIT_OK
            terminal.trouble(
                "a reader that began before is still at it, so the old bytes are still in the file: run this again "
                "when it has ended"
            )
            return EXIT_FAILED

        return ending(terminal, command, stopped="stopped: the file is as it was before, or written anew")


def in_words_left(left: Left) -> str:
    """What to do about a large file."""
    return (
        f"{left.erased} cards were erased since the database's file ({_size(left.size)}) was last written anew: it "
        "may hold remains of them; `cardvault retention compact` in a quiet hour"
    )


def _show_left(terminal: Terminal, left: Left | None, size: int | None) -> int:
    terminal.result({"bytes": size, "erased_since": left.erased if left is not None else 0})
    if size is None:
        terminal.say("PostgreSQL: nothing would be done")
    else:
        terminal.say(f"{_size(size)}, {left.erased if left is not None else 0} cards erased since it was written anew")
    return EXIT_OK


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def _show(terminal: Terminal, planned: RetentionPlan) -> None:
    terminal.result({"at": planned.at.isoformat(), "now": _plain(planned.now), "next_30_days": _plain(planned.soon)})
    width = max(map(len, _TEXTS.values()))
    terminal.say(f"{'would be removed':<{width}}  {'now':>9}  {'within 30 days':>14}")
    for rule in RULES:
        terminal.say(f"{_TEXTS[rule]:<{width}}  {planned.now[rule]:>9}  {planned.soon[rule]:>14}")


def _report(terminal: Terminal, report: RetentionReport) -> None:
    failures = [{"token": each.card.token, "reason": each.reason} for each in report.failures]
    facts: dict[str, Any] = {
        "removed": _plain(report.removed),
        "grants_revoked": report.grants_revoked,
        "stayed": report.stayed,
        "failures": failures,
    }
    terminal.result(facts)
    for rule in RULES:
        if report.removed[rule]:
            terminal.say(f"{report.removed[rule]} {_TEXTS[rule]} ({rule})")
    for failure in failures:
        terminal.trouble(f"{failure['token']} stays: {failure['reason']}")
    rows = sum(report.removed[rule] for rule in RowRule)
    terminal.say(f"{report.cards} cards erased, {rows} rows cleared, {report.grants_revoked} grants revoked")


def _plain(counts: Mapping[Rule, int]) -> dict[str, int]:
    return {str(rule): counts[rule] for rule in RULES}

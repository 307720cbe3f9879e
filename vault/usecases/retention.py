"""Removes what nobody may keep any longer: cards, grants, one-time keys, remembered answers (PCI DSS 3.2.1).

What is left in the database is what is still to do, so a run may be cut off anywhere and started again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from vault.domain.audit import Outcome
from vault.domain.errors import StoreUnavailable
from vault.domain.ids import EventId
from vault.domain.retention import RULES, SLACK, CardRule, Deadlines, RetentionLimits, RowRule, Rule
from vault.ports_operator import CardKey, DueCard, ErasedDue, OperatorWriter
from vault.usecases.batch import ONE_ROW_S_TROUBLE, World
from vault.usecases.maintenance import SWEEP_ROWS, ExpireOnceKeys
from vault.usecases.operating import (
    PAGE,
    Failure,
    Operator,
    OperatorWorld,
    Persist,
    Progress,
    at_once,
    unwatched,
)

SOON = timedelta(days=30)
LOCK = "retention"
_LOOKED_AT = 2000
"""Cards that one query looks at."""
COMPLETED = "retention.completed"
"""Setting that says when a run last came to its end."""
_REMOVED: Mapping[RowRule, str] = {
    RowRule.ONCE_KEYS: "once.forgotten",
    RowRule.OPEN_GRANTS: "grant.closed",
    RowRule.CLOSED_GRANTS: "grant.forgotten",
    RowRule.IDEMPOTENCY: "idempotency.forgotten",
}
"""Events that say how many rows went."""


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What a run would remove."""

    at: datetime
    now: Mapping[Rule, int]
    soon: Mapping[Rule, int]
    """What comes to that within the next 30 days, if nothing is stored or used meanwhile."""


@dataclass(slots=True)
class RetentionReport:
    """What a run did."""

    total: int
    """Cards that were due at the beginning; 0 where nobody counted."""
    removed: dict[Rule, int] = field(default_factory=lambda: dict.fromkeys(RULES, 0))
    grants_revoked: int = 0
    stayed: int = 0
    """Cards that were stored again or used between being found and being erased."""
    failures: list[Failure] = field(default_factory=list)

    @property
    def cards(self) -> int:
        """Cards erased, whatever the rule."""
        return sum(self.removed[rule] for rule in CardRule)


class Retain:
    """The use case. Needs no key."""

    def __init__(self, *, world: OperatorWorld, limits: RetentionLimits) -> None:
        self._world = world
        self._limits = limits

    def plan(self, *, persist: Persist = at_once) -> RetentionPlan:
        """Count what is due, without changing anything. Raises `StoreUnavailable` at last."""
        now = self._world.clock.now()
        due = self._count(self._limits.at(now), persist)
        later = self._count(self._limits.at(now + SOON), persist)
        return RetentionPlan(now, due, {rule: max(0, later[rule] - due[rule]) for rule in RULES})

    def verify(self, operator: Operator, *, persist: Persist = at_once) -> Mapping[Rule, int]:
        """Count what should be gone for more than a day, and record the result (PCI DSS 3.2.1, every three months)."""
        overdue = self._count(self._limits.at(self._world.clock.now() - SLACK), persist)
        outcome = Outcome.ERROR if any(overdue.values()) else Outcome.OK
        counts = {str(rule): count for rule, count in overdue.items() if count}

        def record() -> None:
            with self._world.store.writing() as tx:
                event = self._world.event(operator, "retention.verified", outcome=outcome)
                tx.append_events([replace(event, details=counts)])

        persist(record)
        return overdue

    def last_completed(self) -> datetime | None:
        """When a run last came to its end, here or in another process."""
        with self._world.store.reading() as tx:
            text = tx.setting(COMPLETED)
        return datetime.fromisoformat(text) if text is not None else None

    def __call__(
        self,
        operator: Operator,
        *,
        total: int = 0,
        persist: Persist = at_once,
        progress: Progress = unwatched,
    ) -> RetentionReport:
        """Remove what is due, until nothing is left. Raises `Busy`, and `StoreUnavailable` at last."""
        report = RetentionReport(total)
        with self._world.store.exclusively(LOCK):
            at = self._limits.at(self._world.clock.now())
            for due in self._walk(at, persist):
                for chunk in (due[start : start + PAGE] for start in range(0, len(due), PAGE)):
                    self._erase(operator, chunk, at, report, persist)
                    progress(report.cards, total)
                progress(report.cards, total)
            self._clear_rows(operator, at, report, persist, partial(progress, report.cards, total))
            if not report.failures:
                persist(self._completed)
        return report

    # --- cards ------------------------------------------------------------------------------------------------------

    def _walk(self, at: Deadlines, persist: Persist) -> Iterator[Sequence[DueCard]]:
        """Those due of each page of cards."""
        after: CardKey | None = None
        while True:

            def look(after: CardKey | None = after) -> tuple[Sequence[DueCard], CardKey | None]:
                with self._world.store.reading() as tx:
                    page = tx.due_cards(at, after=after, limit=_LOOKED_AT)
                return page.due, page.last

            due, after = persist(look)
            if after is None:
                return
            yield due

    def _erase(
        self, operator: Operator, due: Sequence[DueCard], at: Deadlines, report: RetentionReport, persist: Persist
    ) -> None:
        try:
            erased = persist(partial(self._erase_together, operator, due, at))
        except StoreUnavailable as e:
            if e.reason not in ONE_ROW_S_TROUBLE:
                raise
            if len(due) == 1:
                report.failures.append(Failure(due[0].card, e.reason))
                return
            # One that the database refuses must not keep its neighbours.
            for each in due:
                self._erase(operator, [each], at, report, persist)
            return
        for each in erased.cards:
            report.removed[each.rule] += 1
        report.grants_revoked += erased.grants_revoked
        report.stayed += len(due) - len(erased.cards)

    def _erase_together(self, operator: Operator, due: Sequence[DueCard], at: Deadlines) -> ErasedDue:
        # The moment of the run decides what is due; each erasure bears its own time.
        events = {
            each.card: self._world.event(
                operator,
                "card.erased",
                tenant=each.card.tenant,
                customer=each.customer,
                target=each.card.token,
                cards=1,
            )
            for each in due
        }
        ids: dict[CardKey, EventId] = {card: event.event_id for card, event in events.items()}
        with self._world.store.writing() as tx:
            erased = tx.erase_due_cards(ids, at)
            tx.append_events([replace(events[each.card], reason=each.rule.value) for each in erased.cards])
        return erased

    # --- rows -------------------------------------------------------------------------------------------------------

    def _clear_rows(
        self,
        operator: Operator,
        at: Deadlines,
        report: RetentionReport,
        persist: Persist,
        progress: Callable[[], None],
    ) -> None:
        world = self._world
        expire = ExpireOnceKeys(
            world=World(environment=world.environment, store=world.store, clock=world.clock, entropy=world.entropy),
            actor=operator.name,
        )
        report.removed[RowRule.ONCE_KEYS] += persist(expire)
        ways: Mapping[RowRule, Callable[[OperatorWriter], int]] = {
            RowRule.ONCE_KEYS: lambda tx: tx.forget_once_keys(at, limit=SWEEP_ROWS),
            RowRule.CLOSED_GRANTS: lambda tx: tx.forget_grants(at, limit=SWEEP_ROWS),
            RowRule.OPEN_GRANTS: lambda tx: tx.close_expired_grants(at, limit=SWEEP_ROWS),
            RowRule.IDEMPOTENCY: lambda tx: tx.forget_answers(at, limit=SWEEP_ROWS),
        }
        for rule, remove in ways.items():
            while removed := persist(partial(self._some_rows, operator, rule, remove)):
                report.removed[rule] += removed
                progress()

    def _some_rows(self, operator: Operator, rule: RowRule, remove: Callable[[OperatorWriter], int]) -> int:
        with self._world.store.writing() as tx:
            removed = remove(tx)
            if removed:
                event = self._world.event(operator, _REMOVED[rule], rows=removed)
                tx.append_events([replace(event, reason=rule.value)])
        return removed

    def _completed(self) -> None:
        with self._world.store.writing() as tx:
            tx.put_setting(COMPLETED, self._world.clock.now().isoformat())

    # --- counting ---------------------------------------------------------------------------------------------------

    def _count(self, at: Deadlines, persist: Persist) -> Mapping[Rule, int]:
        counts: Counter[Rule] = Counter()
        for due in self._walk(at, persist):
            counts.update(each.rule for each in due)

        def count_rows() -> Mapping[RowRule, int]:
            with self._world.store.reading() as tx:
                return tx.count_due_rows(at)

        counts.update(persist(count_rows))
        return {rule: counts[rule] for rule in RULES}

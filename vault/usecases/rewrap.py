"""Moves wrapped data keys to the newest version of their key: inside Vault, without plaintext, resumable at any point.

The rows are the progress: a row is done when its wrap is under the newest version. A new wrap replaces exactly the wrap
it was made from, so work beside live traffic and beside a second operator cannot undo anything; the former wrap is kept
until the old version is trimmed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from vault.domain.audit import Outcome
from vault.domain.binding import Binding
from vault.domain.errors import KeyRefused, KeyRingUnavailable, PreconditionFailed, StoreUnavailable
from vault.domain.grant import SealedKey
from vault.ports import KeyName, KeyToUnwrap, ReleaseKeys
from vault.ports_operator import (
    Busy,
    CardKey,
    OperatorKeys,
    OperatorReader,
    OperatorWriter,
    StoredWrap,
    WrapReplacement,
)
from vault.usecases.operating import PAGE, Failure, Operator, OperatorWorld, Persist, Progress, at_once, unwatched
from vault.usecases.proof import binding_of as binding_of
from vault.usecases.proof import opens
from vault.usecases.restored import refuse_if_restored
from vault.usecases.rotate import older_than

BEFORE = "wraps_before."
"""Settings with the counts by version before the first rewrap to a version."""
RUN = "rewrap_run."
"""Settings with what each run did, by version and command."""


MAX_BATCH = 1000
"""Cards in one transaction where nothing else needs the database much; fewer leave it free more often."""
CALLS = 3
"""Batches that Vault is asked for at the same time, where a transaction holds more than one."""

GENTLE_BATCH = 25
"""Cards in one transaction, and in one call of Vault, where a pace is asked for: short enough to pass unnoticed."""


class Proof(StrEnum):
    """How many of the new wraps are opened before they replace the former ones."""

    NONE = "none"
    SAMPLE = "sample"
    """One of each batch."""
    ALL = "all"


@dataclass(slots=True)
class RewrapReport:
    """What a run did."""

    version: int
    total: int
    rewrapped: int = 0
    superseded: int = 0
    """Erased or sealed anew meanwhile; they have no need of it."""
    proven: int = 0
    failures: list[Failure] = field(default_factory=list)


@dataclass(slots=True)
class _Prepared:
    """A batch that Vault is done with and the database is not."""

    last: CardKey
    replacements: list[WrapReplacement] = field(default_factory=list)
    proven: int = 0
    failures: list[Failure] = field(default_factory=list)


_Fresh = tuple[StoredWrap, Binding, SealedKey]
"""A wrap, what it is bound to, and the new wrap."""


class Rewrap:
    """The use case. `release` proves new wraps; without it the run needs the `operator` login alone."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys, release: ReleaseKeys | None) -> None:
        self._world = world
        self._keys = keys
        self._release = release

    def __call__(
        self,
        operator: Operator,
        *,
        proof: Proof,
        batch: int = MAX_BATCH,
        persist: Persist = at_once,
        progress: Progress = unwatched,
    ) -> RewrapReport:
        """Walk once over all cards under older versions, `batch` cards in a transaction.

        While one batch is written, Vault works on the next. Raises `KeyRingUnavailable`, `StoreUnavailable` at last;
        `PreconditionFailed` if Vault was restored from an older snapshot, or if the version was retired meanwhile.
        """
        versions = persist(partial(self._keys.versions, KeyName.CARDS))
        persist(partial(refuse_if_restored, self._world, KeyName.CARDS, versions))
        version = versions.latest
        report = RewrapReport(version, persist(partial(self._begin, version)))
        with ThreadPoolExecutor(1, "rewrap") as ahead, ThreadPoolExecutor(CALLS, "rewrap-vault") as callers:
            prepare = partial(
                self._prepare, version=version, batch=batch, proof=proof, persist=persist, callers=callers
            )
            coming = ahead.submit(prepare, None)
            while (prepared := coming.result()) is not None:
                coming = ahead.submit(prepare, prepared.last)
                persist(partial(self._write, prepared, report, operator))
                progress(report.rewrapped + report.superseded + len(report.failures), report.total)
        return report

    def _begin(self, version: int) -> int:
        """Count what is to be done; the first run for a version writes the counts down."""
        with self._world.store.reading() as tx:
            counts = tx.count_wraps()
        with suppress(Busy), self._world.store.exclusively("rewrap-begin"), self._world.store.writing() as tx:
            if tx.setting(f"{BEFORE}{version}") is None:
                tx.put_setting(f"{BEFORE}{version}", json.dumps({str(v): n for v, n in counts.items()}, sort_keys=True))
        return older_than(version, counts)

    def _prepare(
        self,
        after: CardKey | None,
        *,
        version: int,
        batch: int,
        proof: Proof,
        persist: Persist,
        callers: Executor,
    ) -> _Prepared | None:
        """The next batch with its new wraps; None at the end of the walk."""
        page = persist(partial(self._page, version, after, batch))
        if not page:
            return None
        prepared = _Prepared(page[-1].card)
        pages = [page[start : start + PAGE] for start in range(0, len(page), PAGE)]
        answers = callers.map(lambda wraps: persist(partial(self._rewrap, wraps, proof)), pages)
        for replacements, proven, failures in answers:
            prepared.replacements += replacements
            prepared.proven += proven
            prepared.failures += failures
        return prepared

    def _page(self, version: int, after: CardKey | None, batch: int) -> Sequence[StoredWrap]:
        with self._world.store.reading() as tx:
            return tx.wraps_below(version, after=after, limit=batch)

    def _rewrap(self, page: Sequence[StoredWrap], proof: Proof) -> tuple[list[WrapReplacement], int, list[Failure]]:
        """What Vault makes of up to 200 wraps; changes nothing."""
        bindings = [binding_of(wrap, environment=self._world.environment) for wrap in page]
        answers = self._keys.rewrap(
            [
                KeyToUnwrap(KeyName.CARDS, wrap.key, binding.wrap_context())
                for wrap, binding in zip(page, bindings, strict=True)
            ]
        )
        fresh: list[_Fresh] = []
        failures: list[Failure] = []
        for wrap, binding, key in zip(page, bindings, answers, strict=True):
            if isinstance(key, KeyRefused):
                failures.append(Failure(wrap.card, "vault_refused"))
            else:
                fresh.append((wrap, binding, key))
        proven, unproven = self._prove(fresh, proof)
        if unproven:
            failures += unproven
            bad = {failure.card for failure in unproven}
            fresh = [each for each in fresh if each[0].card not in bad]
        return [WrapReplacement(wrap.card, wrap.key, key) for wrap, _, key in fresh], proven, failures

    def _write(self, prepared: _Prepared, report: RewrapReport, operator: Operator) -> None:
        """Safe to repeat: what was replaced already, as after an answer that was lost, is found replaced."""
        with self._world.store.writing() as tx:
            changed = _replaced(tx, prepared.replacements)
            unchanged = [each for each in prepared.replacements if each.card not in changed]
            already = _replaced_before(tx, unchanged)
            events = [
                self._world.event(
                    operator,
                    "card.rewrap_refused",
                    target=failure.card.token,
                    outcome=Outcome.ERROR,
                    why=failure.reason,
                )
                for failure in prepared.failures
            ]
            if changed:
                events.append(
                    self._world.event(
                        operator,
                        "cards.rewrapped",
                        target=KeyName.CARDS,
                        version=report.version,
                        cards=len(changed),
                        proven=prepared.proven,
                    )
                )
            tx.append_events(events)
            after = RewrapReport(
                report.version,
                report.total,
                report.rewrapped + len(changed) + already,
                report.superseded + len(unchanged) - already,
                report.proven + prepared.proven,
                [*report.failures, *prepared.failures],
            )
            tx.put_setting(f"{RUN}{report.version}.{operator.command_id}", _record(after, operator, self._world))
        report.rewrapped, report.superseded = after.rewrapped, after.superseded
        report.proven, report.failures = after.proven, after.failures

    def _prove(self, fresh: Sequence[_Fresh], proof: Proof) -> tuple[int, list[Failure]]:
        """Open cards with their new wraps. A wrap that cannot open its card must never replace one that can."""
        if self._release is None or proof is Proof.NONE or not fresh:
            return 0, []
        sample = fresh if proof is Proof.ALL else fresh[:1]
        keys = self._release.unwrap(
            [KeyToUnwrap(KeyName.CARDS, key, binding.wrap_context()) for _, binding, key in sample]
        )
        proven, failures = 0, []
        with self._world.store.reading() as tx:
            ciphertexts = tx.secrets_of([wrap.card for wrap, _, _ in sample])
        for (wrap, binding, _), key in zip(sample, keys, strict=True):
            if isinstance(key, KeyRingUnavailable):
                raise key
            secret = ciphertexts.get(wrap.card)
            if secret is None or secret.wrap.record_version != wrap.record_version:
                continue  # erased or sealed anew meanwhile: the exchange will find the old wrap gone
            if isinstance(key, KeyRefused) or not opens(secret, key, binding):
                failures.append(Failure(wrap.card, "new_wrap_does_not_open"))
            else:
                proven += 1
        return proven, failures


def _replaced(tx: OperatorWriter, replacements: Sequence[WrapReplacement]) -> frozenset[CardKey]:
    """Exchange them. A repetition would not help where their version was retired while we slept."""
    try:
        return tx.replace_wraps(replacements)
    except StoreUnavailable as e:
        if e.reason != "key_version_retired":
            raise
    raise PreconditionFailed(
        "version_retired", message="another operator made a newer version and retired this one; run it again"
    )


def _replaced_before(tx: OperatorReader, unchanged: Sequence[WrapReplacement]) -> int:
    """How many of these have the new wrap already."""
    count = 0
    for start in range(0, len(unchanged), PAGE):
        some = unchanged[start : start + PAGE]
        stored = tx.secrets_of([each.card for each in some])
        count += sum(1 for each in some if each.card in stored and stored[each.card].wrap.key == each.new)
    return count


def _record(report: RewrapReport, operator: Operator, world: OperatorWorld) -> str:
    facts = {
        "by": operator.name,
        "reason": operator.reason,
        "at": world.clock.now().isoformat(),
        "rewrapped": report.rewrapped,
        "superseded": report.superseded,
        "proven": report.proven,
        "failures": len(report.failures),
    }
    return json.dumps(facts, sort_keys=True)

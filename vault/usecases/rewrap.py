"""Moves wrapped data keys to the newest version of their key: inside Vault, without plaintext, resumable at any point.

The rows are the progress: a row is done when its wrap is under the newest version. A new wrap replaces exactly the wrap
it was made from, so work beside live traffic and beside a second operator cannot undo anything; the former wrap is kept
until the old version is trimmed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from vault.cleanroom import open_sealed
from vault.domain.audit import Outcome
from vault.domain.binding import Binding, stored_card_binding
from vault.domain.errors import BrokenSeal, KeyRefused, KeyRingUnavailable
from vault.domain.grant import SealedKey
from vault.ports import KeyName, KeyToUnwrap, ReleaseKeys
from vault.ports_operator import CardKey, OperatorKeys, StoredSecret, StoredWrap, WrapReplacement
from vault.usecases.operating import PAGE, Failure, Operator, OperatorWorld, Persist, Progress, at_once, unwatched
from vault.usecases.rotate import older_than

BEFORE = "wraps_before."
"""Settings with the counts by version before the first rewrap to a version."""
RUN = "rewrap_run."
"""Settings with what each run did, by version and command."""


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
        persist: Persist = at_once,
        progress: Progress = unwatched,
    ) -> RewrapReport:
        """Walk once over all cards under older versions. Raises `KeyRingUnavailable`, `StoreUnavailable` at last."""
        version = persist(partial(self._keys.versions, KeyName.CARDS)).latest
        report = RewrapReport(version, persist(partial(self._begin, version)))
        after: CardKey | None = None
        while page := persist(partial(self._page, version, after)):
            persist(partial(self._one_page, page, report, proof, operator))
            after = page[-1].card
            progress(report.rewrapped + report.superseded + len(report.failures), report.total)
        return report

    def _begin(self, version: int) -> int:
        """Count what is to be done; the first run for a version writes the counts down."""
        with self._world.store.reading() as tx:
            counts = tx.count_wraps()
            known = tx.setting(f"{BEFORE}{version}")
        if known is None:
            with self._world.store.writing() as tx:
                tx.put_setting(f"{BEFORE}{version}", json.dumps({str(v): n for v, n in counts.items()}, sort_keys=True))
        return older_than(version, counts)

    def _page(self, version: int, after: CardKey | None) -> Sequence[StoredWrap]:
        with self._world.store.reading() as tx:
            return tx.wraps_below(version, after=after, limit=PAGE)

    def _one_page(self, page: Sequence[StoredWrap], report: RewrapReport, proof: Proof, operator: Operator) -> None:
        """Safe to repeat as a whole: what was replaced already is found replaced."""
        bindings = {wrap.card: binding_of(wrap, environment=self._world.environment) for wrap in page}
        answers = self._keys.rewrap(
            [KeyToUnwrap(KeyName.CARDS, wrap.key, bindings[wrap.card].wrap_context()) for wrap in page]
        )
        fresh = [(wrap, key) for wrap, key in zip(page, answers, strict=True) if isinstance(key, SealedKey)]
        failures = [
            Failure(wrap.card, "vault_refused")
            for wrap, key in zip(page, answers, strict=True)
            if isinstance(key, KeyRefused)
        ]
        proven, unproven = self._prove(fresh, bindings, proof)
        failures += unproven
        bad = {failure.card for failure in failures}
        replacements = [WrapReplacement(w.card, w.key, key) for w, key in fresh if w.card not in bad]
        with self._world.store.writing() as tx:
            changed = tx.replace_wraps(replacements)
            events = [
                self._world.event(
                    operator,
                    "card.rewrap_refused",
                    target=failure.card.token,
                    outcome=Outcome.ERROR,
                    why=failure.reason,
                )
                for failure in failures
            ]
            if changed:
                events.append(
                    self._world.event(
                        operator,
                        "cards.rewrapped",
                        target=KeyName.CARDS,
                        version=report.version,
                        cards=len(changed),
                        proven=proven,
                    )
                )
            tx.append_events(events)
            after = RewrapReport(
                report.version,
                report.total,
                report.rewrapped + len(changed),
                report.superseded + len(replacements) - len(changed),
                report.proven + proven,
                [*report.failures, *failures],
            )
            tx.put_setting(f"{RUN}{report.version}.{operator.command_id}", _record(after, operator, self._world))
        report.rewrapped, report.superseded = after.rewrapped, after.superseded
        report.proven, report.failures = after.proven, after.failures

    def _prove(
        self, fresh: Sequence[tuple[StoredWrap, SealedKey]], bindings: dict[CardKey, Binding], proof: Proof
    ) -> tuple[int, list[Failure]]:
        """Open cards with their new wraps. A wrap that cannot open its card must never replace one that can."""
        if self._release is None or proof is Proof.NONE or not fresh:
            return 0, []
        sample = fresh if proof is Proof.ALL else fresh[:1]
        keys = self._release.unwrap(
            [KeyToUnwrap(KeyName.CARDS, key, bindings[wrap.card].wrap_context()) for wrap, key in sample]
        )
        proven, failures = 0, []
        with self._world.store.reading() as tx:
            ciphertexts = tx.secrets_of([wrap.card for wrap, _ in sample])
        for (wrap, _), key in zip(sample, keys, strict=True):
            if isinstance(key, KeyRingUnavailable):
                raise key
            secret = ciphertexts.get(wrap.card)
            if secret is None or secret.wrap.record_version != wrap.record_version:
                continue  # erased or sealed anew meanwhile: the exchange will find the old wrap gone
            if isinstance(key, KeyRefused) or not opens(secret, key, bindings[wrap.card]):
                failures.append(Failure(wrap.card, "new_wrap_does_not_open"))
            else:
                proven += 1
        return proven, failures


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


def binding_of(wrap: StoredWrap, *, environment: str) -> Binding:
    """What a stored card is tied to."""
    return stored_card_binding(
        environment=environment,
        tenant=wrap.card.tenant,
        customer=wrap.customer,
        token=wrap.card.token,
        consent=wrap.consent,
        record_version=wrap.record_version,
    )


def opens(secret: StoredSecret, data_key: bytes, binding: Binding) -> bool:
    """Whether a card opens with a data key; nothing of it is kept."""
    try:
        open_sealed(secret.ciphertext, data_key=data_key, binding=binding)
    except BrokenSeal:
        return False
    return True

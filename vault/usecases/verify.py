"""Opens every card, printing none: binding, seal, fingerprint and display digits must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from vault.cleanroom import OpenedCard, fingerprint_message, open_sealed
from vault.domain.audit import Outcome
from vault.domain.errors import BrokenSeal, KeyRefused, KeyRingUnavailable
from vault.ports import IntakeKeys, KeyName, KeyToUnwrap, ReleaseKeys
from vault.ports_operator import CardKey, Selection, StoredSecret
from vault.usecases.operating import PAGE, Failure, Operator, OperatorWorld, Persist, Progress, at_once, unwatched
from vault.usecases.rewrap import binding_of

VERSION_RETIRED = "vault_key_version_retired"
"""Reason of the key ring where it is this one card's wrap that is too old; the others open."""


@dataclass(slots=True)
class VerifyReport:
    """What was found."""

    total: int
    opened: int = 0
    gone: int = 0
    """Erased or sealed anew meanwhile."""
    fingerprints_checked: int = 0
    by_version: dict[int, int] = field(default_factory=dict)
    """Cards opened under each version of `cardvault-cards`."""
    failures: list[Failure] = field(default_factory=list)


class VerifyCards:
    """The use case. Needs the `release` login; with `intake` it recomputes fingerprints as well."""

    def __init__(self, *, world: OperatorWorld, release: ReleaseKeys, intake: IntakeKeys | None) -> None:
        self._world = world
        self._release = release
        self._intake = intake

    def __call__(
        self,
        operator: Operator,
        selection: Selection,
        *,
        persist: Persist = at_once,
        progress: Progress = unwatched,
    ) -> VerifyReport:
        """Walk once over the selection. Raises `KeyRingUnavailable`, `StoreUnavailable` at last."""
        report = VerifyReport(persist(partial(self._count, selection)))
        after: CardKey | None = None
        walked = 0
        while page := persist(partial(self._page, selection, after)):
            persist(partial(self._one_page, page, report))
            after = page[-1].wrap.card
            walked += len(page)
            progress(walked, report.total)
        with self._world.store.writing() as tx:
            event = self._world.event(
                operator,
                "cards.verified",
                outcome=Outcome.ERROR if report.failures else Outcome.OK,
                opened=report.opened,
                failed=len(report.failures),
            )
            failed = [
                self._world.event(
                    operator, "card.open_failed", target=f.card.token, outcome=Outcome.ERROR, why=f.reason
                )
                for f in report.failures
            ]
            tx.append_events([event, *failed])
        return report

    def _count(self, selection: Selection) -> int:
        with self._world.store.reading() as tx:
            return tx.count_secrets(selection)

    def _page(self, selection: Selection, after: CardKey | None) -> Sequence[StoredSecret]:
        with self._world.store.reading() as tx:
            return tx.secrets(selection, after=after, limit=PAGE)

    def _one_page(self, page: Sequence[StoredSecret], report: VerifyReport) -> None:
        opened, failures = open_page(self._world, self._release, page)
        wrong = [
            Failure(secret.wrap.card, problem)
            for secret, card in opened
            if (problem := _display_problem(secret, card)) is not None
        ]
        checked = 0
        if self._intake is not None and opened:
            checked, mismatched = self._check_fingerprints(opened)
            wrong += mismatched
        bad = {failure.card for failure in (*failures, *wrong)}
        gone = self._gone_meanwhile(page, bad)
        for secret, _ in opened:
            if secret.wrap.card not in bad:
                version = secret.wrap.key.kek_version
                report.by_version[version] = report.by_version.get(version, 0) + 1
                report.opened += 1
        report.gone += len(gone)
        report.fingerprints_checked += checked
        report.failures += [failure for failure in (*failures, *wrong) if failure.card not in gone]

    def _check_fingerprints(self, opened: Sequence[tuple[StoredSecret, OpenedCard]]) -> tuple[int, list[Failure]]:
        assert self._intake is not None, "asked before"
        answers = self._intake.protect(
            cards=[],
            once=[],
            fingerprints=[
                fingerprint_message(
                    card.pan,
                    environment=self._world.environment,
                    tenant=secret.wrap.card.tenant,
                    customer=secret.wrap.customer,
                )
                for secret, card in opened
            ],
        ).fingerprints
        wrong = [
            Failure(secret.wrap.card, "fingerprint_differs")
            for (secret, _), computed in zip(opened, answers, strict=True)
            if secret.fingerprint not in computed
        ]
        return len(opened), wrong

    def _gone_meanwhile(self, page: Sequence[StoredSecret], bad: set[CardKey]) -> set[CardKey]:
        """Of the failed ones, those that are no longer what was read: no failure, but live traffic."""
        if not bad:
            return set()
        with self._world.store.reading() as tx:
            now = tx.secrets_of(list(bad))
        then = {secret.wrap.card: secret for secret in page}
        return {card for card in bad if now.get(card) != then[card]}


def open_page(
    world: OperatorWorld, release: ReleaseKeys, page: Sequence[StoredSecret]
) -> tuple[list[tuple[StoredSecret, OpenedCard]], list[Failure]]:
    """Open each card of a page. Raises `KeyRingUnavailable` if Vault is away."""
    bindings = [binding_of(secret.wrap, environment=world.environment) for secret in page]
    keys = release.unwrap(
        [
            KeyToUnwrap(KeyName.CARDS, secret.wrap.key, binding.wrap_context())
            for secret, binding in zip(page, bindings, strict=True)
        ]
    )
    opened: list[tuple[StoredSecret, OpenedCard]] = []
    failures: list[Failure] = []
    for secret, binding, key in zip(page, bindings, keys, strict=True):
        match key:
            case KeyRefused():
                failures.append(Failure(secret.wrap.card, "key_refused"))
            case KeyRingUnavailable() if key.reason == VERSION_RETIRED:
                failures.append(Failure(secret.wrap.card, key.reason))
            case KeyRingUnavailable():
                raise key
            case _:
                try:
                    opened.append((secret, open_sealed(secret.ciphertext, data_key=key, binding=binding)))
                except BrokenSeal:
                    failures.append(Failure(secret.wrap.card, "seal_broken"))
    return opened, failures


def _display_problem(secret: StoredSecret, card: OpenedCard) -> str | None:
    if card.pan.last4() != secret.last4:
        return "last4_differs"
    if card.pan.brand is not secret.brand:
        return "brand_differs"
    return None

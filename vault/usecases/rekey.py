"""The answer to an exposed data key or fingerprint key: fresh data keys and ciphertext, the same tokens.

Rewrapping keeps a card's data key, so it is no answer to that key's exposure (PCI DSS 3.7.5). A card is done when its
data key was made under the newest version of `cardvault-cards`; a rotation before makes every card due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from vault.cleanroom import DataKey, OpenedCard, fingerprint_message
from vault.domain.audit import Outcome
from vault.domain.binding import Binding
from vault.ports import IntakeKeys, KeyName, KeyToWrap, ReleaseKeys, SealedCard
from vault.ports_operator import CardKey, OperatorKeys, RekeyedCard, Selection, StoredSecret
from vault.usecases.operating import PAGE, Failure, Operator, OperatorWorld, Persist, Progress, at_once, unwatched
from vault.usecases.rewrap import binding_of
from vault.usecases.verify import open_page


@dataclass(slots=True)
class RekeyReport:
    """What a run did."""

    version: int
    total: int
    rekeyed: int = 0
    superseded: int = 0
    """Erased or sealed anew meanwhile."""
    failures: list[Failure] = field(default_factory=list)


class RekeyCards:
    """The use case. Needs the logins `operator`, `intake` and `release`, on a host that has all three."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys, intake: IntakeKeys, release: ReleaseKeys) -> None:
        self._world = world
        self._keys = keys
        self._intake = intake
        self._release = release

    def __call__(
        self,
        operator: Operator,
        selection: Selection,
        *,
        persist: Persist = at_once,
        progress: Progress = unwatched,
    ) -> RekeyReport:
        """Walk once over the cards that are due. Raises `KeyRingUnavailable`, `StoreUnavailable` at last."""
        version = persist(partial(self._keys.versions, KeyName.CARDS)).latest
        due = replace(selection, data_key_below=version)
        report = RekeyReport(version, persist(partial(self._count, due)))
        after: CardKey | None = None
        while page := persist(partial(self._page, due, after)):
            persist(partial(self._one_page, page, report, operator))
            after = page[-1].wrap.card
            progress(report.rekeyed + report.superseded + len(report.failures), report.total)
        return report

    def count(self, selection: Selection) -> int:
        """How many cards of a selection are due."""
        version = self._keys.versions(KeyName.CARDS).latest
        return self._count(replace(selection, data_key_below=version))

    def _count(self, selection: Selection) -> int:
        with self._world.store.reading() as tx:
            return tx.count_secrets(selection)

    def _page(self, selection: Selection, after: CardKey | None) -> Sequence[StoredSecret]:
        with self._world.store.reading() as tx:
            return tx.secrets(selection, after=after, limit=PAGE)

    def _one_page(self, page: Sequence[StoredSecret], report: RekeyReport, operator: Operator) -> None:
        """Safe to repeat as a whole: what was rekeyed already has another record version."""
        opened, failures = open_page(self._world, self._release, page)
        fresh = self._seal(opened)
        with self._world.store.writing() as tx:
            changed = tx.rekey_cards(fresh)
            events = [
                self._world.event(
                    operator, "card.open_failed", target=f.card.token, outcome=Outcome.ERROR, why=f.reason
                )
                for f in failures
            ]
            if changed:
                events.append(
                    self._world.event(
                        operator,
                        "cards.rekeyed",
                        target=KeyName.CARDS,
                        version=report.version,
                        cards=len(changed),
                    )
                )
            tx.append_events(events)
        report.rekeyed += len(changed)
        report.superseded += len(fresh) - len(changed)
        report.failures += failures

    def _seal(self, opened: Sequence[tuple[StoredSecret, OpenedCard]]) -> list[RekeyedCard]:
        """Fresh keys, fresh ciphertext, and fingerprints under the newest version."""
        if not opened:
            return []
        keys = [DataKey(self._world.entropy) for _ in opened]
        bindings = [_next_binding(secret, environment=self._world.environment) for secret, _ in opened]
        answers = self._intake.protect(
            cards=[KeyToWrap(k.for_wrapping(), b.wrap_context()) for k, b in zip(keys, bindings, strict=True)],
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
        )
        return [
            RekeyedCard(
                card=secret.wrap.card,
                from_record_version=secret.wrap.record_version,
                sealed=SealedCard(
                    key=wrapped,
                    ciphertext=key.seal_again(card, binding, self._world.entropy),
                    record_version=binding.record_version,
                ),
                fingerprint=fingerprints[0],
            )
            for (secret, card), key, binding, wrapped, fingerprints in zip(
                opened, keys, bindings, answers.cards, answers.fingerprints, strict=True
            )
        ]


def _next_binding(secret: StoredSecret, *, environment: str) -> Binding:
    """The binding of the next record version."""
    wrap = replace(secret.wrap, record_version=secret.wrap.record_version + 1)
    return binding_of(wrap, environment=environment)

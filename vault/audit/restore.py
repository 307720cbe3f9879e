"""After a database was restored from a backup: what the copy of the log knows and the database forgot.

The log goes on where it was: events after the backup are put back at their places, so that every checkpoint ever signed
still fits. In the same transaction cards that were erased since are erased again. Grants and one-time tokens of the
backup are closed: some of them were used since, and nobody must use them twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from vault.audit import leaf
from vault.audit.checkpoint import VerifierKey
from vault.audit.copy import Directory
from vault.audit.leaf import BadLeaf
from vault.audit.merkle import BadProof, Frontier, Tree, leaf_hash
from vault.audit.sequencer import Addition
from vault.audit.verify import Watch, unwatched, verify_directory
from vault.domain.audit import AuditEvent, Outcome
from vault.domain.errors import PreconditionFailed
from vault.domain.ids import CustomerId, NetworkTransactionId, TenantId, Token
from vault.ports import Approval, CardRef
from vault.ports_audit import LogStore, LogWriter
from vault.usecases.operating import Operator, OperatorWorld
from vault.usecases.outcomes import ACTIVATED, REPORTED

PAGE = 500

ERASED = frozenset({"card.erased", "customer.erased"})
STORED = "card.tokenized"
_BEGAN = "restore.began"
"""Setting with the size of the log when a restore was begun that is not finished; empty otherwise."""


@dataclass(slots=True)
class Reconciled:
    """What was put back."""

    events: int = 0
    unsigned: int = 0
    """Events of the copy that no checkpoint in it covers: whoever can write the copy could have written them."""
    cards_erased: int = 0
    grants_revoked: int = 0
    once_keys_destroyed: int = 0
    lost_cards: list[str] = field(default_factory=list)
    """Tokens of cards that were stored after the backup and are gone; the shops' customers must be asked again."""
    outdated_cards: list[str] = field(default_factory=list)
    """Tokens of cards that were stored again after the backup: they are back under the consent and expiry of before."""


class Reconcile:
    """The use case."""

    def __init__(self, *, world: OperatorWorld, store: LogStore, copy: Directory, keys: Sequence[VerifierKey]) -> None:
        self._world = world
        self._store = store
        self._copy = copy
        self._keys = keys
        self._stored: dict[tuple[str, str], str] = {}

    def missing(self) -> int:
        """How many events the database lacks. Raises `PreconditionFailed` if the copy is not fit to be used."""
        self._check_copy()
        self._check_beginning()
        with self._store.reading() as tx:
            return max(0, self._copy.size() - tx.log_head().size)

    def __call__(self, operator: Operator, *, watch: Watch = unwatched) -> Reconciled:
        """Put back what is missing; safe to run again, also after it was cut off.

        Raises `PreconditionFailed` if the copy is damaged or of another log, `StoreUnavailable`, `Busy`.
        """
        report = Reconciled(unsigned=self._check_copy())
        with self._store.exclusively("audit-sequencer"):
            self._check_beginning()
            self._close_grants(operator, report)
            self._go_on()
            total = self._copy.size()
            for page in self._missing_pages():
                self._put_back(page, report)
                watch(report.events, total)
            self._look_for_cards(report)
            with self._store.writing() as tx:
                tx.append_events(
                    [
                        self._world.event(
                            operator,
                            "restore.reconciled",
                            events=report.events,
                            unsigned=report.unsigned,
                            cards_erased=report.cards_erased,
                            grants_revoked=report.grants_revoked,
                            once_keys_destroyed=report.once_keys_destroyed,
                            lost_cards=len(report.lost_cards),
                            outdated_cards=len(report.outdated_cards),
                        )
                    ]
                )
                tx.put_setting(_BEGAN, "")
        return report

    def _check_copy(self) -> int:
        """Returns how many of its events no checkpoint covers."""
        result = verify_directory(self._copy, self._keys)
        if not result.is_good:
            raise PreconditionFailed("audit_copy_bad", message=f"the copy is not fit: {result.findings[0].text}")
        if result.size == 0:
            raise PreconditionFailed("audit_copy_empty", message=f"{self._copy.path}: holds no log")
        if result.checkpoints == 0:
            raise PreconditionFailed(
                "audit_copy_unsigned",
                message=f"{self._copy.path}: holds no signed checkpoint, so anybody may have written it",
            )
        return result.size - result.covered

    def _check_beginning(self) -> None:
        """The database's log must be the beginning of the copy, or the other way round."""
        with self._store.reading() as tx:
            size = min(tx.log_head().size, self._copy.size())
            try:
                # In the same transaction: of a longer log the beginning is what counts.
                mine = Tree(tx.log_nodes).frontier(size)
            except BadProof:
                mine = None
        theirs = Frontier()
        theirs.extend(leaf_hash(line) for line in islice(self._copy.leaves(), size))
        if theirs != mine:
            raise PreconditionFailed(
                "audit_log_foreign",
                message="the database's log and the copy part ways: another database, an edited one, or one that was "
                "gone on with after it was restored (restore it again)",
            )

    def _close_grants(self, operator: Operator, report: Reconciled) -> None:
        with self._store.writing() as tx:
            report.grants_revoked = tx.revoke_every_grant(now=self._world.clock.now())
            report.once_keys_destroyed = tx.destroy_every_once_key()
            if report.grants_revoked or report.once_keys_destroyed:
                tx.append_events(
                    [
                        self._world.event(
                            operator,
                            "restore.grants_closed",
                            grants=report.grants_revoked,
                            once_keys=report.once_keys_destroyed,
                        )
                    ]
                )
            if not tx.setting(_BEGAN):
                tx.put_setting(_BEGAN, str(tx.log_head().size))

    def _go_on(self) -> None:
        """Follow what an earlier run put back before it was cut off, so that no lost card goes unnamed."""
        with self._store.reading() as tx:
            began, size = int(tx.setting(_BEGAN) or 0), tx.log_head().size
        for line in islice(self._copy.leaves(began), max(0, size - began)):
            self._follow(_decoded(line))

    def _missing_pages(self) -> Iterator[Sequence[AuditEvent]]:
        with self._store.reading() as tx:
            start = tx.log_head().size
        lines = self._copy.leaves(start)
        while page := list(islice(lines, PAGE)):
            yield [_decoded(line) for line in page]

    def _put_back(self, page: Sequence[AuditEvent], report: Reconciled) -> None:
        with self._store.writing() as tx:
            Addition.after(tx.log_head(), page).put_back(tx, page)
            erased = 0
            for each in page:
                erased += self._erase_again(tx, each)
                self._activate_again(tx, each)
        report.events += len(page)
        report.cards_erased += erased
        for each in page:
            self._follow(each)

    def _follow(self, event: AuditEvent) -> None:
        """Which cards came and went after the backup."""
        if event.outcome is not Outcome.OK:
            return
        if event.event == STORED and event.target.startswith(Token.prefix):
            self._stored[event.tenant, event.target] = event.customer
        elif event.event in ERASED and event.target:
            self._stored.pop((event.tenant, event.target), None)
        elif event.event in ERASED:
            of_customer = [
                key for key, owner in self._stored.items() if key[0] == event.tenant and owner == event.customer
            ]
            for key in of_customer:
                del self._stored[key]

    def _erase_again(self, tx: LogWriter, event: AuditEvent) -> int:
        if event.event not in ERASED or event.outcome is not Outcome.OK or not event.customer:
            return 0
        erased = tx.erase_cards(
            TenantId(event.tenant),
            CustomerId(event.customer),
            Token(event.target) if event.target else None,
            event_id=event.event_id,
            now=event.occurred_at,
        )
        return erased.cards

    def _activate_again(self, tx: LogWriter, event: AuditEvent) -> None:
        """A card whose first payment was approved after the backup must not be erased for waiting too long."""
        if event.event != REPORTED or event.outcome is not Outcome.OK or event.details.get("card") != ACTIVATED:
            return
        card = CardRef(
            TenantId(event.tenant), CustomerId(event.customer), Token(str(event.details.get("token", event.target)))
        )
        known = event.details.get("network_transaction_id")
        tx.approve_cards([Approval(card, None if known is None else NetworkTransactionId(str(known)))])

    def _look_for_cards(self, report: Reconciled) -> None:
        """What became of cards that were stored after the backup and not erased since."""
        for (tenant, token), customer in self._stored.items():
            card = CardRef(TenantId(tenant), CustomerId(customer), Token(token))
            with self._store.reading() as tx:
                if tx.cards([card]):
                    report.outdated_cards.append(f"{tenant}/{token}")
                elif not tx.is_stored_or_erased(card.tenant, card.token):
                    report.lost_cards.append(f"{tenant}/{token}")


def _decoded(line: bytes) -> AuditEvent:
    try:
        return leaf.decode(line)
    except BadLeaf as e:
        text = str(e)
    raise PreconditionFailed("audit_copy_bad", message=f"the copy {text}")

"""Rotation on the real OpenBao and real databases: the straight path, the refusals, and odd answers of Vault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest

from tests.faults.bench import ENVIRONMENT, Tools, new_place
from tests.support.cards import fresh_card
from tests.support.raw import execute, rows, scalar
from vault.domain.errors import KeyRefused, KeyRingUnavailable, PreconditionFailed, StoreUnavailable
from vault.domain.grant import SealedKey
from vault.embedded.openbao import OpenBao
from vault.keyring.transit import IntakeTransit
from vault.ports import KeyName, KeyToUnwrap
from vault.ports_operator import Busy, KeyVersions, OperatorKeys, Selection
from vault.readiness import Readiness
from vault.system import SystemClock, SystemEntropy
from vault.usecases.batch import World
from vault.usecases.key_status import KeyStatus, Level
from vault.usecases.rekey import RekeyCards
from vault.usecases.rewrap import Proof, Rewrap, RewrapReport
from vault.usecases.rotate import RecoverWraps, RetireKey, RotateKey, TrimKey, UnretireKey
from vault.usecases.verify import VerifyCards

CARDS = KeyName.CARDS


@pytest.fixture
def tools(openbao: OpenBao, database_url: str) -> Iterator[Tools]:
    with new_place(openbao, database_url).open() as opened:
        yield opened


class OddVault:
    """The operator's keys of a real Vault that sometimes answers oddly; what it does it really does."""

    def __init__(self, inner: OperatorKeys) -> None:
        self.inner = inner
        self.rotate_answers_500_after_doing_it = False
        self.rotate_answers_500_instead = False
        self.refused: set[str] = set()
        self.sealed_for = 0

    def versions(self, name: KeyName) -> KeyVersions:
        return self.inner.versions(name)

    def rotate(self, name: KeyName) -> None:
        if self.rotate_answers_500_instead:
            raise KeyRingUnavailable("vault_error")
        self.inner.rotate(name)
        if self.rotate_answers_500_after_doing_it:
            raise KeyRingUnavailable("vault_error")

    def rewrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[SealedKey | KeyRefused]:
        if self.sealed_for:
            self.sealed_for -= 1
            raise KeyRingUnavailable("vault_sealed")
        answers = self.inner.rewrap(items)
        return [
            KeyRefused() if item.key.wrapped in self.refused else answer
            for item, answer in zip(items, answers, strict=True)
        ]

    def set_minimums(self, name: KeyName, *, decryption: int, encryption: int) -> None:
        self.inner.set_minimums(name, decryption=decryption, encryption=encryption)

    def trim(self, name: KeyName, *, below: int) -> None:
        self.inner.trim(name, below=below)


def rotate(tools: Tools, keys: OperatorKeys | None = None, *, again: bool = True) -> int:
    use_case = RotateKey(world=tools.world, keys=keys or tools.operator)
    return use_case(CARDS, tools.operator_now("planned"), again=again).after


def rewrap(tools: Tools, keys: OperatorKeys | None = None, *, proof: Proof = Proof.SAMPLE) -> RewrapReport:
    use_case = Rewrap(world=tools.world, keys=keys or tools.operator, release=tools.release)
    return use_case(tools.operator_now("planned"), proof=proof)


def wraps(tools: Tools) -> dict[int, int]:
    with tools.store.reading() as tx:
        return dict(tx.count_wraps())


def former(tools: Tools) -> dict[int, int]:
    with tools.store.reading() as tx:
        return dict(tx.count_previous_wraps())


def test_a_planned_rotation_from_status_to_trim_keeps_every_card(tools: Tools, database_url: str) -> None:
    numbers = tools.store_cards(430)

    assert rotate(tools) == 2
    report = rewrap(tools, proof=Proof.ALL)
    kept = former(tools)
    RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now())
    trimmed = TrimKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now(), snapshot_confirmed=True)

    assert (report.rewrapped, report.proven, report.superseded, report.failures) == (430, 430, 0, [])
    assert wraps(tools) == {2: 430}
    assert (kept, former(tools)) == ({1: 430}, {})
    assert trimmed.trimmed
    assert tools.opened() == numbers
    events = [name for (name,) in rows(database_url, "SELECT event FROM audit_events WHERE actor = 'operator:test'")]
    assert {name: events.count(name) for name in sorted(set(events))} == {
        "cards.rewrapped": 1,
        "key.former_wraps_forgotten": 1,
        "key.retired": 1,
        "key.retiring": 1,
        "key.rotated": 1,
        "key.rotation_begun": 1,
        "key.trimmed": 1,
        "key.trimming": 1,
    }
    assert scalar(database_url, "SELECT count(*) FROM audit_events WHERE reason = 'planned'") == 3


def test_a_rotation_that_answered_500_although_it_happened_is_one_rotation(tools: Tools) -> None:
    vault = OddVault(tools.operator)
    vault.rotate_answers_500_after_doing_it = True

    done = RotateKey(world=tools.world, keys=vault)(CARDS, tools.operator_now(), again=True)

    assert (done.before, done.after, done.answer) == (1, 2, "vault_error")
    assert tools.operator.versions(CARDS).latest == 2


def test_a_rotation_that_did_not_happen_is_said_and_the_next_run_makes_one(tools: Tools) -> None:
    vault = OddVault(tools.operator)
    vault.rotate_answers_500_instead = True

    with pytest.raises(KeyRingUnavailable):
        rotate(tools, vault)
    unfinished = KeyStatus(world=tools.world, keys=tools.operator, intake=None, release=None)()
    after = rotate(tools, again=False)

    assert any("cut off" in note for key in unfinished.keys for note in key.notes if key.name is CARDS)
    assert after == 2


def test_a_second_rotate_within_the_hour_does_nothing_unless_told(tools: Tools) -> None:
    rotate(tools)

    assert rotate(tools, again=False) == 2
    assert rotate(tools, again=True) == 3


def test_two_operators_cannot_rotate_at_once(tools: Tools) -> None:
    with tools.store.exclusively(f"rotate-{CARDS}"), pytest.raises(Busy):
        rotate(tools)

    assert tools.operator.versions(CARDS).latest == 1


def test_an_item_that_vault_refuses_is_reported_and_left_as_it_was(tools: Tools, database_url: str) -> None:
    numbers = tools.store_cards(20)
    rotate(tools)
    vault = OddVault(tools.operator)
    found = rows(database_url, "SELECT wrapped_key FROM card_secrets ORDER BY tenant_id, token LIMIT 3")
    vault.refused = {wrapped for (wrapped,) in found}

    report = rewrap(tools, vault)
    again = rewrap(tools)

    assert (report.rewrapped, len(report.failures)) == (17, 3)
    assert {failure.reason for failure in report.failures} == {"vault_refused"}
    assert (again.rewrapped, again.failures) == (3, [])
    assert tools.opened() == numbers


@pytest.mark.parametrize("proof", [Proof.SAMPLE, Proof.ALL])
def test_a_wrap_that_does_not_open_its_card_never_replaces_one_that_does(tools: Tools, proof: Proof) -> None:
    numbers = tools.store_cards(4)
    rotate(tools)
    swapped = _Swapping(tools.operator)

    report = Rewrap(world=tools.world, keys=swapped, release=tools.release)(tools.operator_now(), proof=proof)

    assert report.failures
    assert report.failures[0].reason == "new_wrap_does_not_open"
    bad = {failure.card for failure in report.failures}
    assert {card: number for card, number in tools.opened().items() if card in bad} == {
        card: number for card, number in numbers.items() if card in bad
    }


class _Swapping(OddVault):
    """A Vault that answers with its items in the wrong order."""

    def rewrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[SealedKey | KeyRefused]:
        return list(reversed(self.inner.rewrap(items)))


def test_a_sealed_vault_pauses_the_work_and_it_goes_on(tools: Tools) -> None:
    numbers = tools.store_cards(10)
    rotate(tools)
    vault = OddVault(tools.operator)
    vault.sealed_for = 2
    pauses: list[str] = []

    def patient(work):  # type: ignore[no-untyped-def]
        while True:
            try:
                return work()
            except KeyRingUnavailable as e:
                pauses.append(e.reason)

    report = Rewrap(world=tools.world, keys=vault, release=tools.release)(
        tools.operator_now(), proof=Proof.SAMPLE, persist=patient
    )

    assert pauses == ["vault_sealed", "vault_sealed"]
    assert report.rewrapped == 10
    assert tools.opened() == numbers


def test_retire_refuses_while_a_row_needs_an_older_version(tools: Tools) -> None:
    tools.store_cards(3)
    rotate(tools)

    with pytest.raises(PreconditionFailed):
        RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now())

    assert tools.operator.versions(CARDS).min_decryption == 1


def test_retire_takes_itself_back_when_a_card_under_an_older_version_turns_up_late(tools: Tools) -> None:
    numbers = tools.store_cards(3)
    rotate(tools)
    rewrap(tools)

    def a_call_under_way_commits() -> None:
        # What it wrapped, it wrapped before the rotation.
        execute_late(tools)

    with pytest.raises(PreconditionFailed):
        RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now(), settle=a_call_under_way_commits)

    assert tools.operator.versions(CARDS).min_decryption == 1
    assert tools.opened() == numbers


def execute_late(tools: Tools) -> None:
    """Put one card's former wrap back, as a late commit would have left it."""
    with tools.store.writing() as tx:
        tx.restore_previous_wraps(above=1, limit=1)
        tx.append_events([tools.world.event(tools.operator_now(), "test.late")])


def test_trim_refuses_without_a_confirmed_snapshot(tools: Tools) -> None:
    tools.store_cards(2)
    rotate(tools)
    rewrap(tools)
    RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now())

    with pytest.raises(PreconditionFailed) as refused:
        TrimKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now(), snapshot_confirmed=False)

    assert "snapshot" in refused.value.message
    assert former(tools) == {1: 2}
    assert tools.operator.versions(CARDS).min_available == 0


def test_trim_refuses_while_a_row_needs_what_would_be_destroyed(tools: Tools) -> None:
    tools.store_cards(2)
    rotate(tools)
    tools.operator.set_minimums(CARDS, decryption=2, encryption=2)

    with pytest.raises(PreconditionFailed):
        TrimKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now(), snapshot_confirmed=True)

    assert tools.operator.versions(CARDS).min_available == 0


def test_rekeying_changes_every_data_key_and_ciphertext_and_no_token(tools: Tools, database_url: str) -> None:
    numbers = tools.store_cards(30)
    columns = "SELECT token, ciphertext, wrapped_key, fingerprint FROM card_secrets"
    before = {row[0]: row[1:] for row in rows(database_url, columns)}
    rotate(tools)
    tools.operator.rotate(KeyName.FINGERPRINT)
    use_case = RekeyCards(world=tools.world, keys=tools.operator, intake=tools.intake, release=tools.release)

    report = use_case(tools.operator_now(), Selection())
    again = use_case(tools.operator_now(), Selection())

    after = {row[0]: row[1:] for row in rows(database_url, columns)}
    assert (report.rekeyed, report.failures, again.total) == (30, [], 0)
    assert after.keys() == before.keys()
    assert all(a != b for token in before for a, b in zip(after[token], before[token], strict=True))
    assert tools.opened() == numbers
    with tools.store.reading() as tx:
        assert dict(tx.count_fingerprints()) == {2: 30}


def test_rewrapping_after_a_rotation_does_not_hide_old_data_keys_from_rekeying(tools: Tools) -> None:
    tools.store_cards(5)
    rotate(tools)
    rewrap(tools)

    report = RekeyCards(world=tools.world, keys=tools.operator, intake=tools.intake, release=tools.release)(
        tools.operator_now(), Selection()
    )

    assert report.rekeyed == 5


def test_a_card_is_recognised_across_a_rotation_of_the_fingerprint_key(tools: Tools) -> None:
    numbers = tools.store_cards(1)
    tools.operator.rotate(KeyName.FINGERPRINT)
    report = VerifyCards(world=tools.world, release=tools.release, intake=tools.intake)(
        tools.operator_now(), Selection()
    )

    assert (report.opened, report.fingerprints_checked, report.failures) == (len(numbers), 1, [])


def test_the_same_card_keeps_its_token_across_a_rotation_of_the_fingerprint_key(tools: Tools) -> None:
    card = fresh_card()
    (before,) = tools.store_again([card])
    tools.operator.rotate(KeyName.FINGERPRINT)

    (after,) = tools.store_again([card])

    assert after == before
    with tools.store.reading() as tx:
        assert tx.count_secrets(Selection()) == 1


def test_verify_finds_each_kind_of_damage_and_names_the_card(tools: Tools, database_url: str) -> None:
    tools.store_cards(7)
    tokens = [token for (token,) in rows(database_url, "SELECT token FROM cards ORDER BY tenant_id, token")]
    execute(
        database_url,
        f"UPDATE cards SET last4 = '0000' WHERE token = '{tokens[0]}'",
        f"UPDATE cards SET customer_id = 'mallory' WHERE token = '{tokens[1]}'",
        f"UPDATE card_secrets SET record_version = 7 WHERE token = '{tokens[2]}'",
        f"UPDATE card_secrets SET ciphertext = (SELECT ciphertext FROM card_secrets WHERE token = '{tokens[4]}') "
        f"WHERE token = '{tokens[3]}'",
        f"UPDATE cards SET brand = CASE brand WHEN 1 THEN 2 ELSE 1 END WHERE token = '{tokens[5]}'",
        f"UPDATE cards SET brand = 99 WHERE token = '{tokens[6]}'",
    )

    report = VerifyCards(world=tools.world, release=tools.release, intake=tools.intake)(
        tools.operator_now(), Selection()
    )

    assert {str(f.card.token): f.reason for f in report.failures} == {
        tokens[0]: "last4_differs",
        tokens[1]: "key_refused",
        tokens[2]: "seal_broken",
        tokens[3]: "seal_broken",
        tokens[5]: "brand_differs",
        tokens[6]: "brand_differs",
    }
    assert report.opened == 1


def test_a_restored_older_vault_is_noticed_and_former_wraps_put_back(tools: Tools) -> None:
    numbers = tools.store_cards(4)
    rotate(tools)
    rewrap(tools)

    with _vault_that_forgot(tools) as forgetful:
        status = KeyStatus(world=tools.world, keys=forgetful, intake=None, release=None)()
    with tools.store.writing() as tx:
        restored = tx.restore_previous_wraps(above=1, limit=100)
        tx.append_events([tools.world.event(tools.operator_now(), "key.former_wraps_restored")])

    assert status.level is Level.FAILED
    assert restored == 4
    assert wraps(tools) == {1: 4}
    assert tools.opened() == numbers


@contextmanager
def _vault_that_forgot(tools: Tools) -> Iterator[OperatorKeys]:
    """A Vault restored from a snapshot before the rotation knows one version less."""

    class Forgetful(OddVault):
        def versions(self, name: KeyName) -> KeyVersions:
            known = self.inner.versions(name)
            created = {version: moment for version, moment in known.created.items() if version == 1}
            return KeyVersions(1, 1, 0, 0, created)

    yield Forgetful(tools.operator)


def refusals(tools: Tools, keys: OperatorKeys) -> set[str]:
    """Why each command that could make a loss permanent does not run; `done` if it does."""

    def retire() -> object:
        return RetireKey(world=tools.world, keys=keys)(CARDS, tools.operator_now())

    def trim() -> object:
        return TrimKey(world=tools.world, keys=keys)(CARDS, tools.operator_now(), snapshot_confirmed=True)

    reasons = set()
    for command in (lambda: rotate(tools, keys), lambda: rewrap(tools, keys), retire, trim):
        try:
            command()
        except PreconditionFailed as e:
            reasons.add(e.reason if "cardvault keys recover" in e.message else e.message)
        else:
            reasons.add("done")
    return reasons


def test_a_restored_older_vault_is_neither_rotated_nor_rewrapped_nor_retired_nor_trimmed(tools: Tools) -> None:
    tools.store_cards(4)
    rotate(tools)
    rewrap(tools)

    with _vault_that_forgot(tools) as forgetful:
        assert refusals(tools, forgetful) == {"version_unknown"}

    assert tools.operator.versions(CARDS).latest == 2
    assert (wraps(tools), former(tools)) == ({2: 4}, {1: 4})


class Reborn(OddVault):
    """A Vault that was restored and rotated: its newest version is another one of the same number."""

    def versions(self, name: KeyName) -> KeyVersions:
        known = self.inner.versions(name)
        created = dict(known.created)
        if known.latest in created:
            created[known.latest] += timedelta(hours=1)
        return replace(known, created=created)


def test_another_version_of_the_same_number_is_recognised_and_former_wraps_are_kept(tools: Tools) -> None:
    tools.store_cards(4)
    rotate(tools)
    rewrap(tools)
    vault = Reborn(tools.operator)

    assert refusals(tools, vault) == {"version_reborn"}
    status = KeyStatus(world=tools.world, keys=vault, intake=None, release=None)()
    recovered = RecoverWraps(world=tools.world, keys=vault)(tools.operator_now())

    assert status.level is Level.FAILED
    assert (recovered.restored, recovered.without_former_wrap) == (4, 0)
    assert (wraps(tools), former(tools)) == ({1: 4}, {2: 4})
    assert rotate(tools, vault) == 3


def test_after_recovery_the_older_vault_works_on_and_the_newer_one_can_come_back(tools: Tools) -> None:
    numbers = tools.store_cards(4)
    rotate(tools)
    rewrap(tools)
    RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now())

    with _vault_that_forgot(tools) as forgetful:
        back = RecoverWraps(world=tools.world, keys=forgetful)(tools.operator_now())
        assert wraps(tools) == {1: 4}
        with tools.store.reading() as tx:
            assert tx.setting(f"oldest.{CARDS}") is None
    retired = KeyStatus(world=tools.world, keys=tools.operator, intake=None, release=None)()
    forward = RecoverWraps(world=tools.world, keys=tools.operator)(tools.operator_now())

    assert (back.restored, forward.restored) == (4, 4)
    assert any("4 rows need a version that is retired" in n for key in retired.keys for n in key.notes)
    assert retired.level is Level.FAILED
    assert wraps(tools) == {2: 4}
    assert tools.opened() == numbers


def test_a_retired_version_is_usable_again_after_unretire(tools: Tools) -> None:
    tools.store_cards(2)
    rotate(tools)
    rewrap(tools)
    RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now())

    done = UnretireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now())

    versions = tools.operator.versions(CARDS)
    assert (done.version, versions.min_decryption) == (1, 1)
    with tools.store.reading() as tx:
        assert tx.setting(f"oldest.{CARDS}") is None


class _Sleeping:
    """A server's keys: between what Vault answers and what the database takes, a whole rotation goes by."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def protect(self, **items: Any) -> Any:
        answers = self._tools.intake.protect(**items)
        rotate(self._tools)
        rewrap(self._tools)
        RetireKey(world=self._tools.world, keys=self._tools.operator)(CARDS, self._tools.operator_now())
        trim = TrimKey(world=self._tools.world, keys=self._tools.operator, release=self._tools.release)
        trim(CARDS, self._tools.operator_now(), snapshot_confirmed=True)
        return answers

    def check(self) -> None: ...


def test_a_wrap_that_slept_through_rotation_and_trim_never_replaces_one_that_opens(tools: Tools) -> None:
    card = fresh_card()
    (name,) = tools.store_again([card])
    sleeper = replace(tools, intake=cast("IntakeTransit", _Sleeping(tools)))

    with pytest.raises(StoreUnavailable) as refused:
        sleeper.store_again([card])

    assert refused.value.reason == "key_version_retired"
    assert wraps(tools) == {2: 1}
    assert tools.opened() == {name: card.pan}
    assert tools.store_again([card]) == [name]


def test_trim_destroys_nothing_while_a_card_does_not_open(tools: Tools, database_url: str) -> None:
    tools.store_cards(3)
    rotate(tools)
    rewrap(tools)
    RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now())
    execute(database_url, "UPDATE card_secrets SET record_version = 7")

    with pytest.raises(PreconditionFailed) as refused:
        TrimKey(world=tools.world, keys=tools.operator, release=tools.release)(
            CARDS, tools.operator_now(), snapshot_confirmed=True
        )

    assert refused.value.reason == "card_does_not_open"
    assert former(tools) == {1: 3}
    assert tools.operator.versions(CARDS).min_available == 0


def test_the_status_of_a_fresh_installation_is_well_and_its_canary_sings(tools: Tools) -> None:
    tools.store_cards(2)

    report = KeyStatus(world=tools.world, keys=tools.operator, intake=tools.intake, release=tools.release)()

    assert report.canary == "ok"
    assert report.level is Level.OK
    assert {key.name: dict(key.rows) for key in report.keys}[CARDS] == {1: 2}


def test_a_server_is_ready_at_every_step_of_a_rotation_and_after_it(tools: Tools) -> None:
    tools.store_cards(3)
    world = World(environment=ENVIRONMENT, store=tools.store, clock=SystemClock(), entropy=SystemEntropy())
    readiness = Readiness(world=world)
    readiness.intake(tools.intake)
    status = KeyStatus(world=tools.world, keys=tools.operator, intake=tools.intake, release=tools.release)

    steps: list[Callable[[], object]] = [
        lambda: rotate(tools),
        lambda: rewrap(tools),
        lambda: RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now()),
        lambda: TrimKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now(), snapshot_confirmed=True),
    ]
    for step in steps:
        step()
        readiness.release(tools.release)
        readiness.intake(tools.intake)

    assert status().canary == "ok"


def test_the_canary_is_taken_along_and_never_made_anew_for_another_vault(tools: Tools, database_url: str) -> None:
    world = World(environment=ENVIRONMENT, store=tools.store, clock=SystemClock(), entropy=SystemEntropy())
    Readiness(world=world).intake(tools.intake)
    execute(
        database_url,
        "UPDATE settings SET value = replace(value, substr(value, 12, 8), 'AAAAAAAA') "
        "WHERE name = 'canary.cardvault-cards'",
    )
    rotate(tools)

    with pytest.raises(PreconditionFailed):
        RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now())

    assert tools.operator.versions(CARDS).min_decryption == 1

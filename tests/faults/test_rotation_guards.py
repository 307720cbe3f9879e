"""What keeps a rotation from losing cards when unlikely things come together, on the real OpenBao and databases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.faults.bench import SHOPS, Tools, new_place
from tests.support.raw import execute, rows
from vault.domain.errors import KeyRefused, KeyRingUnavailable, PreconditionFailed
from vault.domain.grant import SealedKey
from vault.domain.ids import TenantId
from vault.embedded.openbao import OpenBao
from vault.ports import KeyName, KeyToUnwrap
from vault.ports_operator import CardKey, KeyVersions, OperatorKeys
from vault.usecases.key_status import KeyStatus, Level
from vault.usecases.rewrap import Proof, Rewrap, RewrapReport
from vault.usecases.rotate import RecoverWraps, RetireKey, RotateKey, TrimKey
from vault.usecases.sample import CARDS_EACH, MOST_PLACES, PLACES

CARDS = KeyName.CARDS
LAST_LETTER = "v"
"""Of those that tokens are made of."""


@pytest.fixture
def tools(openbao: OpenBao, database_url: str) -> Iterator[Tools]:
    with new_place(openbao, database_url).open() as opened:
        yield opened


def rotate(tools: Tools) -> int:
    return RotateKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now(), again=True).after


def rewrap(tools: Tools, keys: OperatorKeys | None = None, *, proof: Proof = Proof.NONE) -> RewrapReport:
    use_case = Rewrap(world=tools.world, keys=keys or tools.operator, release=tools.release)
    return use_case(tools.operator_now(), proof=proof)


def retire(tools: Tools, settle: Callable[[], None] = lambda: None) -> None:
    RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now(), settle=settle)


def wraps(tools: Tools) -> dict[int, int]:
    with tools.store.reading() as tx:
        return dict(tx.count_wraps())


# --- rotate ---------------------------------------------------------------------------------------------------------


def test_a_rotation_begun_at_a_version_that_vault_forgot_is_not_taken_up_until_recovery(tools: Tools) -> None:
    # No card tells of version 5: only what was written down before the rotation was cut off.
    tools.store_cards(2)
    with tools.store.writing() as tx:
        tx.put_setting(f"rotation.{CARDS}", json.dumps({"from": 5}))
        tx.append_events([tools.world.event(tools.operator_now(), "test.cut_off")])
    use_case = RotateKey(world=tools.world, keys=tools.operator)

    commands: list[Callable[[], object]] = [lambda: rotate(tools), lambda: use_case.plan(CARDS)]
    for command in commands:
        with pytest.raises(PreconditionFailed) as refused:
            command()
        assert refused.value.reason == "version_unknown"
        assert "begun at version 5" in refused.value.message
        assert "cardvault keys recover" in refused.value.message
    untouched = tools.operator.versions(CARDS).latest
    RecoverWraps(world=tools.world, keys=tools.operator)(tools.operator_now())

    assert untouched == 1
    assert rotate(tools) == 2


def test_a_plan_tells_a_rotation_that_was_cut_off_before_and_after_vault_made_the_version(tools: Tools) -> None:
    use_case = RotateKey(world=tools.world, keys=tools.operator)
    with tools.store.writing() as tx:
        tx.put_setting(f"rotation.{CARDS}", json.dumps({"from": 1}))
        tx.append_events([tools.world.event(tools.operator_now(), "test.cut_off")])

    before = use_case.plan(CARDS)
    tools.operator.rotate(CARDS)
    after = use_case.plan(CARDS)
    done = use_case(CARDS, tools.operator_now())

    assert [(plan.answer, plan.after) for plan in (before, after)] == [("resumed", 2)] * 2
    assert (done.answer, done.after) == ("resumed", 2)


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_fails_for_cards_whose_version_is_destroyed(tools: Tools) -> None:
    tools.store_cards(3)
    rotate(tools)
    # As somebody with an administrator's token would do it: no command of ours destroys what a card needs.
    tools.operator.set_minimums(CARDS, decryption=2, encryption=2)
    tools.operator.trim(CARDS, below=2)

    report = KeyStatus(world=tools.world, keys=tools.operator, intake=None, release=None)()

    (cards,) = (key for key in report.keys if key.name is CARDS)
    assert "3 rows need a version that is destroyed" in cards.notes
    assert not any("retired: `keys recover`" in note for note in cards.notes)
    assert (cards.level, report.level) == (Level.FAILED, Level.FAILED)


# --- rewrap ---------------------------------------------------------------------------------------------------------


class Interrupting:
    """A real Vault; after its first rewrap something else happens before the answer arrives."""

    def __init__(self, inner: OperatorKeys, meanwhile: Callable[[], None]) -> None:
        self._inner = inner
        self._meanwhile: Callable[[], None] | None = meanwhile

    def rewrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[SealedKey | KeyRefused]:
        answers = self._inner.rewrap(items)
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return answers

    def versions(self, name: KeyName) -> KeyVersions:
        return self._inner.versions(name)

    def rotate(self, name: KeyName) -> None:
        self._inner.rotate(name)

    def set_minimums(self, name: KeyName, *, decryption: int, encryption: int) -> None:
        self._inner.set_minimums(name, decryption=decryption, encryption=encryption)

    def trim(self, name: KeyName, *, below: int) -> None:
        self._inner.trim(name, below=below)


def test_a_rewrap_whose_version_is_retired_while_it_sleeps_ends_and_says_why(tools: Tools) -> None:
    numbers = tools.store_cards(6)
    rotate(tools)

    def another_operator_rotates_on() -> None:
        rotate(tools)
        assert rewrap(tools).version == 3
        retire(tools)

    with pytest.raises(PreconditionFailed) as stopped:
        rewrap(tools, Interrupting(tools.operator, another_operator_rotates_on))

    assert stopped.value.reason == "version_retired"
    assert "run it again" in stopped.value.message
    assert wraps(tools) == {3: 6}
    assert rewrap(tools).total == 0
    assert tools.opened() == numbers


# --- retire ---------------------------------------------------------------------------------------------------------


class Cut(Exception):
    """The command is killed here."""


def test_a_retirement_that_was_cut_off_waits_again_and_a_finished_one_does_not(tools: Tools) -> None:
    tools.store_cards(2)
    rotate(tools)
    rewrap(tools)
    waits: list[str] = []

    def cut() -> None:
        waits.append("cut")
        raise Cut

    with pytest.raises(Cut):
        retire(tools, cut)
    retire(tools, lambda: waits.append("whole"))
    retire(tools, lambda: waits.append("again"))
    assert waits == ["cut", "whole"]

    # What was taken back, in Vault or in the database, is done again.
    tools.operator.set_minimums(CARDS, decryption=1, encryption=1)
    with pytest.raises(Cut):
        retire(tools, cut)
    retire(tools, lambda: waits.append("after unretire"))
    with tools.store.writing() as tx:
        tx.delete_setting(f"oldest.{CARDS}")
        tx.append_events([tools.world.event(tools.operator_now(), "test.lowered")])
    retire(tools, lambda: waits.append("after the fence fell"))
    assert waits[2:] == ["cut", "after unretire", "after the fence fell"]
    assert tools.operator.versions(CARDS).min_decryption == 2


# --- trim -----------------------------------------------------------------------------------------------------------


class Counting:
    """A real release login that writes down which cards it was asked for."""

    def __init__(self, tools: Tools) -> None:
        self._inner = tools.release
        self._names = {secret.wrapped: secret.card for secret in _stored(tools)}
        self.asked: list[CardKey] = []

    def unwrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[bytes | KeyRefused | KeyRingUnavailable]:
        self.asked += [self._names[item.key.wrapped] for item in items]
        return self._inner.unwrap(items)

    def check(self, canary: KeyToUnwrap | None) -> None:
        self._inner.check(canary)


class _Stored:
    def __init__(self, card: CardKey, wrapped: str) -> None:
        self.card, self.wrapped = card, wrapped


def _stored(tools: Tools) -> list[_Stored]:
    """All in the order of the walk."""
    with tools.store.reading() as tx:
        return [_Stored(wrap.card, wrap.key.wrapped) for wrap in tx.wraps_below(100, after=None, limit=1000)]


def _ready_to_trim(tools: Tools, cards: int, *, shops: Sequence[TenantId] = SHOPS) -> list[CardKey]:
    tools.store_cards(cards, shops=shops)
    rotate(tools)
    rewrap(tools)
    retire(tools)
    return [each.card for each in _stored(tools)]


def _trim(tools: Tools, release: Counting | None = None) -> None:
    use_case = TrimKey(world=tools.world, keys=tools.operator, release=release or tools.release)
    use_case(CARDS, tools.operator_now(), snapshot_confirmed=True)


@pytest.mark.parametrize("begins", [0.0, 0.3, 0.75], ids=["first", "middle", "last"])
def test_trim_destroys_nothing_while_a_quarter_of_a_shop_anywhere_in_the_walk_does_not_open(
    tools: Tools, database_url: str, begins: float
) -> None:
    walk = [card for card in _ready_to_trim(tools, 240) if card.tenant == SHOPS[1]]
    first, behind = int(len(walk) * begins), int(len(walk) * (begins + 0.25))
    until = walk[behind].token if behind < len(walk) else LAST_LETTER * 40
    execute(
        database_url,
        "UPDATE card_secrets SET record_version = 7 "
        f"WHERE tenant_id = '{SHOPS[1]}' AND token >= '{walk[first].token}' AND token < '{until}'",
    )

    with pytest.raises(PreconditionFailed) as refused:
        _trim(tools)

    assert refused.value.reason == "card_does_not_open"
    assert tools.operator.versions(CARDS).min_available == 0
    assert rows(database_url, "SELECT count(*) FROM card_secrets WHERE previous_wrapped_key IS NULL") == [(0,)]


def test_the_cards_opened_before_a_trim_are_few_and_from_everywhere(tools: Tools) -> None:
    walk = _ready_to_trim(tools, 400)
    release = Counting(tools)

    _trim(tools, release)

    assert len(release.asked) == len(set(release.asked)) <= PLACES * CARDS_EACH
    places = {walk.index(card) * 8 // len(walk) for card in release.asked}
    assert places == set(range(8))
    assert tools.operator.versions(CARDS).min_available == 2


def test_fingerprints_that_somebody_wrote_hide_no_cards_from_the_look_before_a_trim(
    tools: Tools, database_url: str
) -> None:
    walk = _ready_to_trim(tools, 120, shops=SHOPS[:1])
    low = (
        "zeroblob(28) || substr(fingerprint, 1, 4)"
        if database_url.startswith("sqlite")
        else ("decode(repeat('00', 28), 'hex') || substr(fingerprint, 1, 4)")
    )
    hidden = ", ".join(f"'{card.token}'" for card in walk[::2])
    execute(
        database_url,
        f"UPDATE card_secrets SET record_version = 7, fingerprint = CAST({low} AS "
        f"{'BLOB' if database_url.startswith('sqlite') else 'bytea'}) WHERE token IN ({hidden})",
    )

    with pytest.raises(PreconditionFailed) as refused:
        _trim(tools)

    assert refused.value.reason == "card_does_not_open"


def test_of_many_shops_with_a_card_each_as_many_are_looked_at_as_there_are_places(tools: Tools) -> None:
    shops = [TenantId(f"shop-{number}") for number in range(MOST_PLACES + 30)]
    _ready_to_trim(tools, len(shops), shops=shops)
    release = Counting(tools)

    _trim(tools, release)

    assert len({card.tenant for card in release.asked}) == len(release.asked) == MOST_PLACES


def test_trim_of_a_vault_without_cards_has_nothing_to_open(tools: Tools) -> None:
    rotate(tools)
    retire(tools)
    release = Counting(tools)

    _trim(tools, release)

    assert release.asked == []
    assert tools.operator.versions(CARDS).min_available == 2

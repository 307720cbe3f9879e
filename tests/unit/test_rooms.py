"""Places for calls: nobody can take them all, and strangers only a few."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.support.world import caller, checkout_identity, processor_identity
from vault.domain.errors import Exhausted
from vault.rpc.rooms import RoomLimits, Rooms

LIMITS = RoomLimits(calls=6, calls_of_one_client=3, calls_of_strangers=2, watchers_of_one_client=2, watchers=3)


def test_one_client_cannot_take_the_places_of_the_others() -> None:
    rooms = Rooms(LIMITS)
    shop, processor = caller(checkout_identity()), caller(processor_identity())

    with ExitStack() as taken:
        for _ in range(3):
            taken.enter_context(rooms.call(shop))
        with pytest.raises(Exhausted), rooms.call(shop):
            pass
        with rooms.call(processor):
            pass


def test_all_strangers_together_have_a_few_places_whatever_they_call_themselves() -> None:
    rooms = Rooms(LIMITS)

    with ExitStack() as taken:
        for number in range(2):
            stranger = replace(caller(None), presented_uri=f"spiffe://example.test/stranger-{number}")
            taken.enter_context(rooms.call(stranger))
        with pytest.raises(Exhausted), rooms.call(replace(caller(None), presented_uri="spiffe://example.test/third")):
            pass
        with rooms.call(caller(checkout_identity())):
            pass


def test_there_is_a_bound_for_all_and_places_are_given_back() -> None:
    rooms = Rooms(LIMITS)
    callers = [caller(checkout_identity()), caller(processor_identity())]

    with ExitStack() as taken:
        for each in callers:
            for _ in range(3):
                taken.enter_context(rooms.call(each))
        with pytest.raises(Exhausted), rooms.call(caller(None)):
            pass
    with rooms.call(callers[0]):
        pass


def test_watchers_take_no_place_from_calls_and_none_from_each_other() -> None:
    rooms = Rooms(LIMITS)

    with ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(rooms.watcher("one"))
        with pytest.raises(Exhausted), rooms.watcher("one"):
            pass
        taken.enter_context(rooms.watcher("two"))
        for _ in range(3):
            taken.enter_context(rooms.call(caller(checkout_identity())))

"""A worn worker is replaced by a fresh one beside it; until that has loaded, and if it never does, the old one goes on."""

import asyncio
import signal

import pytest

from ringserve.server.control import Worn
from tests.server.pool_rig import Process, Rig, begins, fail, play


def test_a_worn_worker_goes_on_until_a_fresh_one_has_loaded_and_then_drains() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(2)
        for process in Process.all:
            process.load().answer()
        rig.may_detach.clear()
        Process.all[0].say(Worn())
        Process.all[1].say(Worn())
        assert len(rig.running) == 3, "one at a time"
        assert rig.ids == ["1", "2"]
        await asyncio.sleep(5)
        Process.all[2].load()
        assert rig.ids == ["3", "2"]
        assert rig.pool.ready_count == 2
        await asyncio.sleep(5)
        assert rig.detached == ["1"]
        assert len(rig.running) == 3, "the next one waits until the first has answered its last"
        rig.may_detach.set()
        await asyncio.sleep(1)
        Process.all[3].load()
        await asyncio.sleep(1)
        assert rig.ids == ["3", "4"]
        assert len(rig.running) == 2
        assert rig.pool.ready_count == 2

    play(scenario, workers=2)


def test_a_replacement_that_does_not_load_changes_nothing_and_is_tried_again_later() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(1)
        Process.all[0].load().answer()
        Process.plan.extend([fail] * 3)
        Process.all[0].say(Worn())
        for _ in range(30):
            await asyncio.sleep(1)
            rig.pool.replace_worn()
            assert rig.ids == ["1"]
            assert rig.pool.serviceable
            assert rig.pool.ready_count == 1
        assert begins() == [0, 0, 1, 3, 7]
        Process.all[-1].load()
        assert rig.ids == ["5"]

    play(scenario)


def test_a_replacement_without_a_place_is_put_off() -> None:
    async def scenario(rig: Rig) -> None:
        rig.places_left = 1
        rig.pool.grow(1)
        Process.all[0].load().answer().say(Worn())
        assert len(Process.all) == 1
        rig.places_left = 1
        await asyncio.sleep(2)
        rig.pool.replace_worn()
        Process.all[1].load()
        assert rig.pool.ready_count == 1

    play(scenario)


@pytest.mark.parametrize("died", [False, True])
def test_a_worker_that_is_taken_away_takes_its_replacement_along(died: bool) -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(2)
        for process in Process.all:
            process.load().answer()
        Process.all[1].say(Worn())
        assert len(rig.running) == 3
        if died:
            Process.all[1].end(-signal.SIGKILL)
        await rig.pool.shrink(1)
        assert rig.ids == ["1"]
        assert len(rig.running) == 1

    play(scenario, workers=2)


def test_an_old_worker_that_dies_meanwhile_gives_way_to_its_replacement() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(1)
        Process.all[0].load().answer()
        Process.all[0].say(Worn())
        Process.all[0].end(1)
        assert len(rig.running) == 2
        Process.all[1].load()
        await asyncio.sleep(1)
        assert len(rig.running) == 1
        assert rig.ids == ["2"]

    play(scenario)


def test_a_pool_that_gives_up_starting_ends_a_replacement_too() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(2)
        Process.all[0].load().answer().say(Worn())
        assert len(rig.running) == 3
        rig.pool.give_up_starting()
        await asyncio.sleep(1)
        assert rig.running == [Process.all[0]]

    play(scenario, workers=2)


def test_a_replacement_that_no_process_could_be_made_for_is_tried_again() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(1)
        Process.all[0].load().answer()
        Process.refused = 1
        Process.all[0].say(Worn())
        await asyncio.sleep(2)
        assert len(rig.placed) == 1, "its place is free again"
        rig.pool.replace_worn()
        Process.all[1].load()
        await asyncio.sleep(1)
        assert len(rig.running) == 1
        assert rig.pool.ready_count == 1

    play(scenario)

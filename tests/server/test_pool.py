"""A pool keeps as many workers as are wanted, each replaced when it dies: at once, later, or not at all."""

import asyncio
import signal

import pytest

from ringserve.protocol.errors import OutOfResources, RingServeError, WorkerStartFailed
from ringserve.server.breaker import ATTEMPTS_MAX, PROVEN_S, UNDER_WAY_MAX
from ringserve.server.control import AtWork
from ringserve.server.pool import KILLED_S
from tests.server.pool_rig import Process, Rig, begins, fail, play


def test_a_worker_that_was_killed_from_outside_is_soon_replaced_however_often() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(1)
        Process.all[0].load()
        for number in range(20):
            Process.all[-1].end(-signal.SIGKILL)
            await asyncio.sleep(KILLED_S + 0.01)
            assert len(Process.all) == number + 2
            assert rig.pool.serviceable
            if number % 2:
                Process.all[-1].load()

    play(scenario)


def test_a_worker_that_has_answered_or_lived_for_a_while_is_replaced_at_once() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(1)
        for number in range(10):
            process = Process.all[-1].load()
            if number % 2:
                process.answer()
            else:
                await asyncio.sleep(PROVEN_S + 1)
            process.end(1)
            assert len(Process.all) == number + 2
            assert rig.pool.serviceable

    play(scenario)


def test_a_model_that_cannot_load_is_tried_later_and_later_and_nobody_waits_for_it() -> None:
    async def scenario(rig: Rig) -> None:
        Process.plan.extend([fail] * 5)
        rig.pool.grow(1)
        with pytest.raises(WorkerStartFailed, match="no weights"):
            await rig.pool.settle()
        assert rig.pool.serviceable
        await asyncio.sleep(3.1)
        assert begins() == [0, 1, 3]
        assert not rig.pool.serviceable
        assert rig.pool.probe_at_ns == pytest.approx(7e9)
        await asyncio.sleep(20)
        assert begins() == [0, 1, 3, 7, 15]
        await asyncio.sleep(10)
        Process.all[-1].load()
        assert rig.pool.serviceable
        assert rig.pool.probe_at_ns == 0
        await rig.pool.settle()

    play(scenario)


def test_of_many_workers_a_few_are_tried_and_then_one_at_a_time_until_it_loads() -> None:
    async def scenario(rig: Rig) -> None:
        Process.plan.extend([fail] * (UNDER_WAY_MAX + 1))
        rig.pool.grow(64)
        assert len(Process.all) == UNDER_WAY_MAX
        await asyncio.sleep(0.5)
        assert not rig.pool.serviceable
        waiting = [slot for slot in rig.pool.slots if not slot.settled.done()]
        assert waiting == [], "those that were not even tried would fare no better"
        await asyncio.sleep(1)
        assert len(Process.all) == UNDER_WAY_MAX + 1
        await asyncio.sleep(30)
        assert len(rig.running) == 1
        rig.running[0].load()
        assert len(rig.running) == 64
        for process in rig.running[1:]:
            process.load()
        assert rig.pool.ready_count == 64
        await rig.pool.settle()

    play(scenario, workers=64)


def test_a_model_that_never_loads_makes_at_most_eight_attempts_a_minute() -> None:
    async def scenario(rig: Rig) -> None:
        Process.plan.extend([fail] * 1000)
        rig.pool.grow(16)
        await asyncio.sleep(600)
        times = begins()
        assert len(times) > 10
        assert max(sum(start <= each < start + 60 for each in times) for start in times) <= ATTEMPTS_MAX

    play(scenario, workers=16)


def test_workers_that_die_of_their_first_batch_are_replaced_three_times_at_once_and_then_one_at_a_time() -> None:
    def die(process: Process) -> None:
        process.load()
        process.say(AtWork())
        process.end(11)

    async def scenario(rig: Rig) -> None:
        Process.plan.extend([die] * 6)
        rig.pool.grow(1)
        await asyncio.sleep(0.5)
        assert len(Process.all) == 4
        assert not rig.pool.serviceable
        assert rig.pool.probe_at_ns > 0
        await asyncio.sleep(60)
        assert len(Process.all) == 7
        Process.all[-1].load()
        assert rig.pool.serviceable, "there is one to try it with"
        Process.all[-1].answer()
        assert rig.pool.probe_at_ns == 0

    play(scenario)


def test_a_loaded_worker_that_is_killed_comes_back_although_others_cannot_load() -> None:
    async def scenario(rig: Rig) -> None:
        Process.plan.extend([lambda process: process.load(), *[fail] * 5])
        rig.pool.grow(2)
        await asyncio.sleep(20)
        assert not rig.pool._breaker.starts_allowed(asyncio.get_running_loop().time(), 0)
        count = len(Process.all)
        Process.all[0].end(-signal.SIGKILL)
        await asyncio.sleep(KILLED_S + 0.01)
        assert len(Process.all) == count + 1

    play(scenario, workers=2)


def test_without_retries_a_worker_that_ends_stays_away_until_somebody_scales() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(2)
        Process.all[0].load().answer().end(1)
        Process.all[1].end(1)
        await asyncio.sleep(1000)
        assert len(Process.all) == 2
        assert not rig.pool.serviceable
        assert len(rig.pool.slots) == 2
        rig.pool.grow(2)
        assert len(Process.all) == 4
        for process in rig.running:
            process.load()
        await rig.pool.settle()
        assert rig.pool.ready_count == 2

    play(scenario, workers=2, config="no restart")


def test_workers_for_which_there_is_no_place_keep_nobody_else_from_starting() -> None:
    async def scenario(rig: Rig) -> None:
        rig.places_left = 1
        rig.pool.grow(2)
        with pytest.raises(OutOfResources):
            await rig.pool.settle()
        Process.all[0].load().end(1)
        await asyncio.sleep(2)
        assert len(Process.all) >= 2
        assert rig.pool.serviceable
        rig.places_left = 1
        await asyncio.sleep(70)
        assert all(slot.place is not None for slot in rig.pool.slots)

    play(scenario, workers=2)


def test_growing_only_where_there_is_a_place_leaves_no_worker_without_one() -> None:
    async def scenario(rig: Rig) -> None:
        rig.places_left = 2
        rig.pool.grow(1)
        Process.all[0].load()
        with pytest.raises(OutOfResources):
            rig.pool.try_grow(4)
        assert len(rig.pool.slots) == len(Process.all) == 2

    play(scenario)


def test_workers_that_do_not_run_are_the_first_to_go() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(3)
        Process.all[1].load()
        Process.all[2].load()
        await rig.pool.shrink(2)
        assert rig.ids == ["2", "3"]
        await rig.pool.shrink(1)
        assert rig.ids == ["2"]
        assert rig.detached == ["3"]

    play(scenario)


def test_whoever_asked_for_fewer_workers_may_go_and_they_stop_all_the_same() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(1)
        Process.all[0].load()
        rig.may_detach.clear()
        asked = asyncio.ensure_future(rig.pool.shrink(0))
        await asyncio.sleep(1)
        asked.cancel()
        await asyncio.sleep(1)
        assert len(rig.running) == 1
        rig.may_detach.set()
        await asyncio.sleep(1)
        assert rig.running == []

    play(scenario)


def test_the_first_outcome_counts_until_a_worker_loads_after_all() -> None:
    async def scenario(rig: Rig) -> None:
        Process.plan.append(fail)
        rig.pool.grow(1)
        first = rig.pool.slots[0].settled
        await asyncio.sleep(2)
        Process.all[1].load()
        assert isinstance(first.exception(), RingServeError)
        await rig.pool.settle()

    play(scenario)


def test_when_the_worker_that_is_tried_goes_another_one_is_tried() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(2)
        Process.all[1].load()
        Process.all[1].end(1)
        Process.all[0].end(1)
        Process.plan.extend([fail] * 2)
        await asyncio.sleep(3)
        assert not rig.pool.serviceable
        await asyncio.sleep(10)
        [probe] = rig.running
        assert "W-2" in probe.label, "the one that has loaded before"
        await rig.pool.shrink(1)
        await asyncio.sleep(100)
        assert len(rig.running) == 1, "there is no version without anybody who tries"

    play(scenario, workers=2)


def test_without_retries_every_worker_is_tried_once_although_the_first_do_not_load() -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(6)
        Process.plan.extend([fail] * 6)
        for process in Process.all:
            fail(process)
        await asyncio.sleep(1000)
        assert len(Process.all) == 6
        assert all(slot.settled.done() for slot in rig.pool.slots)

    play(scenario, workers=6, config="no restart")


@pytest.mark.parametrize("loaded", [False, True])
def test_when_its_version_leaves_a_pool_starts_nothing_more(loaded: bool) -> None:
    async def scenario(rig: Rig) -> None:
        rig.pool.grow(1)
        if loaded:
            Process.all[0].load().answer()
        rig.pool.give_up_starting()
        rig.pool.grow(3)
        rig.pool.try_grow(3)
        for process in rig.running:
            process.end(1)
        await asyncio.sleep(100)
        assert len(Process.all) == 1

    play(scenario)

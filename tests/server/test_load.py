"""What a version has to do: who waits, since when, and how much of workers' time was spent on what was answered."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from ringserve.protocol.errors import NoWorker

if TYPE_CHECKING:
    from tests.server.conftest import Clock, Stage

MS = 1_000_000


@pytest.fixture(autouse=True)
def same_clock(clock: "Clock", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringserve.server.load.time", clock)


def test_who_waits_in_the_queue_or_behind_a_batch_is_counted_and_the_oldest_known(
    play: Callable[..., None], clock: "Clock"
) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        began_ns = clock.now_ns
        for number in range(4):
            stage.submit(b"%d" % number)
            await stage.pass_s(0.01)
        assert stage.dispatcher.load.waiting == 4
        assert stage.dispatcher.load.oldest_ns == began_ns
        assert worker.start()
        assert stage.dispatcher.load.waiting == 3, "one batch of one is being computed, and one lies in the ring"
        assert stage.dispatcher.load.oldest_ns == began_ns + 10 * MS

    play(scenario, rows=1)


def test_the_time_of_workers_is_added_up_also_while_they_are_at_it(play: Callable[..., None], clock: "Clock") -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        stage.submit(b"one")
        await stage.settle()
        worker.start()
        clock.pass_s(0.5)
        assert stage.dispatcher.load.busy_ns == 500 * MS
        assert stage.dispatcher.load.answered == 0
        worker.finish()
        await stage.settle()
        await stage.pass_s(3)
        assert stage.dispatcher.load.busy_ns == 500 * MS
        assert stage.dispatcher.load.answered == 1
        assert stage.dispatcher.load.waiting == 0
        assert stage.dispatcher.load.oldest_ns == 0

    play(scenario, rows=1)


@pytest.mark.parametrize(("left_s", "told_s"), [(3.2, 4), (-5.0, 1), (0.1, 1), (500.0, 60)])
def test_without_workers_a_client_is_told_when_the_next_one_is_tried(
    play: Callable[..., None], clock: "Clock", left_s: float, told_s: int
) -> None:
    async def scenario(stage: "Stage") -> None:
        waiting = stage.submit(b"early")
        stage.dispatcher.set_serviceable(False, clock.now_ns + int(left_s * 1e9))
        waits = waiting.exception()
        assert isinstance(waits, NoWorker)
        with pytest.raises(NoWorker) as refused:
            stage.submit(b"late")
        assert waits.retry_after_s == refused.value.retry_after_s == told_s
        stage.dispatcher.set_serviceable(False)
        with pytest.raises(NoWorker) as refused:
            stage.submit(b"nobody knows")
        assert refused.value.retry_after_s is None

    play(scenario)

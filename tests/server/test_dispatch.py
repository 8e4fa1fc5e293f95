"""The dispatcher over real shared memory: each request gets its own answer, and only that."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ringserve.backends.contract import Reply
from ringserve.protocol.errors import (
    BadRequest,
    Internal,
    PredictionFailed,
    QueueFull,
    WorkerLost,
)
from ringserve.protocol.request import InferRequest
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.replies import write_typed_success
from ringserve.shm.ring import Completion

if TYPE_CHECKING:
    from tests.server.conftest import Stage

Play = Callable[..., None]
OutcomeOf = Callable[..., Any]
TYPED = Signature((TensorSpec("x", "float32", (3,)),), (TensorSpec("y", "float32", (3,)),))


def bodies(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % n for n in range(first, first + count)]


def answers(sent: list[bytes]) -> list[bytes]:
    return [b"answer to " + body for body in sent]


def test_each_request_gets_its_own_answer(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        futures = [stage.submit(body) for body in bodies(30)]
        await stage.work()
        assert [outcome_of(future) for future in futures] == answers(bodies(30))
        assert [body for batch in worker.batches for body in batch] == bodies(30)
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario)


def test_requests_of_one_tick_leave_together(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        for body in bodies(3):
            stage.submit(body)
        await stage.work()
        assert worker.batches == [bodies(3)]

    play(scenario)


def test_headers_reach_the_worker_whatever_bytes_they_hold(play: Play, outcome_of: OutcomeOf) -> None:
    """A byte that is not UTF-8 is no reason to answer nothing."""

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        future = stage.submit(b"x", {"accept": "text/plain", "x-odd": "a\udcff"})
        await stage.work()
        assert outcome_of(future) == b"answer to x"
        assert worker.headers == [{"accept": "text/plain", "x-odd": "aÿ"}]

    play(scenario)


def test_the_queue_is_full_at_exactly_its_capacity(play: Play, outcome_of: OutcomeOf) -> None:
    """Beyond what workers hold, `capacity` requests wait: in slabs, and in the backlog when no slab is free."""

    async def scenario(stage: "Stage") -> None:
        futures = [stage.submit(body) for body in bodies(10)]
        with pytest.raises(QueueFull, match=r"^m has 10 requests waiting, job_queue_size is 10$"):
            stage.submit()
        assert stage.dispatcher.waiting == 10
        stage.attach()  # takes two batches of two at once
        assert stage.dispatcher.waiting == 6
        futures += [stage.submit(body) for body in bodies(4, 10)]
        with pytest.raises(QueueFull):
            stage.submit()
        await stage.work()
        assert [outcome_of(future) for future in futures] == answers(bodies(14))

    play(scenario, rows=2, slabs=3, capacity=10)


def test_a_crowd_of_one_tick_fills_the_workers_before_the_queue(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()  # takes what waits when the queue is full for the first time, in two batches
        futures = [stage.submit(body) for body in bodies(6)]
        with pytest.raises(QueueFull):
            stage.submit()
        await stage.work()
        assert [outcome_of(future) for future in futures] == answers(bodies(6))

    play(scenario, rows=2, slabs=5, capacity=3)


def test_requests_that_came_before_the_lane_are_encoded_when_it_opens(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        futures = [stage.submit(body) for body in bodies(7)]
        with pytest.raises(QueueFull):
            stage.submit()
        stage.open_lane()
        stage.attach()
        await stage.work()
        assert [outcome_of(future) for future in futures] == answers(bodies(7))
        assert stage.dispatcher.waiting == 0

    play(scenario, opened=False, capacity=7)


def test_a_bad_request_that_came_before_the_lane_is_answered_when_it_opens(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        future = stage.submit(b"not twelve bytes")
        stage.open_lane()
        assert stage.dispatcher.waiting == 0
        assert isinstance(outcome_of(future), BadRequest)

    play(scenario, opened=False, signature=TYPED)


def test_a_bad_request_is_refused_and_never_waits(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        with pytest.raises(BadRequest):
            stage.submit(b"short")
        assert stage.dispatcher.waiting == 0

    play(scenario, signature=TYPED)


def test_a_typed_row_is_answered_as_json(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        rows = [np.full(3, n, np.float32) for n in range(3)]
        futures = [stage.submit(row.tobytes()) for row in rows]
        assert stage.dispatcher.typed
        await stage.settle()
        assert worker.link.listener.collect() == 1
        command = worker.link.commands.take()
        slab = worker.lane.slabs[command.slab]
        slab.outputs[0][:] = slab.inputs[0] * 2
        write_typed_success(slab, command.first, command.rows)
        assert worker.link.completions.try_push(Completion(command.sequence, command.slab, command.rows))
        worker.link.bell.ring()
        await stage.settle()
        assert [outcome_of(each) for each in futures] == [b"[0.0,0.0,0.0]", b"[2.0,2.0,2.0]", b"[4.0,4.0,4.0]"]

    play(scenario, signature=TYPED)


def test_a_worker_has_two_batches_at_most(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        for body in bodies(9):
            stage.submit(body)
        await stage.settle()
        assert worker.link.listener.collect() == 2
        worker.due = 2
        assert worker.start()
        await stage.settle()
        assert worker.link.listener.collect() == 0
        worker.finish()
        await stage.settle()
        assert worker.link.listener.collect() == 1
        worker.due += 1
        await stage.work()

    play(scenario, rows=2)


def test_idle_workers_are_given_batches_first(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        workers = [stage.attach() for _ in range(3)]
        for body in bodies(6):
            stage.submit(body)
        await stage.settle()
        assert [worker.link.listener.collect() for worker in workers] == [2, 2, 2]
        for worker in workers:
            worker.due = 2
        workers[1].work()
        await stage.settle()
        stage.submit(b"next")
        await stage.settle()
        assert [worker.link.listener.collect() for worker in workers] == [0, 1, 0]
        workers[1].due = 1
        await stage.work()

    play(scenario, rows=1, slabs=8)


def test_large_payloads_travel_in_parcels_both_ways(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        sent = [bytes([65 + n]) * size for n, size in enumerate([10, 5000, 3000, 100_000, 0, 2500, 4096, 70_000])]
        futures = [stage.submit(body) for body in sent]
        await stage.work()
        assert [outcome_of(future) for future in futures] == answers(sent)
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario, region=4096)


def test_an_answer_to_somebody_else_is_dropped_and_counted(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        worker.spoil_row_ids = True
        futures = [stage.submit(body) for body in bodies(3)]
        await stage.work()
        assert [type(outcome_of(future)) for future in futures] == [Internal] * 3
        assert stage.dispatcher.mismatched_replies == 3
        worker.spoil_row_ids = False
        again = stage.submit(b"again")
        await stage.work()
        assert outcome_of(again) == b"answer to again"

    play(scenario)


def test_a_worker_that_completes_what_it_was_not_given_is_reported(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        reported: list[str] = []
        stage.dispatcher.on_stuck = reported.append
        worker = stage.attach()
        future = stage.submit(b"x")
        await stage.settle()
        worker.start()
        assert worker.running is not None
        worker.running = worker.running._replace(sequence=5)
        worker.finish()
        await stage.settle()
        assert reported == [worker.worker_id]
        assert not future.done()
        stage.kill(worker)
        assert isinstance(outcome_of(future), WorkerLost)

    play(scenario)


def test_a_row_that_fails_fails_alone(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        worker.reply = lambda body: PredictionFailed("no") if body == b"1" else Reply(body)
        futures = [stage.submit(body) for body in bodies(3)]
        await stage.work()
        first, second, third = map(outcome_of, futures)
        assert (first, type(second), third) == (b"0", PredictionFailed, b"2")

    play(scenario)


def test_a_client_that_left_costs_nobody_anything(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        futures = [stage.submit(body) for body in bodies(24)]
        for future in futures[::2]:
            future.cancel()
        stage.attach()
        await stage.work()
        assert [outcome_of(future) for future in futures[1::2]] == answers(bodies(24)[1::2])
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario)


def test_a_batch_that_fills_leaves_when_its_time_is_over(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        future = stage.submit(b"x")
        await stage.pass_s(0.0049)
        assert worker.link.listener.collect() == 0
        await stage.pass_s(0.0001)
        await stage.work()
        assert outcome_of(future) == b"answer to x"

    play(scenario, fill_ns=5_000_000)


def test_a_worker_that_executes_a_batch_for_longer_than_the_timeout_is_reported_once(play: Play) -> None:
    """Counted from when it took the batch, not from when it was given."""

    async def scenario(stage: "Stage") -> None:
        reported: list[str] = []
        stage.dispatcher.on_stuck = reported.append
        worker = stage.attach()
        stage.submit()
        await stage.settle()
        await stage.pass_s(100)
        worker.start()
        await stage.pass_s(119)
        assert reported == []
        await stage.pass_s(1)
        assert reported == [worker.worker_id]
        await stage.pass_s(500)
        assert reported == [worker.worker_id]

    play(scenario, response_timeout_s=120)


@pytest.mark.parametrize("front_ends", [1, 3])
def test_a_worker_that_takes_nothing_is_reported_when_every_front_end_has_had_its_turn(
    play: Play, front_ends: int
) -> None:
    async def scenario(stage: "Stage") -> None:
        reported: list[str] = []
        stage.dispatcher.on_stuck = reported.append
        worker = stage.attach()
        stage.submit()
        await stage.settle()
        await stage.pass_s(120 * front_ends - 1)
        assert reported == []
        await stage.pass_s(1)
        assert reported == [worker.worker_id]

    play(scenario, response_timeout_s=120, front_ends=front_ends)


def test_a_worker_that_hangs_soon_after_a_look_found_it_between_two_batches_is_reported_in_time(play: Play) -> None:
    """With several front ends, a batch that is not begun may take longer than one that is: not the one that follows it."""

    async def scenario(stage: "Stage") -> None:
        reported: list[str] = []
        stage.dispatcher.on_stuck = reported.append
        worker = stage.attach()
        stage.submit()
        await stage.work()
        await stage.pass_s(119.9)
        stage.submit()
        await stage.settle()
        await stage.pass_s(0.2)  # the look falls between the command and its being taken
        worker.start()
        await stage.pass_s(119)
        assert reported == []
        await stage.pass_s(1.1)
        assert reported == [worker.worker_id]

    play(scenario, response_timeout_s=120, front_ends=3)


def test_a_worker_that_waits_for_slow_readers_is_not_stuck(play: Play) -> None:
    """Nor is it at once when they have read: its time begins anew."""

    async def scenario(stage: "Stage") -> None:
        reported: list[str] = []
        stage.dispatcher.on_stuck = reported.append
        worker = stage.attach()
        pending = stage.submit()
        await stage.settle()
        worker.start()
        while worker.stream({0: b"part"}):
            await stage.settle()
        await stage.pass_s(101)
        source = pending.result().source
        assert source is not None
        while source.next():
            pass
        await stage.pass_s(1.9)
        assert reported == []
        await stage.pass_s(0.2)
        assert reported == [worker.worker_id]

    play(scenario, response_timeout_s=2)


def test_a_worker_that_goes_on_from_batch_to_batch_is_not_stuck(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        reported: list[str] = []
        stage.dispatcher.on_stuck = reported.append
        worker = stage.attach()
        for body in bodies(8):
            stage.submit(body)
        await stage.settle()
        for _ in range(8):
            assert worker.start()
            await stage.pass_s(1.9)
            worker.finish()
            await stage.settle()
        await stage.pass_s(10)
        assert reported == []

    play(scenario, rows=1, slabs=10, response_timeout_s=2)


def test_a_worker_that_streams_is_not_stuck(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        reported: list[str] = []
        stage.dispatcher.on_stuck = reported.append
        worker = stage.attach()
        stage.submit()
        await stage.settle()
        worker.start()
        for _ in range(3):
            await stage.pass_s(1.5)
            assert worker.stream({0: b"part"})
            await stage.settle()
        assert reported == []
        await stage.pass_s(2)
        assert reported == [worker.worker_id]

    play(scenario, response_timeout_s=2)


def test_requests_know_their_parts_by_name(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        assert not stage.dispatcher.typed
        stage.dispatcher.submit(InferRequest("id", "text/plain", {}, b"body"))
        worker = stage.attach()
        await stage.work()
        assert worker.batches == [[b"body"]]

    play(scenario)

"""How workers, versions and dispatchers end: whoever waits is answered, by somebody or with a reason."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ringserve.protocol.errors import (
    NoWorker,
    ShuttingDown,
    WorkerLost,
)
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.inflight import Pending
from ringserve.shm.layout import ROW_CANCELLED, ROW_FLAGS

if TYPE_CHECKING:
    from tests.server.conftest import Stage

Play = Callable[..., None]
OutcomeOf = Callable[..., Any]
TYPED = Signature((TensorSpec("x", "float32", (3,)),), (TensorSpec("y", "float32", (3,)),))


def bodies(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % n for n in range(first, first + count)]


def answers(sent: list[bytes]) -> list[bytes]:
    return [b"answer to " + body for body in sent]


def test_a_dead_workers_batch_is_answered_and_the_next_one_moves_in_order(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        first = stage.attach()
        futures = [stage.submit(body) for body in bodies(7)]
        await stage.settle()
        assert first.start()
        second = stage.attach()
        stage.kill(first)
        await stage.work()
        assert [type(outcome_of(future)) for future in futures[:2]] == [WorkerLost] * 2
        assert [outcome_of(future) for future in futures[2:]] == answers(bodies(5, 2))
        assert [body for batch in second.batches for body in batch] != []
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario, rows=2)


def test_requeued_batches_leave_before_those_that_waited(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        first = stage.attach()
        for body in bodies(8):
            stage.submit(body)
        await stage.settle()
        stage.kill(first)  # it had begun nothing
        assert stage.dispatcher.waiting == 8
        second = stage.attach()
        await stage.work()
        assert second.batches == [bodies(2), bodies(2, 2), bodies(2, 4), bodies(2, 6)]

    play(scenario, rows=2)


def test_what_a_worker_answered_before_it_died_is_delivered(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        futures = [stage.submit(body) for body in bodies(2)]
        await stage.settle()
        worker.work()
        stage.kill(worker)
        assert [outcome_of(future) for future in futures] == answers(bodies(2))

    play(scenario)


def test_an_answer_counts_even_when_its_worker_was_found_dead_by_the_next_batch(
    play: Play, outcome_of: OutcomeOf
) -> None:
    """The dispatcher learns of the death while it sends, before it has listened."""

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        future = stage.submit(b"first")
        await stage.settle()
        worker.work()
        worker.die()
        del stage.workers[worker.worker_id]
        second = stage.submit(b"second")
        stage.dispatcher._pump()
        stage.dispatcher.worker_gone(worker.worker_id, WorkerLost("gone"))
        assert outcome_of(future) == b"answer to first"
        stage.attach()
        await stage.work()
        assert outcome_of(second) == b"answer to second"

    play(scenario)


def test_detaching_waits_for_the_answers(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker, told = stage.attach(), []
        future = stage.submit(b"x")
        await stage.settle()
        stage.dispatcher.detach(worker.worker_id, lambda: told.append(True))
        late = stage.submit(b"late")
        await stage.settle()
        assert told == []
        worker.work()
        await stage.settle()
        assert (told, outcome_of(future), late.done()) == ([True], b"answer to x", False)
        stage.attach()
        del stage.workers[worker.worker_id]
        worker.die()
        await stage.work()
        assert outcome_of(late) == b"answer to late"

    play(scenario)


def test_detaching_an_idle_or_unknown_worker_is_done_at_once(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        told: list[str] = []
        worker = stage.attach()
        stage.dispatcher.detach(worker.worker_id, lambda: told.append("idle"))
        stage.dispatcher.detach("none", lambda: told.append("unknown"))
        assert told == ["idle", "unknown"]
        stage.dispatcher.worker_gone(worker.worker_id, WorkerLost("later"))

    play(scenario)


@pytest.mark.parametrize("finished", [False, True])
def test_a_worker_that_dies_while_detaching_is_detached(play: Play, finished: bool) -> None:
    async def scenario(stage: "Stage") -> None:
        worker, told = stage.attach(), []
        future = stage.submit(b"x")
        await stage.settle()
        stage.dispatcher.detach(worker.worker_id, lambda: told.append(True))
        worker.start()
        if finished:
            worker.finish()
        stage.kill(worker)
        assert told == [True]
        assert future.done()
        assert (future.exception() is None) is finished

    play(scenario)


def test_closing_answers_everything_first(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        closed: list[bool] = []
        stage.attach()
        futures = [stage.submit(body) for body in bodies(40)]
        stage.dispatcher.close(lambda: closed.append(True))
        assert closed == []
        await stage.work_until(closed)
        assert [outcome_of(future) for future in futures] == answers(bodies(40))

    play(scenario)


def test_closing_when_nothing_waits_is_done_at_once(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        closed: list[bool] = []
        stage.attach()
        stage.dispatcher.close(lambda: closed.append(True))
        assert closed == [True]

    play(scenario)


@pytest.mark.parametrize("started", [0, 1])
def test_closing_ends_when_the_last_worker_dies(play: Play, outcome_of: OutcomeOf, started: int) -> None:
    """Nobody is left who could answer: what was running gets the death, what waited is told that the model left."""

    async def scenario(stage: "Stage") -> None:
        closed: list[bool] = []
        worker = stage.attach()
        futures = [stage.submit(body) for body in bodies(8)]
        await stage.settle()
        for _ in range(started):
            worker.start()
        stage.dispatcher.close(lambda: closed.append(True))
        stage.kill(worker)
        assert closed == [True]
        expected = [WorkerLost] * (4 * started) + [NoWorker] * (8 - 4 * started)
        assert [type(outcome_of(future)) for future in futures] == expected

    play(scenario)


def test_closing_ends_when_the_last_worker_is_detached(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        closed: list[bool] = []
        worker = stage.attach()
        future = stage.submit(b"waits to be joined")
        await stage.settle()
        stage.dispatcher.close(lambda: closed.append(True))
        stage.dispatcher.detach(worker.worker_id, lambda: None)
        await stage.settle()
        assert isinstance(outcome_of(future), NoWorker)
        assert closed == [True]

    play(scenario, fill_ns=10**12)


def test_without_a_worker_to_come_nobody_waits(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        futures = [stage.submit(body) for body in bodies(20)]
        stage.dispatcher.set_serviceable(False)
        assert [type(outcome_of(future)) for future in futures] == [NoWorker] * 20
        with pytest.raises(NoWorker):
            stage.submit()
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario)


def test_what_a_last_leaving_worker_did_not_begin_is_answered(play: Play, outcome_of: OutcomeOf) -> None:
    """Scaled to nothing, then dead while it drains: no other worker will ever come for its second batch."""

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        futures = [stage.submit(body) for body in bodies(2)]
        await stage.settle()
        worker.start()
        stage.dispatcher.set_serviceable(False)
        stage.dispatcher.detach(worker.worker_id, lambda: None)
        stage.kill(worker)
        assert [type(outcome_of(future)) for future in futures] == [WorkerLost, NoWorker]

    play(scenario, rows=1)


def test_abandoning_answers_what_waits_and_what_runs(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        futures = [stage.submit(body) for body in bodies(20)]
        await stage.settle()
        worker.start()
        stage.dispatcher.abandon(ShuttingDown("bye"))
        assert [type(outcome_of(future)) for future in futures] == [ShuttingDown] * 20
        worker.finish()
        await stage.work()
        assert stage.free() == 4

    play(scenario)


def test_a_parcel_whose_worker_died_is_sent_again(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        first = stage.attach()
        future = stage.submit(b"x" * 10_000)
        await stage.settle()
        stage.kill(first)
        stage.attach()
        await stage.work()
        assert outcome_of(future) == b"answer to " + b"x" * 10_000

    play(scenario)


def test_a_link_that_closes_while_its_process_lives_is_reported_as_stuck(
    play: Play,
) -> None:
    """Nothing will be answered through it, and nobody would ever say that the worker ended."""

    async def scenario(stage: "Stage") -> None:
        stuck: list[str] = []
        stage.dispatcher.on_stuck = stuck.append
        worker, replaced = stage.attach(), stage.attach()
        for each in (worker, replaced):
            each.die()
            del stage.workers[each.worker_id]
        stage.dispatcher.worker_gone(replaced.worker_id, WorkerLost("gone"))
        await stage.settle()
        await stage.pass_s(0.9)
        assert stuck == []
        await stage.pass_s(0.2)
        assert stuck == [worker.worker_id]
        stage.dispatcher.worker_gone(worker.worker_id, WorkerLost("gone"))

    play(scenario)


def left(stage: "Stage", which: str) -> Pending:
    """The request that is in this state, among others; one worker, slabs of two rows, three of them."""
    pendings = [stage.submit(body) for body in bodies(12)]
    states = {"running": 0, "queued in its worker": 3, "in a full slab": 4, "in the backlog": 11}
    return pendings[states[which]]


@pytest.mark.parametrize(
    ("which", "places"), [("running", 0), ("queued in its worker", 0), ("in a full slab", 1), ("in the backlog", 1)]
)
def test_a_client_may_leave_at_any_time_and_costs_nobody_anything(play: Play, which: str, places: int) -> None:
    """A place that it had in the queue is free at once, and no worker begins with it after that."""

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        leaver = left(stage, which)
        await stage.settle()
        assert worker.start()
        waiting = stage.dispatcher.waiting
        assert waiting == 8
        leaver.cancel()
        assert stage.dispatcher.waiting == waiting - places
        await stage.work()
        computed = [body for batch in worker.batches for body in batch]
        assert len(computed) == (12 if which == "running" else 11)
        others = [each for each in stage.pendings if each is not leaver]
        assert all(each.done() and each.exception() is None for each in others)
        assert (stage.dispatcher.waiting, stage.free()) == (0, 3)

    play(scenario, rows=2, slabs=3)


def test_a_client_that_leaves_before_the_lane_is_there_is_never_encoded(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        pendings = [stage.submit(body) for body in bodies(3)]
        pendings[1].cancel()
        assert stage.dispatcher.waiting == 2
        stage.open_lane()
        worker = stage.attach()
        await stage.work()
        assert worker.batches == [[b"0", b"2"]]
        assert [outcome_of(pendings[number]) for number in (0, 2)] == [b"answer to 0", b"answer to 2"]

    play(scenario, opened=False)


def test_a_running_row_whose_client_leaves_is_flagged_for_its_worker(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        pendings = [stage.submit(body) for body in bodies(2)]
        await stage.settle()
        assert worker.start()
        pendings[1].cancel()
        assert worker.slab.table[:2, ROW_FLAGS].tolist() == [0, ROW_CANCELLED]
        worker.finish()
        await stage.settle()
        again = [stage.submit(body) for body in bodies(2)]
        await stage.settle()
        assert worker.start()
        assert worker.slab.table[:2, ROW_FLAGS].tolist() == [0, 0], "a flag is the row's no longer"
        assert not again[0].cancelled()

    play(scenario)


def test_a_row_that_two_workers_died_of_is_answered_by_the_first_death(play: Play, outcome_of: OutcomeOf) -> None:
    """It is never begun twice."""

    async def scenario(stage: "Stage") -> None:
        first = stage.attach()
        pendings = [stage.submit(body) for body in bodies(2)]
        await stage.settle()
        assert first.start()
        stage.kill(first)
        second = stage.attach()
        await stage.settle()
        assert second.start()
        stage.kill(second)
        assert [type(outcome_of(each)) for each in pendings] == [WorkerLost, WorkerLost]
        assert [batch for worker in (first, second) for batch in worker.batches] == [[b"0"], [b"1"]]
        assert stage.free() == 4

    play(scenario, rows=1)

"""Any order of arrivals, answers, deaths and departures: exactly one outcome a request, its own, and no slab lost."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ringserve.protocol.errors import NoWorker, QueueFull, WorkerLost
from ringserve.protocol.request import Answer

if TYPE_CHECKING:
    from tests.server.conftest import DirectedWorker, Stage

CAPACITY, SLABS = 12, 3
WORKERS_MAX = 3
pick = st.integers(0, 99)


class DispatchMachine(RuleBasedStateMachine):
    """The lane may open late; workers come, work a step at a time, leave politely or die."""

    def __init__(self, new_stage: Callable[..., "Stage"]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.raised: list[Any] = []
        self.runner.get_loop().set_exception_handler(lambda loop, context: self.raised.append(context))
        self.sent: dict[bytes, asyncio.Future[Answer]] = {}
        self.cancelled: set[bytes] = set()
        self.outcomes: dict[bytes, int] = {}
        self.leaving: set[str] = set()
        self.detached: list[str] = []
        self.opened = False
        self.number = 0

        async def build() -> "Stage":
            return new_stage(rows=2, capacity=CAPACITY, slabs=SLABS, region=512, opened=False)

        self.stage = self.runner.run(build())

    def do(self, action: Callable[[], object]) -> None:
        """On the loop, which then goes round."""

        async def step() -> None:
            action()
            await self.stage.settle()

        self.runner.run(step())

    @property
    def workers(self) -> list["DirectedWorker"]:
        return list(self.stage.workers.values())

    def worker(self, number: int) -> "DirectedWorker":
        return self.workers[number % len(self.workers)]

    @rule(count=st.integers(1, 5), size=st.sampled_from([0, 100, 400, 2000]))
    def arrive(self, count: int, size: int) -> None:
        def act() -> None:
            for _ in range(count):
                self.number += 1
                body = b"%d:" % self.number + b"x" * size
                room = self.stage.dispatcher.waiting < CAPACITY
                try:
                    future = self.stage.submit(body)
                except QueueFull:
                    assert not room
                    continue
                assert room
                self.sent[body] = future
                future.add_done_callback(partial(self.count, body))

        self.do(act)

    def count(self, body: bytes, future: asyncio.Future[Answer]) -> None:
        self.outcomes[body] = self.outcomes.get(body, 0) + 1

    @precondition(lambda self: not self.opened)
    @rule()
    def open_lane(self) -> None:
        self.opened = True
        self.do(self.stage.open_lane)

    @precondition(lambda self: self.opened and len(self.workers) < WORKERS_MAX)
    @rule()
    def attach(self) -> None:
        self.do(self.stage.attach)

    @precondition(lambda self: self.workers)
    @rule(number=pick)
    def start(self, number: int) -> None:
        self.do(self.worker(number).start)

    @precondition(lambda self: any(worker.running for worker in self.workers))
    @rule(number=pick)
    def finish(self, number: int) -> None:
        running = [worker for worker in self.workers if worker.running]
        self.do(running[number % len(running)].finish)
        self.bury()

    @precondition(lambda self: self.workers)
    @rule(number=pick)
    def kill(self, number: int) -> None:
        worker = self.worker(number)
        self.do(lambda: self.stage.kill(worker))

    @precondition(lambda self: self.workers)
    @rule(number=pick, arrivals=st.integers(0, 2))
    def die_and_be_noticed_later(self, number: int, arrivals: int) -> None:
        """The bell tells first; the supervisor's word comes after other things have happened."""
        worker = self.worker(number)
        self.do(lambda: self.stage.kill(worker, noticed=False))
        if arrivals:
            self.arrive(arrivals, 10)
        self.do(lambda: self.stage.dispatcher.worker_gone(worker.worker_id, WorkerLost("late")))

    @precondition(lambda self: self.workers)
    @rule(number=pick)
    def detach(self, number: int) -> None:
        worker_id = self.worker(number).worker_id
        if worker_id not in self.leaving:
            self.leaving.add(worker_id)
            self.do(lambda: self.stage.dispatcher.detach(worker_id, lambda: self.detached.append(worker_id)))
            self.bury()

    def bury(self) -> None:
        """A worker that was detached is stopped."""
        for worker in self.workers:
            if worker.worker_id in self.detached and worker.running is None:
                self.do(lambda worker=worker: self.stage.kill(worker))  # type: ignore[misc]

    @rule(number=pick)
    def client_leaves(self, number: int) -> None:
        waiting = [body for body, future in self.sent.items() if not future.done()]
        if waiting:
            body = waiting[number % len(waiting)]
            self.cancelled.add(body)
            self.do(self.sent[body].cancel)

    @rule()
    def nobody_may_wait(self) -> None:
        def act() -> None:
            self.stage.dispatcher.set_serviceable(False)
            self.stage.dispatcher.set_serviceable(True)

        self.do(act)
        assert self.stage.dispatcher.waiting == 0

    @invariant()
    def every_slab_is_in_one_place(self) -> None:
        if self.opened:
            assert self.stage.slabs() == list(range(SLABS))

    @invariant()
    def the_waiting_are_counted(self) -> None:
        dispatcher = self.stage.dispatcher
        batches = [*dispatcher._full, *([dispatcher._open] if dispatcher._open is not None else [])]
        queued = sum(len(batch.rows) for batch in batches) + len(dispatcher._backlog) + len(dispatcher._unencoded)
        assert dispatcher.waiting == queued

    @invariant()
    def nobody_gets_anothers_answer(self) -> None:
        for body, future in self.sent.items():
            if not future.done():
                assert body not in self.outcomes
            elif future.cancelled():
                assert body in self.cancelled
            elif (error := future.exception()) is not None:
                assert isinstance(error, WorkerLost | NoWorker)
            else:
                assert future.result().body == b"answer to " + body
        assert self.stage.dispatcher.mismatched_replies == 0
        assert self.raised == []

    def teardown(self) -> None:
        """A fresh worker answers all that is left; then nothing waits and every slab is free."""
        stage = self.stage

        async def end() -> None:
            if not self.opened:
                stage.open_lane()
            for worker in self.workers:
                stage.kill(worker)
            stage.attach()
            await stage.work()

        try:
            self.runner.run(end())
            self.nobody_gets_anothers_answer()
            assert self.outcomes == dict.fromkeys(self.sent, 1)
            assert len(self.detached) == len(self.leaving)
            assert (stage.dispatcher.waiting, stage.free()) == (0, SLABS)
        finally:
            self.do(stage.clear)
            self.runner.close()


def test_whatever_happens_each_request_has_one_outcome_of_its_own(new_stage: Callable[..., "Stage"]) -> None:
    run_state_machine_as_test(
        lambda: DispatchMachine(new_stage),  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

"""Any order of arrivals, answers, deaths, deadlines and departures, beside a model of what may come of them: exactly one
outcome a request, its own, and in time; no slab lost and none used twice; every place and every credit given back."""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ringserve.backends.contract import Reply
from ringserve.protocol.errors import PredictionFailed, QueueFull, WorkerLost
from ringserve.protocol.request import Answer
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.dispatch import Dispatcher
from ringserve.server.inflight import Fill, State
from ringserve.server.landing import Landing, copy_into
from ringserve.server.scheduling.dispatcher import ScheduledDispatcher
from ringserve.server.scheduling.rules import Scheduling
from ringserve.server.sources import Held, ReplyStream
from ringserve.shm.link import CHUNK_CREDITS
from tests.server.dispatch_model import KINDS, QUEUE_TIMEOUT_MS, RAISES, ROWS, Request

if TYPE_CHECKING:
    from tests.server.conftest import DirectedWorker, Stage

CAPACITY, SLABS, REGION = 9, 4, 4096
WORKERS_MAX, ARRIVING_MAX = 3, 6
TYPED_BYTES = 24
TYPED = Signature((TensorSpec("x", "uint8", (TYPED_BYTES,)),), (TensorSpec("y", "uint8", (TYPED_BYTES,)),))

NewStage = Callable[..., "Stage"]
pick = st.integers(0, 99)
rarely = st.sampled_from([False, False, False, True])
patience = st.sampled_from([0, 0, 0, 300, 2500])
rounds = st.lists(st.sets(st.integers(0, WORKERS_MAX - 1), min_size=1), max_size=4)
sizes = st.sampled_from([10, 100, 400, 900, 6000])


class DispatchMachine(RuleBasedStateMachine):
    """The lane may open late; bodies come at once or in pieces; workers come, work a step at a time, leave politely or die."""

    def __init__(self, new_stage: NewStage, *, typed: bool, fill_ns: int, rules: Scheduling | None = None) -> None:
        super().__init__()
        self.typed = typed
        self.runner = asyncio.Runner()
        self.raised: list[Any] = []
        self.runner.get_loop().set_exception_handler(lambda loop, context: self.raised.append(context))
        self.requests: list[Request] = []
        self.dead: dict[str, list[int]] = {}  # workers whose death nobody noticed, and the rows they were given
        self.buried: set[str] = set()
        self.leaving: set[str] = set()
        self.detached: list[str] = []
        self.opened = False

        async def build() -> "Stage":
            return new_stage(
                rows=ROWS,
                capacity=CAPACITY,
                slabs=SLABS,
                region=REGION,
                opened=False,
                fill_ns=fill_ns,
                signature=TYPED if typed else None,
                queue_timeout_ms=QUEUE_TIMEOUT_MS,
                make=Dispatcher if rules is None else partial(ScheduledDispatcher, rules=rules),
            )

        self.stage = self.runner.run(build())

    def do(self, action: Callable[[], object]) -> None:
        """On the loop, which then goes round."""

        async def step() -> None:
            action()
            await self.stage.settle()

        self.runner.run(step())
        for request in self.requests:
            request.look()

    @property
    def now_ns(self) -> int:
        return self.stage.clock.now_ns

    @property
    def workers(self) -> list["DirectedWorker"]:
        return list(self.stage.workers.values())

    def worker(self, number: int) -> "DirectedWorker":
        return self.workers[number % len(self.workers)]

    def busy(self, number: int) -> "DirectedWorker":
        running = [worker for worker in self.workers if worker.running]
        return running[number % len(running)]

    def some(self, number: int, wanted: Callable[[Request], object]) -> Request | None:
        found = [request for request in self.requests if wanted(request)]
        return found[number % len(found)] if found else None

    def request_of(self, body: bytes) -> Request:
        return self.requests[int.from_bytes(body[:4], "little")]

    # ---- arrivals

    def new_request(self, size: int, timeout_ms: int, *, raises: bool, binary: bool) -> Request:
        size = TYPED_BYTES if self.typed else size
        body = len(self.requests).to_bytes(4, "little") + bytes([RAISES if raises else 0]) * (size - 4)
        return Request(body, timeout_ms, self.now_ns, binary=binary)

    @rule(of=st.lists(sizes, min_size=1, max_size=5), timeout_ms=patience, raises=rarely, then=rounds)
    def arrive(self, of: list[int], timeout_ms: int, raises: bool, then: list[set[int]]) -> None:
        def act() -> None:
            for size in of:
                request = self.new_request(size, timeout_ms, raises=raises, binary=len(of) % 2 > 0)
                room = self.waiting() < CAPACITY
                try:
                    pending = self.stage.submit(request.body, binary=request.binary, timeout_ms=timeout_ms)
                except QueueFull:
                    assert not room
                    continue
                assert room
                self.requests.append(request)
                request.enter(pending, self.stage.clock)

        self.do(act)
        self.workers_go_on(then)

    @precondition(lambda self: sum(request.landing is not None for request in self.requests) < ARRIVING_MAX)
    @rule(size=sizes, timeout_ms=patience, binary=st.booleans(), then=st.integers(0, 2))
    def begin_body(self, size: int, timeout_ms: int, binary: bool, then: int) -> None:
        """And while it comes, others come."""
        request = self.new_request(size, timeout_ms, raises=False, binary=binary)
        room = self.waiting() < CAPACITY

        def act() -> None:
            try:
                request.landing = self.stage.land(len(request.body), binary=binary, timeout_ms=timeout_ms)
            except QueueFull:
                assert not room
            else:
                assert room
                self.requests.append(request)

        self.do(act)
        self.arrive([100] * then, 0, False, [])

    @rule(number=pick, part=st.floats(0.1, 1))
    def body_comes(self, number: int, part: float) -> None:
        request = self.some(number, lambda each: each.landing is not None)
        if request is None:
            return
        landing, end = request.landing, request.arrived + int(part * (len(request.body) - request.arrived) + 0.999)
        assert landing is not None

        def act() -> None:
            copy_into(landing, request.body[request.arrived : end])
            request.arrived = end
            if end == len(request.body):
                self.commit(request, landing)

        self.do(act)

    def commit(self, request: Request, landing: Landing) -> None:
        room = self.waiting() < CAPACITY
        request.landing = None
        request.arrive(self.now_ns)
        try:
            pending = self.stage.commit(landing)
        except QueueFull:
            assert not room
        else:
            assert room
            request.enter(pending, self.stage.clock)

    @rule(number=pick)
    def body_breaks_off(self, number: int) -> None:
        request = self.some(number, lambda each: each.landing is not None)
        if request is not None and request.landing is not None:
            self.do(request.landing.abandon)
            request.landing = None

    # ---- the lane and its workers

    @initialize(workers=st.integers(0, 3))
    def begin(self, workers: int) -> None:
        """Usually with a lane."""
        if workers:
            self.open_lane()
        for _ in range(workers - 1):
            self.attach()

    @precondition(lambda self: not self.opened)
    @rule()
    def open_lane(self) -> None:
        self.opened = True
        self.do(self.stage.open_lane)

    @precondition(lambda self: self.opened and len(self.workers) < WORKERS_MAX)
    @rule()
    def attach(self) -> None:
        def act() -> None:
            worker = self.stage.attach()
            worker.reply = lambda body: (
                PredictionFailed("no") if self.request_of(body).raises else Reply(b"answer to " + body)
            )

        self.do(act)

    @precondition(lambda self: self.workers)
    @rule(rounds=rounds)
    def workers_go_on(self, rounds: list[set[int]]) -> None:
        """In every round, some finish what they run or begin with the next."""
        for numbers in rounds:
            for worker in [each for number, each in enumerate(self.workers) if number in numbers]:
                if worker.worker_id not in self.stage.workers:
                    continue  # it was on its way out
                if worker.running:
                    self.do(worker.finish)
                    self.bury()
                else:
                    self.start(worker)

    def start(self, worker: "DirectedWorker") -> None:
        def act() -> None:
            if not worker.start():
                return
            ids = worker.running_ids()
            for request in self.requests:
                if request.waits and request.pending is not None and request.pending.row_id in ids:
                    request.taken_by = worker.worker_id
            for row in worker.wanted:
                request = self.request_of(worker.bodies[row])
                assert worker.bodies[row] == request.body
                assert request.waits, "nobody waits for what is computed"
                assert request.worker is None, "it was begun before"
                request.worker, request.begun_ns = worker.worker_id, self.now_ns

        self.do(act)

    @precondition(lambda self: any(worker.running for worker in self.workers))
    @rule(number=pick)
    def finish(self, number: int) -> None:
        self.do(self.busy(number).finish)
        self.bury()

    @precondition(lambda self: not self.typed and any(worker.running for worker in self.workers))
    @rule(number=pick, rows=st.sets(st.integers(0, ROWS - 1), min_size=1), size=st.sampled_from([1, 100]))
    def stream(self, number: int, rows: set[int], size: int) -> None:
        worker = self.busy(number)
        part = bytes([number]) * size
        to = {row: part for row in rows if row in worker.wanted}
        requests = [self.request_of(worker.bodies[row]) for row in to]

        def act() -> None:
            if to and worker.stream(to):
                for request in requests:
                    if request.waits or request.streamed:
                        request.streamed += part
                        request.deadline_ns = 0

        self.do(act)

    @precondition(lambda self: self.workers)
    @rule(number=pick, noticed=st.booleans(), chance=rarely)
    def die(self, number: int, noticed: bool, chance: bool) -> None:
        if not chance:
            return
        worker = self.worker(number)
        self.dead[worker.worker_id] = worker.given_ids()
        self.do(lambda: self.stage.kill(worker, noticed=False))
        if noticed:
            self.notice_death(len(self.dead) - 1)

    @precondition(lambda self: self.dead)
    @rule(number=pick)
    def notice_death(self, number: int) -> None:
        worker_id = list(self.dead)[number % len(self.dead)]
        self.buried.add(worker_id)
        del self.dead[worker_id]
        self.do(lambda: self.stage.dispatcher.worker_gone(worker_id, WorkerLost("it died")))

    @precondition(lambda self: self.workers)
    @rule(number=pick, chance=rarely)
    def detach(self, number: int, chance: bool) -> None:
        worker_id = self.worker(number).worker_id
        if chance and worker_id not in self.leaving:
            self.leaving.add(worker_id)
            self.do(lambda: self.stage.dispatcher.detach(worker_id, lambda: self.detached.append(worker_id)))
            self.bury()

    def bury(self) -> None:
        """A worker that was detached is stopped."""
        for worker in self.workers:
            if worker.worker_id in self.detached and worker.running is None:
                self.do(lambda worker=worker: self.stage.kill(worker))  # type: ignore[misc]

    # ---- clients, and time

    @rule(seconds=st.sampled_from([0.05, 0.25, 0.7, 1.2]))
    def time_passes(self, seconds: float) -> None:
        self.do(lambda: self.stage.clock.pass_s(seconds))

    @rule(numbers=st.lists(pick, min_size=1, max_size=4))
    def clients_leave(self, numbers: list[int]) -> None:
        for number in numbers:
            request = self.some(number, lambda each: each.waits)
            if request is not None and request.pending is not None:
                request.left = True
                self.do(request.pending.cancel)

    @rule(number=pick)
    def client_reads(self, number: int) -> None:
        request = self.some(number, lambda each: each.source is not None)
        if request is not None:
            self.do(lambda: request.read(self.buried, typed=self.typed))

    @rule(number=pick)
    def client_stops_reading(self, number: int) -> None:
        request = self.some(number, lambda each: each.source is not None)
        if request is not None and request.source is not None:
            self.do(request.stop_reading)

    @rule(chance=rarely)
    def nobody_may_wait(self, chance: bool) -> None:
        if not chance:
            return
        given = self.given()
        for request in self.requests:
            request.turned_away |= self.is_queued(request, given)

        def act() -> None:
            self.stage.dispatcher.set_serviceable(False)
            self.stage.dispatcher.set_serviceable(True)

        self.do(act)
        assert self.stage.dispatcher.waiting == 0

    # ---- what is always so

    def given(self) -> set[int]:
        """The rows that workers have, as their rings say."""
        rows = {row_id for worker in self.workers for row_id in worker.given_ids()}
        return rows.union(*self.dead.values())

    def is_queued(self, request: Request, given: set[int]) -> bool:
        return request.waits and request.pending is not None and request.pending.row_id not in given

    def waiting(self) -> int:
        given = self.given()
        return sum(self.is_queued(request, given) for request in self.requests)

    @invariant()
    def the_waiting_are_counted(self) -> None:
        assert self.stage.dispatcher.waiting == self.waiting()

    @invariant()
    def every_slab_is_in_one_place(self) -> None:
        if not self.opened:
            return
        assert self.stage.slabs() == list(range(SLABS))
        rows: Counter[Fill] = Counter()
        for pending in self.stage.pendings:
            if pending.fill is not None and pending.state is not State.OVER:
                assert pending.fill.rows[pending.row] is pending
                rows[pending.fill] += 1
        held = Counter(each.fill for each in self.requests if isinstance(each.source, Held))
        for fill in self.stage.fills:
            if fill.live < 0:
                assert not rows[fill]  # what is held lies beside the slab, as some of it may below
            else:
                assert rows[fill] <= fill.live <= rows[fill] + held[fill]

    @invariant()
    def slow_clients_leave_a_slab_to_the_others(self) -> None:
        arriving = [each.fill for each in self.stage.pendings if each.state is State.RECEIVING]
        leaving = [each.fill for each in self.requests if isinstance(each.source, Held)]
        kept = {fill for fill in (*arriving, *leaving) if fill is not None and fill.live > 0}
        assert len(kept) < SLABS

    @invariant()
    def every_chunk_is_paid_or_on_its_way(self) -> None:
        for worker in self.workers:
            state = self.stage.dispatcher._links.get(worker.worker_id)
            if state is not None:
                assert worker.collect_credits() + len(state.frames) == CHUNK_CREDITS
                assert not state.frames or any(isinstance(each.source, ReplyStream) for each in self.requests)

    @invariant()
    def nobody_waits_for_an_idle_worker(self) -> None:
        links = self.stage.dispatcher._links
        idle = [each for each in self.workers if not each.given() and links[each.worker_id].on_detached is None]
        if idle and not self.stage.dispatcher._queue._policy.fill and self.waiting():
            waiting = [each.pending.state for each in self.requests if each.waits and each.pending is not None]
            assert State.WAITING not in waiting
            assert self.stage.free() == 0

    @invariant()
    def every_outcome_is_due(self) -> None:
        for request in self.requests:
            if request.pending is None:
                continue
            assert request.outcomes == request.pending.done()
            if request.waits:
                assert not request.must_be_over(self.now_ns)
            elif request.pending.cancelled():
                assert request.left
            elif (error := request.pending.exception()) is not None:
                assert request.deserves(error, self.buried)
            else:
                self.check_answer(request, request.pending.result())
        assert self.stage.dispatcher.mismatched_replies == 0
        assert self.raised == []

    def check_answer(self, request: Request, answer: Answer) -> None:
        assert request.worker is not None
        if answer.source is None:
            assert answer.body == request.answer(typed=self.typed)
            assert not request.raises
            return
        assert isinstance(answer.source, ReplyStream) == bool(request.streamed)

    # ---- the end

    def teardown(self) -> None:
        """A fresh worker answers all that is left; then nothing waits and every slab is free."""
        stage = self.stage

        async def end() -> None:
            for request in self.requests:
                if request.landing is not None:
                    request.landing.abandon()
            for worker in self.workers:
                self.buried.add(worker.worker_id)
                stage.kill(worker)
            for worker_id in self.dead:
                self.buried.add(worker_id)
                stage.dispatcher.worker_gone(worker_id, WorkerLost("it died"))
            self.dead.clear()
            await stage.settle()

        try:
            if not self.opened:
                self.open_lane()
            self.runner.run(end())
            self.attach()
            (worker,) = self.workers
            for _ in range(2 * len(self.requests) + 10):
                self.start(worker)
                self.time_passes(0.05)  # a batch may wait to be filled
                if worker.running:
                    self.do(worker.finish)
            self.every_outcome_is_due()
            for request in self.requests:
                while request.source is not None:
                    self.do(lambda request=request: request.read(self.buried, typed=self.typed))  # type: ignore[misc]
            assert all(request.outcomes == 1 for request in self.requests if request.pending is not None)
            assert len(self.detached) == len(self.leaving)
            assert (stage.dispatcher.waiting, stage.free()) == (0, SLABS)
            self.every_slab_is_in_one_place()
        finally:
            self.do(stage.clear)
            self.runner.close()


@pytest.mark.parametrize(("typed", "fill_ns", "rules"), KINDS)
def test_whatever_happens_each_request_has_one_outcome_of_its_own(
    new_stage: NewStage, monkeypatch: pytest.MonkeyPatch, typed: bool, fill_ns: int, rules: Scheduling | None
) -> None:
    """With thresholds so low that every way through the server is a way for small bodies."""
    monkeypatch.setattr("ringserve.server.intake.LANDED_BYTES_MIN", 20)
    monkeypatch.setattr("ringserve.server.replies.DIRECT_BYTES_MIN", 20)
    monkeypatch.setattr("ringserve.server.delivery.DIRECT_BYTES_MIN", 20)
    monkeypatch.setattr("ringserve.server.replies.WINDOWED_BYTES_MIN", 5000)
    run_state_machine_as_test(
        lambda: DispatchMachine(new_stage, typed=typed, fill_ns=fill_ns, rules=rules),  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=40 if rules is None else 20, stateful_step_count=40, suppress_health_check=list(HealthCheck)
        ),
    )

"""The sequences of a version with all that has a part in them: the supervisor's table, two front ends, workers, and control sockets on
which messages take their time. In any order of requests, answers, deaths and departures a sequence has one worker as long as it
lives, its requests are executed in order and one at a time, every limit holds, and everybody is answered once."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

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
from ringserve.protocol.errors import NoWorker, QueueFull, RingServeError, SequenceRejected, WorkerLost
from ringserve.server.control import SequenceRules, SequencesSaid, SequencesTold
from ringserve.server.inflight import Batch, LinkState
from ringserve.server.repository.modes import SequenceBatching
from ringserve.server.sequences.dispatcher import END_S_MAX, SequenceDispatcher, pass_on
from ringserve.server.sequences.owner import Sequences
from ringserve.server.sequences.waiting import SequencePending

if TYPE_CHECKING:
    from tests.server.conftest import DirectedWorker, Stage

KEY, FRONT_ENDS, IDS = 7, 2, "abcd"
SEQUENCES_MAX, WAITING_MAX, WORKERS_MIN, WORKERS_MAX = 3, 2, 2, 3
ROWS, SLABS, CAPACITY = 3, 4, 6
IDLE_S, LIFE_S = 1.0, 5.0
ID, END = "ts_request_sequence_id", "ts_request_sequence_end"

pick = st.integers(0, 99)
rarely = st.sampled_from([False, False, False, True])


class Process:
    """A worker: one after another it executes the batches of its front ends, which have a lane each."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.lanes: dict[int, DirectedWorker] = {}
        self.running: int | None = None
        self.alive = True
        self._turn = 0

    def next_lane(self) -> int | None:
        """Begin with a batch of the front end whose turn it is."""
        for offset in range(FRONT_ENDS):
            index = (self._turn + offset) % FRONT_ENDS
            if index in self.lanes and self.lanes[index].start():
                self._turn, self.running = index + 1, index
                return index
        return None


class Asked:
    """One request, from its client's side."""

    def __init__(self, number: int, front_end: int, sequence_id: str, *, last: bool, ended_by_model: bool) -> None:
        self.body = number.to_bytes(4, "little")
        self.number, self.front_end, self.sequence_id = number, front_end, sequence_id
        self.last, self.ended_by_model = last, ended_by_model
        self.pending: SequencePending | None = None
        self.outcomes = 0
        self.executed_by: Process | None = None
        self.finished_ns = 0
        self.lost = False  # with its connection


class Machine(RuleBasedStateMachine):
    """Everything moves by a rule: also each message, once it is its turn on its way."""

    def __init__(self, new_stage: Callable[..., "Stage"], *, life: bool) -> None:
        super().__init__()
        self.new_stage = new_stage
        self.runner = asyncio.Runner()
        self.raised: list[Any] = []
        self.runner.get_loop().set_exception_handler(lambda loop, context: self.raised.append(context))
        self.asked: list[Asked] = []
        self.up: list[deque[SequencesSaid]] = [deque() for _ in range(FRONT_ENDS)]
        self.down: list[deque[Any]] = [deque() for _ in range(FRONT_ENDS)]
        self.attached: list[set[str]] = [set() for _ in range(FRONT_ENDS)]
        self.processes: dict[str, Process] = {}
        self.unnoticed: list[Process] = []  # dead, and the supervisor does not know
        self.worker_of: dict[int, str] = {}  # a sequence's number -> the worker that it was ever sent to
        self.executed: dict[tuple[int, int], int] = {}  # (number, front end) -> the last request executed of it
        self.made = 0
        self.stages: list[Stage] = []
        config = SimpleNamespace(
            sequences=SequenceBatching(int(IDLE_S * 1000), int(LIFE_S * 1000) * life, WAITING_MAX, SEQUENCES_MAX),
            scheduling=None,
        )
        self.version: Any = SimpleNamespace(key=KEY, min_workers=WORKERS_MIN, unpacked=SimpleNamespace(config=config))

        async def build() -> None:
            self.sequences = Sequences(lambda: self)
            self.sequences.add(self.version)
            self.stages = [self.front_end(index) for index in range(FRONT_ENDS)]

        self.runner.run(build())
        self.table = self.sequences._tables[KEY]

    def front_end(self, index: int) -> "Stage":
        rules = SequenceRules(int(IDLE_S * 1000), WAITING_MAX)
        stage = self.new_stage(
            rows=ROWS,
            slabs=SLABS,
            capacity=CAPACITY,
            front_ends=FRONT_ENDS,
            make=lambda label, policy, limits: SequenceDispatcher(KEY, label, policy, limits, rules),
        )
        dispatcher = cast(SequenceDispatcher, stage.dispatcher)
        dispatcher.tell = self.up[index].append
        send = dispatcher._send

        def watched(batch: Batch, state: LinkState) -> None:
            self.is_sent(batch, state.worker_id)
            send(batch, state)

        cast(Any, dispatcher)._send = watched
        return stage

    def do(self, action: Callable[[], object]) -> None:
        async def step() -> None:
            action()
            for stage in self.stages:
                await stage.settle()

        self.runner.run(step())

    # ---- what the supervisor's fleet does

    def tell(self, front_end: int, message: SequencesTold) -> None:
        self.down[front_end].append(message)

    def reachable(self, front_end: int, key: int) -> Collection[str]:
        return self.attached[front_end]

    def attach(self, index: int, worker_id: str) -> None:
        self.attached[index].add(worker_id)
        self.down[index].append(("attach", worker_id))

    # ---- what a batch may be

    def is_sent(self, batch: Batch, worker_id: str) -> None:
        """A sequence that is not closed, once, to its worker, or to nobody: its worker is dead."""
        numbers = [each.sequence.number for each in batch.rows if isinstance(each, SequencePending)]
        assert len(set(numbers)) == len(numbers) > 0
        for number in numbers:
            assert self.worker_of.setdefault(number, worker_id) == worker_id
            process = self.processes.get(worker_id)
            if process is not None and process.alive:
                living = self.table._by_number[number]
                assert living.worker_id == worker_id

    # ---- clients

    @rule(
        front_end=st.integers(0, FRONT_ENDS - 1),
        ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=4),
        last=rarely,
        by_model=rarely,
    )
    def ask(self, front_end: int, ids: list[str], last: bool, by_model: bool) -> None:
        def act() -> None:
            for sequence_id in ids:
                self.ask_one(Asked(len(self.asked), front_end, sequence_id, last=last, ended_by_model=by_model))

        self.do(act)

    def ask_one(self, asked: Asked) -> None:
        stage = self.stages[asked.front_end]
        headers = {ID: asked.sequence_id, **({END: "True"} if asked.last else {})}
        try:
            pending = stage.submit(asked.body, headers)
        except QueueFull:
            assert stage.dispatcher.waiting == CAPACITY
            return
        except SequenceRejected as error:
            queue = cast(Any, stage.dispatcher)._sequences
            sequence = queue._sequences[asked.sequence_id]
            assert sequence.ending or len(sequence.waiting) == WAITING_MAX, error
            return
        asked.pending = cast(SequencePending, pending)
        self.asked.append(asked)

        def over(future: "asyncio.Future[Any]") -> None:
            asked.outcomes += 1
            self.is_answered(asked)

        pending.add_done_callback(over)

    def is_answered(self, asked: Asked) -> None:
        """Who hears that the sequence has ended may begin the next one: no front end has anything of the old one."""
        pending, process = asked.pending, asked.executed_by
        assert pending is not None
        if (
            not (asked.last or asked.ended_by_model)
            or asked.lost
            or pending.cancelled()
            or pending.exception() is not None
        ):
            return
        in_time = self.stages[0].clock.now_ns - asked.finished_ns < END_S_MAX * 1e9
        if in_time and process is not None and process.alive:
            for stage in self.stages:
                assert pending.sequence.number not in cast(Any, stage.dispatcher)._sequences._by_number
            assert pending.sequence.number not in self.table._by_number

    @rule(number=pick)
    def client_leaves(self, number: int) -> None:
        waiting = [each for each in self.asked if each.pending is not None and not each.pending.done()]
        if waiting:
            asked = waiting[number % len(waiting)]
            asked.lost = True
            assert asked.pending is not None
            self.do(asked.pending.cancel)

    # ---- messages

    @rule(front_end=st.integers(0, FRONT_ENDS - 1), count=st.integers(1, 4))
    def supervisor_hears(self, front_end: int, count: int) -> None:
        def act() -> None:
            for _ in range(min(count, len(self.up[front_end]))):
                self.sequences.heard(front_end, self.up[front_end].popleft().words)

        self.do(act)

    @rule(front_end=st.integers(0, FRONT_ENDS - 1), count=st.integers(1, 4))
    def front_end_hears(self, front_end: int, count: int) -> None:
        for _ in range(min(count, len(self.down[front_end]))):
            self.do(lambda: self.obey(front_end, self.down[front_end].popleft()))

    def obey(self, index: int, message: Any) -> None:
        stage = self.stages[index]
        if isinstance(message, SequencesTold):
            pass_on(message, {KEY: stage.dispatcher}, self.up[index].append)
            return
        what, worker_id = message
        if what == "attach":
            stage._number = int(worker_id) - 1
            lane = stage.attach()
            lane.reply = self.reply
            process = self.processes.get(worker_id)
            if process is None or not process.alive:
                stage.kill(lane, noticed=False)
            else:
                process.lanes[index] = lane
        else:
            stage.dispatcher.worker_gone(worker_id, WorkerLost("It died."))

    def reply(self, body: bytes) -> Reply:
        asked = self.asked_by(body)
        return Reply(body, headers={END: asked.sequence_id} if asked.ended_by_model else {})

    def asked_by(self, body: bytes) -> Asked:
        return self.asked[int.from_bytes(body, "little")]

    # ---- workers

    @initialize(workers=st.integers(0, 2))
    def begin(self, workers: int) -> None:
        for _ in range(workers):
            self.start_worker()

    @precondition(lambda self: len(self.processes) < WORKERS_MAX)
    @rule()
    def start_worker(self) -> None:
        self.made += 1
        process = self.processes[str(self.made)] = Process(str(self.made))

        def act() -> None:
            for index in range(FRONT_ENDS):
                self.attach(index, process.worker_id)
            self.sequences.worker_ready(self.version, process.worker_id)

        self.do(act)

    def living(self) -> list[Process]:
        return [each for each in self.processes.values() if each.alive]

    @precondition(lambda self: self.living())
    @rule(number=pick, steps=st.integers(1, 4))
    def work(self, number: int, steps: int) -> None:
        process = self.living()[number % len(self.living())]
        for _ in range(steps):
            if process.running is None:
                self.do(lambda: self.begin_batch(process))
            else:
                self.do(lambda: self.finish_batch(process))

    def begin_batch(self, process: Process) -> None:
        index = process.next_lane()
        if index is None:
            return
        lane = process.lanes[index]
        for row in lane.wanted:
            asked = self.asked_by(lane.bodies[row])
            assert asked.executed_by is None
            assert asked.front_end == index
            assert asked.pending is not None
            asked.executed_by = process
            number = asked.pending.sequence.number
            assert self.worker_of[number] == process.worker_id
            assert self.executed.get((number, index), -1) < asked.number
            self.executed[number, index] = asked.number

    def finish_batch(self, process: Process) -> None:
        assert process.running is not None
        lane, process.running = process.lanes[process.running], None
        for row in lane.wanted:
            self.asked_by(lane.bodies[row]).finished_ns = self.stages[0].clock.now_ns
        lane.finish()

    @precondition(lambda self: self.living())
    @rule(number=pick, chance=rarely)
    def worker_dies(self, number: int, chance: bool) -> None:
        if not chance:
            return
        process = self.living()[number % len(self.living())]
        process.alive = False
        self.unnoticed.append(process)

        def act() -> None:
            for index, lane in process.lanes.items():
                self.stages[index].kill(lane, noticed=False)

        self.do(act)

    @precondition(lambda self: self.unnoticed)
    @rule()
    def death_is_noticed(self) -> None:
        process = self.unnoticed.pop()
        del self.processes[process.worker_id]

        def act() -> None:
            for index in range(FRONT_ENDS):
                if process.worker_id in self.attached[index]:
                    self.attached[index].discard(process.worker_id)
                    self.down[index].append(("gone", process.worker_id))
            self.sequences.worker_gone(self.version, process.worker_id)

        self.do(act)

    @precondition(lambda self: self.living())
    @rule(number=pick, evicted=st.booleans(), chance=rarely)
    def worker_is_to_leave(self, number: int, evicted: bool, chance: bool) -> None:
        worker_id = self.living()[number % len(self.living())].worker_id

        def act() -> None:
            self.table.worker_leaving(worker_id)
            if evicted:
                self.table.evict(worker_id)
            self.sequences._deliver()

        if chance:
            self.do(act)

    # ---- front ends, and time

    @rule(index=st.integers(0, FRONT_ENDS - 1), chance=rarely)
    def front_end_dies(self, index: int, chance: bool) -> None:
        if not chance:
            return
        for asked in self.asked:
            asked.lost = asked.lost or asked.front_end == index

        def act() -> None:
            for process in self.processes.values():
                process.lanes.pop(index, None)
                if process.running == index:
                    process.running = None
            self.clear(self.stages[index])
            self.up[index].clear()
            self.down[index].clear()
            self.attached[index].clear()
            self.stages[index] = self.front_end(index)
            self.sequences.front_end_gone(index)
            self.down[index].clear()
            for process in self.processes.values():
                if process not in self.unnoticed or process.alive:
                    self.attach(index, process.worker_id)

        self.do(act)

    def clear(self, stage: "Stage") -> None:
        """Also of links with workers whose end it was not told of."""
        stage.clear()
        for state in list(stage.dispatcher._links.values()):
            stage.dispatcher._drop(state)

    @rule(seconds=st.sampled_from([0.05, 0.4, 1.1]))
    def time_passes(self, seconds: float) -> None:
        self.do(lambda: self.stages[0].clock.pass_s(seconds))

    # ---- what is always so

    @invariant()
    def the_limits_hold(self) -> None:
        assert len(self.table) <= SEQUENCES_MAX
        for process in self.processes.values():
            assert self.table.count_on(process.worker_id) <= self.table.per_worker_max
        for stage in self.stages:
            for sequence in cast(Any, stage.dispatcher)._sequences._sequences.values():
                assert len(sequence.waiting) <= WAITING_MAX

    @invariant()
    def whoever_waits_is_counted(self) -> None:
        for stage in self.stages:
            sequences = cast(Any, stage.dispatcher)._sequences._sequences.values()
            assert stage.dispatcher.waiting == sum(len(each.waiting) for each in sequences)

    @invariant()
    def nobody_is_answered_twice_or_wrongly(self) -> None:
        for asked in self.asked:
            pending = asked.pending
            assert pending is not None
            assert asked.outcomes == pending.done()
            if not pending.done() or pending.cancelled() or asked.lost:
                continue
            error = pending.exception()
            if error is None:
                assert pending.result().body == asked.body
                assert asked.executed_by is not None
            else:
                assert isinstance(error, WorkerLost | NoWorker | RingServeError)
                assert isinstance(error, WorkerLost) or asked.executed_by is None
        assert self.raised == []

    # ---- the end

    def teardown(self) -> None:
        """When all messages have come and workers have worked, everybody is answered; after a silence nothing is left."""
        try:
            for asked in self.asked:
                if asked.pending is not None and asked.lost:
                    self.do(asked.pending.cancel)
            while self.unnoticed:
                self.death_is_noticed()
            while len(self.living()) < WORKERS_MIN:  # as many as have a place for every sequence
                self.start_worker()
            self.do(self.everybody_stays)
            for _ in range(len(self.asked) + 20):
                self.everything_moves()
            self.nobody_is_answered_twice_or_wrongly()
            assert all(each.pending is not None and each.pending.done() for each in self.asked)
            self.do(lambda: self.stages[0].clock.pass_s(IDLE_S + LIFE_S + END_S_MAX))
            for _ in range(10):
                self.everything_moves()
            for stage in self.stages:
                assert len(cast(Any, stage.dispatcher)._sequences) == 0
                assert cast(Any, stage.dispatcher)._sequences._enders == {}
                assert stage.dispatcher.idle
                assert stage.free() == SLABS
            assert len(self.table) == 0
            assert self.table.due_ns == 0
            assert self.raised == []
        finally:
            self.do(lambda: deque(map(self.clear, self.stages)))
            self.runner.close()

    def everybody_stays(self) -> None:
        for process in self.living():
            self.sequences.worker_ready(self.version, process.worker_id)

    def everything_moves(self) -> None:
        for index in range(FRONT_ENDS):
            self.supervisor_hears(index, 100)
            self.front_end_hears(index, 100)
        for process in self.living():
            for _ in range(2):
                if process.running is None:
                    self.do(lambda process=process: self.begin_batch(process))  # type: ignore[misc]
                else:
                    self.do(lambda process=process: self.finish_batch(process))  # type: ignore[misc]


@pytest.mark.parametrize("life", [False, True], ids=["for-ever", "bounded"])
def test_whatever_happens_a_sequence_has_one_worker_and_everybody_one_answer(
    monkeypatch: pytest.MonkeyPatch, new_stage: Callable[..., "Stage"], clock: Any, *, life: bool
) -> None:
    monkeypatch.setattr("ringserve.server.sequences.owner.time", clock)
    run_state_machine_as_test(
        cast(Any, lambda: Machine(new_stage, life=life)),
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

"""Requests whose time is over are told so, wherever they are, and no worker spends any of its own on them."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import DeadlineExceeded, RingServeError
from ringserve.server.deadlines import SWEEP_MIN, Deadlines
from ringserve.server.inflight import Pending, State
from ringserve.shm.layout import ROW_CANCELLED, ROW_DEADLINE_NS, ROW_FLAGS

if TYPE_CHECKING:
    from tests.server.conftest import Clock, Stage

Play = Callable[..., None]
OutcomeOf = Callable[..., Any]


class Watched:
    """Deadlines on a clock, and requests that fail when they strike."""

    def __init__(self, clock: "Clock") -> None:
        self.clock = clock
        self.clock.now_ns = 10**15
        self.clock.timers.clear()
        self.loop = asyncio.new_event_loop()
        timers: Any = self.loop
        timers.call_later = clock.call_later
        self.struck: list[tuple[Pending, int]] = []
        self.deadlines = Deadlines(self.loop, self.strike)

    def strike(self, pending: Pending) -> None:
        self.struck.append((pending, self.clock.now_ns))
        pending.set_exception(DeadlineExceeded("over"))
        pending.exception()

    def request(self, *in_s: float) -> Pending:
        pending = Pending.begin(self.loop, lambda pending: None)
        for each in in_s:
            self.deadlines.watch(pending, self.clock.now_ns + round(each * 1e9))
        return pending


@pytest.fixture
def new_watched(clock: "Clock") -> Callable[[], Watched]:
    return lambda: Watched(clock)


NewWatched = Callable[[], Watched]


def test_requests_are_struck_in_the_order_of_their_deadlines(new_watched: NewWatched) -> None:
    watched = new_watched()
    late, soon, sooner = watched.request(3), watched.request(2), watched.request(1)
    watched.clock.pass_s(0.999)
    assert watched.struck == []
    watched.clock.pass_s(0.1)
    assert [pending for pending, _ in watched.struck] == [sooner]
    watched.clock.pass_s(5)
    assert [pending for pending, _ in watched.struck] == [sooner, soon, late]
    watched.loop.close()


def test_the_first_of_two_deadlines_strikes_and_the_second_no_more(new_watched: NewWatched) -> None:
    watched = new_watched()
    pending = watched.request(2, 1)
    watched.clock.pass_s(10)
    assert [each for each, _ in watched.struck] == [pending]
    watched.loop.close()


def test_an_answered_request_is_not_struck(new_watched: NewWatched) -> None:
    watched = new_watched()
    watched.request(1).cancel()
    other = watched.request(2)
    watched.clock.pass_s(3)
    assert [pending for pending, _ in watched.struck] == [other]
    watched.loop.close()


def test_there_is_one_timer_at_most_and_none_when_there_is_nothing_to_wait_for(new_watched: NewWatched) -> None:
    watched = new_watched()
    for in_s in (3, 1, 2):
        watched.request(in_s)
        assert sum(not timer.cancelled for timer in watched.clock.timers) == 1
    watched.clock.pass_s(4)
    assert watched.clock.timers == []
    watched.request(1)
    watched.deadlines.close()
    watched.clock.pass_s(2)
    assert len(watched.struck) == 3
    watched.loop.close()


def test_answered_requests_do_not_pile_up(new_watched: NewWatched) -> None:
    """Most deadlines are far away and never reached."""
    watched = new_watched()
    for _ in range(5 * SWEEP_MIN):
        watched.request(1000).cancel()
    assert len(watched.deadlines._heap) <= SWEEP_MIN
    kept = [watched.request(1000) for _ in range(2 * SWEEP_MIN)]
    watched.clock.pass_s(1001)
    assert len(watched.struck) == len(kept)
    watched.loop.close()


def test_whoever_is_told_may_close_the_deadlines(new_watched: NewWatched) -> None:
    """The last request of a version that leaves."""
    watched = new_watched()
    watched.request(1)
    watched.request(1)
    watched.strike = lambda pending: watched.deadlines.close()  # type: ignore[method-assign]
    watched.deadlines._on_due = watched.strike
    watched.clock.pass_s(2)
    assert watched.clock.timers == []
    watched.loop.close()


def test_any_requests_are_struck_in_time_and_none_before(clock: "Clock") -> None:
    steps = st.lists(st.tuples(st.sampled_from(["watch", "answer", "pass"]), st.floats(0, 5)), max_size=30)

    @given(steps)
    def check(steps: list[tuple[str, float]]) -> None:
        watched = Watched(clock)
        due: dict[Pending, int] = {}
        for step, number in steps:
            if step == "watch":
                due[watched.request(number)] = clock.now_ns + round(number * 1e9)
            elif step == "answer" and due:
                list(due)[int(number) % len(due)].cancel()
            elif step == "pass":
                clock.pass_s(number)
                # The timer allows itself a millisecond: that of a loop which counts in those.
                for pending, at_ns in due.items():
                    assert pending.done() or at_ns + 1_000_000 > clock.now_ns
        assert all(due[pending] <= at_ns for pending, at_ns in watched.struck)
        assert len({id(pending) for pending, _ in watched.struck}) == len(watched.struck)
        watched.loop.close()

    check()


# ---- of requests


def expired(outcome: bytes | RingServeError) -> bool:
    return isinstance(outcome, DeadlineExceeded)


def test_a_queued_request_whose_time_is_over_leaves_its_place_at_once(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        pendings = [stage.submit(b"%d" % number) for number in range(3)]
        await stage.pass_s(1.1)
        assert all(expired(outcome_of(each)) for each in pendings)
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)
        worker = stage.attach()
        await stage.work()
        assert worker.batches == []

    play(scenario, queue_timeout_ms=1000)


def test_time_is_over_for_who_waits_for_a_slab_or_for_the_lane_too(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        early = [stage.submit(b"%d" % number) for number in range(2)]
        await stage.pass_s(0.6)
        stage.open_lane()
        later = [stage.submit(b"%d" % number) for number in range(4)]
        await stage.pass_s(0.5)
        assert all(expired(outcome_of(each)) for each in early)
        assert stage.dispatcher.waiting == 4
        await stage.pass_s(0.6)
        assert all(expired(outcome_of(each)) for each in later)
        assert (stage.dispatcher.waiting, stage.free()) == (0, 2)

    play(scenario, queue_timeout_ms=1000, rows=1, slabs=2, opened=False)


def test_what_a_busy_worker_has_not_begun_is_not_computed_after_its_time(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        first, second = stage.submit(b"first"), stage.submit(b"second")
        await stage.settle()
        assert worker.start()
        assert len(worker.given()) == 2
        await stage.pass_s(1.1)
        assert not first.done(), "it was taken up in time"
        assert expired(outcome_of(second))
        await stage.work()
        assert outcome_of(first) == b"answer to first"
        assert worker.batches == [[b"first"], []]
        assert stage.free() == 4

    play(scenario, queue_timeout_ms=1000, rows=1)


def test_a_worker_that_takes_a_row_too_late_does_not_compute_it(play: Play, outcome_of: OutcomeOf) -> None:
    """The front end has not noticed yet."""

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        late, patient = stage.submit(b"late", timeout_ms=100), stage.submit(b"patient", timeout_ms=200)
        await stage.settle()
        stage.clock.now_ns += 150_000_000
        assert worker.start()
        worker.finish()
        await stage.settle()
        assert worker.batches == [[b"patient"]]
        assert expired(outcome_of(late))
        assert outcome_of(patient) == b"answer to patient"

    play(scenario)


def test_a_running_request_whose_answer_is_late_is_told_and_its_row_flagged(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        late, patient = stage.submit(b"late", timeout_ms=100), stage.submit(b"patient")
        await stage.settle()
        assert worker.start()
        assert worker.slab.table[:2, ROW_FLAGS].tolist() == [0, 0]
        await stage.pass_s(0.2)
        assert expired(outcome_of(late))
        assert worker.slab.table[:2, ROW_FLAGS].tolist() == [ROW_CANCELLED, 0]
        assert stage.slabs() == [0, 1, 2, 3]
        assert stage.free() == 3, "the worker may still look at it"
        await stage.work()
        assert outcome_of(patient) == b"answer to patient"
        assert stage.free() == 4

    play(scenario)


@pytest.mark.parametrize(
    ("queue_ms", "request_ms", "header_ms", "due_ms"),
    [(0, 0, 0, 0), (300, 0, 0, 300), (0, 300, 0, 300), (0, 300, 100, 100), (0, 0, 100, 100), (50, 300, 100, 50)],
)
def test_a_row_says_when_no_worker_should_begin_with_it(
    play: Play, queue_ms: int, request_ms: int, header_ms: int, due_ms: int
) -> None:
    """The version's settings, and the client's own word in place of the second."""

    async def scenario(stage: "Stage") -> None:
        now_ns = stage.clock.now_ns
        pending = stage.submit(timeout_ms=header_ms)
        assert pending.fill is not None
        due_ns = int(pending.fill.slab.table[pending.row, ROW_DEADLINE_NS])
        assert due_ns == (now_ns + due_ms * 1_000_000 if due_ms else 0)

    play(scenario, queue_timeout_ms=queue_ms, request_timeout_ms=request_ms)


def test_a_body_that_arrives_slowly_begins_to_wait_when_it_is_there(
    play: Play, outcome_of: OutcomeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringserve.server.intake.LANDED_BYTES_MIN", 1)

    async def scenario(stage: "Stage") -> None:
        landing = stage.land(4)
        await stage.pass_s(5)
        pending = stage.commit(landing, b"slow")
        await stage.pass_s(0.9)
        assert not pending.done()
        await stage.pass_s(0.2)
        assert expired(outcome_of(pending))
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario, queue_timeout_ms=1000)


def test_a_worker_does_not_count_the_time_in_which_a_body_arrived(
    play: Play, outcome_of: OutcomeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringserve.server.intake.LANDED_BYTES_MIN", 1)

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        landing = stage.land(4)
        await stage.pass_s(5)
        pending = stage.commit(landing, b"slow")
        await stage.work()
        assert worker.batches == [[b"slow"]]
        assert outcome_of(pending) == b"answer to slow"

    play(scenario, queue_timeout_ms=1000)


def test_a_patience_that_ends_while_the_body_arrives_is_over_when_it_is_there(
    play: Play, outcome_of: OutcomeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringserve.server.intake.LANDED_BYTES_MIN", 1)

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        landing = stage.land(4, timeout_ms=100)
        await stage.pass_s(1)
        pending = stage.commit(landing, b"slow")
        await stage.pass_s(0.01)
        await stage.work()
        assert expired(outcome_of(pending))
        assert worker.batches in ([], [[]])
        assert stage.free() == 4

    play(scenario)


def test_what_comes_back_from_a_dead_worker_has_its_old_deadline(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        in_time, late = stage.submit(b"a", timeout_ms=1000), stage.submit(b"b", timeout_ms=100)
        await stage.pass_s(0.05)
        stage.kill(worker)
        assert stage.dispatcher.waiting == 2
        await stage.pass_s(0.1)
        assert stage.dispatcher.waiting == 1
        stage.attach()
        await stage.work()
        assert expired(outcome_of(late))
        assert outcome_of(in_time) == b"answer to a"

    play(scenario)


def test_a_row_that_expired_with_a_worker_does_not_come_back_from_its_death(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        pendings = [stage.submit(b"a", timeout_ms=100), stage.submit(b"b")]
        await stage.pass_s(0.2)
        assert expired(outcome_of(pendings[0]))
        stage.kill(worker)
        assert stage.dispatcher.waiting == 1
        other = stage.attach()
        await stage.work()
        assert other.batches == [[b"b"]]
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario)


def test_a_streamed_answer_that_has_begun_may_take_its_time(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        pending = stage.submit(b"x", timeout_ms=100)
        await stage.settle()
        assert worker.start()
        assert worker.stream({0: b"begun, "})
        await stage.settle()
        source = pending.result().source
        assert source is not None
        await stage.pass_s(10)
        assert worker.slab.table[0, ROW_FLAGS] == 0
        worker.finish()
        await stage.settle()
        assert [source.next(), source.next(), source.ended] == [b"begun, ", b"answer to x", True]
        assert not source.broken
        assert stage.free() == 4

    play(scenario)


def test_the_last_request_of_a_leaving_version_may_expire(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        closed: list[bool] = []
        stage.attach()
        pending = stage.submit(b"waits to be joined", timeout_ms=100)
        await stage.settle()
        assert pending.state is State.WAITING
        stage.dispatcher.close(lambda: closed.append(True))
        await stage.pass_s(0.2)
        assert expired(outcome_of(pending))
        assert closed == [True]

    play(scenario, fill_ns=10**12)

"""Requests with priorities, policies, preferred sizes and a delay, from their arrival to the workers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ringserve.protocol.errors import BadRequest, DeadlineExceeded, NoWorker, QueueFull, QueueTimeout, WorkerLost
from ringserve.protocol.request import InferRequest, Tensor, TensorRequest
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from ringserve.server.inflight import Pending
from ringserve.server.landing import BufferLanding, SlabLanding
from ringserve.server.scheduling.dispatcher import ScheduledDispatcher
from ringserve.server.scheduling.rules import QueuePolicy, Scheduling

if TYPE_CHECKING:
    from tests.server.conftest import DirectedWorker, Stage

Play = Callable[..., None]
TYPED = Signature((TensorSpec("x", "uint8", (2,)),), (TensorSpec("y", "uint8", (2,)),))
FRAMED = Signature((TensorSpec("x", "uint8", (ANY,)),), (TensorSpec("y", "uint8", (ANY,)),))
ROWS = 4
LEVELS = {"priority_levels": 2, "default_priority_level": 2}


@pytest.fixture
def perform(play: Play) -> Callable[..., None]:
    """As `play`, with a dispatcher by the rules that are given: dynamic batching, but for what is said."""

    def run(
        scenario: Any, signature: Signature = TYPED, *, options: dict[str, Any] | None = None, **rules: Any
    ) -> None:
        scheduling = Scheduling(ROWS, **{"batches": True, **rules})

        def make(label: str, policy: Any, limits: Any) -> ScheduledDispatcher:
            return ScheduledDispatcher(label, policy, limits, scheduling)

        play(scenario, make=make, signature=signature, rows=ROWS, **(options or {}))

    return run


def submit(stage: "Stage", body: bytes, *, items: int = 1, **said: Any) -> Pending:
    """A request of so many items of the same bytes."""
    tensor = Tensor("x", "UINT8", (items, len(body)), body * items)
    request = InferRequest("id", "", {}, b"", tensors=TensorRequest((tensor,), **said))
    pending = stage.dispatcher.submit(request)
    stage.pendings.append(pending)
    return pending


def error_of(pending: Pending) -> tuple[type[BaseException], str]:
    error = pending.exception()
    assert error is not None
    return type(error), str(error)


def bodies(worker: "DirectedWorker") -> list[list[bytes]]:
    return [[body[:1] for body in batch] for batch in worker.batches]


async def with_a_busy_worker(stage: "Stage") -> "DirectedWorker":
    """It computes `**`, and will until it is told to finish."""
    worker = stage.attach()
    submit(stage, b"**")
    await stage.settle()
    assert worker.start()
    return worker


def test_a_higher_priority_overtakes_what_waits(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = await with_a_busy_worker(stage)
        for name, priority in ((b"aa", 2), (b"bb", 0), (b"cc", 1), (b"dd", 77), (b"ee", 1)):
            submit(stage, name, priority=priority)
        await stage.work()
        assert bodies(worker) == [[b"*"], [b"c", b"e", b"a", b"b"], [b"d"]]
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    perform(scenario, **LEVELS)


def test_a_worker_that_computes_is_given_nothing_that_might_be_overtaken(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = await with_a_busy_worker(stage)
        for _ in range(ROWS):
            submit(stage, b"aa")
        await stage.settle()
        assert len(worker.given()) == 1

    perform(scenario, **LEVELS)


def test_a_worker_that_computes_finds_the_next_full_batch_in_its_ring(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = await with_a_busy_worker(stage)
        submit(stage, b"aa")
        await stage.settle()
        assert len(worker.given()) == 1
        submit(stage, b"bb")
        await stage.settle()
        assert len(worker.given()) == 2
        await stage.work()
        assert bodies(worker) == [[b"*"], [b"a", b"b"]]

    perform(scenario, preferred_batch_sizes=(2,))


def test_without_dynamic_batching_requests_go_alone_with_all_their_rows(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        submit(stage, b"aa")
        submit(stage, b"bb", items=3)
        submit(stage, b"cc")
        await stage.work()
        assert bodies(worker) == [[b"a"], [b"b"] * 3, [b"c"]]

    perform(scenario, batches=False)


def test_a_request_of_several_rows_is_never_parted(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = await with_a_busy_worker(stage)
        answers = [submit(stage, b"aa", items=2), submit(stage, b"bb", items=3), submit(stage, b"cc")]
        await stage.work()
        assert bodies(worker) == [[b"*"], [b"a"] * 2, [b"b"] * 3 + [b"c"]]
        replies = [answer.result().tensors for answer in answers]
        assert [reply is not None and reply.outputs[0].shape for reply in replies] == [(2, 2), (3, 2), (1, 2)]

    perform(scenario, **LEVELS)


def test_a_cancelled_request_of_several_rows_leaves_nothing_behind(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = await with_a_busy_worker(stage)
        gone = submit(stage, b"aa", items=3)
        submit(stage, b"bb")
        assert stage.dispatcher.waiting == 4
        gone.cancel()
        assert stage.dispatcher.waiting == 1
        await stage.work()
        assert bodies(worker) == [[b"*"], [b"b"]]

    perform(scenario, **LEVELS)


def test_a_preferred_size_leaves_as_soon_as_it_is_there(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        submit(stage, b"aa")
        await stage.pass_s(0.05)
        assert not worker.given()
        submit(stage, b"bb")
        await stage.work()
        assert bodies(worker) == [[b"a", b"b"]]

    perform(scenario, preferred_batch_sizes=(2,), queue_delay_us_max=100_000)


def test_what_waited_for_company_leaves_when_the_delay_is_over(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        submit(stage, b"aa")
        await stage.pass_s(0.06)
        submit(stage, b"bb")
        await stage.pass_s(0.03)
        assert not worker.given()
        await stage.pass_s(0.011)
        await stage.work()
        assert bodies(worker) == [[b"a", b"b"]]

    perform(scenario, queue_delay_us_max=100_000)


def test_requests_of_other_shapes_are_not_put_together(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        for body in (b"aa", b"bb", b"ccc", b"dd"):
            submit(stage, body)
        worker = stage.attach()
        await stage.settle()
        assert [command.rows for command in worker.given()] == [2]

    perform(scenario, FRAMED, **LEVELS)


def test_the_items_of_requests_count_and_not_the_requests(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        for items in (2, 2, 1):
            submit(stage, b"aa", items=items)
        worker = stage.attach()
        await stage.settle()
        assert [command.rows for command in worker.given()] == [2]

    perform(scenario, FRAMED, **LEVELS)


def test_a_full_line_refuses_and_the_other_does_not(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        await with_a_busy_worker(stage)
        submit(stage, b"aa", items=2)
        with pytest.raises(QueueFull, match=r"^\[request id: id\] Exceeds maximum queue size$"):
            submit(stage, b"bb")
        submit(stage, b"cc", priority=1)
        assert stage.dispatcher.waiting == 3

    perform(scenario, **LEVELS, default_policy=QueuePolicy(queue_size_max=1), policies={1: QueuePolicy()})


def test_who_came_in_the_same_tick_as_a_free_worker_is_not_refused(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        submit(stage, b"aa")
        submit(stage, b"bb")
        await stage.work()
        assert bodies(worker) == [[b"a"], [b"b"]]

    perform(scenario, default_policy=QueuePolicy(queue_size_max=1))


def test_who_waits_too_long_is_refused_on_time(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = await with_a_busy_worker(stage)
        late, rows = submit(stage, b"aa"), submit(stage, b"bb", items=2)
        await stage.pass_s(0.099)
        assert not late.done()
        await stage.pass_s(0.003)
        assert [error_of(each) for each in (late, rows)] == [(QueueTimeout, "Request timeout expired")] * 2
        assert stage.dispatcher.waiting == 0
        await stage.work()
        assert bodies(worker) == [[b"*"]]

    perform(scenario, default_policy=QueuePolicy(timeout_us=100_000))


def test_who_is_behind_the_batch_of_another_front_end_still_waits(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()  # it never begins with what it is given
        late = submit(stage, b"aa", items=2)
        await stage.settle()
        assert len(worker.given()) == 1
        await stage.pass_s(0.102)
        assert error_of(late) == (QueueTimeout, "Request timeout expired")
        await stage.work()
        assert bodies(worker) == [[]]
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    perform(scenario, default_policy=QueuePolicy(timeout_us=100_000))


def test_who_has_left_for_a_worker_does_not_wait_any_more(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        answer = submit(stage, b"aa")
        await stage.settle()
        worker.start()
        await stage.pass_s(1)
        await stage.work()
        assert answer.result().tensors is not None

    perform(scenario, default_policy=QueuePolicy(timeout_us=100_000))


def test_a_timeout_of_the_request_counts_where_the_policy_lets_it(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        await with_a_busy_worker(stage)
        soon, never = submit(stage, b"aa", queue_timeout_us=10_000), submit(stage, b"bb")
        await stage.pass_s(0.02)
        assert error_of(soon) == (QueueTimeout, "Request timeout expired")
        assert not never.done()

    perform(scenario, default_policy=QueuePolicy(overridable=True))


def test_who_is_late_is_served_behind_the_others_where_the_policy_says_so(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = await with_a_busy_worker(stage)
        submit(stage, b"aa")
        await stage.pass_s(0.2)
        submit(stage, b"bb")
        submit(stage, b"cc")
        await stage.work()
        assert bodies(worker) == [[b"*"], [b"b", b"c", b"a"]]

    perform(scenario, default_policy=QueuePolicy(timeout_us=100_000, delays=True))


def test_the_deadline_of_the_client_is_another_matter(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        await with_a_busy_worker(stage)
        pending = submit(stage, b"aa")
        await stage.pass_s(0.06)
        assert error_of(pending)[0] is DeadlineExceeded

    options = {"request_timeout_ms": 50}
    perform(scenario, options=options, default_policy=QueuePolicy(timeout_us=100_000))


def test_a_batch_that_its_worker_never_began_goes_to_the_next_one(perform: Play, outcome_of: Any) -> None:
    async def scenario(stage: "Stage") -> None:
        first = stage.attach()
        answer = submit(stage, b"aa", items=2)
        await stage.settle()
        assert len(first.given()) == 1
        stage.kill(first)
        second = stage.attach()
        submit(stage, b"bb", priority=1)
        await stage.work()
        assert bodies(second) == [[b"a"] * 2, [b"b"]]
        assert answer.result().tensors is not None
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    perform(scenario, **LEVELS)


def test_more_than_there_are_slabs_waits_for_one(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        workers = [stage.attach() for _ in range(3)]
        for body in (b"aa", b"bb", b"cc", b"dd"):
            submit(stage, body)
        await stage.work()
        assert sorted(body for worker in workers for batch in bodies(worker) for body in batch) == [
            b"a",
            b"b",
            b"c",
            b"d",
        ]

    perform(scenario, batches=False, options={"slabs": 2})


def test_without_a_worker_everybody_who_waits_is_answered(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        await with_a_busy_worker(stage)
        waiting = [submit(stage, b"aa", items=2), submit(stage, b"bb", priority=1)]
        stage.dispatcher.set_serviceable(False)
        assert [error_of(each)[0] for each in waiting] == [NoWorker] * 2
        assert stage.dispatcher.waiting == 0

    perform(scenario, **LEVELS)


def test_what_came_before_the_lane_waits_in_its_line(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        bad, good = stage.submit(b"a"), stage.submit(b"bb")
        stage.open_lane()
        assert error_of(bad)[0] is BadRequest
        worker = stage.attach()
        await stage.work()
        assert good.result() is not None
        assert bodies(worker) == [[b"b"]]

    perform(scenario, options={"opened": False}, **LEVELS)


def test_a_closed_dispatcher_says_so_when_the_last_one_is_refused_for_time(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = await with_a_busy_worker(stage)
        submit(stage, b"aa")
        closed: list[bool] = []
        worker.finish()
        stage.dispatcher.close(lambda: closed.append(True))
        await stage.work_until(closed)

    perform(scenario, default_policy=QueuePolicy(timeout_us=100_000))


def test_answers_come_in_the_order_of_the_requests_where_that_is_wanted(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        first, second = stage.attach(), stage.attach()
        early = submit(stage, b"aa")
        await stage.settle()
        late, gone = submit(stage, b"bb", items=2), submit(stage, b"cc")
        await stage.settle()
        assert (len(first.given()), len(second.given())) == (2, 1)
        second.work()
        await stage.settle()
        gone.cancel()
        assert not late.done()
        first.work()
        await stage.work()
        assert [each.result().tensors is not None for each in (early, late)] == [True, True]
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    perform(scenario, batches=False, preserve_ordering=True)


def test_a_failure_takes_its_turn_among_the_ordered_answers(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        first, second = stage.attach(), stage.attach()
        early, late = submit(stage, b"aa"), submit(stage, b"bb")
        await stage.settle()
        assert (len(first.given()), len(second.given())) == (1, 1)
        second.start()
        stage.kill(second)
        await stage.settle()
        assert not late.done()
        await stage.work()
        assert early.result().tensors is not None
        assert error_of(late)[0] is WorkerLost

    perform(scenario, batches=False, preserve_ordering=True)


def test_rules_that_the_model_completes_hold_for_who_waits_already(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        for body in (b"aa", b"bb"):
            submit(stage, body, priority=1)
        assert isinstance(stage.dispatcher, ScheduledDispatcher)
        stage.dispatcher.reschedule(Scheduling(ROWS, batches=True), ROWS)
        worker = stage.attach()
        await stage.work()
        assert bodies(worker) == [[b"a", b"b"]]

    perform(scenario, batches=False, **LEVELS)


class Gone:
    """Tensors in a region that its client has taken away."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def read_into(self, memory: memoryview) -> None:
        raise BadRequest("the region is gone")

    def part(self, offset: int, nbytes: int) -> "Gone":
        return Gone(nbytes)


@pytest.mark.parametrize(("signature", "items"), [(TYPED, 1), (TYPED, 3), (FRAMED, 3)])
def test_a_request_whose_region_is_gone_fails_alone(perform: Play, signature: Signature, items: int) -> None:
    async def scenario(stage: "Stage") -> None:
        tensors = TensorRequest((Tensor("x", "UINT8", (items, 2), Gone(2 * items)),))
        gone = stage.dispatcher.submit(InferRequest("id", "", {}, b"", tensors=tensors))
        submit(stage, b"bb")
        worker = stage.attach()
        await stage.settle()
        assert error_of(gone) == (BadRequest, "the region is gone")
        assert len(worker.given()) == 1
        assert stage.dispatcher.waiting == 0

    perform(scenario, signature, **LEVELS)


def test_a_long_body_of_a_request_that_goes_alone_arrives_in_its_slab(
    perform: Play, monkeypatch: pytest.MonkeyPatch, outcome_of: Any
) -> None:
    monkeypatch.setattr("ringserve.server.intake.LANDED_BYTES_MIN", 1)

    async def scenario(stage: "Stage") -> None:
        landings = [stage.land(2) for _ in range(2)]
        assert [type(each) for each in landings] == [SlabLanding] * 2
        worker = stage.attach()
        submit(stage, b"aa")
        await stage.work()
        assert isinstance(stage.land(2), SlabLanding)
        answers = [stage.commit(each, body) for each, body in zip(landings, (b"bb", b"cc"), strict=True)]
        await stage.work()
        assert bodies(worker) == [[b"a"], [b"b"], [b"c"]]
        assert [outcome_of(each) for each in answers] == [b"[157,157]", b"[156,156]"]

    perform(scenario, batches=False)


@pytest.mark.parametrize("rules", [{"batches": True}, {"batches": False, "preserve_ordering": True}, LEVELS])
def test_a_long_body_of_one_that_may_be_overtaken_arrives_elsewhere(
    perform: Play, monkeypatch: pytest.MonkeyPatch, rules: dict[str, Any]
) -> None:
    monkeypatch.setattr("ringserve.server.intake.LANDED_BYTES_MIN", 1)

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        landing = stage.land(2)
        assert isinstance(landing, BufferLanding)
        stage.commit(landing, b"bb")
        await stage.work()
        assert bodies(worker) == [[b"b"]]

    perform(scenario, **rules)

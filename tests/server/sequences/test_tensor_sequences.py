"""Sequences as Triton's clients say them: who may begin one, who goes on in it, and how one ends."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from ringserve.protocol.errors import BadRequest, QueueTimeout, SequenceRejected, WorkerLost
from ringserve.protocol.request import InferRequest, Tensor, TensorRequest
from ringserve.server.control import EndSequence, RefuseSequence, ReleaseSequence, SequenceEnded
from ringserve.server.scheduling.rules import CORRID, Control
from tests.server.sequences.supervising import KEY, Supervisor
from tests.server.sequences.telling import (
    CONTROLS,
    IDLE_MS,
    MUST_START,
    TOLD,
    asked,
    calls_of,
    error_of,
    granted,
    refuse,
    submit,
    values,
)

if TYPE_CHECKING:
    from tests.server.conftest import Stage

Play = Callable[..., None]


def test_a_number_and_the_same_number_as_text_are_two_sequences(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        for sequence_id in (5, "5"):
            submit(stage, b"a", sequence_id, "S")
        await stage.settle()
        assert asked(supervisor) == [("5", True), ('"5"', True)]

    perform_told(scenario)


def test_requests_of_one_sequence_are_executed_in_order_one_at_a_time(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        for body, marks in ((b"a", "S"), (b"b", ""), (b"c", "E")):
            submit(stage, body, marks=marks)
        await supervisor.grant("7")
        await stage.work()
        assert worker.batches == [[b"a"], [b"b"], [b"c"]]
        assert supervisor.take() == [EndSequence(KEY, 1, 1)]

    perform_told(scenario)


def test_one_that_does_not_begin_and_is_unknown_is_refused(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        answers = [submit(stage, b"a"), submit(stage, b"b", marks="E")]
        await refuse(supervisor, "7")
        assert asked(supervisor) == [("7", False)]
        assert [error_of(each) for each in answers] == [(BadRequest, MUST_START.format(7), 400)] * 2
        assert stage.dispatcher.waiting == 0

    perform_told(scenario)


def test_one_that_begins_behind_those_is_asked_for_again(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        early, begins, more = submit(stage, b"a"), submit(stage, b"b", marks="S"), submit(stage, b"c")
        await refuse(supervisor, "7")
        assert error_of(early)[0] is BadRequest
        assert asked(supervisor) == [("7", False), ("7", True)]
        await supervisor.grant("7")
        await stage.work()
        assert worker.batches == [[b"b"], [b"c"]]
        assert begins.result().tensors is not None
        assert more.result().tensors is not None

    perform_told(scenario)


def test_one_that_goes_on_elsewhere_is_found_by_asking(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        submit(stage, b"a")
        await supervisor.grant("7")
        await stage.work()
        assert asked(supervisor) == [("7", False)]
        assert worker.batches == [[b"a"]]

    perform_told(scenario)


def test_a_start_in_a_live_sequence_goes_to_the_same_worker(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        _, worker = stage.attach(), stage.attach()
        submit(stage, b"a", marks="S")
        await supervisor.grant("7", worker_id="2")
        submit(stage, b"b", marks="S")
        await stage.work()
        assert asked(supervisor) == [("7", True)]
        assert worker.batches == [[b"a"], [b"b"]]

    perform_told(scenario)


def test_after_its_last_request_only_one_that_begins_may_come(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        submit(stage, b"a", marks="SE")
        with pytest.raises(BadRequest, match=MUST_START.format(7)):
            submit(stage, b"b")
        submit(stage, b"c", marks="S")
        submit(stage, b"d", marks="E")
        await supervisor.grant("7")
        await stage.work()
        assert worker.batches == [[b"a"], [b"c"], [b"d"]]
        assert supervisor.take() == [EndSequence(KEY, 1, 1)]  # the second went on in the place of the first
        assert stage.dispatcher.waiting == 0

    perform_told(scenario)


def test_one_behind_an_end_whose_successor_was_given_up_is_refused(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        submit(stage, b"a", marks="SE")
        begins, more = submit(stage, b"b", marks="S"), submit(stage, b"c")
        begins.cancel()
        await supervisor.grant("7")
        await stage.work()
        assert error_of(more) == (BadRequest, MUST_START.format(7), 400)
        assert supervisor.take() == [EndSequence(KEY, 1, 1)]

    perform_told(scenario)


def test_an_end_is_known_everywhere_before_it_is_answered(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        answer = submit(stage, b"a", marks="SE")
        await supervisor.grant("7")
        await stage.work()
        assert not answer.done()
        (end,) = supervisor.take()
        assert isinstance(end, EndSequence)
        await supervisor.say(SequenceEnded(KEY, end.token))
        assert answer.result().tensors is not None

    perform_told(scenario, front_ends=2)


def test_a_silent_sequence_has_to_begin_again(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        submit(stage, b"a", marks="S")
        await supervisor.grant("7")
        await stage.work()
        await stage.pass_s(IDLE_MS / 1000 + 0.01)
        assert [type(word) for word in supervisor.take()] == [ReleaseSequence]
        late = submit(stage, b"b")
        await refuse(supervisor, "7")
        assert error_of(late) == (BadRequest, MUST_START.format(7), 400)

    perform_told(scenario)


@pytest.mark.parametrize(
    ("sequence_id", "controls", "sentence"),
    [
        (0, (), "inference request to model 'm' must specify a non-zero or non-empty correlation ID"),
        ("", (), "inference request to model 'm' must specify a non-zero or non-empty correlation ID"),
        ("a", CONTROLS, "sequence batching control 'C' data-type is 'BYTES', but model 'm' expects 'UINT32'"),
        (
            5,
            (Control("C", CORRID, "BYTES"),),
            "sequence batching control 'C' data-type is 'UINT64', but model 'm' expects 'BYTES'",
        ),
        ("i" * 129, (), "string correlation ID cannot be longer than 128 characters"),
        (1 << 64, (), "sequence_id: expected an integer of 64 bits, got a larger one."),
    ],
)
def test_an_id_that_cannot_be_one_is_refused(
    perform_told: Play, sequence_id: int | str, controls: tuple[Control, ...], sentence: str
) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        with pytest.raises(BadRequest) as caught:
            submit(stage, b"a", sequence_id, "S")
        assert str(caught.value) == sentence
        assert (stage.dispatcher.waiting, supervisor.heard) == (0, [])

    perform_told(scenario, TOLD, controls=controls)


class Gone:
    """A tensor in a region that its client has taken away."""

    nbytes = 1

    def read_into(self, memory: memoryview) -> None:
        raise BadRequest("the region is gone")

    def part(self, offset: int, nbytes: int) -> "Gone":
        return self


@pytest.mark.parametrize("oldest", [True, False])
def test_a_request_whose_region_is_gone_fails_and_its_sequence_goes_on(perform_told: Play, oldest: bool) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        tensors = TensorRequest((Tensor("x", "UINT8", (1, 1), Gone()),), sequence_id=5, sequence_start=True)
        gone = stage.dispatcher.submit(InferRequest("id", "", {}, b"", tensors=tensors))
        await granted(stage, supervisor, {5: 1})
        worker = stage.attach()
        await stage.settle()
        assert error_of(gone)[:2] == (BadRequest, "the region is gone")
        (command,) = worker.given()
        assert values(calls_of(worker, command)[-1], "x", "S") == [ord("5"), 1]
        assert (stage.dispatcher.waiting, stage.free()) == (0, 3)

    perform_told(scenario, TOLD, oldest=oldest, controls=CONTROLS)


def test_a_plain_request_names_no_sequence(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        with pytest.raises(BadRequest, match="must specify a non-zero or non-empty correlation ID"):
            stage.submit(b"a")

    perform_told(scenario)


def test_a_request_has_one_item(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        tensors = TensorRequest((Tensor("x", "UINT8", (2, 1), b"ab"),), sequence_id=7, sequence_start=True)
        with pytest.raises(BadRequest, match="must specify batch-size 1 due to requirements of sequence batcher"):
            stage.dispatcher.submit(InferRequest("id", "", {}, b"", tensors=tensors))

    perform_told(scenario)


def test_the_requests_of_a_dead_workers_sequences_are_answered_503(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        running, waiting = submit(stage, b"a", marks="S"), submit(stage, b"b")
        await supervisor.grant("7")
        assert worker.start()
        stage.kill(worker)
        assert [error_of(each)[::2] for each in (running, waiting)] == [(WorkerLost, 503)] * 2
        later = submit(stage, b"c")
        await refuse(supervisor, "7")
        assert error_of(later)[0] is BadRequest

    perform_told(scenario)


def test_another_refusal_of_the_supervisor_is_passed_on(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        answer = submit(stage, b"a", marks="S")
        await stage.settle()
        await supervisor.say(RefuseSequence(KEY, "7", supervisor.tokens["7"], "because"))
        assert error_of(answer)[0] is SequenceRejected

    perform_told(scenario)


def test_the_whole_sequence_is_refused_when_one_of_it_waits_too_long_for_a_place(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        waiting = [submit(stage, b"a", marks="S"), submit(stage, b"b", queue_timeout_us=50_000)]
        await supervisor.grant("7", worker_id="")
        await stage.pass_s(0.06)
        expected = (QueueTimeout, "timeout of the corresponding sequence has been expired", 503)
        assert [error_of(each) for each in waiting] == [expected] * 2
        assert supervisor.take() == [EndSequence(KEY, 1, 1)]
        assert stage.dispatcher.waiting == 0

    perform_told(scenario)


def test_nobody_is_taken_for_the_first_one_that_was_given_up(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        first, second = submit(stage, b"a", marks="S"), submit(stage, b"b")
        first.cancel()
        await stage.settle()
        assert error_of(second) == (BadRequest, MUST_START.format(7), 400)
        await supervisor.grant("7")
        assert [type(word) for word in supervisor.take()] == [ReleaseSequence]
        await stage.work()
        assert (worker.batches, stage.dispatcher.waiting) == ([], 0)

    perform_told(scenario)


def test_a_sequence_without_a_number_yet_is_given_up_when_it_gets_one(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        late = submit(stage, b"a", marks="S", queue_timeout_us=50_000)
        await stage.pass_s(0.06)
        assert error_of(late)[0] is QueueTimeout
        await supervisor.grant("7")
        assert [type(word) for word in supervisor.take()] == [ReleaseSequence]

    perform_told(scenario)


def test_a_request_that_has_a_worker_may_take_its_time(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        submit(stage, b"a", marks="S")
        late = submit(stage, b"b", queue_timeout_us=50_000)
        await supervisor.grant("7")
        assert worker.start()
        await stage.pass_s(0.06)
        await stage.work()
        assert late.result().tensors is not None

    perform_told(scenario)

"""What the model of a sequence is told by control tensors, and with whom its requests are put together."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.scheduling.rules import CORRID, Control
from tests.server.sequences.supervising import Supervisor
from tests.server.sequences.telling import CONTROLS, TOLD, calls_of, granted, submit, values

if TYPE_CHECKING:
    from tests.server.conftest import Stage

Play = Callable[..., None]


def test_the_model_is_told_by_control_tensors(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        submit(stage, b"a", (1 << 32) + 7, "S")
        await supervisor.grant(str((1 << 32) + 7))
        await stage.settle()
        (command,) = worker.given()
        (call,) = calls_of(worker, command)
        assert values(call, "S", "E", "R", "C") == [1, -1.0, True, 7]
        assert call is not None
        assert (call.sequence_id, call.sequence_start, call.sequence_end) == ((1 << 32) + 7, True, False)

    perform_told(scenario, TOLD, controls=CONTROLS)


def test_a_text_is_told_as_one_element(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        submit(stage, b"a", "é", "SE")
        await supervisor.grant('"é"')
        await stage.settle()
        (call,) = calls_of(worker, worker.given()[0])
        assert values(call, "C") == ["é".encode()]

    signature = Signature((TOLD.inputs[0], TensorSpec("C", "bytes", (1,), optional=True)), TOLD.outputs)
    perform_told(scenario, signature, controls=(Control("C", CORRID, "BYTES"),))


def test_direct_slots_without_a_request_are_filled_up_to_the_last_one(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        await granted(stage, supervisor, {5: 3, 6: 1})
        worker = stage.attach()
        await stage.settle()
        (command,) = worker.given()
        calls = calls_of(worker, command)
        assert [values(call, "x", "R", "C") for call in calls] == [
            [0, 0, 0],
            [ord("6"), 1, 6],
            [0, 0, 0],
            [ord("5"), 1, 5],
        ]
        assert stage.dispatcher.waiting == 0
        nobody = calls[0]
        assert nobody is not None
        assert (nobody.request_id, nobody.sequence_id, nobody.inputs["S"].item()) == ("", 0, 0)

    perform_told(scenario, TOLD, oldest=False, controls=CONTROLS)


@pytest.mark.parametrize("rules", [{"oldest": True, "controls": CONTROLS}, {"oldest": False, "controls": CONTROLS[:2]}])
def test_a_model_that_does_not_ask_who_is_ready_sees_no_empty_slots(perform_told: Play, rules: dict[str, Any]) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        await granted(stage, supervisor, {5: 3, 6: 1})
        worker = stage.attach()
        await stage.settle()
        (command,) = worker.given()
        assert command.rows == 2

    perform_told(scenario, TOLD, **rules)


def test_direct_waits_until_enough_slots_are_used(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        await granted(stage, supervisor, {5: 0})
        await stage.pass_s(0.05)
        assert not worker.given()
        await granted(stage, supervisor, {6: 1})
        assert [command.rows for command in worker.given()] == [2]

    perform_told(scenario, TOLD, oldest=False, controls=CONTROLS, queue_delay_us_max=100_000, utilization_min=0.5)


def test_direct_does_not_wait_for_longer_than_it_may(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        await granted(stage, supervisor, {5: 0})
        await stage.pass_s(0.11)
        assert [command.rows for command in worker.given()] == [1]

    perform_told(scenario, TOLD, oldest=False, controls=CONTROLS, queue_delay_us_max=100_000, utilization_min=0.5)


def test_oldest_waits_for_a_preferred_size(perform_told: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        await granted(stage, supervisor, {5: 0})
        await stage.pass_s(0.05)
        assert not worker.given()
        await granted(stage, supervisor, {6: 0})
        assert [command.rows for command in worker.given()] == [2]

    perform_told(scenario, preferred_batch_sizes=(2,), queue_delay_us_max=100_000)

"""What this server makes of a configuration: tensors, batches, rules of scheduling, workers and their devices."""

from typing import Any

import pytest

from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.model_configuration.configuration import Configuration, configure
from ringserve.server.scheduling.rules import (
    CORRID,
    READY,
    START,
    TIME_US_MAX,
    Control,
    QueuePolicy,
    Scheduling,
    SequenceScheduling,
)

X = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
Y = {"name": "y", "data_type": "TYPE_STRING", "dims": [-1]}


def read(**said: Any) -> Configuration:
    return configure(said, "x")


def test_tensors_of_a_model_that_batches_have_a_batch_dimension_beside_their_dims() -> None:
    found = read(max_batch_size=8, input=[X, {**Y, "optional": True}], output=[{**X, "data_type": "TYPE_BF16"}])
    inputs = (TensorSpec("x", "float32", (4,)), TensorSpec("y", "bytes", (-1,), optional=True))
    assert found.signature == Signature(inputs, (TensorSpec("x", "bfloat16", (4,)),))
    assert (found.batch_size, found.scheduling.batch_size_max) == (8, 8)


def test_a_model_that_does_not_batch_takes_one_request_at_a_time() -> None:
    found = read(input=[X], output=[Y], dynamic_batching={})
    assert not found.signature.batches
    assert found.batch_size == 1
    assert found.scheduling == Scheduling(1)


def test_decoupled_and_ragged_models_are_so() -> None:
    found = read(input=[{**X, "allow_ragged_batch": True}], model_transaction_policy={"decoupled": True})
    assert (found.signature.decoupled, found.signature.ragged) == (True, True)


def test_without_dynamic_batching_each_request_is_executed_alone() -> None:
    assert read(max_batch_size=8).scheduling == Scheduling(8)


def test_dynamic_batching_becomes_rules() -> None:
    found = read(
        max_batch_size=16,
        dynamic_batching={
            "preferred_batch_size": [8, 4, 8],
            "max_queue_delay_microseconds": 100,
            "priority_levels": 3,
            "default_priority_level": 2,
            "default_queue_policy": {
                "timeout_action": "DELAY",
                "default_timeout_microseconds": 5000,
                "allow_timeout_override": True,
                "max_queue_size": 7,
            },
            "priority_queue_policy": {"1": {"max_queue_size": 3}},
        },
    )
    assert found.scheduling == Scheduling(
        16,
        batches=True,
        preferred_batch_sizes=(4, 8),
        queue_delay_us_max=100,
        priority_levels=3,
        default_priority_level=2,
        default_policy=QueuePolicy(7, 5000, delays=True, overridable=True),
        policies={1: QueuePolicy(3)},
    )


def test_dynamic_batching_that_says_nothing_is_the_servers_usual_queue() -> None:
    assert read(max_batch_size=8, dynamic_batching={}).scheduling.ordinary


def test_times_that_nobody_could_wait_for_are_cut() -> None:
    found = read(max_batch_size=2, dynamic_batching={"max_queue_delay_microseconds": 2**64 - 1})
    assert found.scheduling.queue_delay_us_max == TIME_US_MAX


def test_direct_sequences_have_a_place_for_each_slot_and_their_controls_are_inputs_at_the_end() -> None:
    found = read(
        max_batch_size=4,
        input=[X],
        output=[Y],
        sequence_batching={
            "control_input": [
                {"name": "S", "control": [{"kind": "CONTROL_SEQUENCE_START", "fp32_false_true": [0, 1]}]},
                {"name": "R", "control": [{"kind": "CONTROL_SEQUENCE_READY", "bool_false_true": [False, True]}]},
            ]
        },
    )
    controls = (Control("S", START, "FP32", 0.0, 1.0), Control("R", READY, "BOOL", 0.0, 1.0))
    assert all(type(value) is float for each in controls for value in (each.false, each.true))
    assert found.scheduling.sequences == SequenceScheduling(oldest=False, places=4, controls=controls)
    assert found.signature.inputs[1:] == (
        TensorSpec("S", "float32", (1,), optional=True),
        TensorSpec("R", "bool", (1,), optional=True),
    )


def test_oldest_sequences_have_a_place_for_each_candidate() -> None:
    control = {"name": "C", "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_STRING"}]}
    batching = {
        "max_sequence_idle_microseconds": 9,
        "oldest": {"max_queue_delay_microseconds": 5},
        "control_input": [control],
    }
    sequences = read(max_batch_size=2, sequence_batching=batching).scheduling.sequences
    assert sequences == SequenceScheduling(
        oldest=True,
        places=4,
        idle_us_max=9,
        controls=(Control("C", CORRID, "BYTES"),),
        queue_delay_us_max=5,
        preferred_batch_sizes=(2,),
    )


@pytest.mark.parametrize(
    ("groups", "workers", "devices", "device_type", "per_gpu"),
    [
        ([{"count": 3, "kind": "KIND_CPU"}], 3, ("cpu",), None, False),
        ([{"count": 2, "gpus": [0, 1]}], 4, ("cuda:0", "cuda:1", "cuda:0", "cuda:1"), None, False),
        ([{"kind": "KIND_GPU", "gpus": [1]}, {"kind": "KIND_CPU"}], 2, ("cuda:1", "cpu"), None, False),
        ([{"kind": "KIND_GPU", "count": 2}], 2, (), "gpu", True),
        ([{"count": 2}], 2, (), None, True),
        ([{"kind": "KIND_MODEL"}], 1, (), None, False),
        ([{"count": 2}, {"kind": "KIND_CPU"}], 3, (), None, False),
    ],
)
def test_groups_of_instances_become_workers(
    groups: list[dict[str, Any]], workers: int, devices: tuple[str, ...], device_type: str | None, per_gpu: bool
) -> None:
    found = read(instance_group=groups)
    assert (found.workers, found.devices, found.device_type, found.per_gpu) == (workers, devices, device_type, per_gpu)


def test_nobody_who_says_nothing_of_instances_gets_a_number_of_workers() -> None:
    assert read(max_batch_size=1).workers == 0


def test_labels_and_tags_are_taken_out() -> None:
    found = read(output=[{**X, "label_filename": "l.txt"}, Y], metric_tags={"b": "2", "a": "1"})
    assert found.label_files == {"x": "l.txt"}
    assert list(found.metric_tags.items()) == [("a", "1"), ("b", "2")]

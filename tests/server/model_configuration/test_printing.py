"""Configurations as Triton shows them: `printed_by_triton.json` holds configurations of ours with what Triton 2.51 answered to GET .../config."""

import json
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.grpc.model_config_pb2 import ModelConfig
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.model_configuration.completion import complete
from ringserve.server.model_configuration.configuration import configure, read_text
from ringserve.server.model_configuration.printing import to_mapping
from ringserve.server.model_configuration.reading import from_mapping
from ringserve.server.model_configuration.served import shown_fields
from ringserve.server.model_configuration.synthesis import synthesized

ROWS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("printed_by_triton.json").read_text())
# What the model of the rows "auto" and "auto2" adds by its auto_complete_config.
COMPLETED = {
    "input": [{"name": "A", "data_type": "TYPE_FP32", "dims": [-1, 4]}],
    "output": [{"name": "B", "data_type": "TYPE_INT64", "dims": [4]}],
    "max_batch_size": 8,
    "dynamic_batching": {},
}


@pytest.mark.parametrize("name", ROWS)
def test_a_configuration_is_shown_as_triton_shows_it(name: str) -> None:
    said = read_text(ROWS[name]["text"].encode(), "config.pbtxt")
    configuration = configure({"backend": "python", **said}, "config.pbtxt")
    if name.startswith("auto"):
        configuration = complete(configuration, COMPLETED)
    shown = shown_fields(configuration, name, on_gpus=False)
    assert shown == ROWS[name]["printed"]
    assert sorted(shown) == sorted(ROWS[name]["printed"])


@pytest.mark.parametrize("name", ROWS)
def test_what_is_shown_can_be_read_again(name: str) -> None:
    again = configure(ROWS[name]["printed"], "config")
    assert shown_fields(again, name, on_gpus=False) == ROWS[name]["printed"]


def test_numbers_of_64_bits_are_numbers() -> None:
    said = {"sequence_batching": {"max_sequence_idle_microseconds": 2**60}}
    assert configure(said, "x").fields["sequence_batching"]["max_sequence_idle_microseconds"] == 2**60


def test_a_number_of_32_bits_is_shown_as_it_was_written() -> None:
    said = {"sequence_batching": {"direct": {"minimum_slot_utilization": 0.1}}}
    assert configure(said, "x").fields["sequence_batching"]["direct"]["minimum_slot_utilization"] == 0.1


def test_what_nobody_said_is_not_in_the_sparse_form() -> None:
    message = from_mapping({"max_batch_size": 4, "dynamic_batching": {}, "version_policy": {"all": {}}}, "x")
    sparse = to_mapping(message, sparse=True)
    assert sparse == {"max_batch_size": 4, "dynamic_batching": {}, "version_policy": {"all": {}}}
    assert to_mapping(ModelConfig(), sparse=True) == {}


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("backend", ["python", "pytorch", "handler"])
def test_a_model_without_a_configuration_has_the_one_that_triton_would_show(batches: bool, backend: str) -> None:
    inputs = (TensorSpec("x", "float32", (3, -1)), TensorSpec("t", "bytes", (1,), optional=True))
    signature = Signature(inputs, (TensorSpec("y", "bfloat16", (2,)),), batches=batches, decoupled=not batches)
    made = synthesized("m", backend, signature, 8, 3, on_gpus=True)
    said = {key: made[key] for key in ("input", "output", "max_batch_size", "instance_group", "backend")}
    if batches:
        said["dynamic_batching"] = {}
    else:
        said["model_transaction_policy"] = {"decoupled": True}
    assert shown_fields(configure(said, "x"), "m", on_gpus=True) == made


def test_a_whole_number_has_no_point() -> None:
    said = {
        "sequence_batching": {"direct": {}, "control_input": [{"name": "S", "control": [{"fp32_false_true": [0, 1]}]}]}
    }
    shown = json.dumps(configure(said, "x").fields["sequence_batching"])
    assert '"minimum_slot_utilization": 0}' in shown
    assert '"fp32_false_true": [0, 1]' in shown

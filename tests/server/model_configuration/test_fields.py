"""model-config.yaml in Triton's words: when its keys are Triton's, what stands beside them, and what says a thing twice."""

from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.model_configuration.fields import FIELDS, NESTED, OTHERS, fields_of, without
from ringserve.server.repository.config_yaml import parse_mapping
from ringserve.server.repository.model_config import parse_model_config

X = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(InvalidModel) as caught:
        parse_model_config(raw)
    return caught.value.message


@pytest.mark.parametrize(
    "raw",
    [
        {"name": "anything", "parameters": {"a": 1}, "platform": "linux", "runtime": 3, "optimization": "fast"},
        {"input": "a path", "output": ["a"], "version_policy": "all"},
        {"batchSize": 4, "maxBatchDelay": 10, "handler": {"max_batch_size": 3}},
    ],
)
def test_keys_that_others_use_as_well_are_the_models_own(raw: dict[str, Any]) -> None:
    config = parse_model_config(raw)
    assert config.triton is None
    assert config.scheduling is None
    assert config.raw == raw


@pytest.mark.parametrize("raw", [{"max_batch_size": 4}, {"dynamic_batching": {}}, {"input": [X]}, {"output": [X]}])
def test_one_key_that_only_triton_has_makes_a_configuration_of_its(raw: dict[str, Any]) -> None:
    assert parse_model_config({**raw, "parameters": {"k": {"string_value": "v"}}}).triton is not None


def test_a_model_of_tritons_python_backend_may_say_all_itself() -> None:
    config = parse_model_config({"backend": "triton"})
    assert config.triton is not None
    assert (config.backend, config.triton.fields["backend"]) == ("triton", "python")


def test_a_model_is_served_as_it_says() -> None:
    text = b"""
backend: python
max_batch_size: 8
input: [{name: x, data_type: TYPE_FP32, dims: [4]}]
output: [{name: y, data_type: TYPE_STRING, dims: [-1]}]
dynamic_batching:
  max_queue_delay_microseconds: 100
  priority_levels: 2
  default_priority_level: 2
  priority_queue_policy: {1: {max_queue_size: 5}}
instance_group: [{count: 3, kind: KIND_CPU}]
responseTimeout: 7
"""
    config = parse_model_config(parse_mapping(text, "model-config.yaml"))
    assert (config.batch_size, config.worker_range, config.response_timeout_s) == (8, (3, 3), 7)
    assert config.backend == "python"
    assert config.sections.placement.devices == ("cpu",)
    assert config.signature == Signature((TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "bytes", (-1,)),))
    assert config.scheduling is not None
    assert config.scheduling.policies[1].queue_size_max == 5
    assert config.triton is not None
    assert config.triton.fields["backend"] == "python"


def test_a_key_with_nothing_behind_it_is_there() -> None:
    typed = parse_model_config({"backend": "python", "max_batch_size": 4, "dynamic_batching": None})
    assert typed.scheduling is not None
    assert typed.scheduling.batches


@pytest.mark.parametrize(
    ("raw", "path", "other"),
    [
        ({"max_batch_size": 4, "batchSize": 4}, "max_batch_size", "batchSize"),
        ({"dynamic_batching": {}, "batching": "fill"}, "dynamic_batching", "batching"),
        (
            {"dynamic_batching": {"max_queue_delay_microseconds": 1}, "maxBatchDelay": 1},
            "dynamic_batching.max_queue_delay_microseconds",
            "maxBatchDelay",
        ),
        (
            {"dynamic_batching": {"default_queue_policy": {"max_queue_size": 1}}, "jobQueueSize": 1},
            "dynamic_batching.default_queue_policy.max_queue_size",
            "jobQueueSize",
        ),
        (
            {"dynamic_batching": {"default_queue_policy": {"default_timeout_microseconds": 1}}, "queueTimeout": 1},
            "dynamic_batching.default_queue_policy.default_timeout_microseconds",
            "queueTimeout",
        ),
        ({"instance_group": [{"count": 1}], "minWorkers": 1}, "instance_group", "minWorkers"),
        ({"instance_group": [{"count": 1}], "maxWorkers": 1}, "instance_group", "maxWorkers"),
        ({"instance_group": [{"count": 1}], "devices": ["cpu"]}, "instance_group", "devices"),
        ({"instance_group": [{"count": 1}], "deviceType": "cpu"}, "instance_group", "deviceType"),
        ({"sequence_batching": {}, "sequenceBatching": True, "sequenceMaxIdleMSec": 1}, "sequence_batching", "sequenceBatching"),
        ({"input": [X], "inputs": [{"name": "x", "dtype": "int8", "shape": [1]}]}, "input", "inputs"),
        ({"model_warmup": [{"name": "w"}], "warmup": []}, "model_warmup", "warmup"),
    ],
)  # fmt: skip
def test_a_thing_that_is_said_in_both_words_is_refused_by_both_names(
    raw: dict[str, Any], path: str, other: str
) -> None:
    expected = f"model-config.yaml: {path}: expected it or {other}, which says the same, got both"
    assert refusal({"backend": "python", **raw}) == expected


def test_a_misspelt_field_is_refused_also_for_a_handler() -> None:
    assert "did you mean dynamic_batching?" in refusal({"max_batch_size": 4, "dynamic_batchin": {}})


def test_a_handler_may_read_keys_that_no_typed_model_may_have() -> None:
    raw = {"max_batch_size": 4, "tokenizer": "t5"}
    assert parse_model_config(raw).batch_size == 4
    assert refusal({**raw, "backend": "python"}).startswith(
        "model-config.yaml: tokenizer: expected a field of Triton's"
    )


def test_our_declaration_stands_beside_tritons_batching() -> None:
    raw = {
        "backend": "python",
        "max_batch_size": 4,
        "dynamic_batching": {},
        "inputs": [{"name": "x", "dtype": "int8", "shape": [2]}],
        "outputs": [{"name": "y", "dtype": "bytes", "shape": []}],
    }
    config = parse_model_config(raw)
    assert config.signature == Signature((TensorSpec("x", "int8", (2,)),), (TensorSpec("y", "bytes", ()),))
    assert config.triton is not None
    assert [each["dims"] for each in config.triton.fields["output"]] == [[1]]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"sequence_batching": {}}, "sequence_batching: expected a backend of tensors, got a handler"),
        (
            {"max_batch_size": 1, "model_transaction_policy": {"decoupled": True}},
            "model_transaction_policy.decoupled: expected a backend of tensors, got a handler",
        ),
        ({"backend": "python", "platform": "pytorch_libtorch"}, "platform: expected what the backend 'python'"),
        ({"platform": "ensemble", "max_batch_size": 1}, "platform: expected one of pytorch_libtorch, got 'ensemble'"),
        (
            {"backend": "python", "input": [{**X, "reshape": {"shape": [2, 2]}}]},
            "reshape: is not served by this version for the backend python",
        ),
        ({NESTED: [1]}, "triton: expected a mapping of Triton's fields"),
    ],
)
def test_what_the_backend_cannot_do_is_refused(raw: dict[str, Any], message: str) -> None:
    assert refusal(raw).startswith(f"model-config.yaml: {message}")


def test_a_delay_of_a_handlers_batches_is_that_of_torchserve() -> None:
    config = parse_model_config({"max_batch_size": 4, "dynamic_batching": {"max_queue_delay_microseconds": 1500}})
    assert (config.batching, config.max_batch_delay_ms, config.scheduling) == ("fill", 2, None)


def test_config_pbtxt_says_one_worker_where_it_says_nothing() -> None:
    assert parse_model_config({NESTED: {"backend": "python"}}).worker_range == (1, 1)
    assert parse_model_config({NESTED: {"backend": "python"}, "minWorkers": 2, "maxWorkers": 3}).worker_range == (2, 3)
    assert parse_model_config({"max_batch_size": 4}).worker_range is None


def test_the_same_field_in_both_places_is_refused() -> None:
    raw = {"max_batch_size": 4, NESTED: {"max_batch_size": 4}}
    with pytest.raises(InvalidModel, match=r"max_batch_size: expected it once, got it here and in config\.pbtxt"):
        fields_of(raw, "x")


def test_all_that_is_said_in_tritons_words_can_be_left_out() -> None:
    assert without({"max_batch_size": 4, "batchSize": 1, "parameters": {}, NESTED: {}}) == {"batchSize": 1}
    assert without({"parameters": {}, "name": "a"}) == {"parameters": {}, "name": "a"}


def test_no_key_of_ours_is_taken_for_a_mistake() -> None:
    plain = {key: None for key in OTHERS - {"backend", "batching", "inputs", "outputs"}}
    assert parse_model_config({"backend": "python", "max_batch_size": 4, **plain}).batch_size == 4


def test_the_documents_say_something_of_every_field() -> None:
    page = (Path(__file__).parents[3] / "docs" / "model-configuration.md").read_text().split("## Every field")[1]
    assert [field for field in sorted(FIELDS) if f"`{field}" not in page] == []

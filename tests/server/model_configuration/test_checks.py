"""What is wrong with a configuration, and what of a right one is not served: refused by its path, or reported."""

from typing import Any

import pytest

from ringserve.protocol.errors import InvalidModel
from ringserve.server.model_configuration.configuration import check_name, configure

X = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
START = {"name": "START", "control": [{"kind": "CONTROL_SEQUENCE_START", "int32_false_true": [0, 1]}]}


def refusal(said: dict[str, Any]) -> str:
    with pytest.raises(InvalidModel) as caught:
        configure(said, "config.pbtxt")
    assert caught.value.message.startswith("config.pbtxt: ")
    return caught.value.message.removeprefix("config.pbtxt: ")


def controls(*given: dict[str, Any]) -> dict[str, Any]:
    return {"max_batch_size": 4, "input": [X], "sequence_batching": {"control_input": list(given)}}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"max_batch_size": -1}, "max_batch_size: expected 0 to 65536, got -1"),
        ({"max_batch_size": 70_000}, "max_batch_size: expected 0 to 65536, got 70000"),
        ({"input": [{**X, "name": ""}]}, "input[0].name: expected a name of 1 to 256"),
        ({"input": [{**X, "name": "a\nb"}]}, "input[0].name: expected a name of 1 to 256"),
        ({"input": [X, X]}, "input: expected every name once, got ['x', 'x']"),
        ({"output": [X, X]}, "output: expected every name once"),
        ({"input": [{"name": "x", "dims": [1]}]}, "input[0].data_type: expected a datatype"),
        ({"input": [{**X, "data_type": 77}]}, "input[0].data_type: expected a datatype"),
        ({"input": [{**X, "dims": []}]}, "input[0].dims: expected 1 to 32 dimensions"),
        ({"output": [{**X, "dims": [1] * 33}]}, "output[0].dims: expected 1 to 32 dimensions"),
        ({"input": [{**X, "dims": [0]}]}, "input[0].dims: expected lengths of 1 to"),
        ({"input": [{**X, "dims": [-2]}]}, "input[0].dims: expected lengths of 1 to"),
        ({"input": [{**X, "dims": [1 << 20, 1 << 20]}]}, "input[0].dims: expected tensors of at most"),
        ({"input": [{**X, "name": str(i)} for i in range(65)]}, "input: expected at most 64 tensors, got 65"),
        ({"input": [{**X, "reshape": {"shape": [3]}}]}, "input[0].reshape.shape: expected as many elements"),
        ({"input": [{**X, "dims": [1], "reshape": {"shape": []}}]}, "input[0].reshape.shape: expected 1 to 32"),
        (
            {"input": [{**X, "dims": [-1, 4], "reshape": {"shape": [2, -1, 2]}}]},
            "input[0].reshape.shape: expected as many elements",
        ),
        ({"output": [{**X, "label_filename": "../l"}]}, "output[0].label_filename: expected a path inside"),
        ({"default_model_filename": "/etc/passwd"}, "default_model_filename: expected a path inside"),
        ({"version_policy": {"latest": {}}}, "version_policy.latest.num_versions: expected 1 to 1000, got 0"),
        ({"version_policy": {"specific": {}}}, "version_policy.specific.versions: expected 1 to 1000 versions"),
        ({"version_policy": {"specific": {"versions": [0]}}}, "version_policy.specific.versions: expected"),
        ({"instance_group": [{"count": -1}]}, "instance_group[0].count: expected 0 to 1024, got -1"),
        ({"instance_group": [{"kind": 9}]}, "instance_group[0].kind: expected KIND_AUTO"),
        ({"instance_group": [{"kind": "KIND_CPU", "gpus": [0]}]}, "instance_group[0].gpus: expected none"),
        ({"instance_group": [{"gpus": [-1]}]}, "instance_group[0].gpus: expected at most 64 numbers"),
        ({"instance_group": [{"name": "a"}, {"name": "a"}]}, "instance_group: expected every name once"),
        ({"metric_tags": {"a-b": "c"}}, "metric_tags: expected names of letters"),
        (
            {"response_cache": {"enable": True}, "model_transaction_policy": {"decoupled": True}},
            "response_cache.enable: expected false",
        ),
        ({"response_cache": {"enable": True}, "sequence_batching": {}}, "response_cache.enable: expected false"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(said: dict[str, Any], message: str) -> None:
    assert refusal(said).startswith(message)


@pytest.mark.parametrize(
    ("batching", "message"),
    [
        ({"preferred_batch_size": [9]}, "preferred_batch_size: expected sizes of 1 to 8, the max_batch_size, got 9"),
        ({"preferred_batch_size": [0]}, "preferred_batch_size: expected sizes of 1 to 8"),
        ({"preferred_batch_size": [1] * 300}, "preferred_batch_size: expected at most 256 sizes"),
        ({"priority_levels": 2}, "default_priority_level: expected a level of 1 to 2, got 0"),
        ({"priority_levels": 2, "default_priority_level": 3}, "default_priority_level: expected a level of 1 to 2"),
        ({"priority_levels": 2**63}, "priority_levels: expected at most 1000"),
        (
            {"priority_levels": 2, "default_priority_level": 1, "priority_queue_policy": {"3": {}}},
            "priority_queue_policy: expected levels of 1 to 2, got 3",
        ),
        ({"priority_queue_policy": {"1": {}}}, "priority_queue_policy: expected levels of 1 to 0"),
        (
            {"preserve_ordering": True, "priority_levels": 2, "default_priority_level": 1},
            "preserve_ordering: expected false where there are several",
        ),
        (
            {"preserve_ordering": True, "default_queue_policy": {"timeout_action": "DELAY"}},
            "preserve_ordering: expected false beside the timeout_action DELAY",
        ),
    ],
)
def test_dynamic_batching_that_contradicts_itself_is_refused(batching: dict[str, Any], message: str) -> None:
    assert refusal({"max_batch_size": 8, "dynamic_batching": batching}).startswith(f"dynamic_batching.{message}")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (controls({**START, "name": ""}), "control_input[0].name: expected a name"),
        (controls({**START, "name": "x"}), "control_input: expected names that no other input has"),
        (controls({"name": "S"}), "control_input[0].control: expected one control, got 0"),
        (controls({"name": "S", "control": [*START["control"]] * 2}), "control_input[0].control: expected one control"),
        (controls(START, {**START, "name": "T"}), "control_input: expected every kind of control once"),
        (
            controls({"name": "S", "control": [{"int32_false_true": [1]}]}),
            "control_input[0].control[0]: expected one of int32_false_true",
        ),
        (
            controls({"name": "S", "control": [{"int32_false_true": [0, 1], "fp32_false_true": [0, 1]}]}),
            "control_input[0].control[0]: expected one of int32_false_true",
        ),
        (controls({"name": "S", "control": [{"kind": 8}]}), "control_input[0].control[0].kind: expected one of START"),
        (
            controls({"name": "C", "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_FP32"}]}),
            "control_input[0].control[0]: expected a data_type of TYPE_UINT64",
        ),
        (
            {"sequence_batching": {"oldest": {"max_candidate_sequences": -1}}},
            "oldest.max_candidate_sequences: expected 0 to",
        ),
        (
            {"sequence_batching": {"oldest": {"preferred_batch_size": [2]}}},
            "oldest.preferred_batch_size: expected sizes of 1 to 1",
        ),
        (
            {"sequence_batching": {"direct": {"minimum_slot_utilization": 1.5}}},
            "direct.minimum_slot_utilization: expected a part of 0 to 1",
        ),
        ({"sequence_batching": {"direct": {"minimum_slot_utilization": "NaN"}}}, "direct.minimum_slot_utilization"),
    ],
)
def test_sequence_batching_that_contradicts_itself_is_refused(said: dict[str, Any], message: str) -> None:
    assert refusal(said).startswith(f"sequence_batching.{message}")


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ({"ensemble_scheduling": {"step": [{"model_name": "a"}]}}, "ensemble_scheduling"),
        ({"batch_input": [{"kind": "BATCH_ELEMENT_COUNT"}]}, "batch_input"),
        ({"batch_output": [{}]}, "batch_output"),
        ({"model_operations": {"op_library_filename": ["x.so"]}}, "model_operations"),
        ({"model_repository_agents": {"agents": [{"name": "checksum"}]}}, "model_repository_agents"),
        ({"cc_model_filenames": {"7.5": "a"}}, "cc_model_filenames"),
        ({"runtime": "model.py"}, "runtime"),
        ({"sequence_batching": {"state": [{"input_name": "a"}]}}, "sequence_batching.state"),
        ({"sequence_batching": {"iterative_sequence": True}}, "sequence_batching.iterative_sequence"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(said: dict[str, Any], path: str) -> None:
    assert refusal(said).startswith(f"{path}: is not served by this version: ")


def test_what_has_no_effect_is_reported_by_its_path() -> None:
    said = {
        "optimization": {"graph": {"level": 1}, "eager_batching": True},
        "instance_group": [{"count": 1}, {"host_policy": "p", "rate_limiter": {}, "profile": ["1"]}],
        "input": [{**X, "format": "FORMAT_NCHW"}],
        "output": [{**X, "is_shape_tensor": True}],
        "model_warmup": [{"name": "w"}],
        "model_transaction_policy": {"decoupled": True},
        "model_metrics": {},
    }
    assert set(configure(said, "x").without_effect) == {
        "optimization.graph",
        "optimization.eager_batching",
        "instance_group[1].host_policy",
        "instance_group[1].rate_limiter",
        "instance_group[1].profile",
        "input[0].format",
        "output[0].is_shape_tensor",
        "model_warmup",
        "model_metrics",
    }
    assert configure({"response_cache": {"enable": True}}, "x").without_effect == ("response_cache.enable",)
    assert configure({"input": [X], "response_cache": {}, "model_warmup": [{"name": "w"}]}, "x").without_effect == ()


def test_a_right_configuration_may_have_what_only_looks_odd() -> None:
    said = {
        "max_batch_size": 2,
        "input": [{**X, "dims": [1], "reshape": {"shape": []}}, {**X, "name": "y", "dims": [2, -1, 4], "reshape": {"shape": [2, -1, 2, 2]}}],
        "dynamic_batching": {"default_priority_level": 3, "preserve_ordering": True},
        "version_policy": {"all": {}},
    }  # fmt: skip
    assert configure(said, "x").reshapes


def test_the_name_is_the_models_own() -> None:
    configuration = configure({"name": "a"}, "x")
    check_name(configuration, "a", "x")
    check_name(configure({}, "x"), "b", "x")
    with pytest.raises(InvalidModel, match=r"^x: name: expected 'b', as the model is called, or none, got 'a'$"):
        check_name(configuration, "b", "x")

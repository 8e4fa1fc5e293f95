"""From text to the message: what is misspelt, of the wrong kind or endless is refused with its place."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.grpc.model_config_pb2 import ModelConfig
from ringserve.server.model_configuration.configuration import configure, read_text
from ringserve.server.model_configuration.fields import FIELDS
from ringserve.server.model_configuration.reading import TEXT_BYTES_MAX, from_json, from_mapping
from ringserve.server.repository.config_yaml import parse_mapping
from ringserve.server.repository.model_config import parse_model_config


def refusal(said: dict[str, Any]) -> str:
    with pytest.raises(InvalidModel) as caught:
        configure(said, "config.pbtxt")
    return caught.value.message


def test_the_table_of_fields_is_that_of_the_message() -> None:
    assert set(ModelConfig.DESCRIPTOR.fields_by_name) == FIELDS


@pytest.mark.parametrize(
    ("said", "path", "hint"),
    [
        ({"max_batchsize": 3}, "max_batchsize", "max_batch_size"),
        ({"dynamic_batching": {"prefered_batch_size": [1]}}, "dynamic_batching.prefered_batch_size", "preferred_batch_size"),
        ({"input": [{"name": "x", "datatype": "FP32"}]}, "input[0].datatype", "data_type"),
        ({"sequence_batching": {"control_input": [{"controls": []}]}}, "sequence_batching.control_input[0].controls", "control"),
        (
            {"dynamic_batching": {"priority_queue_policy": {"1": {"max_size": 1}}}},
            "dynamic_batching.priority_queue_policy[1].max_size",
            "",
        ),
        ({"parameters": {"k": {"value": "v"}}}, "parameters[k].value", ""),
    ],
)  # fmt: skip
def test_a_field_that_there_is_not_is_refused_with_its_path(said: dict[str, Any], path: str, hint: str) -> None:
    message = refusal(said)
    assert message.startswith(f"config.pbtxt: {path}: expected a field of Triton's model configuration")
    assert hint in message


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ({"input": {"name": "x"}}, "input: expected a list"),
        ({"max_batch_size": [3]}, "max_batch_size: expected one value"),
        ({"parameters": ["a"]}, "parameters: expected a mapping"),
        ({"dynamic_batching": 3}, "dynamic_batching: expected a mapping"),
        ({"dynamic_batching": [{}]}, "dynamic_batching: expected one value"),
        ({"max_batch_size": "many"}, "max_batch_size"),
        ({"max_batch_size": 2**31}, "max_batch_size"),
        ({"max_batch_size": 1.5}, "max_batch_size"),
        ({"input": [{"data_type": "FLOAT"}]}, "data_type"),
        ({"input": [{"dims": ["a"]}]}, "dims"),
        ({"dynamic_batching": {}, "sequence_batching": {}}, "scheduling_choice"),
        ({"parameters": {"k": {"string_value": 3}}}, "string_value"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_path(said: dict[str, Any], path: str) -> None:
    assert path in refusal(said)


def test_numbers_may_be_given_as_text() -> None:
    assert from_mapping({"max_batch_size": "16"}, "x").max_batch_size == 16


@pytest.mark.parametrize(
    "text",
    [
        b"foo: 3",
        b'max_batch_size: "x"',
        b"input [{",
        b"\xff",
        b"max_batch_size: 99999999999",
        b"a" * (TEXT_BYTES_MAX + 1),
    ],
    ids=["unknown", "kind", "cut off", "no UTF-8", "too great", "too long"],
)
def test_a_broken_text_is_refused_with_its_place(text: bytes) -> None:
    with pytest.raises(InvalidModel, match=r"^config\.pbtxt: "):
        read_text(text, "config.pbtxt")


def test_text_json_and_yaml_say_the_same() -> None:
    text = b"""
        max_batch_size: 8  # a comment
        input [{ name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }]
        output { name: "y" data_type: TYPE_STRING dims: 1 }
        dynamic_batching { max_queue_delay_microseconds: 100 }
        parameters { key: "k" value { string_value: "v" } }
    """
    yaml = b"""
max_batch_size: 8
input: [{name: x, data_type: TYPE_FP32, dims: [3, -1]}]
output: [{name: y, data_type: TYPE_STRING, dims: [1]}]
dynamic_batching: {max_queue_delay_microseconds: 100}
parameters: {k: {string_value: v}}
"""
    said = read_text(text, "config.pbtxt")
    assert said == parse_mapping(yaml, "model-config.yaml") == from_json(json.dumps(said), "config")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"a": 1', "[" * 100_000], ids=str.__len__)
def test_json_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidModel, match=r"^config: expected"):
        from_json(text, "config")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_text_crashes_the_reader(text: bytes) -> None:
    try:
        read_text(text, "config.pbtxt")
    except InvalidModel as error:
        assert error.message.startswith("config.pbtxt: ")


WORDS = st.sampled_from(sorted(FIELDS)) | st.sampled_from(
    [
        "dims",
        "shape",
        "control",
        "kind",
        "count",
        "gpus",
        "oldest",
        "direct",
        "key",
        "latest",
        "versions",
        "1",
        "batchSize",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["TYPE_FP32"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(WORDS, VALUES, max_size=5))
def test_no_mapping_crashes_the_reader(raw: dict[str, Any]) -> None:
    try:
        parse_model_config(raw)
    except InvalidModel as error:
        assert error.message


TENSORS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.text(max_size=3),
            "data_type": st.sampled_from(["TYPE_FP32", "TYPE_STRING", "TYPE_INVALID", 99, -1]),
            "dims": st.lists(st.integers(-2, 2**63 - 1), max_size=4),
            "reshape": st.fixed_dictionaries({"shape": st.lists(st.integers(-2, 9), max_size=3)}),
            "label_filename": st.text(max_size=5),
        },
    ),
    max_size=3,
)


@settings(max_examples=500, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_batch_size": st.integers(-1, 2**31 - 1),
            "input": TENSORS,
            "output": TENSORS,
            "instance_group": st.lists(
                st.fixed_dictionaries(
                    {}, optional={"count": st.integers(-(2**31), 2**31 - 1), "gpus": st.lists(st.integers(-1, 99)), "kind": st.integers(-1, 5)}
                ),
                max_size=3,
            ),
            "sequence_batching": VALUES,
        },
    )
)  # fmt: skip
def test_no_values_crash_the_reader(said: dict[str, Any]) -> None:
    try:
        configure(said, "x")
    except InvalidModel as error:
        assert error.message.startswith("x: ")

"""Bodies of inferences: JSON, and raw bytes behind it, in both directions."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.datatypes import BYTES, DATATYPES, DTYPES, join_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Tensor
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.open_inference.binary import ALL_BINARY, Wanted, header_length, raw_call, read_call, render
from ringserve.server.open_inference.call import CallInput, CallOutput, InferCall, InferResult, RegionPlace
from ringserve.server.open_inference.checks import Declaration
from ringserve.server.served_model import ServedModel

X: dict[str, Any] = {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2]}
RAW = {"name": "x", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}}
ONE_OF = "Input must set only one of the following fields"


def read(said: object, tail: bytes = b"", *, lenient: bool = False) -> tuple[InferCall, Wanted]:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    return read_call("m", "1", text + tail, len(text) if tail else None, lenient=lenient)


def refusal(said: object, tail: bytes = b"") -> str:
    with pytest.raises(BadRequest) as caught:
        read(said, tail)
    return caught.value.message


def test_a_call_says_everything_that_clients_can_say() -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}
    said = {
        "id": "42",
        "model_name": "ignored",
        "parameters": {"priority": 1, "a": "x", "binary_data_output": True, "sequence_id": "s", "sequence_start": True},
        "inputs": [
            X,
            {**RAW, "name": "y"},
            {**RAW, "name": "z", "parameters": region},
            {**RAW, "name": "w", "shape": [0]},
        ],
        "outputs": [
            {"name": "a"},
            {"name": "b", "parameters": {"binary_data": True}},
            {"name": "c", "parameters": {"classification": 3, "unknown": 1}},
            {"name": "d", "parameters": region},
        ],
    }
    said["inputs"][3]["parameters"] = {"binary_data_size": 0}  # type: ignore[index]
    call, wanted = read(said, b"12345678")
    place = RegionPlace("r", 4, 8)
    assert call == InferCall(
        "m",
        "1",
        "42",
        (
            CallInput("x", "INT32", (2,), np.array([1, 2], np.int32).tobytes()),
            CallInput("y", "INT32", (2,), b"12345678"),
            CallInput("z", "INT32", (2,), b"", place),
            CallInput("w", "INT32", (0,), b""),
        ),
        (CallOutput("a"), CallOutput("b"), CallOutput("c", 3), CallOutput("d", 0, place)),
        {"priority": 1, "a": "x", "sequence_id": "s", "sequence_start": True},
    )
    assert wanted == Wanted({"a": False, "b": True, "c": False, "d": False}, True, frozenset(("d",)))


def test_what_is_not_listed_follows_the_request() -> None:
    assert read({"inputs": [X]})[1] == Wanted({})
    assert read({"inputs": [X], "parameters": {"binary_data_output": True}})[1] == ALL_BINARY
    assert read({"inputs": [X], "outputs": [], "parameters": {"binary_data_output": True}})[1] == ALL_BINARY
    assert read({"inputs": [{**X, "shape": [0], "data": []}]})[0].inputs[0].shape == (0,)


@pytest.mark.parametrize(
    ("said", "tail", "text"),
    [
        ({"inputs": [RAW]}, b"1234567", "unexpected size for input 'x', expecting 1 additional bytes for model 'm'"),
        ({"inputs": [RAW]}, b"123456789", "unexpected additional input data for model 'm'"),
        ({"inputs": [X]}, b"1", "unexpected additional input data for model 'm'"),
        ({"inputs": [{**RAW, "data": [1, 2]}]}, b"12345678", ONE_OF),
        ({"inputs": [{**RAW, "parameters": {}}]}, b"", ONE_OF),
        ({"inputs": [{**RAW, "parameters": {"binary_data_size": 8, "shared_memory_region": "r"}}]}, b"", ONE_OF),
        ({"inputs": [1]}, b"", ONE_OF),
        ({"inputs": [{**RAW, "parameters": {"binary_data_size": -8}}]}, b"", "Unable to parse 'binary_data_size'"),
        ({"inputs": [{**RAW, "parameters": {"binary_data_size": "8"}}]}, b"", "Unable to parse 'binary_data_size'"),
        ({"inputs": [{**RAW, "parameters": {"binary_data_size": True}}]}, b"", "Unable to parse 'binary_data_size'"),
        (
            {"inputs": [{**RAW, "parameters": {"shared_memory_region": "r"}}]},
            b"",
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'x'",
        ),
        (
            {"inputs": [{**RAW, "parameters": {"shared_memory_region": 1}}]},
            b"",
            "Unable to parse 'shared_memory_region'",
        ),
        ({}, b"", "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
        ([], b"", "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
        ({"inputs": {}}, b"", "Unable to parse 'inputs': attempt to access JSON non-array as array"),
        ({"inputs": [X], "id": 1}, b"", "Unable to parse 'id': attempt to access JSON non-string as string"),
        ({"inputs": [{"data": [1]}]}, b"", "attempt to access non-existing object member 'name'"),
        ({"inputs": [{**X, "shape": [-2]}]}, b"", "Unable to parse 'shape'"),
        ({"inputs": [X], "parameters": []}, b"", "attempt to get members for non-object"),
        (
            {"inputs": [X], "parameters": {"a": [1]}},
            b"",
            "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        ({"inputs": [X], "parameters": {"a": None}}, b"", "parameter 'a' has invalid type"),
        ({"inputs": [X], "parameters": {"triton_a": 1}}, b"", "parameter keys starting with 'triton_' are reserved"),
        ({"inputs": [X], "parameters": {"priority": -1}}, b"", "Unable to parse 'priority'"),
        ({"inputs": [X], "parameters": {"timeout": "1"}}, b"", "Unable to parse 'timeout'"),
        ({"inputs": [X], "parameters": {"sequence_id": True}}, b"", "Unable to parse 'sequence_id'"),
        ({"inputs": [X], "parameters": {"sequence_end": 1}}, b"", "Unable to parse 'sequence_end'"),
        ({"inputs": [X], "parameters": {"binary_data_output": 1}}, b"", "Unable to parse 'binary_data_output'"),
        ({"inputs": [X], "outputs": {}}, b"", "Unable to parse 'outputs'"),
        ({"inputs": [X], "outputs": None}, b"", "Unable to parse 'outputs'"),
        ({"inputs": [X], "outputs": [1]}, b"", "non-existing object member 'name'"),
        ({"inputs": [X], "outputs": [{"name": "a", "parameters": {"binary_data": 1}}]}, b"", "'binary_data'"),
        ({"inputs": [X], "outputs": [{"name": "a", "parameters": {"classification": -1}}]}, b"", "'classification'"),
        ({"inputs": [X], "outputs": [{"name": "a", "parameters": {"classification": True}}]}, b"", "'classification'"),
        (
            {
                "inputs": [X],
                "outputs": [
                    {
                        "name": "a",
                        "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 1, "binary_data": True},
                    }
                ],
            },
            b"",
            "output 'a' cannot have both 'binary_data' and 'shared_memory_region'",
        ),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_protocol(said: object, tail: bytes, text: str) -> None:
    assert text in refusal(said, tail)


@given(
    st.dictionaries(
        st.sampled_from(["id", "inputs", "outputs", "parameters"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "name",
                            "shape",
                            "datatype",
                            "data",
                            "parameters",
                            "binary_data_size",
                            "shared_memory_region",
                            "FP32",
                        ]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=20,
        ),
    ),
    st.binary(max_size=8),
)
def test_no_body_does_worse_than_being_refused(said: dict[str, Any], tail: bytes) -> None:
    for lenient in (False, True):
        try:
            call, _ = read(said, tail, lenient=lenient)
        except BadRequest:
            continue
        assert isinstance(call.inputs, tuple)


@pytest.mark.parametrize("text", ["101", "-1", "x", "", "1.0", str(2**31), str(2**70), "٣"])
def test_a_header_length_outside_the_body_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=r"inference header size should be in range \(0, 100\), got: "):
        header_length(text, 100)
    assert header_length(" 100", 100) == 100


def declared(*specs: TensorSpec, batches: bool = True) -> Declaration:
    return Declaration("m", Signature(specs, (), batches=batches), ServedModel())


@pytest.mark.parametrize(
    ("spec", "batches", "body", "expected"),
    [
        (TensorSpec("x", "int32", (2,)), True, b"12345678", ("INT32", (1, 2), b"12345678")),
        (TensorSpec("x", "int32", (-1, 2)), False, bytes(16), ("INT32", (2, 2), bytes(16))),
        (TensorSpec("x", "int32", (-1,)), False, b"", ("INT32", (0,), b"")),
        (TensorSpec("x", "bytes", (1,)), True, b"abc", (BYTES, (1, 1), b"\3\0\0\0abc")),
        (TensorSpec("x", "bytes", (1,)), False, b"", (BYTES, (1,), bytes(4))),
    ],
)
def test_a_raw_body_is_the_only_input(spec: TensorSpec, batches: bool, body: bytes, expected: object) -> None:
    call = raw_call(declared(spec, batches=batches), "m", "1", body)
    assert call.inputs == (CallInput("x", *expected),)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("specs", "body", "text"),
    [
        (
            (TensorSpec("x", "int32", (1,)),) * 1 + (TensorSpec("y", "int32", (1,)),),
            b"",
            "but got 2 inputs in 'm' model",
        ),
        (
            (TensorSpec("x", "int32", (-1, -1)),),
            b"",
            "can not be deduced because there are more than one variable-sized",
        ),
        (
            (TensorSpec("x", "bytes", (2,)),),
            b"",
            "For BYTE datatype raw input 'x', the model must have input shape [1]",
        ),
        ((TensorSpec("x", "int32", (2,)),), b"1234567", "for input 'raw_input' for model 'm'. Expected 8, got 7"),
        ((TensorSpec("x", "int32", (-1,)),), b"1234567", "for input 'raw_input' for model 'm'. Expected 4, got 7"),
    ],
)
def test_a_raw_body_that_leaves_something_open_is_refused(specs: Any, body: bytes, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        raw_call(declared(*specs), "m", "1", body)
    assert text in caught.value.message


def test_an_answer_has_its_json_and_then_its_bytes() -> None:
    outputs = (
        Tensor("a", "INT32", (2,), np.array([1, 2], np.int32).tobytes()),
        Tensor("b", BYTES, (1, 1), join_elements([b"x"])),
        Tensor("c", "FP32", (0,), b""),
        Tensor("d", "FP32", (9,), b""),
    )
    result = InferResult("m", "1.0", "", outputs, {"p": 1})
    parts, json_bytes = render(result, Wanted({"b": True, "c": True}, placed=frozenset(("d",))))
    assert (json_bytes, parts[1:]) == (len(parts[0]), [b"\1\0\0\0x"])
    assert json.loads(bytes(parts[0])) == {
        "model_name": "m",
        "model_version": "1.0",
        "parameters": {"p": 1},
        "outputs": [
            {"name": "a", "datatype": "INT32", "shape": [2], "data": [1, 2]},
            {"name": "b", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 5}},
            {"name": "c", "datatype": "FP32", "shape": [0], "parameters": {"binary_data_size": 0}},
            {"name": "d", "datatype": "FP32", "shape": [9]},
        ],
    }
    only_json = render(result._replace(id="7", outputs=outputs[:1]), Wanted({}))
    assert only_json.json_bytes == -1
    assert json.loads(bytes(only_json.parts[0]))["id"] == "7"


@given(st.data(), st.sampled_from(DATATYPES), st.lists(st.integers(0, 4), max_size=3), st.booleans())
def test_a_tensor_survives_the_way_out_and_in(data: st.DataObject, datatype: str, shape: list[int], raw: bool) -> None:
    count = int(np.prod(shape))
    if datatype == BYTES:
        body = join_elements([b"x" * at for at in range(count)])
    else:
        dtype = np.dtype("uint16" if datatype == "BF16" else DTYPES[datatype])
        body = np.arange(count).astype(np.bool_ if datatype == "BOOL" else dtype).tobytes()
        if datatype == "BF16":
            body = (np.arange(count) + 0x3F80).astype(np.uint16).tobytes()
    parts, json_bytes = render(InferResult("m", "1", "", (Tensor("x", datatype, tuple(shape), body),)), Wanted({}, raw))
    said = json.loads(bytes(parts[0]))
    text = json.dumps({"inputs": said["outputs"]}).encode()
    call, _ = read_call("m", "1", text + b"".join(parts[1:]), len(text) if json_bytes >= 0 else None)
    assert bytes(call.inputs[0].data) == body
    assert call.inputs[0].shape == tuple(shape)

import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.datatypes import BYTES, DATATYPE_BYTES, DTYPES, join_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.grpc.open_inference_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from ringserve.protocol.request import Scalar, Tensor
from ringserve.server.open_inference.call import CallInput, CallOutput, InferCall, InferResult, RegionPlace
from ringserve.server.rpc import tensors
from ringserve.server.rpc.tensors import call_of, in_stream, read_message, response_bytes

Fields = dict[str, tuple[str, object]]


def request(*inputs: tuple[str, str, list[int]], raw: list[bytes] | None = None) -> ModelInferRequest:
    message = ModelInferRequest(model_name="m", raw_input_contents=raw or [])
    for name, datatype, shape in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def with_contents(datatype: str, **contents: list[object]) -> ModelInferRequest:
    message = request(("IN", datatype, [2]))
    for field, elements in contents.items():
        getattr(message.inputs[0].contents, field).extend(elements)
    return message


def call(message: ModelInferRequest) -> InferCall:
    return call_of(read_message(message.SerializeToString()))


def refusal(message: ModelInferRequest) -> str:
    with pytest.raises(BadRequest) as caught:
        call(message)
    return str(caught.value)


def test_raw_contents_belong_to_the_inputs_in_their_order_and_to_none_in_a_region() -> None:
    message = request(("A", "INT8", [1]), ("B", "FP32", [4]), ("C", "INT8", [2]), raw=[b"a", b"cc"])
    message.inputs[1].parameters["shared_memory_region"].string_param = "r"
    message.inputs[1].parameters["shared_memory_byte_size"].int64_param = 16
    message.inputs[1].parameters["shared_memory_offset"].int64_param = 8
    assert call(message).inputs == (
        CallInput("A", "INT8", (1,), b"a"),
        CallInput("B", "FP32", (4,), b"", RegionPlace("r", 8, 16)),
        CallInput("C", "INT8", (2,), b"cc"),
    )


def test_a_region_without_an_offset_is_used_from_its_start() -> None:
    message = request(("A", "INT8", [1]))
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 1
    assert call(message).inputs[0].place == RegionPlace("r", 0, 1)


@pytest.mark.parametrize(
    ("datatype", "field", "elements"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-32768, 32767]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [1.5, -0.0]),
        ("FP64", "fp64_contents", [1e300, float("-inf")]),
    ],
)
def test_typed_contents_become_the_bytes_of_their_datatype(datatype: str, field: str, elements: list[object]) -> None:
    dtype = {"BOOL": "?", "FP32": "<f4", "FP64": "<f8"}.get(datatype) or np.dtype(datatype.lower())
    data = call(with_contents(datatype, **{field: elements})).inputs[0].data
    assert bytes(data) == np.array(elements, dtype).tobytes()
    assert len(data) == 2 * DATATYPE_BYTES[datatype]


def test_typed_contents_of_bytes_get_their_lengths() -> None:
    assert call(with_contents(BYTES, bytes_contents=[b"a", b"\xff\x00"])).inputs[0].data == join_elements(
        [b"a", b"\xff\x00"]
    )


def test_empty_typed_contents_are_a_tensor_of_no_bytes() -> None:
    message = request(("IN", "INT32", [0]))
    message.inputs[0].contents.SetInParent()
    assert call(message).inputs[0].data == b""


@pytest.mark.parametrize(
    ("datatype", "field", "elements"),
    [
        ("INT8", "int_contents", [0, 128]),
        ("INT8", "int_contents", [-129, 0]),
        ("INT16", "int_contents", [32768, 0]),
        ("UINT8", "uint_contents", [256, 1]),
        ("UINT16", "uint_contents", [0, 65536]),
    ],
)
def test_an_element_that_its_datatype_cannot_hold_is_refused(datatype: str, field: str, elements: list[object]) -> None:
    worst = max(elements, key=lambda value: abs(int(str(value))))
    assert refusal(with_contents(datatype, **{field: elements})) == (
        f"input 'IN' has the element {worst}, which is out of the range of {datatype}"
    )


@pytest.mark.parametrize(
    ("datatype", "contents", "said"),
    [
        ("INT32", {"fp32_contents": [1.0]}, " of type 'FP32', expected datatype 'INT32'"),
        ("FP16", {"fp32_contents": [1.0]}, " of type 'FP32', expected datatype 'FP16'"),
        ("BF16", {"bytes_contents": [b"a"]}, " of type 'BYTES', expected datatype 'BF16'"),
        ("INT64", {"int_contents": [1]}, " of type 'INT32', expected datatype 'INT64'"),
        ("NOPE", {"uint64_contents": [1]}, " of type 'UINT64', expected datatype '<invalid>'"),
        ("INT32", {"int_contents": [1], "fp64_contents": [1.0]}, ", binary data was already supplied."),
    ],
)
def test_elements_in_the_list_of_another_datatype_are_refused(
    datatype: str, contents: dict[str, list[object]], said: str
) -> None:
    about = "unexpected explicit tensor data for input tensor 'IN' for model 'm'"
    assert refusal(with_contents(datatype, **contents)) == f"{about}{said}"


def test_data_must_come_once() -> None:
    both = request(("IN", "INT8", [1]), raw=[b"a"])
    both.inputs[0].contents.int_contents.append(1)
    assert refusal(both) == "contents field must not be specified when using raw_input_contents for 'IN' for model 'm'"
    missing = "unable to find data for input tensor 'B' for model 'm' in request."
    assert refusal(request(("A", "INT8", [1]), ("B", "INT8", [1]), raw=[b"a"])) == missing
    assert refusal(request(("B", "INT8", [1]))) == missing
    assert refusal(request(("A", "INT8", [1]), raw=[b"a", b"b", b"c"])) == (
        "unexpected raw_input_contents for model 'm': expected 1, one for each input that is not in shared memory, got 3"
    )
    shared = request(("IN", "INT8", [1]), raw=[b"a"])
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    shared.inputs[0].parameters["shared_memory_byte_size"].int64_param = 1
    found: list[RegionPlace] = []
    with pytest.raises(BadRequest, match="expected 0, one for each"):
        call_of(read_message(shared.SerializeToString()), lying_at=found.append)
    assert found == [RegionPlace("r", 0, 1)]
    shared = request(("IN", "INT8", [1]))
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    shared.inputs[0].parameters["shared_memory_byte_size"].int64_param = 1
    shared.inputs[0].contents.int_contents.append(1)
    assert refusal(shared) == (
        "unexpected 'content' provided when using shared memory for input tensor 'IN' for model 'm'"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"shared_memory_byte_size": ("int64_param", 1)},
            "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor 'X'",
        ),
        (
            {"shared_memory_offset": ("int64_param", 1)},
            "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'X'",
        ),
        (
            {"shared_memory_region": ("string_param", "r")},
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'X'",
        ),
        (
            {"shared_memory_region": ("int64_param", 1), "shared_memory_byte_size": ("int64_param", 1)},
            "invalid value type for 'shared_memory_region' parameter for tensor 'X', expected string_param.",
        ),
        (
            {"shared_memory_region": ("string_param", "r"), "shared_memory_byte_size": ("uint64_param", 1)},
            "invalid value type for 'shared_memory_byte_size' parameter for tensor 'X', expected int64_param.",
        ),
    ],
)
def test_a_place_in_a_region_is_named_whole_for_inputs_and_outputs(given: Fields, said: str) -> None:
    for where in ("inputs", "outputs"):
        message = request(raw=[]) if where == "outputs" else request(("X", "INT8", [1]), raw=[b"a"])
        if where == "outputs":
            message.outputs.add(name="X")
        for name, (field, value) in given.items():
            setattr(getattr(message, where)[0].parameters[name], field, value)
        assert refusal(message) == said


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, CallOutput("X")),
        ({"binary_data": ("bool_param", True)}, CallOutput("X")),
        ({"classification": ("int64_param", 3)}, CallOutput("X", 3)),
        (
            {"shared_memory_region": ("string_param", "r"), "shared_memory_byte_size": ("int64_param", 64)},
            CallOutput("X", 0, RegionPlace("r", 0, 64)),
        ),
        (
            {"classification": ("string_param", "3")},
            "invalid value type for 'classification' parameter, expected int64_param",
        ),
        ({"classification": ("int64_param", 0)}, "invalid value for 'classification' parameter, expected >= 1, got 0"),
        (
            {
                "classification": ("int64_param", 3),
                "shared_memory_region": ("string_param", "r"),
                "shared_memory_byte_size": ("int64_param", 64),
            },
            "output can't set both 'shared_memory_region' and 'classification'",
        ),
    ],
)
def test_an_output_is_asked_for_whole_as_classes_or_in_a_region(given: Fields, expected: object) -> None:
    message = request()
    message.outputs.add(name="X")
    for name, (field, value) in given.items():
        setattr(message.outputs[0].parameters[name], field, value)
    if isinstance(expected, str):
        assert refusal(message) == expected
    else:
        assert call(message).outputs == (expected,)


KINDS = ("bool_param", "int64_param", "string_param", "double_param", "uint64_param")
VALUES = {"bool_param": True, "int64_param": 7, "string_param": "s", "double_param": 1.5, "uint64_param": 2**63}


@pytest.mark.parametrize(
    ("name", "taken", "said"),
    [
        ("mine", KINDS, ""),
        ("sequence_id", ("int64_param", "uint64_param", "string_param"), "int64_param or string_param"),
        ("sequence_start", ("bool_param",), "bool_param"),
        ("sequence_end", ("bool_param",), "bool_param"),
        ("priority", ("int64_param", "uint64_param"), "int64_param or uint64_param"),
        ("timeout", ("int64_param",), "int64_param"),
        ("triton_enable_empty_final_response", ("bool_param",), "bool_param"),
    ],
)
def test_parameters_keep_their_types_and_reserved_ones_have_theirs(
    name: str, taken: tuple[str, ...], said: str
) -> None:
    for kind in KINDS:
        message = request()
        setattr(message.parameters[name], kind, VALUES[kind])
        if kind in taken:
            assert call(message).parameters == {name: VALUES[kind]}
        else:
            assert refusal(message) == f"invalid value type for '{name}' parameter, expected {said}."


def test_parameters_without_a_value_negative_priorities_and_kept_names_are_refused() -> None:
    message = request()
    message.parameters["mine"].SetInParent()
    assert refusal(message) == (
        "invalid value type for 'mine' parameter, expected int64_param, bool_param, or string_param."
    )
    message = request()
    message.parameters["priority"].int64_param = -1
    assert refusal(message) == "invalid value for 'priority', expected value >= 0."
    message = request()
    message.parameters["triton_mine"].bool_param = True
    assert refusal(message).startswith("parameter keys starting with 'triton_' are reserved for Triton usage.")


def test_a_call_has_the_fields_of_its_message() -> None:
    message = request()
    message.model_version, message.id = "3", "abc"
    made = call_of(read_message(message.SerializeToString()), 99, "rid")
    assert (made.model, made.version, made.id, made.deadline_ns, made.request_id) == ("m", "3", "abc", 99, "rid")
    assert (made.inputs, made.outputs, made.parameters) == ((), (), {})


# ---- the wire

ANY_REQUEST = st.builds(
    ModelInferRequest,
    model_name=st.text(max_size=8),
    id=st.text(max_size=8),
    inputs=st.lists(
        st.builds(
            ModelInferRequest.InferInputTensor,
            name=st.text(max_size=4),
            shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
        ),
        max_size=3,
    ),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=4),
)


@given(ANY_REQUEST, st.binary(max_size=12))
def test_a_long_request_is_read_as_protobuf_reads_it(message: ModelInferRequest, more: bytes) -> None:
    data = message.SerializeToString()
    for each in (data, data + more, data[: len(data) // 2], more):
        padding = b"\x3a\x82\x80\x01" + bytes(tensors.APART_BYTES_MIN + 2)  # one more raw content, so that it is long
        try:
            expected = ModelInferRequest.FromString(padding + each)
        except DecodeError:
            with pytest.raises(DecodeError):
                read_message(padding + each)
            continue
        found = read_message(padding + each)
        assert [bytes(raw) for raw in found.raw] == list(expected.raw_input_contents)
        del expected.raw_input_contents[:]
        del found.fields.raw_input_contents[:]
        assert found.fields == expected


def test_the_raw_contents_of_a_long_request_are_not_copied() -> None:
    data = request(("A", "UINT8", [20_000]), raw=[bytes(range(200)) * 100]).SerializeToString()
    made = call_of(read_message(data)).inputs[0].data
    assert isinstance(made, memoryview)
    assert made.obj is data
    assert bytes(made) == bytes(range(200)) * 100


@given(
    st.lists(st.binary(max_size=40) | st.binary(min_size=20_000, max_size=20_100).map(bytearray), max_size=4),
    st.dictionaries(
        st.text(max_size=5),
        st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.floats(allow_nan=False),
        max_size=3,
    ),
    st.booleans(),
)
def test_a_response_is_what_protobuf_would_have_written(
    bodies: list[bytes | bytearray], parameters: dict[str, Scalar], final: bool
) -> None:
    outputs = tuple(Tensor(f"O{at}", "UINT8", (len(body),), memoryview(body)) for at, body in enumerate(bodies))
    result = InferResult("m", "2", "id", outputs, parameters, final)
    parameters.pop("triton_final_response", None)
    response = ModelInferResponse.FromString(response_bytes(result))
    assert (response.model_name, response.model_version, response.id) == ("m", "2", "id")
    assert [(each.name, each.datatype, list(each.shape)) for each in response.outputs] == [
        (each.name, "UINT8", [len(body)]) for each, body in zip(outputs, bodies, strict=True)
    ]
    assert list(response.raw_output_contents) == [bytes(body) for body in bodies]
    found = {
        name: getattr(each, str(each.WhichOneof("parameter_choice"))) for name, each in response.parameters.items()
    }
    assert found == parameters
    assert all(type(found[name]) is type(value) for name, value in parameters.items())

    streamed = response_bytes(result, streamed=True)
    message = ModelStreamInferResponse.FromString(in_stream(streamed, "wrong é"))
    assert message.error_message == "wrong é"
    assert message.infer_response.parameters["triton_final_response"].bool_param is final
    assert ModelStreamInferResponse.FromString(in_stream(streamed)).error_message == ""


def test_an_output_in_a_region_or_without_elements_has_an_empty_raw_entry() -> None:
    outputs = (
        Tensor("A", "FP32", (4,), b""),
        Tensor("B", "INT8", (1,), struct.pack("b", 3)),
        Tensor("C", "FP32", (0,), b""),
    )
    response = ModelInferResponse.FromString(response_bytes(InferResult("m", "1", "", outputs)))
    assert list(response.raw_output_contents) == [b"", b"\x03", b""]


@pytest.mark.parametrize(
    ("datatype", "field", "elements"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-1, 2]),
        ("INT64", "int64_contents", [-(2**62), 2]),
        ("UINT16", "uint_contents", [1, 65535]),
        ("UINT64", "uint64_contents", [2**63, 0]),
        ("FP32", "fp32_contents", [0.5, -1.0]),
        ("FP64", "fp64_contents", [0.5, -1.0]),
    ],
)
def test_tensors_of_a_response_can_be_in_typed_contents(datatype: str, field: str, elements: list[Any]) -> None:
    response = ModelInferResponse(raw_output_contents=[np.array(elements, DTYPES[datatype]).tobytes()])
    response.outputs.add(name="y", datatype=datatype, shape=[2])
    said = ModelInferResponse.FromString(tensors.with_contents(response.SerializeToString()))
    assert list(getattr(said.outputs[0].contents, field)) == elements
    assert list(said.raw_output_contents) == []


def test_texts_of_a_response_can_be_in_typed_contents() -> None:
    response = ModelInferResponse(raw_output_contents=[join_elements([b"a", b""])])
    response.outputs.add(name="y", datatype="BYTES", shape=[2])
    said = ModelInferResponse.FromString(tensors.with_contents(response.SerializeToString()))
    assert list(said.outputs[0].contents.bytes_contents) == [b"a", b""]


def test_a_response_with_a_datatype_that_has_no_typed_contents_stays_as_it_is() -> None:
    response = ModelInferResponse(raw_output_contents=[bytes(4)])
    response.outputs.add(name="y", datatype="FP16", shape=[2])
    assert tensors.with_contents(response.SerializeToString()) == response.SerializeToString()

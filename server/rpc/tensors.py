"""The messages of GRPCInferenceService that carry tensors, and what the core knows them as.

Most of a large message is `raw_input_contents` or `raw_output_contents`. protobuf would copy these twice, into the message and out of
it; so the bytes of a large request are found where they arrived, and those of a response are put behind its head once. The wire format
makes that simple: every field of both messages is a length and that many bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from ringserve.protocol.datatypes import BYTES, DATATYPE_BYTES, DATATYPES, DTYPES, join_elements, split_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.grpc.open_inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)
from ringserve.protocol.request import Scalar, Tensor
from ringserve.server.open_inference.call import CallInput, CallOutput, InferCall, InferResult, RegionPlace

# A request this long is taken apart here; below it protobuf's copies cost less than our steps.
APART_BYTES_MIN = 16_384
# `ModelInferRequest.raw_input_contents` and `ModelInferResponse.raw_output_contents` with the wire type of bytes.
RAW_INPUT_TAG, RAW_OUTPUT_TAG = 7 << 3 | 2, bytes((6 << 3 | 2,))
LENGTH_DELIMITED = 2
NAME_CHARS_MAX = 256  # of a client's word that a sentence repeats

# The lists of typed contents: whose elements they have, and which datatypes may come in them.
_CONTENTS = {
    "bool_contents": ("BOOL", ("BOOL",)),
    "int_contents": ("INT32", ("INT8", "INT16", "INT32")),
    "int64_contents": ("INT64", ("INT64",)),
    "uint_contents": ("UINT32", ("UINT8", "UINT16", "UINT32")),
    "uint64_contents": ("UINT64", ("UINT64",)),
    "fp32_contents": ("FP32", ("FP32",)),
    "fp64_contents": ("FP64", ("FP64",)),
    "bytes_contents": (BYTES, (BYTES,)),
}
_FIELD_OF = {datatype: field for field, (_, datatypes) in _CONTENTS.items() for datatype in datatypes}
# These are on the wire as they are in memory, one behind the other.
_PACKED = frozenset(("BOOL", "FP32", "FP64"))

# The fields in which a parameter may come that the server itself understands, and how a refusal calls them.
_RESERVED = {
    "sequence_id": (("int64_param", "uint64_param", "string_param"), "int64_param or string_param"),
    "sequence_start": (("bool_param",), "bool_param"),
    "sequence_end": (("bool_param",), "bool_param"),
    "priority": (("int64_param", "uint64_param"), "int64_param or uint64_param"),
    "timeout": (("int64_param",), "int64_param"),
    "triton_enable_empty_final_response": (("bool_param",), "bool_param"),
}
_RESERVED_PREFIX = "triton_"
_REGION, _OFFSET, _SIZE, _CLASSES = (
    "shared_memory_region",
    "shared_memory_offset",
    "shared_memory_byte_size",
    "classification",
)


class InferMessage(NamedTuple):
    """A `ModelInferRequest` as it arrived: `fields` has all but the raw contents, which are in `raw`."""

    fields: ModelInferRequest
    raw: Sequence[bytes | memoryview]


# ---- requests


def read_message(data: bytes) -> InferMessage:
    """The message that these bytes are. Raises `DecodeError`."""
    if len(data) >= APART_BYTES_MIN:
        try:
            return _taken_apart(memoryview(data))
        except (IndexError, ValueError):
            pass  # protobuf says what is wrong with it
    fields = ModelInferRequest.FromString(data)
    return InferMessage(fields, fields.raw_input_contents)


def _taken_apart(data: memoryview) -> InferMessage:
    """Raises `ValueError` or `IndexError` where the bytes are no message of ours."""
    others: list[memoryview] = []
    raw: list[bytes | memoryview] = []
    at, end = 0, len(data)
    while at < end:
        begin = at
        tag, at = _varint(data, at)
        if tag & 7 != LENGTH_DELIMITED:
            raise ValueError("a field that is no length and bytes")
        length, at = _varint(data, at)
        if at + length > end:
            raise ValueError("a field is cut off")
        at += length
        if tag == RAW_INPUT_TAG:
            raw.append(data[at - length : at])
        else:
            others.append(data[begin:at])
    try:
        return InferMessage(ModelInferRequest.FromString(b"".join(others)), raw)
    except DecodeError as error:
        raise ValueError(f"{error}") from None


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def call_of(
    message: InferMessage,
    deadline_ns: int = 0,
    request_id: str = "",
    lying_at: Callable[[RegionPlace], object] = lambda place: None,
) -> InferCall:
    """What the client asks for. Raises `BadRequest` with the protocol's sentences where the message contradicts itself; whether it fits
    the model is not known here. `lying_at` raises where there is no such place, which a client hears before it hears of contents
    that nobody needs."""
    fields = message.fields
    model = fields.model_name
    return InferCall(
        model,
        fields.model_version,
        fields.id,
        tuple(_inputs(fields, message.raw, model, lying_at)),
        tuple([_output(each) for each in fields.outputs]) if fields.outputs else (),
        parameters_of(fields.parameters) if fields.parameters else {},
        deadline_ns,
        request_id,
    )


def parameters_of(parameters: Mapping[str, InferParameter]) -> dict[str, Scalar]:
    """Raises `BadRequest` for one that may not come in its field."""
    found: dict[str, Scalar] = {}
    for name, parameter in parameters.items():
        field = parameter.WhichOneof("parameter_choice")
        rule = _RESERVED.get(name)
        if rule is None:
            if name.startswith(_RESERVED_PREFIX):
                raise BadRequest(
                    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with "
                    "'triton_' are allowed: triton_enable_empty_final_response"
                )
            if field is None:
                raise BadRequest(
                    f"invalid value type for '{name:.256}' parameter, expected int64_param, bool_param, or string_param."
                )
        elif field not in rule[0]:
            raise BadRequest(f"invalid value type for '{name}' parameter, expected {rule[1]}.")
        assert field is not None
        value: Scalar = getattr(parameter, field)
        if name == "priority" and int(value) < 0:
            raise BadRequest("invalid value for 'priority', expected value >= 0.")
        found[name] = value
    return found


def _inputs(
    fields: ModelInferRequest,
    raw: Sequence[bytes | memoryview],
    model: str,
    lying_at: Callable[[RegionPlace], object],
) -> Iterator[CallInput]:
    taken = 0
    places = []
    for tensor in fields.inputs:
        name, datatype = tensor.name, tensor.datatype
        place = _place(tensor.parameters, name) if tensor.parameters else None
        data: bytes | memoryview = b""
        if place is not None:
            places.append(place)
            if tensor.HasField("contents"):
                raise BadRequest(
                    f"unexpected 'content' provided when using shared memory for input tensor '{name:.256}' for model '{model:.256}'"
                )
        elif tensor.HasField("contents"):
            if raw:
                raise BadRequest(
                    f"contents field must not be specified when using raw_input_contents for '{name:.256}' for model '{model:.256}'"
                )
            data = _typed(tensor.contents, datatype, name, model)
        elif taken < len(raw):
            data = raw[taken]
            taken += 1
        else:
            raise BadRequest(f"unable to find data for input tensor '{name:.256}' for model '{model:.256}' in request.")
        yield CallInput(name, datatype, tuple(tensor.shape), data, place)
    if taken != len(raw):
        for place in places:
            lying_at(place)
        raise BadRequest(
            f"unexpected raw_input_contents for model '{model:.256}': expected {taken}, one for each input that is not in shared memory,"
            f" got {len(raw)}"
        )


def _place(parameters: Mapping[str, InferParameter], name: str) -> RegionPlace | None:
    """Where a tensor lies, if it does in a region."""
    region, size, offset = (_value(parameters, key, name) for key in (_REGION, _SIZE, _OFFSET))
    if region is None:
        for key, value in ((_SIZE, size), (_OFFSET, offset)):
            if value is not None:
                raise BadRequest(f"'{key}' can not be specified without '{_REGION}' parameter for tensor '{name:.256}'")
        return None
    if size is None:
        raise BadRequest(f"'{_SIZE}' must be specified along with '{_REGION}' parameter for tensor '{name:.256}'")
    return RegionPlace(str(region), int(offset or 0), int(size))


def _value(parameters: Mapping[str, InferParameter], key: str, name: str) -> Scalar | None:
    """One of the parameters that say where a tensor lies."""
    if key not in parameters:
        return None
    expected = "string_param" if key == _REGION else "int64_param"
    if parameters[key].WhichOneof("parameter_choice") != expected:
        raise BadRequest(f"invalid value type for '{key}' parameter for tensor '{name:.256}', expected {expected}.")
    value: Scalar = getattr(parameters[key], expected)
    return value


def _output(tensor: ModelInferRequest.InferRequestedOutputTensor) -> CallOutput:
    parameters = tensor.parameters
    if not parameters:
        return CallOutput(tensor.name)
    classes = 0
    if _CLASSES in parameters:
        if parameters[_CLASSES].WhichOneof("parameter_choice") != "int64_param":
            raise BadRequest("invalid value type for 'classification' parameter, expected int64_param")
        classes = parameters[_CLASSES].int64_param
        if classes < 1:
            raise BadRequest(f"invalid value for 'classification' parameter, expected >= 1, got {classes}")
    place = _place(parameters, tensor.name)
    if classes and place is not None:
        raise BadRequest("output can't set both 'shared_memory_region' and 'classification'")
    return CallOutput(tensor.name, classes, place)


def _typed(contents: InferTensorContents, datatype: str, name: str, model: str) -> bytes:
    """The bytes of elements that came in one of the lists."""
    data: bytes | None = None
    for descriptor, elements in contents.ListFields():
        field = descriptor.name
        kind, datatypes = _CONTENTS[field]
        about = f"unexpected explicit tensor data for input tensor '{name:.256}' for model '{model:.256}'"
        if data is not None:
            raise BadRequest(f"{about}, binary data was already supplied.")
        if datatype not in datatypes:
            expected = datatype if datatype in DATATYPES else "<invalid>"
            raise BadRequest(f"{about} of type '{kind}', expected datatype '{expected}'")
        if kind == BYTES:
            data = join_elements(elements)
        elif kind in _PACKED:
            data = _packed(field, elements, len(elements) * DATATYPE_BYTES[kind])
        else:
            data = _whole_numbers(elements, kind, datatype, name)
    return data or b""


def _packed(field: str, elements: Sequence[float], nbytes: int) -> bytes:
    """Elements that protobuf itself writes as they are in memory: quicker by far than one Python object each."""
    alone = InferTensorContents()
    getattr(alone, field).MergeFrom(elements)
    return alone.SerializeToString()[-nbytes:]


def _whole_numbers(elements: Sequence[int], kind: str, datatype: str, name: str) -> bytes:
    """Elements of a type that may be narrower than their list's. Raises `BadRequest` for one that does not fit."""
    wide = np.fromiter(elements, f"<{kind[0].lower()}{DATATYPE_BYTES[kind]}", len(elements))
    if datatype == kind:
        return wide.tobytes()
    narrow = np.dtype(datatype.lower())
    limits = np.iinfo(narrow)
    for worst in (wide.min(), wide.max()):
        if not limits.min <= worst <= limits.max:
            raise BadRequest(f"input '{name:.256}' has the element {worst}, which is out of the range of {datatype}")
    return wide.astype(narrow).tobytes()


# ---- responses


def response_bytes(result: InferResult, *, streamed: bool = False) -> bytes:
    """The serialized `ModelInferResponse`; the result's `source` is closed, for what lies in shared memory is copied here.
    `streamed`: the one of a stream says whether another follows."""
    try:
        head, raw = _response(result, streamed=streamed)
        parts: list[bytes | bytearray | memoryview] = [head.SerializeToString()]
        for data in raw:
            parts += (RAW_OUTPUT_TAG, _varint_bytes(len(data)), data)
        return b"".join(parts)
    finally:
        if result.source is not None:
            result.source.close()


def _response(
    result: InferResult, *, streamed: bool
) -> tuple[ModelInferResponse, Sequence[bytes | bytearray | memoryview]]:
    response = ModelInferResponse(model_name=result.model, model_version=result.version, id=result.id)
    raw = [_add_output(response, each) for each in result.outputs]
    for name, value in result.parameters.items():
        set_parameter(response.parameters[name], value)
    if streamed:
        response.parameters["triton_final_response"].bool_param = result.final
    return response, raw


def _add_output(response: ModelInferResponse, tensor: Tensor) -> bytes | bytearray | memoryview:
    response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    data = tensor.data
    assert isinstance(data, bytes | bytearray | memoryview), "an answer is in this process' memory"
    return data


def set_parameter(parameter: InferParameter, value: Scalar) -> None:
    """Write a value into the field of its type."""
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, str):
        parameter.string_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    elif value < 2**63:
        parameter.int64_param = value
    else:
        parameter.uint64_param = value


def _varint_bytes(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    if value < 16_384:
        return bytes((value & 127 | 128, value >> 7))
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


def in_stream(response: bytes, error: str = "") -> bytes:
    """The serialized `ModelStreamInferResponse` with this serialized `ModelInferResponse`."""
    parts = [b"\x12", _varint_bytes(len(response)), response]
    if error:
        text = error.encode("utf-8", "replace")
        parts = [b"\x0a", _varint_bytes(len(text)), text, *parts]
    return b"".join(parts)


def with_contents(response: bytes) -> bytes:
    """A response whose tensors are in typed contents, where TorchServe's clients look for them. One of a datatype that has none stays
    as it is."""
    message = ModelInferResponse.FromString(response)
    if any(output.datatype not in _FIELD_OF for output in message.outputs):
        return response
    for output, raw in zip(message.outputs, message.raw_output_contents, strict=True):
        elements = (
            split_elements(raw) if output.datatype == BYTES else np.frombuffer(raw, DTYPES[output.datatype]).tolist()
        )
        getattr(output.contents, _FIELD_OF[output.datatype]).extend(elements)
    del message.raw_output_contents[:]
    return message.SerializeToString()

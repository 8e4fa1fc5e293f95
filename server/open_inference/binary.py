"""The bodies of `/infer`: a JSON part, and behind it the raw bytes of those tensors that have no numbers in it (the extension
`binary_tensor_data`, contract section 1.7).

    | JSON | input 0 | input 1 | ...          no padding, in the order in which the JSON names them
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import orjson

from ringserve.protocol.datatypes import BYTES
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Scalar, Tensor
from ringserve.protocol.tensor import ANY
from ringserve.server.open_inference.call import CallInput, CallOutput, InferCall, InferResult, RegionPlace
from ringserve.server.open_inference.checks import Declaration
from ringserve.server.open_inference.errors import bad_json, request_mark
from ringserve.server.open_inference.json_codec import (
    Members,
    elements_from,
    list_of,
    member,
    name_and_datatype,
    read_json,
    shape_in,
    tensor_of,
)

Buffer = bytes | bytearray | memoryview

HEADER_LENGTH = "inference-header-content-length"
HEADER_LENGTH_MAX = 2**31 - 1
RAW_INPUT = "raw_input"  # what Triton calls the body in its sentences
_ONE_OF = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', 'shared_memory_region' in"
    " 'parameters'. But "
)
_RESERVED_WHOLE = ("priority", "timeout")
_RESERVED_FLAGS = ("sequence_start", "sequence_end")
_SCALARS = frozenset((str, bool, int, float))


class Coming:
    """Bytes that have not come yet: in the place of those, as far as only their number matters."""

    __slots__ = ("_nbytes",)

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes

    def __len__(self) -> int:
        return self._nbytes

    def __getitem__(self, part: slice) -> "Coming":
        start, stop, _ = part.indices(self._nbytes)
        return Coming(stop - start)


class Wanted(NamedTuple):
    """How the client wants its answer: `binary` says it of the outputs that it lists, `otherwise` of all others. `placed` are
    written elsewhere."""

    binary: Mapping[str, bool]
    otherwise: bool = False
    placed: frozenset[str] = frozenset()


ALL_BINARY = Wanted({}, True)


# ---- requests


def header_length(text: str, body_bytes: int) -> int:
    """The bytes of the JSON part, as the header says them. Raises `BadRequest`."""
    digits = text.strip()
    if digits.isascii() and digits.isdigit() and len(digits) <= 10:
        length = int(digits)
        if length <= min(body_bytes, HEADER_LENGTH_MAX):
            return length
    raise BadRequest(f"inference header size should be in range (0, {body_bytes}), got: {text[:64]}")


def read_call(
    model: str, version: str, body: Buffer, json_bytes: int | None, *, lenient: bool = False
) -> tuple[InferCall, Wanted]:
    """The call that a body holds, whose JSON part has so many bytes (None: all of it). `lenient`: of a model that declares
    nothing. Raises `BadRequest`."""
    if json_bytes is None:
        return read_parts(model, version, body, b"", lenient=lenient)
    return read_parts(model, version, body[:json_bytes], memoryview(body)[json_bytes:], lenient=lenient)


def read_parts(
    model: str, version: str, text: Buffer, tail: "Buffer | Coming", *, lenient: bool = False
) -> tuple[InferCall, Wanted]:
    """The same of a body whose two parts are known, the second one perhaps only by its length."""
    said = read_json(text)
    if type(said) is not dict:
        raise bad_json("inputs", "attempt to access non-existing object member 'inputs'")
    call_id = said.get("id", "")
    if type(call_id) is not str:
        raise bad_json("id", "attempt to access JSON non-string as string")
    parameters = _parameters(said["parameters"]) if "parameters" in said else {}
    otherwise = parameters.pop("binary_data_output", False) if parameters else False
    if type(otherwise) is not bool:
        raise bad_json("binary_data_output", "attempt to access JSON non-boolean as boolean")
    inputs = _inputs(member(said, "inputs", list, "array"), tail, model, lenient=lenient)
    outputs, wanted = _outputs(said, otherwise)
    return InferCall(model, version, call_id, inputs, outputs, parameters), wanted


def _parameters(said: object) -> dict[str, Scalar]:
    if type(said) is not dict:
        raise BadRequest("failed to get request params.: attempt to get members for non-object")
    if not set(map(type, said.values())) <= _SCALARS:
        name = next(name for name, value in said.items() if type(value) not in _SCALARS)
        raise BadRequest(f"parameter '{name[:256]}' has invalid type. It should be either 'int', 'bool', or 'string'.")
    for name in _RESERVED_WHOLE:
        if name in said and (type(said[name]) is not int or said[name] < 0):
            raise bad_json(name, "attempt to access JSON non-unsigned-integer as unsigned-integer")
    for name in _RESERVED_FLAGS:
        if name in said and type(said[name]) is not bool:
            raise bad_json(name, "attempt to access JSON non-boolean as boolean")
    known = said.get("sequence_id", 0)
    if type(known) is not str and (type(known) is not int or known < 0):
        raise bad_json("sequence_id", "attempt to access JSON non-string as string")
    if any(name.startswith("triton_") for name in said):
        raise BadRequest(
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
        )
    return said


def _inputs(said: list[Any], tail: "Buffer | Coming", model: str, *, lenient: bool) -> tuple[CallInput, ...]:
    inputs, at = [], 0
    for each in said:
        size = _tail_bytes(each)
        if size is None:
            inputs.append(_input(each, lenient=lenient))
            continue
        name, datatype = name_and_datatype(each)
        shape, end = shape_in(each), at + size
        if end > len(tail):
            missing = end - len(tail)
            raise BadRequest(
                f"unexpected size for input '{name}', expecting {missing} additional bytes for model '{model}'"
            )
        inputs.append(CallInput(name, datatype, shape, cast(Buffer, tail[at:end])))
        at = end
    if at != len(tail):
        raise BadRequest(f"unexpected additional input data for model '{model}'")
    return tuple(inputs)


def _tail_bytes(said: Any) -> int | None:
    """How many bytes of the tail an input has; None for one that says otherwise where its elements are, or is not well formed."""
    about = said.get("parameters") if type(said) is dict else None
    if type(about) is not dict or "binary_data_size" not in about or "data" in said:
        return None
    return None if "shared_memory_region" in about else _whole(about, "binary_data_size")


def _input(said: Members, *, lenient: bool) -> CallInput:
    """One input, whose elements are not in the tail."""
    if type(said) is not dict:
        raise BadRequest(f"{_ONE_OF}no field is set")
    about = said.get("parameters")
    if type(about) is not dict:
        about = {}
    fields = [name for name in ("binary_data_size", "shared_memory_region") if name in about]
    if "data" in said:
        fields.insert(0, "data")
    if len(fields) > 1:
        raise BadRequest(_ONE_OF + "set " + " ".join(f"'{name}'" for name in fields))
    if not fields:
        shape = said.get("shape")
        if type(shape) is not list or 0 not in shape:
            raise BadRequest(f"{_ONE_OF}no field is set")
    if fields == ["data"]:
        if lenient:
            tensor = tensor_of(said, lenient=True)
            assert isinstance(tensor.data, bytes | memoryview), "it has just been made"
            return CallInput(tensor.name, tensor.datatype, tensor.shape, tensor.data)
        name, datatype = name_and_datatype(said)
        shape_said = shape_in(said)
        return CallInput(name, datatype, shape_said, elements_from(said["data"], datatype, shape_said))
    name, datatype = name_and_datatype(said)
    shape_said = shape_in(said)
    if fields == ["shared_memory_region"]:
        return CallInput(name, datatype, shape_said, b"", _place(about, name))
    return CallInput(name, datatype, shape_said)


def _whole(said: Members, name: str) -> int:
    value = said.get(name, 0)
    if type(value) is not int or value < 0:
        raise bad_json(name, "attempt to access JSON non-unsigned-integer as unsigned-integer")
    return value


def _place(about: Members, tensor: str) -> RegionPlace:
    region = about["shared_memory_region"]
    if type(region) is not str:
        raise bad_json("shared_memory_region", "attempt to access JSON non-string as string")
    if "shared_memory_byte_size" not in about:
        raise BadRequest(
            f"'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor '{tensor}'"
        )
    return RegionPlace(region, _whole(about, "shared_memory_offset"), _whole(about, "shared_memory_byte_size"))


def _outputs(said: Members, otherwise: bool) -> tuple[tuple[CallOutput, ...], Wanted]:
    listed = said.get("outputs")
    if listed is None and "outputs" not in said:
        return (), ALL_BINARY if otherwise else ALL_JSON
    if type(listed) is not list:
        raise bad_json("outputs", "attempt to access JSON non-array as array")
    outputs, binary, placed = [], {}, []
    for each in listed:
        name = member(each if type(each) is dict else {}, "name", str, "string")
        about = each.get("parameters")
        if type(about) is not dict or not about:
            outputs.append(CallOutput(name))
            binary[name] = False
            continue
        raw = about.get("binary_data", False)
        if type(raw) is not bool:
            raise bad_json("binary_data", "attempt to access JSON non-boolean as boolean")
        classes = about.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise BadRequest(
                "Unable to set 'classification': attempt to access JSON non-unsigned-integer as unsigned-integer"
            )
        place = _place(about, name) if "shared_memory_region" in about else None
        if place is not None:
            if raw or classes:
                what = "binary_data" if raw else "classification"
                raise BadRequest(f"output '{name[:256]}' cannot have both '{what}' and 'shared_memory_region'")
            placed.append(name)
        outputs.append(CallOutput(name, classes, place))
        binary[name] = raw
    return tuple(outputs), Wanted(binary, otherwise, frozenset(placed))


ALL_JSON = Wanted({})


def raw_call(declaration: Declaration, model: str, version: str, body: Buffer) -> InferCall:
    """A body that is nothing but the bytes of the only input, one item of it. Raises `BadRequest` where that is not enough to know
    the tensor."""
    mark = request_mark("")
    specs = declaration.inputs
    if len(specs) != 1:
        raise BadRequest(
            f"{mark}Raw request must only have 1 input (found 1) to be deduced but got {len(specs)} inputs in '{model}' model"
            " configuration"
        )
    ((name, spec),) = specs.items()
    batch = (1,) if declaration.batches else ()
    if spec.datatype == BYTES:
        if spec.shape != (1,):
            raise BadRequest(f"{mark}For BYTE datatype raw input '{name}', the model must have input shape [1]")
        data = len(body).to_bytes(4, "little") + bytes(body)
        return InferCall(model, version, "", (CallInput(name, BYTES, (*batch, 1), data),))
    if spec.shape.count(ANY) > 1:
        raise BadRequest(
            f"{mark}The shape of the raw input '{name}' can not be deduced because there are more than one variable-sized"
            " dimension"
        )
    known = math.prod(dim for dim in spec.shape if dim != ANY) * spec.element_bytes
    rest = len(body) // known if known else 0
    shape = tuple(rest if dim == ANY else dim for dim in spec.shape)
    expected = math.prod(shape) * spec.element_bytes
    if expected != len(body):
        raise BadRequest(
            f"{mark}input byte size mismatch for input '{RAW_INPUT}' for model '{model}'. Expected {expected}, got {len(body)}"
        )
    return InferCall(model, version, "", (CallInput(name, spec.datatype, (*batch, *shape), body),))


# ---- answers


class Rendered(NamedTuple):
    """A body: its JSON part, and what follows it. `json_bytes` is told to the client where something is binary, else -1."""

    parts: list[Buffer]
    json_bytes: int


def render(result: InferResult, wanted: Wanted) -> Rendered:
    """Raises `BadRequest` where an output has no form as JSON."""
    said: Members = {}
    if result.id:
        said["id"] = result.id
    said["model_name"], said["model_version"] = result.model, result.version
    if result.parameters:
        said["parameters"] = dict(result.parameters)
    tail: list[Buffer] = []
    outputs: list[Members] = []
    for output in result.outputs:
        outputs.append(_output(output, wanted, tail))
    said["outputs"] = outputs
    head = orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)
    return Rendered([head, *tail], len(head) if tail else -1)


def _output(output: Tensor, wanted: Wanted, tail: list[Buffer]) -> Members:
    name, data = output.name, output.data
    said: Members = {"name": name, "datatype": output.datatype, "shape": output.shape}
    if wanted.binary.get(name, wanted.otherwise):
        assert isinstance(data, bytes | bytearray | memoryview), "answers are in our memory"
        said["parameters"] = {"binary_data_size": len(data)}
        if data:
            tail.append(data)
    elif name not in wanted.placed:
        said["data"] = list_of(output)
    return said

"""Tensors as JSON, in both directions: numbers between lists and arrays at once, none by one in Python (contract sections 1.4, 1.5).

Element types are compared as sets of Python's own: JSON's true is no integer, 1.0 none either, and whole numbers must be in the
range of their datatype. FP16 and BF16 are numbers here, which Triton refuses: a superset.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson

from ringserve.protocol.datatypes import BYTES, DATATYPES, DTYPES, join_elements, split_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Tensor
from ringserve.server.bfloat16 import from_bfloat16, to_bfloat16
from ringserve.server.open_inference.errors import bad_json, too_long_json

Members = dict[str, Any]
Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

JSON_BYTES_MAX = 64 << 20
DEPTH_MAX = 100
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NUMBERS = frozenset((int, float))
_SIGNED = frozenset(("INT8", "INT16", "INT32", "INT64"))
_FLOATS = frozenset(("FP16", "FP32", "FP64", "BF16"))


# ---- the text


def read_json(text: bytes | bytearray | memoryview) -> object:
    """Raises `BadRequest` for what is too long, too deep or no JSON. NaN, Infinity and -Infinity are numbers, as for Triton."""
    if len(text) > JSON_BYTES_MAX:
        raise too_long_json(len(text), JSON_BYTES_MAX)
    whole = bytes(text) if isinstance(text, memoryview) else text
    if whole.count(b"[") + whole.count(b"{") > DEPTH_MAX:
        check_depth(whole)
    try:
        return orjson.loads(whole)
    except orjson.JSONDecodeError as error:
        if b"NaN" in whole or b"Inf" in whole:
            return _with_infinities(bytes(whole))
        raise BadRequest(f"failed to parse the request JSON buffer: {error}") from None


def _with_infinities(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"failed to parse the request JSON buffer: {error}") from None


def check_depth(text: bytes | bytearray) -> None:
    """Raises `BadRequest` for JSON that nests deeper than `DEPTH_MAX`, before a parser is let at it."""
    brackets = np.frombuffer(_STRINGS.sub(b"", text).translate(None, _NO_BRACKETS), np.uint8)
    # [ and { have bit 1 set where ] and } have bit 2: 0x5B, 0x7B and 0x5D, 0x7D.
    steps = np.where(brackets & 2, 1, -1)
    if len(steps) and int(steps.cumsum().max()) > DEPTH_MAX:
        raise BadRequest(f"JSON nesting depth exceeds maximum allowed limit ({DEPTH_MAX})")


def member(said: Mapping[str, Any], name: str, kind: type, word: str) -> Any:
    """A member that must be there and be of a kind. Raises `BadRequest`."""
    value = said.get(name)
    if type(value) is kind:
        return value
    if name not in said:
        raise bad_json(name, f"attempt to access non-existing object member '{name}'")
    raise bad_json(name, f"attempt to access JSON non-{word} as {word}")


# ---- to arrays


def elements_from(data: object, datatype: str, shape: tuple[int, ...]) -> bytes | memoryview:
    """The elements of a list, flat or nested in any way, as they travel. Raises `BadRequest` where there are not as many as `shape`
    says, or some are of another type or out of range."""
    if type(data) is not list:
        raise bad_json("data", "attempt to access JSON non-array as array")
    flat, types = flattened(data)
    if len(flat) != math.prod(shape) and datatype != BYTES:  # the elements of those are counted later (checks.py)
        raise bad_json("data", "Shape does not match true shape of 'data' field")
    if not flat:
        return b""
    if datatype == BYTES:
        return _texts(flat, types)
    return encoded(flat, types, datatype)


def flattened(data: Sequence[Any]) -> tuple[Sequence[Any], set[type]]:
    """The leaves of nested lists, and what types they have."""
    types = set(map(type, data))
    while types == {list}:
        data = list(chain.from_iterable(data))
        types = set(map(type, data))
    if list in types:  # leaves beside lists: how deep something lies does not matter
        data = _leaves(data)
        types = set(map(type, data))
    return data, types


def _leaves(data: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    waiting = list(reversed(data))
    while waiting:
        item = waiting.pop()
        if type(item) is list:
            waiting += reversed(item)
        else:
            found.append(item)
    return found


def encoded(flat: Sequence[Any], types: set[type], datatype: str) -> memoryview:
    """Numbers or booleans as the bytes of their datatype. Raises `BadRequest`."""
    if datatype in _FLOATS:
        if not types <= _NUMBERS:
            raise bad_json("data", "attempt to access JSON non-number as double")
        array = _floats(flat, datatype)
    elif datatype == "BOOL":
        if types != {bool}:
            raise bad_json("data", "attempt to access JSON non-boolean as boolean")
        array = np.array(flat, np.bool_)
    else:
        word = "signed-integer" if datatype in _SIGNED else "unsigned-integer"
        if types != {int}:
            raise bad_json("data", f"attempt to access JSON non-{word} as {word}")
        try:
            array = np.array(flat, DTYPES[datatype])
        except OverflowError:
            least, most = (int(edge) for edge in (np.iinfo(DTYPES[datatype]).min, np.iinfo(DTYPES[datatype]).max))
            if datatype == "INT64" or (word == "unsigned-integer" and min(flat) < 0):
                raise bad_json("data", f"attempt to access JSON non-{word} as {word}") from None
            raise bad_json("data", f"a number is out of the range of {datatype}, {least} to {most}") from None
    return array.view(np.uint8).data


def _floats(flat: Sequence[Any], datatype: str) -> Array:
    try:
        with np.errstate(over="ignore"):  # what is too large is infinite, as in every language
            if datatype == "BF16":
                return to_bfloat16(flat)
            return np.array(flat, DTYPES[datatype])
    except OverflowError:
        raise bad_json("data", "a number is out of the range of a double") from None


def _texts(flat: Sequence[Any], types: set[type]) -> bytes:
    if types != {str}:
        raise BadRequest("Unable to parse JSON bytes array: attempt to access JSON non-string as string")
    try:
        return join_elements(map(str.encode, flat))
    except UnicodeEncodeError:
        raise BadRequest("Unable to parse JSON bytes array: a string has half of a surrogate pair") from None


# ---- from arrays


def list_of(tensor: Tensor, *, alone: bool = False) -> object:
    """The elements as orjson writes them, with `OPT_SERIALIZE_NUMPY`: a flat list, or, `alone`, the only one. Raises `BadRequest` for
    BYTES that are no text."""
    data = tensor.data
    assert isinstance(data, bytes | bytearray | memoryview), "what is written as JSON is in our memory"
    datatype = tensor.datatype
    if datatype == BYTES:
        try:
            texts = [element.decode() for element in split_elements(data)]
            return texts[0] if alone else texts
        except UnicodeDecodeError:
            raise BadRequest(
                f"sending BYTES that are not UTF-8 via JSON is not supported. Please use the binary data format for output"
                f" {tensor.name}"
            ) from None
    if datatype in _FLOATS:
        return _numbers(data, datatype, alone=alone)
    array = np.frombuffer(data, DTYPES[datatype])
    return array[0] if alone else array


def _numbers(data: bytes | bytearray | memoryview, datatype: str, *, alone: bool) -> object:
    if datatype == "BF16":
        array: Array = from_bfloat16(np.frombuffer(data, np.uint16))
    else:
        array = np.frombuffer(data, DTYPES[datatype])
    if np.isfinite(array).all():
        return array[0] if alone else array
    values = array.tolist()
    return orjson.Fragment(
        json.dumps(values[0] if alone else values, separators=(",", ":")).encode()
    )  # NaN, Infinity, -Infinity


def tensor_json(tensor: Tensor) -> Members:
    """`{"name", "shape", "datatype", "data"}`."""
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "datatype": tensor.datatype,
        "data": list_of(tensor),
    }


# ---- one tensor


def name_and_datatype(said: Members) -> tuple[str, str]:
    """Raises `BadRequest`."""
    name = member(said, "name", str, "string")
    datatype = member(said, "datatype", str, "string")
    if datatype not in DATATYPES:
        raise BadRequest(f"invalid datatype for input {name[:256]}")
    return name, datatype


def shape_in(said: Members) -> tuple[int, ...]:
    """Raises `BadRequest`."""
    shape = member(said, "shape", list, "array")
    if shape and (set(map(type, shape)) != {int} or min(shape) < 0):
        raise bad_json("shape", "attempt to access JSON non-unsigned-integer as unsigned-integer")
    return tuple(shape)


def tensor_of(said: object, *, lenient: bool = False) -> Tensor:
    """One tensor with its data. `lenient`, as models that declare nothing have always been asked (TorchServe's examples): the shape
    may be one number, or have one -1, or be missing, and the data a single value. Raises `BadRequest`."""
    if type(said) is not dict:
        raise BadRequest("a tensor must be a JSON object")
    name, datatype = name_and_datatype(said)
    data = said.get("data")
    if not lenient:
        shape = shape_in(said)
    else:
        data = data if type(data) is list else [data]
        count = len(flattened(data)[0])
        shape = _lenient_shape(said.get("shape"), count)
        if math.prod(shape) != count:
            raise bad_json("data", "Shape does not match true shape of 'data' field")
    return Tensor(name, datatype, shape, elements_from(data, datatype, shape))


def _lenient_shape(said: object, elements: int) -> tuple[int, ...]:
    dims: list[Any] = [-1] if said is None else said if isinstance(said, list) else [said]
    if set(map(type, dims)) - {int} or any(dim < -1 for dim in dims) or dims.count(-1) > 1:
        raise bad_json("shape", "attempt to access JSON non-unsigned-integer as unsigned-integer")
    if -1 in dims:
        known = -math.prod(dims)
        dims = [elements // known if dim == -1 and known else max(dim, 0) for dim in dims]
    elif math.prod(dims) != elements and type(said) is int:
        dims = [elements]  # TorchServe's own examples count characters there
    return tuple(dims)

"""The generate extension: one flat JSON object in, one out for each answer (contract section 3.5)."""

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import orjson

from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Scalar
from ringserve.protocol.tensor import ANY
from ringserve.server.open_inference.call import CallInput, InferCall, InferResult
from ringserve.server.open_inference.checks import Declaration
from ringserve.server.open_inference.errors import bad_json, request_mark
from ringserve.server.open_inference.json_codec import Members, elements_from, flattened, list_of, read_json

ONE_RESPONSE = "generate expects model to produce exactly 1 response, use generate stream for model that generates various number of responses"
_SCALARS = frozenset((str, bool, int, float))
Buffer = bytes | bytearray | memoryview


def generate_call(declaration: Declaration, model: str, version: str, body: Buffer) -> InferCall:
    """The call that a body asks for: keys that are inputs are tensors, all others parameters. Raises `BadRequest`."""
    said = read_json(body)
    if type(said) is not dict:
        raise BadRequest("attempt to get members for non-object")
    call_id = said.get("id", "")
    if type(call_id) is not str:
        raise bad_json("id", "attempt to access JSON non-string as string")
    _refuse_twice(body, said, declaration, call_id)
    inputs: list[CallInput] = []
    parameters: dict[str, Scalar] = {}
    for name, value in said.items():
        if name == "id":
            continue
        if name == "parameters":
            if type(value) is not dict:
                raise BadRequest(
                    "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object"
                )
            for key, each in value.items():
                parameters[key] = _scalar(key, each)
        elif name in declaration.inputs:
            inputs.append(_tensor(declaration, name, value))
        else:
            parameters[name] = _scalar(name, value)
    return InferCall(model, version, call_id, tuple(inputs), (), parameters)


def _refuse_twice(body: Buffer, said: Members, declaration: Declaration, call_id: str) -> None:
    """A parser keeps the last of two keys of one name; an input must not be said twice."""
    whole = bytes(body)
    suspects = [name for name in declaration.inputs if name in said and whole.count(json.dumps(name).encode()) > 1]
    if not suspects:
        return
    tops: list[list[str]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tops.append([key for key, _ in pairs])
        return dict(pairs)

    json.loads(whole, object_pairs_hook=keep)
    for name in suspects:
        if tops[-1].count(name) > 1:  # the object around all others is complete last
            raise BadRequest(f"{request_mark(call_id)}input '{name}' already exists in request")


def _scalar(name: str, value: Any) -> Scalar:
    if type(value) not in _SCALARS:
        raise BadRequest(f"parameter '{name[:256]}' has invalid type. It should be either 'int', 'bool', or 'string'.")
    scalar: Scalar = value
    return scalar


def _tensor(declaration: Declaration, name: str, value: Any) -> CallInput:
    """The shape is the declared one, in which the elements fill the first dimension of any length; without such a dimension they
    are so many items of a batch."""
    spec = declaration.inputs[name]
    data = value if type(value) is list else [value]
    count = len(flattened(data)[0])
    fixed = math.prod(dim for dim in spec.shape if dim != ANY)
    rest, over = divmod(count, fixed) if fixed else (0, count)
    if over:
        raise BadRequest(f"The schema can not convert input '{name}' to tensor with proper shape")
    items = 1 if ANY in spec.shape else rest
    shape: list[int] = []
    for dim in spec.shape:
        shape.append(rest if dim == ANY else dim)
        if dim == ANY:
            rest = 1
    if not declaration.batches and items != 1:
        raise BadRequest(f"The schema can not convert input '{name}' to tensor with proper shape")
    whole = (items, *shape) if declaration.batches else tuple(shape)
    return CallInput(name, spec.datatype, whole, elements_from(data, spec.datatype, whole))


def generated(result: InferResult) -> bytes:
    """One answer: a tensor of one element is that element, any other a flat list. Raises `BadRequest` for BYTES that are no text."""
    said: Members = {}
    if result.id:
        said["id"] = result.id
    said["model_name"], said["model_version"] = result.model, result.version
    said.update(result.parameters)
    for output in result.outputs:
        said[output.name] = list_of(output, alone=math.prod(output.shape) == 1)
    return orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)


async def only_one(results: AsyncIterator[InferResult]) -> InferResult:
    """The answer that `/generate` can give: raises `BadRequest` where there is none, or another one with outputs."""
    only: InferResult | None = None
    async for result in results:
        if result.outputs:
            if only is not None:
                raise BadRequest(ONE_RESPONSE)
            only = result
    if only is None:
        raise BadRequest(ONE_RESPONSE)
    return only


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"

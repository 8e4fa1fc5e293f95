"""A plain body for a framed model, as tensors: raw bytes for a model with one input, JSON by the inputs' names, or a form with a
part for each input. What the declaration leaves open follows from what came."""

import math
from collections.abc import Mapping

import numpy as np
import orjson

from ringserve.protocol.datatypes import BYTES, DATATYPE_OF, join_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import InferRequest, Tensor, TensorRequest
from ringserve.protocol.tensor import ANY, BYTES_DTYPE, ITEM_BYTES, Signature, TensorSpec
from ringserve.server.bfloat16 import to_bfloat16
from ringserve.server.json_values import holds_text, kind_of, misfit_of
from ringserve.server.tensor_payloads import Buffer

# How values are checked that numpy has no type for.
_CHECKED_AS = {"bfloat16": "float32"}


def tensors_of_body(signature: Signature, request: InferRequest) -> TensorRequest:
    """Raises `BadRequest` naming the input, what was expected and what came."""
    if request.parts is not None:
        parts = {part.name: part for part in request.parts}
        _check_names(signature, parts)
        found = [
            _of_part(spec, parts[spec.name].data, parts[spec.name].content_type)
            for spec in signature.inputs
            if spec.name in parts
        ]
    elif request.content_type.startswith("application/json"):
        found = _of_document(signature, request.body)
    else:
        found = [_of_bytes(_only_input(signature, "bytes"), request.body)]
    if signature.batches:
        found = [each._replace(shape=(1, *each.shape)) for each in found]
    return TensorRequest(tuple(found))


def _only_input(signature: Signature, got: str) -> TensorSpec:
    """The input that a body without names is for."""
    required = [spec for spec in signature.inputs if not spec.optional] or list(signature.inputs)
    if len(required) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise BadRequest(f"Body: expected a JSON object or a form with the inputs {names}, got {got}.")
    return required[0]


def _check_names(signature: Signature, got: Mapping[str, object]) -> None:
    known = {spec.name for spec in signature.inputs}
    required = {spec.name for spec in signature.inputs if not spec.optional}
    if not required <= got.keys() <= known:
        expected = [spec.name + " (optional)" * spec.optional for spec in signature.inputs]
        raise BadRequest(f"Inputs: expected {', '.join(sorted(expected))}, got {', '.join(sorted(got)) or 'none'}.")


def _of_document(signature: Signature, body: Buffer) -> list[Tensor]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"Body: expected JSON, got a document that does not parse: {error}.") from None
    if not isinstance(value, dict):
        return [_of_json(_only_input(signature, kind_of(value)), value)]
    _check_names(signature, value)
    return [_of_json(spec, value[spec.name]) for spec in signature.inputs if spec.name in value]


def _of_part(spec: TensorSpec, data: bytes, content_type: str) -> Tensor:
    if not content_type.startswith("application/json"):
        return _of_bytes(spec, data)
    try:
        return _of_json(spec, orjson.loads(data))
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"Input {spec.name}: expected JSON, got a part that does not parse: {error}.") from None


def _shape_for(spec: TensorSpec, elements: int) -> tuple[int, ...] | None:
    """The declared shape for so many elements; None where there is none, or more than one."""
    fixed = math.prod(size for size in spec.shape if size != ANY)
    anys = spec.shape.count(ANY)
    if not anys:
        return spec.shape if fixed == elements else None
    if elements == 1 == fixed:
        return tuple(1 if size == ANY else size for size in spec.shape)
    if anys > 1 or not fixed or elements % fixed:
        return None
    return tuple(elements // fixed if size == ANY else size for size in spec.shape)


def _of_bytes(spec: TensorSpec, data: Buffer) -> Tensor:
    """Raw elements, little-endian; one element, where those have any length."""
    if spec.dtype == BYTES_DTYPE:
        shape = _shape_for(spec, 1)
        if shape is None:
            raise BadRequest(f"Input {spec.name}: expected JSON, got bytes, which are one element and not {spec}.")
        return Tensor(spec.name, BYTES, shape, join_elements((bytes(data),)))
    item_bytes, length = ITEM_BYTES[spec.dtype], len(data)
    shape = None if length % item_bytes else _shape_for(spec, length // item_bytes)
    if shape is None:
        raise BadRequest(f"Input {spec.name}: expected the bytes of {spec}, got {length} bytes.")
    return Tensor(spec.name, DATATYPE_OF[spec.dtype], shape, data)


def _of_json(spec: TensorSpec, value: object) -> Tensor:
    """Nested lists; a flat list of the right length is accepted for a shape that it leaves no choice of."""
    texts = spec.dtype == BYTES_DTYPE
    if not texts and holds_text(value):
        raise BadRequest(f"Input {spec.name}: expected {spec.dtype} values, got a string.")
    try:
        found = np.array(value, dtype=object) if texts else np.asarray(value)
    except ValueError:
        raise BadRequest(f"Input {spec.name}: expected {spec}, got lists of unequal lengths.") from None
    shape: tuple[int, ...] | None = found.shape
    if not _fits(spec, found.shape):
        shape = _shape_for(spec, found.size) if found.ndim == 1 else None
    if shape is None:
        raise BadRequest(f"Input {spec.name}: expected shape {list(spec.shape)}, got {list(found.shape)}.")
    if texts:
        elements = found.ravel().tolist()
        wrong = next((each for each in elements if not isinstance(each, str)), None)
        if not all(isinstance(each, str) for each in elements):
            raise BadRequest(f"Input {spec.name}: expected strings, got {kind_of(wrong)}.")
        return Tensor(spec.name, BYTES, shape, join_elements([each.encode() for each in elements]))
    dtype = np.dtype(_CHECKED_AS.get(spec.dtype, spec.dtype))
    misfit = misfit_of(found, dtype)
    if misfit is not None:
        raise BadRequest(f"Input {spec.name}: expected {spec.dtype} values, got {misfit}.")
    values = to_bfloat16(found) if spec.dtype == "bfloat16" else found
    data = np.ascontiguousarray(values, dtype=None if spec.dtype == "bfloat16" else dtype).tobytes()
    return Tensor(spec.name, DATATYPE_OF[spec.dtype], shape, data)


def _fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(spec.shape) and all(
        want in (ANY, got) for want, got in zip(spec.shape, shape, strict=True)
    )

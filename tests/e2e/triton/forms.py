"""Steps, and the tensors in them, in as few words as possible."""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tests.e2e.triton.talk import text_or_base64

DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def rest(
    method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """`body`: bytes as they are, anything else as JSON."""
    step: dict[str, Any] = {"method": method, "path": path, **more}
    if body is not None:
        step["body"] = text_or_base64(body) if isinstance(body, bytes) else json.dumps(body)
    if headers:
        step["headers"] = dict(headers)
    return step


def infer(model: str, body: Any, headers: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    return rest("POST", f"/v2/models/{model}/infer", body, headers, **more)


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any, **parameters: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    if parameters:
        found["parameters"] = parameters
    if data is not None:
        found["data"] = data
    return found


def output(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters} if parameters else {"name": name}


def values(datatype: str, count: int) -> list[Any]:
    """So many values of a type, the extremes of it first."""
    if datatype == "BOOL":
        return [i % 3 == 0 for i in range(count)]
    if datatype == "BYTES":
        return [f"text {i} \u00e9\u4e16" if i else "" for i in range(count)]
    if datatype.startswith("FP"):
        return [i * 0.5 - 1.0 for i in range(count)]
    limits = np.iinfo(DTYPES[datatype])
    return [int(each) for each in (limits.max, limits.min, *range(count))][:count]


def packed(datatype: str, data: Iterable[Any]) -> bytes:
    """As the binary form has them."""
    if datatype == "BYTES":
        texts = [each.encode() if isinstance(each, str) else each for each in data]
        return b"".join(struct.pack("<I", len(each)) + each for each in texts)
    return np.array(list(data), DTYPES[datatype]).tobytes()


def binary(
    model: str, head: dict[str, Any], tail: bytes, headers: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A body of JSON and the bytes of tensors."""
    text = json.dumps(head).encode()
    return infer(model, text + tail, {"Inference-Header-Content-Length": str(len(text)), **(headers or {})}, **more)


def nested(data: Sequence[Any], shape: Sequence[int]) -> Any:
    """A flat list in the form of a shape."""
    if len(shape) <= 1:
        return list(data)
    step = prod(shape[1:])
    return [nested(data[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def call(rpc: str, request: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"rpc": rpc, "request": dict(request), **more}


def b64(data: bytes) -> str:
    """Bytes in a message's JSON."""
    from base64 import b64encode

    return b64encode(data).decode()


def contents(datatype: str, data: Sequence[Any]) -> dict[str, Any]:
    if datatype == "BYTES":
        return {"bytes_contents": [b64(each.encode()) for each in data]}
    return {CONTENTS[datatype]: list(data)}


def message(
    model: str,
    inputs: Sequence[dict[str, Any]],
    outputs: Sequence[dict[str, Any]] = (),
    raw: Sequence[bytes] = (),
    **more: Any,
) -> dict[str, Any]:
    """A ModelInferRequest."""
    request: dict[str, Any] = {"model_name": model, "inputs": list(inputs), **more}
    if outputs:
        request["outputs"] = list(outputs)
    if raw:
        request["raw_input_contents"] = [b64(each) for each in raw]
    return request

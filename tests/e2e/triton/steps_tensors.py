"""Tensors over REST: every datatype, as JSON and binary, in many shapes."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

from tests.e2e.triton.forms import binary, infer, nested, output, packed, rest, tensor, values
from tests.e2e.triton.repository import ALL, NUMERIC

Steps = Iterator[dict[str, Any]]
JSON_TYPES = tuple(each for each in ALL if each != "FP16")
WRONG: dict[str, list[Any]] = {
    "BOOL": [1, 0, "true", 1.5, None],
    "BYTES": [1, True, 1.5, None, {}],
    "FP32": ["1.0", True, None, {}],
    "FP64": ["1.0", True, None, []],
    **{each: ["1", True, None, {}] for each in NUMERIC if "INT" in each},
}


def _names(datatype: str) -> tuple[str, str]:
    return f"INPUT_{datatype}", f"OUTPUT_{datatype}"


def json_tensors() -> Steps:
    for datatype in JSON_TYPES:
        into, out = _names(datatype)
        asked = [output(out)]
        for shape in ([1], [5], [0]):
            data = values(datatype, shape[0])
            yield infer("identity", {"inputs": [tensor(into, datatype, shape, data)], "outputs": asked})
            yield infer("identity_batched", {"inputs": [tensor(into, datatype, [1, *shape], [data])], "outputs": asked})
        for rows in (2, 8):
            data = values(datatype, rows * 3)
            flat = tensor(into, datatype, [rows, 3], data)
            yield infer("identity_batched", {"id": "flat", "inputs": [flat], "outputs": asked})
            deep = tensor(into, datatype, [rows, 3], nested(data, [rows, 3]))
            yield infer("identity_batched", {"id": "deep", "inputs": [deep], "outputs": asked})
        data = values(datatype, 4)
        for wrong in WRONG[datatype]:
            yield infer("identity", {"inputs": [tensor(into, datatype, [4], [*data[:3], wrong])], "outputs": asked})
        for count in (0, 3, 5):
            yield infer(
                "identity", {"inputs": [tensor(into, datatype, [4], values(datatype, count))], "outputs": asked}
            )
        yield infer(
            "identity",
            {"inputs": [tensor(into, datatype, [4], [[data[0], data[1]], [data[2], data[3]]])], "outputs": asked},
        )
        yield infer("identity", {"inputs": [tensor(into, datatype, [2], data[0])], "outputs": asked})
    yield infer(
        "identity", {"inputs": [tensor("INPUT_FP16", "FP16", [2], [1.0, 2.0])], "outputs": [output("OUTPUT_FP16")]}
    )
    for value in (1e39, -1e39, 1e400, 1e-50, 0.1):
        yield infer(
            "identity", {"inputs": [tensor("INPUT_FP32", "FP32", [1], [value])], "outputs": [output("OUTPUT_FP32")]}
        )
    for datatype, tail in (
        ("FP32", [float("nan"), float("inf"), float("-inf")]),
        ("FP64", [float("nan"), float("inf")]),
    ):
        into, out = _names(datatype)
        head = {"inputs": [tensor(into, datatype, [len(tail)], None, binary_data_size=len(packed(datatype, tail)))]}
        yield binary("identity", {**head, "outputs": [output(out)]}, packed(datatype, tail))
    for text in ("a\0b", '"quoted"', "\\", "\u2028", "\U0001f600", "tab\there", " ", "\x7f"):
        yield infer(
            "identity", {"inputs": [tensor("INPUT_BYTES", "BYTES", [1], [text])], "outputs": [output("OUTPUT_BYTES")]}
        )
    yield infer(
        "identity", {"inputs": [tensor("INPUT_INT64", "INT64", [1], [2**63])], "outputs": [output("OUTPUT_INT64")]}
    )
    yield infer(
        "identity", {"inputs": [tensor("INPUT_INT32", "INT32", [1], [1.0])], "outputs": [output("OUTPUT_INT32")]}
    )


def binary_tensors() -> Steps:
    for datatype in ALL:
        into, out = _names(datatype)
        for shape in ([1], [6], [0]):
            for model, whole in (("identity", shape), ("identity_batched", [2, *shape])):
                data = packed(datatype, values(datatype, whole[0] * (whole[1] if len(whole) > 1 else 1)))
                sent = tensor(into, datatype, whole, None, binary_data_size=len(data))
                yield binary(model, {"id": "b", "inputs": [sent], "outputs": [output(out, binary_data=True)]}, data)
                if datatype != "FP16":
                    yield binary(model, {"inputs": [sent], "outputs": [output(out, binary_data=False)]}, data)
                    yield binary(model, {"inputs": [sent], "outputs": [output(out)]}, data)
        data = packed(datatype, values(datatype, 4))
        sent = tensor(into, datatype, [4], None, binary_data_size=len(data))
        if datatype != "FP16":
            told = tensor(into, datatype, [4], values(datatype, 4))
            yield infer("identity", {"inputs": [told], "outputs": [output(out, binary_data=True)]})
        for size in (len(data) - 1, len(data) + 1, 0, 2**31, -1):
            wrong = tensor(into, datatype, [4], None, binary_data_size=size)
            yield binary("identity", {"inputs": [wrong], "outputs": [output(out, binary_data=True)]}, data)
        shorter = tensor(into, datatype, [4], None, binary_data_size=len(data) - 1)
        yield binary("identity", {"inputs": [shorter], "outputs": [output(out, binary_data=True)]}, data[:-1])
        yield binary("identity", {"inputs": [sent], "outputs": [output(out, binary_data=True)]}, data + b"more")
        yield binary("identity", {"inputs": [sent], "outputs": [output(out, binary_data=True)]}, data[:-1])
        three = tensor(into, datatype, [3], None, binary_data_size=len(data))
        yield binary("identity", {"inputs": [three], "outputs": [output(out, binary_data=True)]}, data)
    for tail in (b"\x05\0\0\0abc", b"\x01\0", b"\x03\0\0\0abc\x01\0\0\0", b"\xff\xff\xff\xff"):
        sent = tensor("INPUT_BYTES", "BYTES", [1], None, binary_data_size=len(tail))
        yield binary("identity", {"inputs": [sent], "outputs": [output("OUTPUT_BYTES", binary_data=True)]}, tail)
    not_utf8 = packed("BYTES", [b"\xff\xfe", b"\0"])
    sent = tensor("INPUT_BYTES", "BYTES", [2], None, binary_data_size=len(not_utf8))
    yield binary("identity", {"inputs": [sent], "outputs": [output("OUTPUT_BYTES", binary_data=True)]}, not_utf8)


def shapes() -> Steps:
    ones = [float(i) for i in range(6)]
    for shape, data in (
        ([2, 3], ones),
        ([2, 3], [ones[:3], ones[3:]]),
        ([3, 2], ones),
        ([6], ones),
        ([1, 2, 3], ones),
        ([], [1.0]),
    ):
        yield infer("identity_matrix", {"inputs": [tensor("INPUT0", "FP32", shape, data)]})
    for shape in ([2, 3], [1, 6], [6, 1], [0, 3], [6]):
        data = ones if 0 not in shape else []
        yield infer("identity_two_variable", {"inputs": [tensor("INPUT0", "FP32", shape, data)]})
    wrong: list[Any] = [[-1, 3], [2.0, 3], ["2", 3], "2", 6, None, [2, 2**62], [2**63, 1], [2**31, 2**31], [True, 6]]
    for bad in wrong:
        yield infer("identity_matrix", {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": bad, "data": ones}]})
    three = [
        tensor("INPUT0", "INT32", [2, 2], [1, 2, 3, 4]),
        tensor("INPUT1", "FP32", [2, 1, 2], [1, 2, 3, 4]),
        tensor("INPUT2", "BYTES", [2, 1], ["a", "b"]),
    ]
    yield infer("identity_three", {"inputs": three})
    yield infer("identity_three", {"inputs": three[::-1]})
    for index in range(3):
        yield infer("identity_three", {"inputs": three[:index] + three[index + 1 :]})
        yield infer("identity_three", {"inputs": [*three, three[index]]})
        yield infer("identity_three", {"inputs": three, "outputs": [output(f"OUTPUT{index}")]})
        yield infer(
            "identity_three", {"inputs": three, "outputs": [output(f"OUTPUT{i}") for i in (index, (index + 1) % 3)]}
        )
        fewer = [
            {**each, "shape": [1, *each["shape"][1:]], "data": each["data"][: len(each["data"]) // 2]} for each in three
        ]
        yield infer("identity_three", {"inputs": [*three[:index], fewer[index], *three[index + 1 :]]})
        other = {**three[index], "datatype": "UINT8"}
        yield infer("identity_three", {"inputs": [*three[:index], other, *three[index + 1 :]]})
    for rows in (1, 4, 5, 0):
        many = [
            tensor("INPUT0", "INT32", [rows, 2], [7] * rows * 2),
            tensor("INPUT1", "FP32", [rows, 1, 2], [7] * rows * 2),
            tensor("INPUT2", "BYTES", [rows, 1], ["x"] * rows),
        ]
        yield infer("identity_three", {"inputs": many})


def _simple(rows: int = 1) -> dict[str, Any]:
    data = list(range(16 * rows))
    return {"inputs": [tensor(f"INPUT{i}", "INT32", [rows, 16], data) for i in (0, 1)]}


def compressed() -> Steps:
    body = json.dumps(_simple()).encode()
    for encoding, data in (("gzip", gzip.compress(body, mtime=0)), ("deflate", zlib.compress(body))):
        yield infer("simple", data, {"Content-Encoding": encoding})
        for accepted in (
            "gzip",
            "deflate",
            "identity",
            "gzip, deflate",
            "deflate, gzip",
            "gzip;q=0.5, deflate;q=1.0",
            "*",
            "br",
            "",
        ):
            yield infer("simple", data, {"Content-Encoding": encoding, "Accept-Encoding": accepted})
        yield infer("simple", data[:-5], {"Content-Encoding": encoding})
        yield infer("simple", body, {"Content-Encoding": encoding})
    for unknown in ("br", "zstd", "gzip, deflate", "identity", ""):
        yield infer("simple", body, {"Content-Encoding": unknown})
    tail = packed("INT32", range(16)) * 2
    inputs = [tensor(f"INPUT{i}", "INT32", [1, 16], None, binary_data_size=64) for i in (0, 1)]
    head = json.dumps({"inputs": inputs, "outputs": [output("OUTPUT0", binary_data=True)]}).encode()
    for encoding, pack in (("gzip", lambda raw: gzip.compress(raw, mtime=0)), ("deflate", zlib.compress)):
        for accepted in ("gzip", "deflate", "identity"):
            headers = {
                "Inference-Header-Content-Length": str(len(head)),
                "Content-Encoding": encoding,
                "Accept-Encoding": accepted,
            }
            yield infer("simple", pack(head + tail), headers)


def raw_binary() -> Steps:
    raw = {"Inference-Header-Content-Length": "0"}
    for model, body in (
        ("identity_matrix", packed("FP32", range(6))),
        ("identity_matrix", packed("FP32", range(5))),
        ("identity_two_variable", packed("FP32", range(6))),
        ("simple", packed("INT32", range(16))),
        ("identity_text", b"some text"),
        ("identity_text", b""),
        ("configured", packed("FP32", range(4))),
        ("configured", packed("FP32", range(8))),
        ("scores", packed("FP32", range(5))),
        ("scores", packed("FP32", range(5))[:-1]),
        ("identity", b"abcd"),
        ("repeat", packed("INT32", range(3))),
    ):
        yield infer(model, body, raw)
    yield rest("POST", "/v2/models/configured/versions/1/infer", packed("FP32", range(4)), raw)

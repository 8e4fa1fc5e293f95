"""GRPCInferenceService: the calls of the protocol, tensors in both forms, faults, streams and sequences."""

from collections.abc import Iterator
from typing import Any

from tests.e2e.triton.forms import CONTENTS, b64, call, contents, message, packed, values
from tests.e2e.triton.repository import ALL, BESIDE, REPOSITORY

Steps = Iterator[dict[str, Any]]


def _in(name: str, datatype: str, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


def _parameter(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"bool_param": value}
        case int():
            return {"int64_param": value}
        case float():
            return {"double_param": value}
    return {"string_param": str(value)}


def _parameters(**given: Any) -> dict[str, Any]:
    return {name: _parameter(value) for name, value in given.items()}


def calls() -> Steps:
    yield call("ServerLive", {})
    yield call("ServerReady", {})
    yield call("ServerMetadata", {})
    for model in (*REPOSITORY, *BESIDE, "nobody", ""):
        for rpc in ("ModelReady", "ModelMetadata", "ModelConfig"):
            yield call(rpc, {"name": model})
    for model in ("versions_latest", "versions_all", "versions_specific"):
        for version in ("1", "2", "10", "7", "abc", "-1", "0"):
            for rpc in ("ModelReady", "ModelMetadata", "ModelConfig"):
                yield call(rpc, {"name": model, "version": version})


def tensors() -> Steps:
    for datatype in ALL:
        name, out = f"INPUT_{datatype}", [{"name": f"OUTPUT_{datatype}"}]
        for shape in ([1], [4], [0]):
            data = values(datatype, shape[0])
            raw = packed(datatype, data)
            yield call(
                "ModelInfer", message("identity", [_in(name, datatype, shape)], out, [raw] if raw else [b""], id="r")
            )
            yield call("ModelInfer", message("identity_batched", [_in(name, datatype, [1, *shape])], out, [raw]))
            if datatype in CONTENTS and data:
                yield call(
                    "ModelInfer",
                    message("identity", [_in(name, datatype, shape, contents=contents(datatype, data))], out),
                )
        data = values(datatype, 6)
        yield call(
            "ModelInfer", message("identity_batched", [_in(name, datatype, [2, 3])], out, [packed(datatype, data)])
        )
        raw = packed(datatype, values(datatype, 4))
        for wrong in (raw[:-1], raw + b"x", b""):
            yield call("ModelInfer", message("identity", [_in(name, datatype, [4])], out, [wrong]))
        if datatype in CONTENTS:
            fewer = _in(name, datatype, [4], contents=contents(datatype, values(datatype, 3)))
            yield call("ModelInfer", message("identity", [fewer], out))
            field = next(each for each in CONTENTS.values() if each != CONTENTS[datatype])
            one = {"bool_contents": True, "bytes_contents": b64(b"a")}.get(field, 1)
            other = _in(name, datatype, [1], contents={field: [one]})
            yield call("ModelInfer", message("identity", [other], out))


def _simple(rows: int = 1, **more: Any) -> dict[str, Any]:
    raw = packed("INT32", range(16 * rows))
    return message("simple", [_in(f"INPUT{i}", "INT32", [rows, 16]) for i in (0, 1)], raw=[raw, raw], **more)


def faults() -> Steps:
    change: dict[str, Any]
    given: dict[str, Any]
    count: Any
    asked: list[dict[str, Any]]
    raw = packed("INT32", range(16))
    good, other = _in("INPUT0", "INT32", [1, 16]), _in("INPUT1", "INT32", [1, 16])
    for rows in (1, 2, 8, 9, 0):
        yield call("ModelInfer", _simple(rows))
    for change in (
        {"name": ""},
        {"name": "INPUT9"},
        {"datatype": ""},
        {"datatype": "INT33"},
        {"datatype": "FP32"},
        {"shape": [16]},
        {"shape": [1, 8]},
        {"shape": [-1, 16]},
        {"shape": []},
        {"contents": {"int_contents": list(range(16))}},
        {"parameters": _parameters(mine=1)},
        {"parameters": _parameters(shared_memory_region="nowhere", shared_memory_byte_size=64)},
        {"parameters": _parameters(shared_memory_region="nowhere")},
        {"parameters": _parameters(shared_memory_offset=4)},
        {"parameters": _parameters(shared_memory_byte_size=64)},
    ):
        yield call("ModelInfer", message("simple", [{**good, **change}, other], raw=[raw, raw]))
    for inputs in ([good], [good, good], [good, other, _in("INPUT2", "INT32", [1, 16])], []):
        yield call("ModelInfer", message("simple", inputs, raw=[raw] * len(inputs)))
        yield call("ModelInfer", message("simple", inputs, raw=[raw] * len(inputs), id="an id"))
    for count in (0, 1, 3):
        yield call("ModelInfer", message("simple", [good, other], raw=[raw] * count))
    for outputs in (["OUTPUT0"], ["OUTPUT1", "OUTPUT0"], ["OUTPUT2"], ["OUTPUT0", "OUTPUT0"], [""]):
        asked = [{"name": each} for each in outputs]
        yield call("ModelInfer", message("simple", [good, other], asked, [raw, raw]))
    for version in ("1", "2", "abc", "-1"):
        yield call("ModelInfer", _simple(model_version=version))
    for model in ("nobody", "", "broken", "later"):
        yield call("ModelInfer", {**_simple(), "model_name": model})
    for given in (
        _parameters(text="a", number=3, flag=True, real=0.5),
        {"big": {"uint64_param": 2**63}},
        _parameters(triton_mine=1),
        _parameters(triton_enable_empty_final_response=True),
        _parameters(priority=1),
        _parameters(priority="high"),
        {"priority": {"uint64_param": 1}},
        _parameters(timeout=1_000_000),
        _parameters(timeout="soon"),
        _parameters(binary_data_output=True),
        _parameters(sequence_id=2.5),
        _parameters(sequence_start=1),
        {"nothing": {}},
    ):
        yield call(
            "ModelInfer", message("echo_parameters", [_in("INPUT", "INT32", [1])], raw=[b"\0" * 4], parameters=given)
        )
        yield call("ModelInfer", _simple(parameters=given))
    scores = packed("FP32", [0.1, 0.9, 0.5, -3.0, 0.25])
    for name in ("SCORES", "WHOLE"):
        for count in (1, 3, 9, 0, -1, "2"):
            asked = [{"name": name, "parameters": _parameters(classification=count)}]
            yield call("ModelInfer", message("scores", [_in("INPUT", "FP32", [1, 5])], asked, [scores]))
    for code in (0, 1, 2, 3):
        yield call(
            "ModelInfer", message("failing", [_in("CODE", "INT32", [1, 1])], raw=[packed("INT32", [code])], id="f")
        )
    yield call("ModelInfer", message("repeat", [_in("IN", "INT32", [1])], raw=[packed("INT32", [1])]))


def _repeat(elements: list[int], **more: Any) -> dict[str, Any]:
    return message("repeat", [_in("IN", "INT32", [len(elements)])], raw=[packed("INT32", elements)], **more)


def streams() -> Steps:
    empty = _parameters(triton_enable_empty_final_response=True)
    yield {"stream": []}
    yield {"stream": [_simple(id="1")]}
    yield {"stream": [_simple(id=str(i)) for i in range(5)]}
    for elements in ([7], [1, 2, 3], list(range(20))):
        yield {"stream": [_repeat(elements, id="r")]}
        yield {"stream": [_repeat(elements, id="e", parameters=empty)]}
    yield {"stream": [_repeat([], id="none")]}
    yield {"stream": [_repeat([], id="none", parameters=empty)]}
    yield {"stream": [_repeat([-1], id="error")]}
    yield {"stream": [_repeat([1], id="a"), _simple(id="b")]}
    bad = {**_simple(id="bad"), "model_name": "nobody"}
    shaped = message("simple", [_in("INPUT0", "INT32", [1, 8])], raw=[packed("INT32", range(8))], id="shape")
    failing = message("failing", [_in("CODE", "INT32", [1, 1])], raw=[packed("INT32", [1])], id="fails")
    for wrong in (bad, shaped, failing):
        yield {"stream": [wrong]}
        yield {"stream": [wrong, _simple(id="after")]}
        yield {"stream": [wrong], "metadata": {"triton_grpc_error": "true"}}
        yield {"stream": [_simple(id="before"), wrong], "metadata": {"triton_grpc_error": "true"}}
    yield {"stream": [_simple(id="final", parameters=empty)]}
    for text in ("one", "one two three"):
        raw = packed("BYTES", [text])
        yield {"stream": [message("words_stream", [_in("text_input", "BYTES", [1])], raw=[raw], id="w")]}
        yield {"stream": [message("words", [_in("text_input", "BYTES", [1])], raw=[raw], id="w")]}


def _step(model: str, value: int, **given: Any) -> dict[str, Any]:
    raw = packed("INT32", [value])
    return message(model, [_in("INPUT", "INT32", [1, 1])], raw=[raw], id=str(value), parameters=_parameters(**given))


def sequences() -> Steps:
    for model, first, second in (("direct", 2001, 2002), ("oldest", 2001, 2002)):
        yield call("ModelInfer", _step(model, 1, sequence_id=first, sequence_start=True))
        yield call("ModelInfer", _step(model, 2, sequence_id=first))
        yield call("ModelInfer", _step(model, 3, sequence_id=first, sequence_end=True))
        yield call("ModelInfer", _step(model, 4, sequence_id=first))
        yield call("ModelInfer", _step(model, 5))
        yield call("ModelInfer", _step(model, 5, sequence_id=first, sequence_start="true"))
        yield {
            "stream": [
                _step(model, 1, sequence_id=first, sequence_start=True),
                _step(model, 2, sequence_id=first),
                _step(model, 3, sequence_id=first, sequence_end=True),
                _step(model, 10, sequence_id=second, sequence_start=True, sequence_end=True),
            ]
        }

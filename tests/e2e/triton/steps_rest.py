"""REST without much in the tensors: probes, documents, requests, faults, classification, sequences, generation."""

import json
from collections.abc import Iterator
from typing import Any

from tests.e2e.triton.forms import binary, infer, output, packed, rest, tensor
from tests.e2e.triton.repository import BESIDE, REPOSITORY

Steps = Iterator[dict[str, Any]]
UNKNOWN = ("nobody", "SIMPLE", "simple2")


def health() -> Steps:
    for path in ("live", "ready"):
        yield rest("GET", f"/v2/health/{path}")
        yield rest("GET", f"/v2/health/{path}?with=query")
        for method in ("POST", "PUT", "DELETE"):
            yield rest(method, f"/v2/health/{path}")
    for model in REPOSITORY:
        yield rest("GET", f"/v2/models/{model}/ready")
    for model in (*UNKNOWN, *BESIDE):
        yield rest("GET", f"/v2/models/{model}/ready")
    for version in ("1", "2", "10", "3", "0"):
        for model in ("versions_latest", "versions_all", "versions_specific"):
            yield rest("GET", f"/v2/models/{model}/versions/{version}/ready")


def metadata() -> Steps:
    yield rest("GET", "/v2")
    yield rest("POST", "/v2")
    yield rest("GET", "/v2/")
    for model in (*REPOSITORY, *UNKNOWN, *BESIDE):
        yield rest("GET", f"/v2/models/{model}")
    for model in ("simple", "versions_latest", "versions_all", "versions_specific"):
        for version in ("1", "2", "10", "7"):
            yield rest("GET", f"/v2/models/{model}/versions/{version}")
    yield rest("POST", "/v2/models/simple")


def config() -> Steps:
    for model in (*REPOSITORY, *UNKNOWN, *BESIDE):
        yield rest("GET", f"/v2/models/{model}/config")
    for version in ("1", "2", "10", "7"):
        yield rest("GET", f"/v2/models/versions_all/versions/{version}/config")
    yield rest("POST", "/v2/models/simple/config")


def routes() -> Steps:
    for path in (
        "/v2/nothing",
        "/v2/health",
        "/v2/health/live/",
        "/v2/models/simple/",
        "/v2/models/simple/infer/",
        "/v2/models/simple/nothing",
        "/v2/models/simple/versions",
        "/v2/models/simple/versions/1/nothing",
        "/v3",
        "/v2/repository",
        "/v2/repository/nothing",
        "/v2/systemsharedmemory",
        "/v2/models//infer",
    ):
        yield rest("GET", path)
        yield rest("POST", path, b"")
    for path in ("infer", "generate", "generate_stream"):
        for method in ("GET", "PUT", "DELETE"):
            yield rest(method, f"/v2/models/simple/{path}")
    for path in ("/v2/repository/index", "/v2/repository/models/simple/load", "/v2/repository/models/simple/unload"):
        yield rest("GET", path)


def _simple(rows: int = 1, **more: Any) -> dict[str, Any]:
    data = list(range(16 * rows))
    return {"inputs": [tensor(f"INPUT{i}", "INT32", [rows, 16], data) for i in (0, 1)], **more}


def requests() -> Steps:
    yield infer("simple", _simple())
    for rows in (2, 8, 9, 0):
        yield infer("simple", _simple(rows))
    for rid in ("42", "", "text with spaces", "\u00e9", 42, None, ["a"], True):
        yield infer("simple", _simple(id=rid))
    for version in ("1", "2", "0", "abc"):
        yield rest("POST", f"/v2/models/simple/versions/{version}/infer", _simple())
    for model in UNKNOWN:
        yield infer(model, _simple())
    for model in ("versions_latest", "versions_all", "versions_specific"):
        for version in ("", "/versions/1", "/versions/2", "/versions/10", "/versions/11"):
            yield rest("POST", f"/v2/models/{model}{version}/infer", {"inputs": [tensor("INPUT", "INT32", [1], [0])]})
    outputs: list[Any] = [
        [],
        [output("OUTPUT1")],
        [output("OUTPUT1"), output("OUTPUT0")],
        [output("OUTPUT0"), output("OUTPUT0")],
        [output("OUTPUT2")],
        [output("OUTPUT0", binary_data=False)],
        [output("OUTPUT0", binary_data=True), output("OUTPUT1", binary_data=False)],
        [output("OUTPUT0", binary_data=False), output("OUTPUT1", binary_data=True)],
        [{}],
        ["OUTPUT0"],
        "OUTPUT0",
        None,
    ]
    for asked in outputs:
        yield infer("simple", _simple(outputs=asked))
        yield infer("simple", _simple(outputs=asked, parameters={"binary_data_output": True}))
    for value in (True, False, "true", 1):
        yield infer("simple", _simple(parameters={"binary_data_output": value}))
    given: list[Any] = [
        {},
        {"text": "a", "number": 3, "flag": True},
        {"real": 1.5},
        {"none": None},
        {"list": [1]},
        {"object": {}},
        {"triton_mine": 1},
        {"triton_enable_empty_final_response": True},
        {"priority": 1},
        {"priority": -1},
        {"priority": "high"},
        {"timeout": 1_000_000},
        {"timeout": "soon"},
        {"sequence_id": 5},
        {"sequence_start": "yes"},
        [],
        "text",
        None,
    ]
    for parameters in given:
        body = {"inputs": [tensor("INPUT", "INT32", [1], [0])], "parameters": parameters}
        yield infer("echo_parameters", body)
        yield infer("simple", _simple(parameters=parameters))
    yield infer("simple", _simple(model_name="another", model_version="9", more={"a": 1}))
    for content_type in ("application/json", "text/plain", "application/octet-stream", ""):
        yield infer("simple", _simple(), {"Content-Type": content_type})


def faults() -> Steps:
    change: dict[str, Any]
    good = tensor("INPUT0", "INT32", [1, 16], list(range(16)))
    other = tensor("INPUT1", "INT32", [1, 16], list(range(16)))
    for body in (
        b"",
        b"{",
        b"[]",
        b"null",
        b"42",
        b'"text"',
        b"{}",
        b'{"inputs": 5}',
        b'{"inputs": []}',
        b'{"inputs": [5]}',
        b"\xff\xfe",
    ):
        yield infer("simple", body)
    for change in (
        {"name": None},
        {"name": 5},
        {"name": ""},
        {"name": "INPUT9"},
        {"datatype": None},
        {"datatype": "INT33"},
        {"datatype": "int32"},
        {"datatype": 5},
        {"datatype": "FP32"},
        {"shape": [16]},
        {"shape": [1, 8]},
        {"shape": [2, 8]},
        {"shape": [1, 16, 1]},
        {"shape": []},
        {"data": None},
        {"data": "text"},
        {"data": {}},
        {"data": [list(range(16))] * 2},
        {"data": list(range(15))},
        {"parameters": 5},
        {"parameters": {"binary_data_size": 64}},
        {"parameters": {"binary_data_size": "64"}},
        {"parameters": {"shared_memory_region": "nowhere", "shared_memory_byte_size": 64}},
        {"parameters": {"mine": 1}},
    ):
        yield infer("simple", {"inputs": [{**good, **change}, other]})
    for field in ("name", "datatype", "shape", "data"):
        yield infer("simple", {"inputs": [{name: each for name, each in good.items() if name != field}, other]})
    for inputs in (
        [good],
        [other],
        [good, good],
        [good, other, good],
        [good, {**other, "name": "INPUT2"}],
        [good, other, {**good, "name": "INPUT2"}],
    ):
        yield infer("simple", {"inputs": inputs})
        yield infer("simple", {"id": "my id", "inputs": inputs})
    for depth in (50, 99, 101, 1000):
        deep = "[" * depth + "1" + "]" * depth
        text = f'{{"inputs": [{{"name": "INPUT_INT32", "datatype": "INT32", "shape": [1], "data": {deep}}}]}}'
        yield infer("identity", text.encode())


def binary_faults() -> Steps:
    body = json.dumps(_simple()).encode()
    for length in (str(len(body)), str(len(body) + 1), str(len(body) - 1), "-1", "abc", "99999999999", "1", "1.5"):
        yield infer("simple", body, {"Inference-Header-Content-Length": length})
    inputs = [tensor(f"INPUT{i}", "INT32", [1, 16], None, binary_data_size=64) for i in (0, 1)]
    tail = packed("INT32", range(16))
    for sent in (tail * 2, tail, tail * 3, b"", tail * 2 + b"x"):
        yield binary("simple", {"inputs": inputs}, sent)
        yield binary("simple", {"id": "binary", "inputs": inputs}, sent)
    mixed = [inputs[0], tensor("INPUT1", "INT32", [1, 16], list(range(16)))]
    yield binary("simple", {"inputs": mixed}, tail)
    yield binary("simple", {"inputs": mixed[::-1]}, tail)
    both = {**inputs[0], "data": list(range(16))}
    yield binary("simple", {"inputs": [both, inputs[1]]}, tail * 2)
    for parameters in ({}, {"binary_data_output": True}):
        yield binary("simple", {"inputs": inputs, "parameters": parameters}, tail * 2)


def classification() -> Steps:
    scores = [0.1, 0.9, 0.5, -3.0, 0.25]
    one = [tensor("INPUT", "FP32", [1, 5], scores)]
    two = [tensor("INPUT", "FP32", [2, 5], scores + scores[::-1])]
    for inputs in (one, two):
        for name in ("SCORES", "WHOLE"):
            for count in (1, 3, 5, 9, 0, -1, "2", True):
                yield infer("scores", {"inputs": inputs, "outputs": [output(name, classification=count)]})
            yield infer("scores", {"inputs": inputs, "outputs": [output(name, classification=2, binary_data=True)]})
    text = [tensor("INPUT_BYTES", "BYTES", [2], ["a", "b"])]
    yield infer("identity", {"inputs": text, "outputs": [output("OUTPUT_BYTES", classification=1)]})
    yield infer(
        "identity",
        {"inputs": [tensor("INPUT_BOOL", "BOOL", [1], [True])], "outputs": [output("OUTPUT_BOOL", classification=1)]},
    )
    for datatype in ("UINT8", "INT64", "FP64"):
        sent = [tensor(f"INPUT_{datatype}", datatype, [3], [3, 1, 2])]
        yield infer("identity", {"inputs": sent, "outputs": [output(f"OUTPUT_{datatype}", classification=2)]})


def optional_inputs() -> Steps:
    tensors = [tensor(f"INPUT{i}", "INT32", [1, 2], [i + 1, 10 * i]) for i in range(3)]
    for chosen in ([0], [1], [0, 1], [0, 2], [0, 1, 2], [1, 2], []):
        yield infer("optional", {"id": "o", "inputs": [tensors[i] for i in chosen]})
    yield infer("optional", {"inputs": [*tensors, {**tensors[0], "name": "INPUT3"}]})
    yield infer("optional", {"inputs": [tensors[0], {**tensors[1], "shape": [2, 2], "data": [1, 2, 3, 4]}]})


def failing() -> Steps:
    for code in (0, 1, 2, 3, 0):
        yield infer("failing", {"id": f"code {code}", "inputs": [tensor("CODE", "INT32", [1, 1], [code])]})


def _step(model: str, value: int, **parameters: Any) -> dict[str, Any]:
    return infer(model, {"inputs": [tensor("INPUT", "INT32", [1, 1], [value])], "parameters": parameters})


def sequences() -> Steps:
    for model, first, second in (("direct", 1001, 1002), ("oldest", 1001, 1002)):
        yield _step(model, 1, sequence_id=first, sequence_start=True)
        yield _step(model, 2, sequence_id=first)
        yield _step(model, 10, sequence_id=second, sequence_start=True)
        yield _step(model, 3, sequence_id=first)
        yield _step(model, 20, sequence_id=second)
        yield _step(model, 4, sequence_id=first, sequence_end=True)
        yield _step(model, 5, sequence_id=first)
        yield _step(model, 30, sequence_id=second, sequence_end=True)
        yield _step(model, 7, sequence_id=first, sequence_start=True, sequence_end=True)
        yield _step(model, 1, sequence_id=first, sequence_start=True)
        yield _step(model, 9, sequence_id=first, sequence_start=True)
        yield _step(model, 1, sequence_id=first, sequence_end=True)
        yield _step(model, 1)
        yield _step(model, 1, sequence_start=True)
        yield _step(model, 1, sequence_id=0, sequence_start=True)
        yield _step(model, 1, sequence_id="", sequence_start=True)
        yield _step(model, 1, sequence_id=3, sequence_start=True, sequence_end=True)
        yield _step(model, 1, sequence_id="3", sequence_start=True, sequence_end=True)
        yield _step(model, 1, sequence_id=-1, sequence_start=True, sequence_end=True)
        yield _step(model, 1, sequence_id=2.5, sequence_start=True)
        yield _step(model, 1, sequence_id=first, sequence_start="true")
        two = [tensor("INPUT", "INT32", [2, 1], [1, 2])]
        yield infer(model, {"inputs": two, "parameters": {"sequence_id": 9, "sequence_start": True}})


def generate() -> Steps:
    for model in ("words", "words_stream"):
        for verb in ("generate", "generate_stream"):
            path = f"/v2/models/{model}/{verb}"
            bodies: list[Any] = [
                {"text_input": "hello"},
                {"text_input": "hello big world"},
                {"text_input": "hello", "id": "7"},
                {"text_input": "a", "repeat": 2},
                {"text_input": "a", "repeat": [2]},
                {"text_input": ["a"]},
                {"text_input": ["a", "b"]},
                {"text_input": "a", "parameters": {"temperature": 0.5}},
                {"text_input": "a", "temperature": 0.5, "stream": True, "name": "x"},
                {"text_input": "a", "parameters": 5},
                {"text_input": "a", "other": [1]},
                {"text_input": "a", "other": None},
                {"text_input": ""},
                {"text_input": 5},
                {"text_input": None},
                {"repeat": 2},
                {"repeat": "two", "text_input": "a"},
                {},
                [],
            ]
            for body in bodies:
                yield rest("POST", path, body)
            yield rest("POST", path, b"{")
            yield rest("POST", path, b"")
            yield rest("POST", f"/v2/models/{model}/versions/1/{verb}", {"text_input": "one"})
            yield rest("POST", path, b"x", {"Content-Encoding": "gzip"})
    for verb in ("generate", "generate_stream"):
        yield rest("POST", f"/v2/models/nobody/{verb}", {"text_input": "a"})
        yield rest("POST", f"/v2/models/failing/{verb}", {"CODE": 1})
        yield rest("POST", f"/v2/models/failing/{verb}", {"CODE": 0})
        yield rest("POST", f"/v2/models/repeat/{verb}", {"IN": [4, 5]})
        yield rest("POST", f"/v2/models/repeat/{verb}", {"IN": [4]})
        yield rest("POST", f"/v2/models/repeat/{verb}", {"IN": 4})
        yield rest("POST", f"/v2/models/repeat/{verb}", {"IN": []})
        yield rest("POST", f"/v2/models/repeat/{verb}", {"IN": [-1]})
        yield rest("POST", f"/v2/models/identity_matrix/{verb}", {"INPUT0": [1, 2, 3, 4, 5, 6]})
        yield rest("POST", f"/v2/models/configured/{verb}", {"INPUT0": [1, 2, 3, 4]})
    yield infer("repeat", {"inputs": [tensor("IN", "INT32", [2], [1, 2])]})
    yield infer("repeat", {"inputs": [tensor("IN", "INT32", [1], [1])]})

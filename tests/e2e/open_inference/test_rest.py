"""The Open Inference Protocol over HTTP, byte by byte: routes, statuses, headers, sentences."""

import gzip
import json
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from ringserve.server.testing import ServerProcess
from tests.e2e.raw_http import Connection, wait_until_free

LEFT: dict[str, Any] = {"name": "left", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
RIGHT = {**LEFT, "name": "right"}
GOOD = {"inputs": [LEFT, RIGHT]}
RAW = [{**each, "parameters": {"binary_data_size": 12}} for each in (LEFT, RIGHT)]
for each in RAW:
    del each["data"]
SUMS = "/v2/models/sums/infer"
GENERATE = "/v2/models/words/generate"
STREAM = "/v2/models/words/generate_stream"
ORIGINAL = struct.pack("<3f", 1, 2, 3) * 2


def binary(said: object, tail: bytes, **more: str) -> dict[str, Any]:
    text = json.dumps(said).encode()
    return {"content": text + tail, "headers": {"Inference-Header-Content-Length": str(len(text)), **more}}


def test_health_has_bodies_and_the_routes_are_those_of_the_protocol(asking_v2: httpx.Client) -> None:
    def told(path: str) -> object:
        response = asking_v2.get(path)
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        return response.json()

    assert told("/v2/health/live") == {"live": True}
    assert told("/v2/health/ready") == {"ready": True}
    assert told("/v2/models/sums/ready?query=ignored") == {"name": "sums", "ready": True}
    assert told("/v2/models/sums/versions/1.0/ready") == {"name": "sums", "ready": True}
    assert told("/v2/models") == {"models": ["handler", "large", "scores", "sums", "types", "words"]}
    assert told("/v2/models/sums/versions/1.0") == told("/v2/models/sums")
    assert asking_v2.head("/v2/health/live").content == b""


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/v2/unknown", 404, "Not Found"),
        ("POST", "/v2/models/sums/unknown", 404, "Not Found"),
        ("GET", "/v2/models/sums/", 404, "Not Found"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("POST", "/v2/health/ready", 405, "Method Not Allowed"),
        ("DELETE", "/v2/models/sums", 405, "Method Not Allowed"),
        ("GET", SUMS, 405, "Method Not Allowed"),
        ("PUT", GENERATE, 405, "Method Not Allowed"),
        ("GET", "/v2/models/nobody", 404, "Request for unknown model: 'nobody' is not found"),
        ("GET", "/v2/models/nobody/ready", 404, "Request for unknown model: 'nobody' is not found"),
        ("GET", "/v2/models/sums/versions/9", 404, "Request for unknown model: 'sums' version 9 is not found"),
        ("POST", "/v2/models/nobody/infer", 404, "Request for unknown model: 'nobody' is not found"),
        ("POST", "/v2/models/sums/versions/9/infer", 404, "Request for unknown model: 'sums' version 9 is not found"),
        ("POST", "/v2/models/nobody/generate", 404, "Request for unknown model: 'nobody' is not found"),
    ],
)
def test_what_is_not_there_is_said_in_json(
    asking_v2: httpx.Client, method: str, path: str, status: int, text: str
) -> None:
    response = asking_v2.request(method, path, content=b"{}" if method != "GET" else None)
    assert response.headers["content-type"] == "application/json"
    assert response.status_code == status
    assert response.json()["error"].startswith(text)


def test_an_answer_in_json_has_the_fields_of_the_protocol(asking_v2: httpx.Client) -> None:
    response = asking_v2.post(SUMS, json={**GOOD, "id": "42", "model_name": "ignored"})
    assert response.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in response.headers
    assert response.json() == {
        "id": "42",
        "model_name": "sums",
        "model_version": "1.0",
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 4.0, 6.0]},
            {"name": "double", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 4.0, 6.0]},
        ],
    }
    assert "id" not in asking_v2.post(SUMS, json={**GOOD, "id": ""}).json()


def test_binary_parts_follow_the_rules_of_listed_and_other_outputs(asking_v2: httpx.Client) -> None:
    asked = {"inputs": RAW, "outputs": [{"name": "double", "parameters": {"binary_data": True}}, {"name": "sum"}]}
    for more in ({}, {"parameters": {"binary_data_output": True}}):
        response = asking_v2.post(SUMS, **binary({**asked, **more}, ORIGINAL))
        assert response.headers["content-type"] == "application/octet-stream"
        length = int(response.headers["inference-header-content-length"])
        said = json.loads(response.content[:length])
        assert said["outputs"][0]["data"] == [2.0, 4.0, 6.0], "one that is listed is JSON unless it says otherwise"
        assert said["outputs"][1]["parameters"] == {"binary_data_size": 12}
        assert response.content[length:] == struct.pack("<3f", 2, 4, 6)
    everything = asking_v2.post(SUMS, **binary({"inputs": RAW, "parameters": {"binary_data_output": True}}, ORIGINAL))
    assert everything.content.endswith(struct.pack("<6f", 2, 4, 6, 2, 4, 6))


def test_a_raw_body_is_the_only_input_and_all_outputs_come_raw(asking_v2: httpx.Client) -> None:
    body = struct.pack("<3f", 1, 2, 3)
    response = asking_v2.post("/v2/models/scores/infer", content=body, headers={"Inference-Header-Content-Length": "0"})
    length = int(response.headers["inference-header-content-length"])
    assert response.content[length:] == struct.pack("<3f", 2, 4, 6) + struct.pack("<3q", 1, 2, 3)
    for name, content in (("sums", body), ("sums", b""), ("words", body)):
        path = f"/v2/models/{name}/infer"
        refusal = asking_v2.post(path, content=content, headers={"Inference-Header-Content-Length": "0"})
        assert refusal.status_code == 400
        assert "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs" in refusal.json()["error"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"content": b"{"}, "failed to parse the request JSON buffer: "),
        ({"content": b'{"inputs":' + b"[" * 200}, "JSON nesting depth exceeds maximum allowed limit (100)"),
        ({"json": {}}, "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
        (
            {"json": {"inputs": [LEFT]}},
            "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'sums'.",
        ),
        ({"json": {"id": "7", "inputs": [LEFT, LEFT]}}, "[request id: 7] input 'left' already exists in request"),
        ({"json": {**GOOD, "outputs": [{"name": "x"}]}}, "unexpected inference output 'x' for model 'sums'"),
        (
            {"json": {"inputs": [{**LEFT, "data": [1, 2]}, RIGHT]}},
            "Unable to parse 'data': Shape does not match true shape",
        ),
        (
            {"json": {"inputs": [{**LEFT, "shape": [16, 2**60 + 2]}, RIGHT]}},
            "Unable to parse 'data': Shape does not match true shape",
        ),
        (
            {"json": {"inputs": [{**LEFT, "shape": [1, 2], "data": [1, 2]}, RIGHT]}},
            "[request id: <id_unknown>] unexpected shape for input 'left' for model 'sums'. Expected [-1,3], got [1,2].",
        ),
        (
            {"json": {"inputs": [{**LEFT, "datatype": "INT32"}, RIGHT]}},
            "[request id: <id_unknown>] inference input 'left' data-type is 'INT32', but model 'sums' expects 'FP32'",
        ),
        (
            binary({"inputs": RAW}, ORIGINAL[:-1]),
            "unexpected size for input 'right', expecting 1 additional bytes for model",
        ),
        (binary({"inputs": RAW}, ORIGINAL + b"x"), "unexpected additional input data for model 'sums'"),
        (
            {"content": b"{}", "headers": {"inference-header-content-length": "2147483648"}},
            "inference header size should be in range (0, 2), got: 2147483648",
        ),
        (
            {"content": b"{}", "headers": {"inference-header-content-length": "x"}},
            "inference header size should be in range",
        ),
        ({"content": b"xyz", "headers": {"content-encoding": "gzip"}}, "The body cannot be inflated as gzip"),
    ],
)
def test_what_the_client_got_wrong_is_400_and_the_connection_stays(
    asking_v2: httpx.Client, more: dict[str, Any], text: str
) -> None:
    refusal = asking_v2.post(SUMS, **more)
    assert refusal.status_code == 400, refusal.text
    assert refusal.headers["content-type"] == "application/json"
    assert refusal.headers["connection"] == "keep-alive"
    assert refusal.json()["error"].startswith(text)
    # The same by the other way through the server, which the form of the request decides.
    headers = {**more.get("headers", {}), "accept-encoding": "gzip"}
    assert asking_v2.post(SUMS, **{**more, "headers": headers}).json() == refusal.json()
    assert asking_v2.post(SUMS, json=GOOD).status_code == 200


def test_a_patience_that_is_no_number_is_refused(asking_v2: httpx.Client) -> None:
    refusal = asking_v2.post(SUMS, json=GOOD, headers={"x-request-timeout-ms": "x"})
    assert refusal.status_code == 400
    assert refusal.json()["error"].startswith("Header x-request-timeout-ms: expected a whole number")
    assert asking_v2.post(SUMS, json=GOOD, headers={"x-request-timeout-ms": "9000"}).status_code == 200


def test_bodies_are_inflated_and_answers_compressed_as_they_are_asked_for(asking_v2: httpx.Client) -> None:
    row = {"name": "INT32", "shape": [1, 900], "datatype": "INT32", "data": [7] * 900}
    said = {"inputs": [row], "outputs": [{"name": "OUT_INT32"}]}
    text = json.dumps(said).encode()
    path = "/v2/models/types/infer"
    expected = asking_v2.post(path, content=text).json()
    for body, coding in (
        (gzip.compress(text), "gzip"),
        (zlib.compress(text), "deflate"),
        (zlib.compress(text), "gzip"),
    ):
        headers = {"content-encoding": coding, "accept-encoding": f"identity;q=0.5, {coding}"}
        answer = asking_v2.post(path, content=body, headers=headers)
        assert answer.headers["content-encoding"] == coding
        assert answer.json() == expected
    short = {"inputs": [{**row, "shape": [1, 1], "data": [7]}], "outputs": [{"name": "OUT_INT32"}]}
    plain = asking_v2.post(path, json=short, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers, "it is not worth it"
    unknown = asking_v2.post(path, content=text, headers={"content-encoding": "br"})
    assert (unknown.status_code, unknown.headers["accept-encoding"]) == (501, "gzip, deflate")
    bomb = asking_v2.post(path, content=gzip.compress(bytes(50_000_000)), headers={"content-encoding": "gzip"})
    assert bomb.status_code == 413


def test_a_body_in_chunks_or_behind_an_expectation_is_read(v2_server: ServerProcess) -> None:
    text = json.dumps(GOOD).encode()
    with Connection(v2_server) as connection:
        head = f"POST {SUMS} HTTP/1.1\r\nhost: x\r\n".encode()
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text)
        connection.send(head + b"transfer-encoding: chunked\r\n\r\n", chunk)
        assert connection.answer().json["outputs"][0]["data"] == [2.0, 4.0, 6.0]
        connection.send(head + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(text))
        assert connection._reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        connection._reader.readline()
        connection.send(text)
        assert connection.answer().json["outputs"][0]["data"] == [2.0, 4.0, 6.0]
        for piece in (head + b"content-le", b"ngth: %d\r\n\r\n" % len(text), text[:9], text[9:]):
            connection.send(piece)
        assert connection.answer().json["outputs"][0]["data"] == [2.0, 4.0, 6.0]


def test_generate_takes_and_gives_flat_objects(asking_v2: httpx.Client) -> None:
    answer = asking_v2.post(GENERATE, json={"text_input": "alone", "id": "7", "temperature": 0.5})
    assert answer.json() == {"id": "7", "model_name": "words", "model_version": "1.0", "text_output": "alone"}
    for text in ("", "one two"):
        refusal = asking_v2.post(GENERATE, json={"text_input": text})
        assert refusal.status_code == 400
        assert refusal.json()["error"].startswith("generate expects model to produce exactly 1 response")
    sums = asking_v2.post("/v2/models/sums/generate", json={"left": [1, 2, 3], "right": [0, 0, 1]}).json()
    assert (sums["sum"], sums["double"]) == ([1.0, 2.0, 4.0], [2.0, 4.0, 6.0])


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (
            {},
            "[request id: <id_unknown>] expected number of inputs between 1 and 2 but got 0 inputs for model 'words'.",
        ),
        ({"text_input": 1}, "Unable to parse JSON bytes array: attempt to access JSON non-string as string"),
        ({"text_input": "a", "parameters": 1}, "Expected JSON object for keyword: 'parameters'"),
        (
            {"text_input": "a", "x": []},
            "parameter 'x' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        ([], "attempt to get members for non-object"),
    ],
)
def test_what_generate_cannot_take_is_refused_in_json(asking_v2: httpx.Client, said: object, text: str) -> None:
    for path in (GENERATE, STREAM):
        refusal = asking_v2.post(path, json=said)
        assert (refusal.status_code, refusal.headers["content-type"]) == (400, "application/json")
        assert refusal.json()["error"].startswith(text)


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text == "" or response.text.endswith("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n")[:-1]]


def test_each_answer_of_a_stream_is_an_event(asking_v2: httpx.Client) -> None:
    response = asking_v2.post(STREAM, json={"text_input": "a b c", "id": "s"})
    assert response.headers["transfer-encoding"] == "chunked"
    about = {"id": "s", "model_name": "words", "model_version": "1.0"}
    assert events(response) == [{**about, "text_output": word} for word in "abc"]
    assert events(asking_v2.post(STREAM, json={"text_input": ""})) == []
    many = " ".join(map(str, range(500)))
    assert [each["text_output"] for each in events(asking_v2.post(STREAM, json={"text_input": many}))] == many.split()
    only = asking_v2.post("/v2/models/sums/generate_stream", json={"left": [1, 2, 3], "right": [0, 0, 1]})
    assert [each["sum"] for each in events(only)] == [[1.0, 2.0, 4.0]]


def test_the_status_of_a_stream_is_that_of_its_first_answer(asking_v2: httpx.Client) -> None:
    first = asking_v2.post(STREAM, json={"text_input": "a b", "fail_after": 0})
    assert first.status_code == 500
    assert [list(each) for each in events(first)] == [["error"]]
    later = asking_v2.post(STREAM, json={"text_input": "a b c", "fail_after": 2})
    assert later.status_code == 200
    assert [list(each)[-1] for each in events(later)] == ["text_output", "text_output", "error"]


def test_a_handler_is_asked_as_torchserve_asks_it_unless_tensors_come_as_bytes(asking_v2: httpx.Client) -> None:
    loose = {"inputs": [{"name": "x", "shape": -1, "datatype": "BYTES", "data": "text"}]}
    for path in ("/v2/models/handler/infer", "/v2/models/handler/versions/1.0/infer"):
        assert asking_v2.post(path, json=loose).json()["outputs"] == [{**loose["inputs"][0], "name": "out_x"}]
    raw = {"name": "x", "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": 16}}
    asked = {"inputs": [raw], "outputs": [{"name": "out_x", "parameters": {"binary_data": True}}]}
    answer = asking_v2.post("/v2/models/handler/infer", **binary(asked, np.array([1, 2]).tobytes()))
    length = int(answer.headers["inference-header-content-length"])
    assert answer.content[length:] == np.array([1, 2]).tobytes()
    nothing = asking_v2.post("/v2/models/handler/infer", content=b"x", headers={"Inference-Header-Content-Length": "0"})
    assert nothing.status_code == 400


def long_request(columns: int, tail: bytes, length: int | None = None) -> tuple[bytes, bytes]:
    """The head and the JSON part, of a body whose tail is megabytes or says so."""
    row = {"name": "x", "shape": [1, columns], "datatype": "FP32", "parameters": {"binary_data_size": columns * 4}}
    asked = {"inputs": [row], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    text = json.dumps(asked).encode()
    whole = len(text) + (len(tail) if length is None else length)
    head = f"POST /v2/models/large/infer HTTP/1.1\r\nhost: x\r\nInference-Header-Content-Length: {len(text)}\r\n"
    return f"{head}content-length: {whole}\r\n\r\n".encode(), text


def test_a_long_tail_may_come_in_any_pieces(v2_server: ServerProcess) -> None:
    numbers = np.arange(150528, dtype=np.float32)
    tail = numbers.tobytes()
    head, text = long_request(150528, tail)
    with Connection(v2_server) as connection:
        for pieces in ((head + text + tail,), (head, text, tail), (head + text[:9], text[9:] + tail[:7], tail[7:])):
            connection.send(*pieces, pause_s=0.01)
            answer = connection.answer()
            assert answer.status == 200, answer.body
            length = int(answer.headers["inference-header-content-length"])
            np.testing.assert_array_equal(np.frombuffer(answer.body[length:], np.float32), numbers + 1)


def test_what_is_wrong_with_a_long_body_is_said(v2_server: ServerProcess) -> None:
    size = 150528 * 4
    more_head, more_text = long_request(150528, b"", size + 9)
    short_head, short_text = long_request(150000, b"", 600_000)
    head, text = long_request(150528, b"", size)
    shape = "unexpected shape for input 'x' for model 'large'. Expected [-1,150528], got [1,150000]."
    for pieces, rest, said in (
        ((more_head, more_text), size + 9, "unexpected additional input data for model 'large'"),
        ((short_head, short_text), 600_000, shape),
        ((head, text.replace(b'"y"', b'"z"')), size, "unexpected inference output 'z' for model 'large'"),
        ((head, b"}" + text[1:]), size, "failed to parse the request JSON buffer"),
    ):
        with Connection(v2_server) as connection:
            connection.send(*pieces, bytes(rest))
            answer = connection.answer()
            assert answer.status == 400
            assert said in answer.json["error"]
    wait_until_free(v2_server, 6)


def test_a_client_that_leaves_in_the_middle_of_a_long_body_leaves_nothing_behind(v2_server: ServerProcess) -> None:
    head, text = long_request(150528, b"", 150528 * 4)
    for pieces in ((head,), (head, text[:9]), (head, text), (head, text, bytes(300_000))):
        with Connection(v2_server) as connection:
            connection.send(*pieces)
    wait_until_free(v2_server, 6)

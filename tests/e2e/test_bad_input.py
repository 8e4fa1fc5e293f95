"""A request that cannot be answered gets one honest error, and the next request works."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from ringserve.server.testing import ServerProcess


def refused(response: httpx.Response, status: int, kind: str) -> str:
    """Check the shape that every error has; its message."""
    assert response.status_code == status, response.text
    error = response.json()
    assert list(error) == ["code", "type", "message"]
    assert (error["code"], error["type"]) == (status, kind)
    assert response.text == json.dumps(error, indent=2, ensure_ascii=False) + "\n"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["connection"] == "close"
    return str(error["message"])


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("/predictions/nobody", "ModelNotFoundException", "Model not found: nobody"),
        ("/predictions/no%20body/1.0/rest", "ModelNotFoundException", "Model not found: no body"),
        (
            "/predictions/plain/9.9",
            "ModelVersionNotFoundException",
            "Model version: 9.9 does not exist for model: plain",
        ),
        (
            "/predictions",
            "ResourceNotFoundException",
            "Requested resource is not found, please refer to API document.",
        ),
        (
            "/predictions/",
            "ResourceNotFoundException",
            "Requested resource is not found, please refer to API document.",
        ),
        (
            "/models",
            "ResourceNotFoundException",
            "Requested resource is not found, please refer to API document.",
        ),
        ("/a/b/c", "ResourceNotFoundException", "Requested resource is not found, please refer to API document."),
    ],
)
def test_what_does_not_exist_is_404_with_torchserves_text(
    client: httpx.Client, path: str, kind: str, message: str
) -> None:
    assert refused(client.get(path), 404, kind) == message


def test_a_model_without_workers_is_503_with_torchserves_text(client: httpx.Client, management: httpx.Client) -> None:
    idle: dict[str, str | int] = {"url": "plain.mar", "model_name": "idle", "initial_workers": 0}
    assert management.post("/models", params=idle).status_code == 200
    try:
        tail = (
            " has no worker to serve inference request. Please use scale workers API to add workers. If this is a sequence"
            " inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
        )
        kind = "ServiceUnavailableException"
        assert refused(client.get("/predictions/idle"), 503, kind) == f'Model "idle"{tail}'
        assert refused(client.get("/predictions/idle/1.0"), 503, kind) == f'Model "idle" Version 1.0"{tail}'
    finally:
        management.delete("/models/idle")


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"\x00" * 15, "application/octet-stream", ["expected 16 bytes", "x", "got 15 bytes"]),
        (b"", "application/octet-stream", ["expected 16 bytes", "got 0 bytes"]),
        (b"{broken", "application/json", ["expected JSON", "does not parse"]),
        (b"", "application/json", ["expected JSON", "does not parse"]),
        (b"[1, 2, 3]", "application/json", ["x", "expected shape [4]", "got [3]"]),
        (b'["a", "b", "c", "d"]', "application/json", ["x", "expected float32 values", "a string"]),
        (b"[[1, 2], [3]]", "application/json", ["x", "unequal lengths"]),
        (b'{"y": [1, 2, 3, 4]}', "application/json", ["expected x", "got y"]),
        (b"null", "application/json", ["x"]),
    ],
)
def test_a_typed_model_says_what_it_expected_and_what_came(
    client: httpx.Client, body: bytes, content_type: str, words: list[str]
) -> None:
    response = client.post("/predictions/script", content=body, headers={"content-type": content_type})
    message = refused(response, 400, "BadRequestException")
    assert [word for word in words if word not in message] == []
    right = np.zeros(4, np.float32).tobytes()
    assert client.post("/predictions/script", content=right).status_code == 200


def test_a_typed_form_must_have_every_input_in_its_size(client: httpx.Client) -> None:
    right = np.ones(3, np.float32).tobytes()
    missing = client.post("/predictions/sums", files={"left": right})
    assert refused(missing, 400, "BadRequestException") == "Inputs: expected left, right, got left."
    short = client.post("/predictions/sums", files={"left": right, "right": right[:-1]})
    message = refused(short, 400, "BadRequestException")
    assert message.startswith("Input right: expected 12 bytes")
    assert message.endswith("got 11 bytes.")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=b", b"x"),
        ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\ncut off'),
        ("multipart/form-data; boundary=b", b"--b\r\ncontent-disposition: form-data\r\n\r\nno name\r\n--b--\r\n"),
    ],
)
def test_a_form_that_does_not_parse_is_a_bad_request(client: httpx.Client, content_type: str, body: bytes) -> None:
    response = client.post("/predictions/probe", content=body, headers={"content-type": content_type})
    assert refused(response, 400, "BadRequestException").startswith("Form: expected")


INTERNAL = "InternalServerException"


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("raise", 503, "Prediction failed"),
        ("exit", 503, "Prediction failed"),
        ("interrupt", 503, "Prediction failed"),
        ("memory", 507, "Out of resources"),
        ("cuda", 507, "Out of resources"),
        ("refuse513", 513, "the picture is upside down"),
        ("refuse404", 404, "the picture is upside down"),
        ("refuse200", 500, "the picture is upside down"),
        ("no list", 503, "Invalid model predict output"),
        ("none", 503, "Invalid model predict output"),
        ("too few", 503, "number of batch response mismatched"),
        ("too many", 503, "number of batch response mismatched"),
        ("unserialisable", 503, "Unsupported model output data type."),
        ("bad status", 503, "status"),
        ("split header", 503, "x-evil"),
        ("too large", 507, "max_response_size"),
    ],
)
def test_a_handler_that_fails_is_one_honest_error(
    client: httpx.Client, management: httpx.Client, fault: str, status: int, message: str
) -> None:
    pid = worker_pid(management)
    assert message in refused(client.post("/predictions/faulty", content=fault), status, INTERNAL)
    assert client.post("/predictions/faulty", content="well").text == "fine"
    assert worker_pid(management) == pid, "the worker lives on"


def worker_pid(management: httpx.Client) -> int:
    return int(management.get("/models/faulty").json()[0]["workers"][0]["pid"])


def test_what_a_handler_raises_stays_in_the_log(client: httpx.Client, server: ServerProcess) -> None:
    response = client.post("/predictions/faulty", content="raise")
    assert "secret" not in response.text
    server.wait_for_log("RuntimeError: a secret of the model", 5)


def test_a_worker_that_dies_while_predicting_costs_one_request_and_is_replaced(
    client: httpx.Client, management: httpx.Client, server: ServerProcess
) -> None:
    before = worker_pid(management)
    message = refused(client.post("/predictions/faulty", content="die"), 500, INTERNAL)
    assert message.startswith("Worker died.")
    assert str(before) in message
    assert "code 7" in message
    assert client.post("/predictions/faulty", content="well").text == "fine"
    assert worker_pid(management) != before
    assert "last words of the worker" in server.log


def test_of_many_requests_behind_a_dying_one_only_that_one_fails(client: httpx.Client) -> None:
    with ThreadPoolExecutor(12) as pool:
        bodies = ["well"] * 5 + ["die"] + ["well"] * 6
        answers = list(pool.map(lambda body: client.post("/predictions/faulty", content=body), bodies))
    assert [answer.status_code for answer in answers] == [200] * 5 + [500] + [200] * 6


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        ({"status": 42}, "status"),
        ({"headers": {"bad name": "x"}}, "header"),
        ({"headers": {"x-a": "line\nbreak"}}, "x-a"),
    ],
)
def test_a_response_that_http_cannot_carry_is_an_error_of_the_handler(
    client: httpx.Client, wanted: dict[str, object], word: str
) -> None:
    assert word in refused(client.post("/predictions/answers", json=wanted), 503, INTERNAL)

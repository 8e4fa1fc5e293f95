"""Inference and management on one address (SageMaker, KServe): two front ends have it, and the supervisor answers behind them."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, free_port, wait_until
from tests.e2e.raw_http import Connection

REQUEST_BYTES_MAX = 200_000
SLOW = """
import pathlib, time

def handle(data, context):
    if data is None:
        pathlib.Path({folder!r}, "started").touch()
        while not pathlib.Path({folder!r}, "open").exists():
            time.sleep(0.01)
    return ["slow"] * len(data or [])
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("shared-address")
    store = folder / "store"
    address = f"http://127.0.0.1:{free_port()}"
    for version in ("1.0", "2.0"):
        archive(store, "plain", "plain.py:handle", version=version, file=f"plain-{version}")
    archive(store, "slow", "slow.py:handle", source=SLOW.format(folder=str(folder)))
    config = {
        "inference_address": address,
        "management_address": address,
        "frontends": 2,
        "default_workers_per_model": 1,
        "max_request_size": REQUEST_BYTES_MAX,
    }
    server = ServerProcess(store, models=("plain-1.0.mar", "plain-2.0.mar"), config=config, folder=folder / "server")
    server.start()
    yield server
    server.stop()
    assert server.processes() == []


@pytest.fixture
def client(shared: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared.inference_url, timeout=60, trust_env=False) as client:
        yield client


def test_both_apis_answer_on_one_connection(client: httpx.Client) -> None:
    assert client.get("/predictions/plain/2.0").text == "plain 2.0"
    assert client.post("/models/plain/invoke").text == client.get("/plain/predict").text == "plain 1.0"
    assert client.post("/invocations").text == "plain 1.0", "it was loaded at start-up"
    assert client.get("/models/plain/2.0").json()[0]["modelVersion"] == "2.0"
    assert "ts_inference_requests_total" in client.get("/metrics").text
    listed = client.get("/models", params={"limit": 1})
    assert listed.headers["connection"] == "keep-alive"
    assert listed.headers["content-type"] == "application/json"
    assert listed.json()["models"] == [{"modelName": "plain", "modelUrl": "plain-1.0.mar"}]
    assert client.get("/predictions/plain").text == "plain 1.0"
    described = client.get("/models", headers={"x-request-id": "mine"})
    assert described.headers.get_list("x-request-id") == ["mine"]
    assert client.get("/ping").json() == {"status": "Healthy"}


@pytest.mark.parametrize(
    ("path", "versions"),
    [("/models/plain", ["1.0"]), ("/models/plain/2.0", ["2.0"]), ("/models/plain/all", ["1.0", "2.0"])],
)
def test_versions_are_described_as_on_an_address_of_their_own(
    client: httpx.Client, path: str, versions: list[str]
) -> None:
    """TorchServe takes the longer two for predictions there (contract section 15, 17)."""
    assert sorted(each["modelVersion"] for each in client.get(path).json()) == versions


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/status", 200),
        ("GET", "/workflows", 200),
        ("GET", "/v1/models/plain", 200),
        ("GET", "/health/ready", 200),
        ("OPTIONS", "/models/plain", 200),
        ("GET", "/models/none/1.0", 404),
        ("GET", "/token", 404),
        ("PATCH", "/models", 405),
        ("HEAD", "/models", 405),
        ("GET", "/nothing", 404),
    ],
)
def test_every_route_is_there(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    if method != "HEAD":
        assert isinstance(answer.json(), dict)
    assert answer.headers["connection"] == ("close" if status >= 400 else "keep-alive")


def test_models_are_registered_changed_and_removed(client: httpx.Client) -> None:
    body = {"url": "plain-2.0.mar", "model_name": "new é", "initial_workers": 1}
    assert client.post("/models", json=body).status_code == 200
    assert client.post("/models", json=body).status_code == 409
    assert client.get("/predictions/new é").text == "new é 2.0"
    scaled = client.put("/models/new é/2.0", params={"min_worker": 2, "synchronous": "true"})
    assert (scaled.status_code, scaled.json()) == (
        200,
        {"status": "Workers scaled to 2 for model: new é, version: 2.0"},
    )
    assert client.put("/models/plain/2.0/set-default").status_code == 200
    assert client.get("/predictions/plain").text == "plain 2.0"
    assert client.put("/models/plain/1.0/set-default").status_code == 200
    assert client.delete("/models/new é/2.0").status_code == 200
    assert client.get("/models/new é").status_code == 404


def register_head(length: str, *more: str) -> bytes:
    lines = ["POST /models HTTP/1.1", "host: x", "content-type: application/json", length, *more, "", ""]
    return "\r\n".join(lines).encode()


def test_a_body_may_come_in_any_way(shared: ServerProcess) -> None:
    text = json.dumps({"url": "none.mar", "more": "x" * 100_000}).encode()
    half = len(text) // 2
    with Connection(shared) as connection:
        connection.send(register_head(f"content-length: {len(text)}"), text[:half], text[half:], pause_s=0.02)
        assert_not_found(connection.answer())
    with Connection(shared) as connection:
        connection.send(register_head(f"content-length: {len(text)}", "expect: 100-continue"))
        assert connection.response().status == 100
        connection.send(text)
        assert_not_found(connection.answer())
    with Connection(shared) as connection:
        connection.send(register_head("transfer-encoding: chunked"), b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text))
        assert_not_found(connection.answer())


def assert_not_found(answer: Any) -> None:
    assert (answer.status, answer.json["message"]) == (404, "Model not found at: none.mar")


@pytest.mark.parametrize("length", [f"content-length: {REQUEST_BYTES_MAX + 1}", "transfer-encoding: chunked"])
def test_a_body_beyond_the_limit_is_refused(shared: ServerProcess, length: str) -> None:
    with Connection(shared) as connection:
        connection.send(register_head(length))
        if "chunked" in length:
            connection.send(b"%x\r\n%b\r\n" % (REQUEST_BYTES_MAX + 1, b"x" * (REQUEST_BYTES_MAX + 1)))
        assert connection.answer().status == 413


def test_a_registration_that_takes_long_keeps_nobody_waiting_and_ends_with_the_supervisor(
    shared: ServerProcess, client: httpx.Client
) -> None:
    folder = shared.folder.parent
    statuses: list[int] = []

    def register() -> None:
        query = {"url": "slow.mar", "initial_workers": "1"}
        statuses.append(httpx.post(f"{shared.inference_url}/models", params=query, timeout=60).status_code)

    waiting = threading.Thread(target=register)
    waiting.start()
    wait_until((folder / "started").exists, 30, "the model loads")
    for _ in range(4):  # whichever of the two front ends it is
        with httpx.Client(base_url=shared.inference_url, trust_env=False) as another:
            assert another.get("/predictions/plain").text == "plain 1.0"
            assert another.get("/models/plain").status_code == 200
    assert statuses == []
    os.kill(shared.pid, signal.SIGKILL)
    waiting.join(60)
    assert statuses == [503]
    (folder / "open").touch()
    shared.wait(10)
    wait_until(lambda: shared.processes() == [], 60, "no process")

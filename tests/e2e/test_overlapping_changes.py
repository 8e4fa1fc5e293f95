"""Changes of one model that meet: the last word counts, everybody is answered, and no process is forgotten."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.raw_http import Connection, settle


@pytest.fixture(autouse=True)
def no_process_forgotten(server: ServerProcess, management: httpx.Client) -> Iterator[None]:
    before = server.processes()
    yield
    assert management.get("/models/new").status_code == 404
    assert server.processes() == before


def register(management: httpx.Client, url: str, workers: int) -> httpx.Response:
    return management.post("/models", params={"url": url, "model_name": "new", "initial_workers": workers})


def test_a_model_unregistered_while_it_is_scaled_down_gets_no_workers_afterwards(
    client: httpx.Client, management: httpx.Client, server: ServerProcess, tmp_path: Path
) -> None:
    assert register(management, "gate.mar", 2).status_code == 200
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.post, "/predictions/new", content=str(folder)) for folder in folders]
        wait_until(lambda: all((folder / "started").exists() for folder in folders), 10, "both workers are busy")
        scaled = pool.submit(management.put, "/models/new", params={"min_worker": 1, "synchronous": "true"})
        wait_until(lambda: management.get("/models/new").json()[0]["minWorkers"] == 1, 10, "scaling has begun")
        removed = pool.submit(management.delete, "/models/new")
        wait_until(lambda: management.get("/models/new").status_code == 404, 10, "the model has left the list")
        for folder in folders:
            (folder / "open").touch()
        assert [each.result().text for each in asked] == ["passed"] * 2
        assert removed.result().status_code == 200
        assert scaled.result().status_code == 404
        assert scaled.result().json()["message"] == "Model version: 1.0 does not exist for model: new"


def test_a_model_unregistered_while_it_is_registered_is_gone_and_both_are_told(
    management: httpx.Client, store: Path, archive: Callable[..., Path], tmp_path: Path
) -> None:
    source = (
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'started')!r}).touch()\n"
        "time.sleep(30)\n"
        "def handle(data, context):\n    return None\n"
    )
    path = archive(store, "slow", "h.py:handle", source=source)
    try:
        with ThreadPoolExecutor(1) as pool:
            registered = pool.submit(register, management, "slow.mar", 1)
            wait_until((tmp_path / "started").exists, 10, "the worker loads")
            assert management.delete("/models/new").status_code == 200
            assert registered.result().status_code == 500
            assert registered.result().json()["type"] == "InternalServerException"
            assert "KeyError" not in registered.result().text
    finally:
        path.unlink()


def test_many_scalings_at_once_end_with_the_last_one(client: httpx.Client, management: httpx.Client) -> None:
    assert register(management, "plain.mar", 1).status_code == 200
    for count in (3, 1, 2, 0, 2):
        response = management.put("/models/new", params={"min_worker": count})
        assert response.status_code == 202
    wait_until(
        lambda: [each["status"] for each in management.get("/models/new").json()[0]["workers"]] == ["READY"] * 2,
        20,
        "two workers",
    )
    assert client.get("/predictions/new").text == "new 1.0"
    assert management.delete("/models/new").status_code == 200


def test_a_request_whose_body_is_still_arriving_is_answered_by_the_version_that_leaves(
    server: ServerProcess, management: httpx.Client
) -> None:
    assert register(management, "echo.mar", 1).status_code == 200
    body = bytes(range(256)) * 1024
    head = f"POST /predictions/new HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    chunked = b"POST /predictions/new HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with Connection(server) as plain, Connection(server) as other, ThreadPoolExecutor(1) as pool:
        plain.send(head + body[:100_000])
        other.send(chunked + b"3\r\nabc\r\n")
        settle(server)
        removed = pool.submit(management.delete, "/models/new")
        wait_until(lambda: management.get("/models/new").status_code == 404, 10, "the model has left the list")
        assert not removed.done()
        plain.send(body[100_000:])
        other.send(b"0\r\n\r\n")
        assert plain.answer().body == body
        assert other.answer().body == b"abc"
        assert removed.result().status_code == 200

"""A server that is told to stop while clients that never retry ask it: none of them loses anything."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.persistent import Persistent

Start = Callable[..., ServerProcess]


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False)


@contextlib.contextmanager
def unfinished(url: str, path: str) -> Iterator[socket.socket]:
    """A connection on which the beginning of a request has come."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nbegun".encode())
        yield connection


def test_clients_that_never_retry_lose_nothing_when_the_server_stops(
    start_server: Start, archive: Callable[..., Path], tmp_path: Path
) -> None:
    archive(tmp_path / "store", "plain", "plain.py:handle")
    server = start_server(tmp_path / "store", config={"frontends": 2})
    with (
        Persistent(server.inference_url, "/predictions/plain") as clients,
        Persistent(server.metrics_url, "/metrics") as scrapers,
    ):
        wait_until(lambda: clients.answered > 200 and scrapers.answered > 20, 10, "answers")
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait(10) == 0
        wait_until(lambda: clients.clients_left + scrapers.clients_left == 0, 5, "every client is refused")
    assert (clients.lost, scrapers.lost) == ([], [])
    assert {*clients.statuses, *scrapers.statuses} == {200}


def test_a_server_that_drains_tells_probes_and_managers_and_serves_on_until_its_time_is_up(
    start_server: Start, archive: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    archive(store, "plain", "plain.py:handle")
    archive(store, "gate", "gate.py:handle")
    server = start_server(store, config={"drain_delay": 1, "drain_timeout": 1})
    ready, ping = f"{server.inference_url}/health/ready", f"{server.inference_url}/ping"
    management_ready = f"{server.management_url}/health/ready"
    assert get(ready).status_code == get(management_ready).status_code == 200
    with (
        ThreadPoolExecutor(1) as pool,
        unfinished(server.management_url, "/models"),
        unfinished(server.inference_url, "/predictions/plain") as uploading,
        Persistent(server.inference_url, "/predictions/plain") as clients,
    ):
        gate = f"{server.inference_url}/predictions/gate"
        held = pool.submit(httpx.post, gate, content=str(tmp_path), trust_env=False, timeout=30)
        wait_until((tmp_path / "started").exists, 10, "a request that takes long")
        wait_until(lambda: clients.answered > 100, 10, "answers")
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: get(ready).status_code == 503, 5, "probes are told")
        assert get(management_ready).json() == {"status": "not ready", "reason": "The server is shutting down."}
        assert get(ping).json() == {"status": "Healthy"}
        assert get(f"{server.inference_url}/health/live").headers["connection"] == "close"
        refused = httpx.put(f"{server.management_url}/models/plain?min_worker=2", trust_env=False)
        assert (refused.status_code, refused.json()["message"]) == (503, "The server is shutting down.")
        assert refused.headers["retry-after"] == "1"
        assert get(f"{server.management_url}/models").status_code == 200
        assert "stopping: answering what is in flight" not in server.log, "all that was within the drain delay"
        assert held.result().status_code == 503, "the drain timeout was over"
        assert held.result().json()["message"] == "The server is shutting down."
        assert held.result().headers["retry-after"] == "1"
        assert uploading.recv(16).startswith(b"HTTP/1.1 503")
        (tmp_path / "open").touch()
        assert server.wait(10) == 0, "also with a body that never comes"
    assert clients.lost == []
    assert set(clients.statuses) == {200}
    assert clients.closing > len(clients.statuses), "they came again within the drain delay"
    assert "Torchserve stopped." in server.log

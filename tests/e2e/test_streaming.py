"""Answers that come in parts: by generators and by TorchServe's function, to clients that read, dawdle, or leave."""

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.raw_http import wait_until_free

CLIENT_S_MAX = 30.0
MODELS = {"stream": "", "streams": "batchSize: 3\nmaxBatchDelay: 20000\nbatching: fill\n"}
PART_BYTES = 64 << 10
# What lies between a model and a client that does not read: chunks on their way, the front end's and the kernel's buffers.
UNREAD_BYTES_MAX = 64 << 20
GROWTH_BYTES_MAX = 32 << 20
QUIET_S = 1.0


@pytest.fixture(scope="module")
def server(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("streaming")
    store = folder / "store"
    for name, config in MODELS.items():
        archive(store, name, "stream.py", config=config)
    server = ServerProcess(store, config={"default_workers_per_model": 1}, folder=folder / "server")
    with server:
        ping = f"{server.inference_url}/ping"
        wait_until(lambda: httpx.get(ping, trust_env=False).status_code == 200, 60, f"healthy models\n{server.log}")
        yield server
    assert server.remains() == []


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.inference_url, timeout=CLIENT_S_MAX, trust_env=False) as client:
        yield client


def expected(name: str, parts: int, size: int = 0) -> str:
    return "".join(f"{name}.{number};".ljust(size) for number in range(parts))


def dial(server: ServerProcess, order: dict[str, Any], *, method: str = "POST", version: str = "1.1") -> socket.socket:
    """A connection that has asked and read nothing yet."""
    host, _, port = server.inference_url.removeprefix("http://").partition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    connection.settimeout(CLIENT_S_MAX)
    connection.connect((host, int(port)))
    body = json.dumps(order).encode()
    head = f"{method} /predictions/stream HTTP/{version}\r\nhost: x\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def made(folder: Path) -> int:
    """How many parts the model has made."""
    try:
        return int((folder / "made").read_text() or 0)
    except FileNotFoundError:
        return 0


def settled(folder: Path) -> int:
    """How many parts the model has made when it makes no more of them."""
    while True:
        before = made(folder)
        time.sleep(QUIET_S)
        if before and made(folder) == before:
            return before


# ---- one client


def test_every_part_is_there_before_the_next_is_made(client: httpx.Client, tmp_path: Path) -> None:
    order = {"name": "a", "parts": 4, "folder": str(tmp_path), "gated": True}
    (tmp_path / "open-0").touch()
    with client.stream("POST", "/predictions/stream", json=order) as response:
        assert response.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in response.headers
        for number, part in enumerate(response.iter_raw()):
            assert part == f"a.{number};".encode()
            (tmp_path / f"open-{number + 1}").touch()
    assert number == 3


@pytest.mark.parametrize("way", ["yield", "send"])
def test_a_stream_carries_the_status_and_headers_of_its_handler(client: httpx.Client, way: str) -> None:
    order = {"name": "a", "parts": 3, "way": way, "status": 203, "phrase": "Partly"}
    response = client.post("/predictions/stream", json=order)
    assert (response.status_code, response.reason_phrase) == (203, "Partly")
    assert response.headers["x-rows"] == "1"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert "ts_stream_next" not in response.headers
    assert response.text == expected("a", 3) + ("end" if way == "send" else "")


def test_streams_and_whole_answers_take_turns_on_a_connection(client: httpx.Client) -> None:
    for _ in range(3):
        assert client.post("/predictions/stream", json={"name": "a", "parts": 5}).text == expected("a", 5)
        whole = client.post("/predictions/stream", json={"name": "a", "parts": 5, "way": "return"})
        assert (whole.text, whole.headers["content-length"]) == ("end", "3")
    connections = client._transport._pool.connections  # type: ignore[attr-defined]
    assert len(connections) == 1


def test_parts_larger_than_the_lane_arrive_whole(client: httpx.Client) -> None:
    response = client.post("/predictions/stream", json={"name": "a", "parts": 3, "size": 3_000_000})
    assert response.text == expected("a", 3, 3_000_000)


def test_a_stream_without_parts_is_an_empty_answer(client: httpx.Client) -> None:
    response = client.post("/predictions/stream", json={"name": "a", "parts": 0, "status": 202})
    assert (response.status_code, response.content) == (202, b"")


def test_many_short_streams_are_each_their_clients_own(client: httpx.Client) -> None:
    def ask(number: int) -> bool:
        order = {"name": f"n{number}", "parts": number % 7, "size": number * 10}
        text = client.post("/predictions/stream", json=order).text
        return text == expected(f"n{number}", number % 7, number * 10)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


def test_http_1_0_reads_the_parts_until_the_connection_ends(server: ServerProcess) -> None:
    with dial(server, {"name": "a", "parts": 3}, version="1.0") as connection, connection.makefile("rb") as file:
        head, _, body = file.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.")
    assert b"chunked" not in head
    assert body == expected("a", 3).encode()


def test_head_answers_the_head_of_a_stream_and_no_part(server: ServerProcess) -> None:
    with dial(server, {"name": "a", "parts": 3, "status": 203}, method="HEAD") as connection:
        file = connection.makefile("rb")
        assert b" 203 " in file.readline()
        while file.readline() not in (b"\r\n", b""):
            pass
        connection.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        following = file.read()
        file.close()
    assert following == b"" or following.startswith(b"HTTP/1.1 200 "), "what follows is an answer, never a part"


# ---- several clients in a batch


def ask_three(client: httpx.Client, orders: list[dict[str, Any]]) -> list[httpx.Response | httpx.HTTPError]:
    def ask(order: dict[str, Any]) -> httpx.Response | httpx.HTTPError:
        try:
            return client.post("/predictions/streams", json=order)
        except httpx.HTTPError as error:
            return error

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(ask, orders))


@pytest.mark.parametrize("way", ["yield", "send"])
def test_the_clients_of_a_batch_read_each_its_own_stream(client: httpx.Client, way: str) -> None:
    orders = [{"name": name, "parts": parts, "way": way} for name, parts in (("a", 5), ("b", 1), ("c", 9))]
    responses = ask_three(client, orders)
    for order, response in zip(orders, responses, strict=True):
        assert isinstance(response, httpx.Response)
        assert response.headers["x-rows"] == "3"
        assert response.text.removesuffix("end") == expected(str(order["name"]), int(str(order["parts"])))


def test_a_client_that_leaves_a_batch_does_not_end_the_streams_of_the_others(
    client: httpx.Client, tmp_path: Path
) -> None:
    gated = {"folder": str(tmp_path), "gated": True}
    (tmp_path / "open-0").touch()
    with ThreadPoolExecutor(2) as pool:
        stayers = [pool.submit(client.post, "/predictions/streams", json={"name": name, "parts": 50}) for name in "bc"]
        with client.stream("POST", "/predictions/streams", json={"name": "a", "parts": 50, **gated}) as leaver:
            assert next(leaver.iter_raw()) == b"a.0;"
        for number in range(1, 50):
            (tmp_path / f"open-{number}").touch()
        assert [stayer.result().text for stayer in stayers] == [expected("b", 50), expected("c", 50)]
    assert not (tmp_path / "closed").exists()


# ---- clients that dawdle or leave


def test_a_client_that_does_not_read_holds_the_model_and_no_memory(server: ServerProcess, tmp_path: Path) -> None:
    parts = 4 * UNREAD_BYTES_MAX // PART_BYTES
    (front_end,) = map(psutil.Process, server.front_ends())
    before = front_end.memory_info().rss
    order = {"name": "a", "parts": parts, "size": PART_BYTES, "folder": str(tmp_path)}
    with dial(server, order, version="1.0") as connection:
        assert settled(tmp_path) * PART_BYTES < UNREAD_BYTES_MAX
        with connection.makefile("rb") as file:
            while file.readline() != b"\r\n":
                pass
            for number in range(parts):
                assert file.read(PART_BYTES) == f"a.{number};".ljust(PART_BYTES).encode()
            assert file.read() == b""
    assert front_end.memory_info().rss - before < GROWTH_BYTES_MAX


@pytest.mark.parametrize("reads", [True, False])
def test_a_client_that_leaves_ends_its_generator(
    server: ServerProcess, client: httpx.Client, tmp_path: Path, reads: bool
) -> None:
    """While it reads, and while it keeps the model waiting."""
    connection = dial(server, {"name": "a", "parts": 10**9, "size": PART_BYTES, "folder": str(tmp_path)})
    if reads:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    else:
        settled(tmp_path)
    connection.close()
    wait_until((tmp_path / "closed").exists, 10, "the generator's end")
    assert client.post("/predictions/stream", json={"name": "b", "parts": 2}).text == expected("b", 2)


def test_clients_that_leave_at_any_moment_cost_no_slab_and_no_credit(
    server: ServerProcess, client: httpx.Client
) -> None:
    random_one = random.Random(3)

    def leave(number: int) -> None:
        order = {
            "name": f"n{number}",
            "parts": random_one.randrange(40),
            "size": random_one.choice([10, 5000, 300_000]),
        }
        if number % 5 == 0:
            order["fail_at"] = random_one.randrange(5)
        with dial(server, order) as connection, contextlib.suppress(ConnectionResetError, TimeoutError):
            connection.settimeout(0.05)  # it may be all there is
            for _ in range(random_one.randrange(4)):
                connection.recv(random_one.choice([1, 1000, 100_000]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(200)))
    wait_until_free(server, len(MODELS) * len(server.front_ends()))
    order = {"name": "a", "parts": 50, "size": PART_BYTES}
    assert client.post("/predictions/stream", json=order).text == expected("a", 50, PART_BYTES)


# ---- failures


def test_a_failure_in_the_middle_ends_the_connection_without_the_last_chunk(
    client: httpx.Client, server: ServerProcess
) -> None:
    with (
        client.stream("POST", "/predictions/stream", json={"name": "a", "parts": 9, "fail_at": 2}) as response,
        pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"),
    ):
        assert response.status_code == 200
        assert response.read()
    with dial(server, {"name": "a", "parts": 9, "fail_at": 2}) as connection, connection.makefile("rb") as file:
        _, _, body = file.read().partition(b"\r\n\r\n")
    assert body == b"4\r\na.0;\r\n4\r\na.1;\r\n"


def test_a_failure_before_the_first_part_is_an_error_like_any_other(client: httpx.Client) -> None:
    response = client.post("/predictions/stream", json={"name": "a", "parts": 9, "fail_at": 0})
    assert response.status_code == 503
    assert response.json()["message"] == "Prediction failed"


def test_a_failure_fails_every_stream_of_its_batch_and_the_next_one_works(client: httpx.Client) -> None:
    """What was sent cannot be sent again, so nobody is tried apart."""
    orders = [{"name": name, "parts": 5} for name in "abc"]
    responses = ask_three(client, [orders[0], {**orders[1], "fail_at": 1}, orders[2]])
    assert [type(response) for response in responses] == [httpx.RemoteProtocolError] * 3
    responses = ask_three(client, orders)
    assert [isinstance(each, httpx.Response) and each.text for each in responses] == [expected(n, 5) for n in "abc"]


def test_a_worker_that_dies_in_the_middle_ends_the_stream_and_another_takes_its_place(client: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/predictions/stream", json={"name": "a", "parts": 9, "die_at": 2})

    def works() -> bool:
        return client.post("/predictions/stream", json={"name": "b", "parts": 2}).text == expected("b", 2)

    wait_until(works, 30, "a fresh worker")

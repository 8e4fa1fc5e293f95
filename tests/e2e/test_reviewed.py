"""What a review of the data path found: each was wrong once."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.raw_http import ANSWER_S_MAX, Connection, head, post

STREAM = """
import time

def handle(data, context):
    if data is None:
        return
    for _ in range(8):
        time.sleep(0.25)
        yield ["p"] * len(data)
"""
BODILESS = """
def handle(data, context):
    if data is None:
        return None
    context.set_all_response_status(204, "")
    return [b"x" * 100_000 for _ in data]
"""
ENDLESS = """
import time

def handle(data, context):
    if data is None:
        return None
    open(bytes(data[0]["body"]).decode(), "w").close()
    time.sleep(60)
"""
SMUGGLED = b"POST /predictions/plain HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def server(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("reviewed") / "store"
    archive(store, "plain", "plain.py:handle")
    archive(store, "streams", "streams.py:handle", source=STREAM, config="responseTimeout: 1\n")
    archive(store, "bodiless", "bodiless.py:handle", source=BODILESS)
    config = {"default_workers_per_model": 1, "frontends": 2, "body_timeout": 1, "header_timeout": 2}
    with ServerProcess(store, config=config) as server:
        yield server
        assert "Traceback" not in server.log, server.log
    assert server.remains() == []


@pytest.mark.parametrize(
    "line",
    [
        "content-length : {}",
        "content-length\t: {}",
        "x: a\r\n content-length: {}",
        "\x0bcontent-length: {}",
        "transfer-encoding : chunked\r\ncontent-length: 4",
        "x a: b",
        ": b",
    ],
)
def test_a_head_that_others_read_differently_is_no_request(server: ServerProcess, line: str) -> None:
    with Connection(server) as connection:
        lines = line.format(len(SMUGGLED))
        connection.send(f"POST /predictions/plain HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n".encode() + SMUGGLED)
        answers = connection.rest()
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_a_status_without_a_body_has_none_however_long_the_handlers_answer_is(server: ServerProcess) -> None:
    with Connection(server) as connection:
        connection.send(post(b"x", "/predictions/bodiless"))
        connection.send(post(b"x", "/predictions/plain"))
        assert connection.answer().status == 204
        assert connection.answer().status == 200


def test_a_half_closed_client_gets_the_answers_to_all_it_has_sent(server: ServerProcess) -> None:
    with Connection(server) as connection:
        connection.send(
            post(b"x" * 300_000, "/predictions/plain")
            + post(b"x", "/predictions/plain")
            + post(b"y" * 20_000, "/predictions/plain")
        )
        connection.end_sending()
        assert [connection.answer().status for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize(("target", "status"), [("/ping", 408), ("/nowhere", 404)])
def test_a_body_that_nobody_looks_at_holds_no_connection(server: ServerProcess, target: str, status: int) -> None:
    with Connection(server) as connection:
        connection.send(head(target, "content-length: 5"))
        assert connection.answer().status == status


def test_streams_go_on_while_requests_of_another_front_end_wait_for_their_worker(server: ServerProcess) -> None:
    """Each takes longer than a worker may be silent, and the last waits for three: one after the other, whoever took them."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server)) for _ in range(4)]
        for connection in connections:
            connection.send(post(b"x", "/predictions/streams", "connection: close"))
        for connection in connections:
            answer = connection.rest()
            assert answer.count(b"1\r\np\r\n") == 8
            assert answer.endswith(b"0\r\n\r\n")
    assert "is killed" not in server.log


def test_unregistering_in_vain_leaves_nobody_without_an_answer(archive: Callable[..., Path], tmp_path: Path) -> None:
    store, begun = tmp_path / "store", tmp_path / "begun"
    archive(store, "endless", "endless.py:handle", source=ENDLESS)
    config = {"default_workers_per_model": 1, "unregister_model_timeout": 1, "frontends": 1}
    with ServerProcess(store, config=config) as server, Connection(server) as connection:
        connection.send(post(str(begun).encode(), "/predictions/endless"))
        wait_until(begun.exists, ANSWER_S_MAX, "a prediction that never ends")
        [worker] = server.workers()
        with ThreadPoolExecutor(1) as pool:
            gone = pool.submit(httpx.delete, f"{server.management_url}/models/endless", timeout=ANSWER_S_MAX)
            server.wait_for_log("were not answered within", ANSWER_S_MAX)
            os.kill(worker, signal.SIGKILL)
            assert connection.answer().status == 500
            assert gone.result().status_code == 408
    assert server.remains() == []

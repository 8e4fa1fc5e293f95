"""Clients that are careful, slow, half gone or hostile: each is answered or ended, and nobody else notices."""

import contextlib
import random
import re
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.raw_http import ANSWER_S_MAX, Connection, act, head, pending, post, settle, wait_until_free

REQUEST_BYTES_MAX = 3_000_000
RESPONSE_BYTES_MAX = 6_000_000
# More than a socket's buffers hold: whoever does not read it stalls the server's end.
STALLING_BYTES = 5_500_000
CROWD = 40
MODELS = 3
JSON = "content-type: application/json"


def start(store: Path, folder: Path, **config: object) -> ServerProcess:
    limits = {"max_request_size": REQUEST_BYTES_MAX, "max_response_size": RESPONSE_BYTES_MAX, "frontends": 1}
    return ServerProcess(store, config={"default_workers_per_model": 1, **limits, **config}, folder=folder)


@pytest.fixture(scope="module")
def store(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("edge") / "store"
    archive(store, "echo", "echo.py", config="batchSize: 4\n")
    archive(store, "act", "act.py:handle", config="batchSize: 4\n")
    archive(store, "small", "act.py:handle", config="jobQueueSize: 1\n")
    return store


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With room for whoever takes its time."""
    with start(store, tmp_path_factory.mktemp("patient"), job_queue_size=1000) as server:
        yield server
        wait_until_free(server, MODELS)
        assert "Traceback" not in server.log, server.log
    assert server.remains() == []


@pytest.fixture(scope="module")
def strict(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With a second of patience for each part of a request."""
    timeouts = {"header_timeout": 1, "body_timeout": 1, "write_timeout": 1}
    with start(store, tmp_path_factory.mktemp("strict"), **timeouts) as server:
        yield server
        wait_until_free(server, MODELS)
        assert "Traceback" not in server.log, server.log
    assert server.remains() == []


@pytest.fixture
def connection(server: ServerProcess) -> Iterator[Connection]:
    with Connection(server) as connection:
        yield connection


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds requests until it has a file `open`; none is left behind."""
    yield tmp_path
    (tmp_path / "open").touch()


def is_served(server: ServerProcess) -> bool:
    """Whether a small and a large request are answered as if nobody else were there."""
    with Connection(server) as other:
        for size in (10, 500_000):
            body = random.Random(size).randbytes(size)
            other.send(post(body))
            if other.answer().body != body:
                return False
        other.send(act("act", name="other"))
        return bool(other.answer().json["name"] == "other")


def hold_worker(server: ServerProcess, model: str, gate: Path, stack: contextlib.ExitStack) -> list[Connection]:
    """The model's worker has one request that waits for the gate, and the next one in its ring."""
    held = []
    for _ in range(2):
        held.append(stack.enter_context(Connection(server)))
        held[-1].send(act(model, hold=str(gate)))
        settle(server)
    return held


def is_connected(server: ServerProcess, connection: Connection) -> bool:
    """As the server sees it: a client that does not read cannot know."""
    return any(
        each.raddr and each.raddr.port == connection.port
        for pid in server.front_ends()
        for each in psutil.Process(pid).net_connections("tcp")
    )


# ---- clients that ask before they send


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_client_that_asks_is_told_to_continue_when_its_body_will_be_taken(connection: Connection, size: int) -> None:
    body = random.Random(size).randbytes(size)
    for _ in range(2):
        connection.send(post(body, "/predictions/echo", "expect: 100-continue")[:-size])
        assert connection.response().status == 100
        connection.send(body)
        answer = connection.answer()
        assert (answer.status, answer.body) == (200, body)


def test_a_client_that_asks_before_a_chunked_body_is_told_to_continue(connection: Connection) -> None:
    connection.send(head("/predictions/echo", "transfer-encoding: chunked", "expect: 100-continue"))
    assert connection.response().status == 100
    connection.send(b"11170\r\n" + bytes(70_000) + b"\r\n0\r\n\r\n")
    assert connection.answer().body == bytes(70_000)


def test_a_client_that_asks_and_sends_without_waiting_is_answered_too(connection: Connection) -> None:
    body = bytes(100_000)
    connection.send(post(body, "/predictions/echo", "expect: 100-continue"))
    assert connection.answer().body == body


@pytest.mark.parametrize(
    ("target", "size", "status"),
    [
        ("/predictions/nobody", 10, 404),
        ("/predictions/nobody", 1_000_000, 404),
        ("/predictions/echo/9.9", 1_000_000, 404),
        ("/nowhere", 1_000_000, 404),
        ("/predictions/echo", REQUEST_BYTES_MAX + 1, 413),
        ("/predictions/echo", 10**15, 413),
    ],
)
def test_a_client_that_asks_is_refused_without_being_told_to_continue(
    connection: Connection, target: str, size: int, status: int
) -> None:
    connection.send(head(target, f"content-length: {size}", "expect: 100-continue"))
    answer = connection.response()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert connection.rest() == b""


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_client_that_asks_while_the_queue_is_full_is_refused(server: ServerProcess, gate: Path, size: int) -> None:
    """One is executed, one lies in the worker's ring, one waits: that is all the room there is."""
    with contextlib.ExitStack() as stack:
        held = hold_worker(server, "small", gate, stack)
        held.append(stack.enter_context(Connection(server)))
        held[-1].send(act("small"))
        wait_until(lambda: pending(server, "small") == 1, ANSWER_S_MAX, "a full queue")
        asking = stack.enter_context(Connection(server))
        asking.send(head("/predictions/small", f"content-length: {size}", "expect: 100-continue", JSON))
        answer = asking.response()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        (gate / "open").touch()
        assert [connection.answer().status for connection in held] == [200] * 3


# ---- limits


@pytest.mark.parametrize("framing", ["length", "chunk", "chunks"])
def test_a_too_large_body_is_refused_as_soon_as_that_is_known(connection: Connection, framing: str) -> None:
    if framing == "length":
        connection.send(head("/predictions/echo", f"content-length: {REQUEST_BYTES_MAX + 1}"))
    else:
        connection.send(head("/predictions/echo", "transfer-encoding: chunked"))
        size = REQUEST_BYTES_MAX + 1 if framing == "chunk" else 100_000
        if framing == "chunks":
            for _ in range(REQUEST_BYTES_MAX // size):
                connection.send(b"%x\r\n" % size + bytes(size) + b"\r\n")
        connection.send(b"%x\r\n" % size)
    answer = connection.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert str(REQUEST_BYTES_MAX) in answer.json["message"]
    assert "max_request_size" in answer.json["message"]
    assert connection.rest() == b""


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize(("target", "status"), [("/predictions/echo", 413), ("/predictions/nobody", 404)])
def test_a_client_that_sends_all_of_a_refused_body_before_it_reads_still_reads_the_refusal(
    connection: Connection, framing: str, target: str, status: int
) -> None:
    pieces, piece = 200, bytes(60_000)
    length = f"content-length: {pieces * len(piece)}" if framing == "length" else "transfer-encoding: chunked"
    connection.send(head(target, length))
    with contextlib.suppress(OSError):
        for _ in range(pieces):
            connection.send(piece if framing == "length" else b"%x\r\n%b\r\n" % (len(piece), piece))
    answer = connection.answer()
    assert (answer.status, answer.json["code"]) == (status, status)


def test_a_too_large_answer_is_an_error_for_its_own_request_alone(server: ServerProcess, gate: Path) -> None:
    with contextlib.ExitStack() as stack:
        ahead = hold_worker(server, "act", gate, stack)
        too_large = RESPONSE_BYTES_MAX + 1
        wanted: list[dict[str, Any]] = [{"name": "a"}, {"size": too_large}, {"name": "b"}, {"size": 2_000_000}]
        batch = [stack.enter_context(Connection(server)) for _ in wanted]
        for connection, row in zip(batch, wanted, strict=True):
            connection.send(act("act", **row))
        settle(server)
        (gate / "open").touch()
        assert [connection.answer().status for connection in ahead] == [200, 200]
        small, refused, other, large = (connection.answer() for connection in batch)
    assert refused.status == 507
    assert str(too_large) in refused.json["message"]
    assert str(RESPONSE_BYTES_MAX) in refused.json["message"]
    assert (small.json, other.json) == ({"name": "a", "rows": 4}, {"name": "b", "rows": 4})
    assert large.body == bytes(2_000_000)


# ---- clients that send no more


@pytest.mark.parametrize("size", [10, 500_000])
def test_a_client_that_has_sent_its_last_byte_still_gets_its_answer(connection: Connection, size: int) -> None:
    body = random.Random(size).randbytes(size)
    connection.send(post(body))
    connection.end_sending()
    assert connection.answer().body == body
    assert connection.rest() == b""


@pytest.mark.parametrize("size", [0, STALLING_BYTES])
def test_a_client_that_ends_its_side_while_the_model_works_gets_its_answer(
    server: ServerProcess, gate: Path, size: int
) -> None:
    with Connection(server) as running, Connection(server) as queued:
        started = gate / "started"
        running.send(act("small", hold=str(gate), count=str(started), name="running", size=size))
        wait_until(started.exists, ANSWER_S_MAX, "the model works")
        queued.send(act("small", name="queued", size=size))
        running.end_sending()
        queued.end_sending()
        assert is_served(server)  # by then the server has seen both ends
        (gate / "open").touch()
        assert (running.answer()[::2], queued.answer()[::2]) == ((200, bytes(size)), (200, bytes(size)))
        assert running.rest() == queued.rest() == b""


def test_a_client_of_http_1_0_that_ends_its_side_is_sent_nothing_but_its_answer(
    server: ServerProcess, connection: Connection, gate: Path
) -> None:
    """It would take an interim response for the answer."""
    connection.send(act("act", hold=str(gate)).replace(b"HTTP/1.1", b"HTTP/1.0"))
    settle(server)
    connection.end_sending()
    settle(server)
    (gate / "open").touch()
    assert connection.response().status == 200
    assert connection.rest() == b""


def test_all_requests_of_a_pipeline_are_answered_after_the_clients_last_byte(connection: Connection) -> None:
    bodies = [random.Random(size).randbytes(size) for size in (10, 90_000, 0, 200_000, 7)]
    connection.send(b"".join(map(post, bodies)))
    connection.end_sending()
    assert [connection.answer().body for _ in bodies] == bodies


@pytest.mark.parametrize("size", [10, 60_000, 1_000_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_that_ends_early_ends_its_connection(connection: Connection, size: int, framing: str) -> None:
    if framing == "length":
        connection.send(post(bytes(size))[:-1])
    else:
        connection.send(head("/predictions/echo", "transfer-encoding: chunked") + b"%x\r\n" % size + bytes(size - 1))
    connection.end_sending()
    rest = connection.rest()
    assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")


# ---- clients that take their time


def drip(connection: Connection, *, pieces: bytes) -> bytes:
    """Send single bytes until the server has something to say or is gone; all that it says."""
    end = time.monotonic() + ANSWER_S_MAX
    at = 0
    while not select.select([connection.socket], [], [], 0.1)[0]:
        assert time.monotonic() < end, "the server still listens"
        with contextlib.suppress(OSError):
            connection.send(pieces[at % len(pieces) :][:1])
        at += 1
    return connection.rest()


@pytest.mark.parametrize(
    "before", [b"", act("act", name="first"), post(bytes(200_000))], ids=["fresh", "used", "large"]
)
@pytest.mark.parametrize("begun", [b"P", b"POST /predictions/echo HTTP/1.1\r\nhost: x\r\nx-long: "])
def test_a_head_that_takes_too_long_ends_its_connection(strict: ServerProcess, before: bytes, begun: bytes) -> None:
    with Connection(strict) as connection:
        if before:
            connection.send(before)
            assert connection.answer().status == 200
        connection.send(begun)
        rest = drip(connection, pieces=b"OST /a" if begun == b"P" else b"y")
        assert rest == b"" or rest.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "begun",
    [
        post(bytes(1000))[:-500],
        post(bytes(200_000))[:-100_000],
        head("/predictions/echo", "transfer-encoding: chunked") + b"186a0\r\nabc",
        post(bytes(1000), "/predictions/echo", "content-type: application/x-www-form-urlencoded")[:-500],
    ],
    ids=["small", "large", "chunked", "form"],
)
def test_a_body_that_takes_too_long_is_answered_408(strict: ServerProcess, begun: bytes) -> None:
    with Connection(strict) as connection:
        connection.send(begun)
        assert drip(connection, pieces=b"z").startswith(b"HTTP/1.1 408 ")
    assert is_served(strict)


def test_a_large_body_has_more_time_than_a_small_one(strict: ServerProcess) -> None:
    """A megabyte may take the second that every body has, and four more for its length."""
    body = random.Random(3).randbytes(1 << 20)
    with Connection(strict) as connection:
        connection.send(head("/predictions/echo", f"content-length: {len(body)}"))
        for at in range(0, len(body), len(body) // 10):
            connection.send(body[at : at + len(body) // 10])
            time.sleep(0.2)
        assert connection.answer().body == body


def test_a_crowd_of_slow_uploaders_keeps_nobody_else_from_being_served(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        bodies = [random.Random(number).randbytes(100_000 + number) for number in range(CROWD)]
        slow = [stack.enter_context(Connection(server)) for _ in bodies]
        for connection, body in zip(slow, bodies, strict=True):
            connection.send(post(body)[:-50_000])
        assert is_served(server)
        for connection in slow[::2]:
            connection.close()
        assert is_served(server)
        for connection, body in zip(slow[1::2], bodies[1::2], strict=True):
            connection.send(body[-50_000:])
            assert connection.answer().body == body


def test_slow_uploaders_take_no_places_in_a_queue(server: ServerProcess) -> None:
    """A place is for who waits for the model, not for who is waited for."""
    with contextlib.ExitStack() as stack:
        requests = [act("small", name=f"slow{number}", pad="x" * 100_000) for number in range(3)]
        requests += [request.replace(b"POST", b"PUT") for request in requests]
        slow = [stack.enter_context(Connection(server)) for _ in requests]
        for connection, request in zip(slow, requests, strict=True):
            connection.send(request[:-50_000])
        settle(server)
        with Connection(server) as other:
            other.send(act("small", name="quick"))
            assert other.answer().json["name"] == "quick"
        for connection, request in zip(slow, requests, strict=True):
            connection.send(request[-50_000:])
            assert connection.answer().status == 200


def test_a_client_that_reads_nothing_of_its_answer_is_cut_off(strict: ServerProcess) -> None:
    with Connection(strict, read_buffer_bytes=4096) as connection:
        connection.send(act("act", size=STALLING_BYTES))
        wait_until(lambda: is_connected(strict, connection), ANSWER_S_MAX, "a connection")
        wait_until(lambda: not is_connected(strict, connection), ANSWER_S_MAX, "the end of the connection")
        assert len(connection.rest()) < STALLING_BYTES


def test_a_client_that_reads_slowly_but_steadily_gets_all_of_its_answer(strict: ServerProcess) -> None:
    with Connection(strict, read_buffer_bytes=100_000) as connection:
        connection.send(act("act", size=STALLING_BYTES))
        end = time.monotonic() + 2.5  # more than twice the longest silence allowed
        got = 0
        while got < STALLING_BYTES:
            slowly = time.monotonic() < end
            part = connection.socket.recv(20_000 if slowly else 1 << 20)
            assert part, f"the answer ended after {got} bytes"
            got += len(part)
            time.sleep(0.05 if slowly else 0)


def test_a_crowd_of_stalled_readers_keeps_nobody_else_from_being_served(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(Connection(server, read_buffer_bytes=4096)) for _ in range(CROWD)]
        for connection in stalled:
            connection.send(act("act", size=STALLING_BYTES))
        assert is_served(server)
        for connection in stalled[::2]:
            connection.close()
        assert is_served(server)
        for connection in stalled[1::2][:5]:
            assert connection.answer().body == bytes(STALLING_BYTES)


# ---- what is not a request

LARGE = bytes(100_000)


@pytest.mark.parametrize("body", [b"hello", LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "framing",
    [
        "content-length: {n}\r\ncontent-length: 5000",
        "content-length: 5000\r\ncontent-length: {n}",
        "content-length: {n}\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: {n}",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: gzip, chunked",
        "content-length: -{n}",
        "content-length: +{n}",
        "content-length: 0x{n}",
        "content-length: {n}.0",
        "content-length: {n} {n}",
        "content-length: {n}, 7",
        "content-length: ",
        "content-length: 9999999999999999999999999999",
        "content-length: 18446744073709551616",
        "content-length: 9223372036854775808",
    ],
)
def test_a_body_of_doubtful_length_is_refused(server: ServerProcess, framing: str, body: bytes) -> None:
    with Connection(server) as connection:
        with contextlib.suppress(OSError):
            connection.send(head("/predictions/echo", framing.format(n=len(body))) + body)
        rest = connection.rest()
    assert rest == b"" or re.match(rb"HTTP/1.1 (400|411|413|501) ", rest), rest[:200]
    assert rest.count(b"HTTP/1.1") <= 1, "no part of the body was taken for a request"


def test_no_garbage_hangs_the_server_or_shows_another_clients_data(server: ServerProcess) -> None:
    """Requests that somebody broke at random. What they are answered is their own affair, as long as it ends."""
    random_one = random.Random(11)
    secret = b"another client's secret"
    for number in range(200):
        request = bytearray(post(b"x" * random_one.choice((0, 20, 70_000)), "/predictions/echo", "x-a: b"))
        if number % 3 == 0:
            request[:] = (
                head("/predictions/echo", "transfer-encoding: chunked") + b"1388\r\n" + bytes(5000) + b"\r\n0\r\n\r\n"
            )
        for _ in range(random_one.randrange(1, 6)):
            at = random_one.randrange(min(len(request), 160))
            kind = random_one.randrange(4)
            request[at : at + (kind > 0)] = random_one.randbytes(1) if kind < 3 else b""
        with Connection(server) as broken, Connection(server) as other:
            other.send(post(secret * 4000))
            with contextlib.suppress(OSError):
                broken.send(bytes(request[: random_one.choice((len(request), random_one.randrange(1, len(request))))]))
                broken.end_sending()
            rest = broken.rest()
            assert rest == b"" or rest.startswith(b"HTTP/1.1 "), (number, rest[:100])
            assert secret not in rest
            assert other.answer().body == secret * 4000
    assert is_served(server)

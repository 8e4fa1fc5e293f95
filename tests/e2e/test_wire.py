"""What goes over the sockets: connections, bodies of every size, requests that are not HTTP, many requests at once."""

import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until

REQUEST_BYTES_MAX = 6_553_500  # max_request_size's default
SOCKET_S_MAX = 20.0


class RawConnection:
    """One socket to the inference address."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self.socket = socket.create_connection((parts.hostname, parts.port), SOCKET_S_MAX)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, *, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        status_line = self.file.readline()
        assert status_line.startswith(b"HTTP/1.1 "), status_line
        headers = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if head_only else int(headers.get("content-length", 0))
        return int(status_line.split()[1]), headers, self.file.read(length)

    def closed(self) -> bool:
        """Whether the server closes the connection; waits for it."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def raw(server: ServerProcess) -> Iterator[RawConnection]:
    connection = RawConnection(server.inference_url)
    yield connection
    connection.close()


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


GET_PLAIN = b"GET /predictions/plain HTTP/1.1\r\nhost: x\r\n\r\n"


def test_a_connection_stays_open_after_success(raw: RawConnection) -> None:
    for _ in range(3):
        raw.send(GET_PLAIN)
        status, headers, body = raw.answer()
        assert (status, headers["connection"], body) == (200, "keep-alive", b"plain 1.0")


def test_ping_and_predictions_share_a_connection(raw: RawConnection) -> None:
    raw.send(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
    assert raw.answer()[0] == 200
    raw.send(GET_PLAIN)
    assert raw.answer()[2] == b"plain 1.0"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /predictions/nobody HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (post("/predictions/faulty", b"raise"), 503),
        (post("/predictions/answers", b'{"status": 418}', "content-type: application/json"), 418),
        (post("/predictions/sums", b"short"), 400),
    ],
)
def test_a_connection_closes_after_a_status_from_400_on(raw: RawConnection, request_bytes: bytes, status: int) -> None:
    raw.send(request_bytes)
    got, headers, _ = raw.answer()
    assert (got, headers["connection"]) == (status, "close")
    assert raw.closed()


def test_a_client_that_asks_for_close_gets_its_answer_and_then_the_end(raw: RawConnection) -> None:
    raw.send(b"GET /predictions/plain HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    status, headers, body = raw.answer()
    assert (status, headers["connection"], body) == (200, "close", b"plain 1.0")
    assert raw.closed()


def test_head_answers_the_length_without_the_body(raw: RawConnection) -> None:
    raw.send(b"HEAD /predictions/plain HTTP/1.1\r\nhost: x\r\n\r\n")
    status, headers, _ = raw.answer(head_only=True)
    assert (status, headers["content-length"]) == (200, "9")
    raw.send(GET_PLAIN)  # the next thing on the connection is the next answer, not a body
    assert raw.answer()[2] == b"plain 1.0"


def test_a_chunked_body_arrives_whole(raw: RawConnection) -> None:
    raw.send(b"POST /predictions/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    for chunk in (b"one ", b"two ", b"three"):
        raw.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    raw.send(b"0\r\n\r\n")
    assert raw.answer()[2] == b"one two three"


def test_a_large_chunked_body_arrives_whole(client: httpx.Client) -> None:
    chunks = [random.Random(number).randbytes(50_000) for number in range(20)]
    assert client.post("/predictions/echo", content=iter(chunks)).content == b"".join(chunks)


def test_expect_100_continue_is_answered_before_the_body_is_sent(raw: RawConnection) -> None:
    request = post("/predictions/echo", b"hello", "expect: 100-continue")
    raw.send(request[:-5])
    assert raw.file.readline() == b"HTTP/1.1 100 Continue\r\n"
    assert raw.file.readline() == b"\r\n"
    raw.send(b"hello")
    assert raw.answer()[2] == b"hello"


def test_pipelined_requests_are_answered_in_their_order(raw: RawConnection) -> None:
    bodies = [str(number).encode() * 10 for number in range(20)]
    raw.send(b"".join(post("/predictions/echo", body) for body in bodies))
    assert [raw.answer()[2] for _ in bodies] == bodies


def test_a_request_that_arrives_byte_by_byte_is_answered(raw: RawConnection) -> None:
    raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in post("/predictions/echo", b"slow"):
        raw.send(bytes([byte]))
    assert raw.answer()[2] == b"slow"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /predictions/plain\r\n\r\n",
        b"GET http://elsewhere HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /predictions/plain HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n",
        b"POST /predictions/plain HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /predictions/plain HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nbody\r\n0\r\n\r\n",
        b"GET /predictions/plain HTTP/1.1\r\nno colon here\r\n\r\n",
    ],
)
def test_what_is_not_http_is_a_bad_request_and_ends_the_connection(raw: RawConnection, request_bytes: bytes) -> None:
    raw.send(request_bytes)
    status, headers, body = raw.answer()
    assert status == 400
    assert b'"type": "BadRequestException"' in body
    assert headers["connection"] == "close"
    assert raw.closed()


@pytest.mark.parametrize("path", ["/predictions/plain", "/ping", "/" + "a" * 20_000])
def test_a_head_without_end_is_refused_as_what_it_is(raw: RawConnection, path: str) -> None:
    raw.send(f"GET {path} HTTP/1.1\r\nhost: x\r\nx: ".encode() + b"y" * 10_000)
    status, _, body = raw.answer()
    assert status == 400
    assert b"Invalid HTTP message. Head: expected at most 8192 bytes, got more." in body


def test_no_header_is_sent_empty(raw: RawConnection) -> None:
    for path in ("/health/live", "/predictions/plain", "/nowhere"):
        raw.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert "" not in raw.answer()[1].values()


@pytest.mark.parametrize(
    "framing",
    [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: +5",
        "transfer-encoding: gzip",
        "transfer-encoding: xchunked",
    ],
)
def test_a_body_whose_end_could_be_read_in_two_ways_is_refused(raw: RawConnection, framing: str) -> None:
    raw.send(f"POST /predictions/echo HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n0\r\n\r\n".encode())
    assert raw.answer()[0] == 400
    assert raw.closed()


@pytest.mark.parametrize("path", ["/predictions/%ff%00", "/predictions//plain", "/%2e%2e/predictions/plain"])
def test_odd_paths_are_not_found(raw: RawConnection, path: str) -> None:
    raw.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert raw.answer()[0] == 404


def test_the_server_as_a_whole_can_only_be_asked_for_its_options(raw: RawConnection) -> None:
    raw.send(b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b'"openapi": "3.0.1"' in raw.answer()[2]
    raw.send(b"GET * HTTP/1.1\r\nhost: x\r\n\r\n")
    assert raw.answer()[0] == 405


def test_an_absolute_url_and_http_1_0_are_understood(raw: RawConnection) -> None:
    raw.send(b"GET http://elsewhere/predictions/plain HTTP/1.1\r\nhost: x\r\n\r\n")
    assert raw.answer()[2] == b"plain 1.0"
    raw.send(b"GET /predictions/plain HTTP/1.0\r\n\r\n")
    assert raw.answer()[2] == b"plain 1.0"
    assert raw.closed()


@pytest.mark.parametrize("way", ["content-length", "expect", "chunked"])
def test_a_body_above_the_limit_is_refused_naming_the_limit_and_its_key(raw: RawConnection, way: str) -> None:
    head = b"POST /predictions/echo HTTP/1.1\r\nhost: x\r\n"
    if way == "chunked":
        raw.send(head + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % (REQUEST_BYTES_MAX + 1))
    else:
        expect = b"expect: 100-continue\r\n" if way == "expect" else b""
        raw.send(head + expect + b"content-length: %d\r\n\r\n" % (REQUEST_BYTES_MAX + 1))
    status, headers, body = raw.answer()
    assert status == 413
    assert str(REQUEST_BYTES_MAX).encode() in body
    assert b"max_request_size" in body
    assert headers["connection"] == "close"
    assert raw.closed()


@pytest.mark.parametrize("client_kind", ["content-length", "chunked"])
def test_a_client_that_sends_its_too_large_body_at_once_still_reads_the_refusal(
    client: httpx.Client, client_kind: str
) -> None:
    body = bytes(REQUEST_BYTES_MAX + 1)
    content = body if client_kind == "content-length" else iter([body[:4_000_000], body[4_000_000:]])
    response = client.post("/predictions/echo", content=content)
    assert response.status_code == 413
    assert "max_request_size" in response.json()["message"]


@pytest.mark.parametrize("size", [0, 1, 1023, 65_535, 65_536, 100_000, 1_048_576, 2_000_000, REQUEST_BYTES_MAX])
def test_a_body_of_any_size_comes_back_byte_exact(client: httpx.Client, size: int) -> None:
    body = random.Random(size).randbytes(size)
    response = client.post("/predictions/echo", content=body)
    assert response.status_code == 200
    assert response.content == body


def test_a_small_request_may_have_a_large_answer(client: httpx.Client) -> None:
    response = client.post("/predictions/answers", json={"size": 5_000_000})
    assert response.content == bytes(5_000_000)


def test_large_bodies_in_parallel_come_back_each_to_its_own_client(client: httpx.Client) -> None:
    bodies = [random.Random(number).randbytes(500_000 + 300_000 * number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: client.post("/predictions/echo", content=body).content, bodies))
    assert answers == bodies


def test_two_hundred_concurrent_mixed_requests_each_get_their_own_answer(client: httpx.Client) -> None:
    def ask(number: int) -> bool:
        match number % 4:
            case 0:
                body = f"{number} ".encode() * (1 + number * 20)
                return client.post("/predictions/echo", content=body).content == body
            case 1:
                row = {"left": [number, 0, 1], "right": [1, 1, 1]}
                return bool(client.post("/predictions/sums", json=row).json()["sum"] == [number + 1, 1, 2])
            case 2:
                answer = client.post(
                    "/predictions/probe/1.0", content=str(number), headers={"x-request-id": f"r{number}"}
                ).json()
                return bool(answer["inputs"]["body"][1] == str(number) and answer["request_id"] == f"r{number}")
        return client.post("/predictions/faulty", content=b"refuse404").status_code == 404

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(ask, range(200)))


def test_a_client_that_leaves_mid_body_disturbs_nobody(raw: RawConnection, client: httpx.Client) -> None:
    raw.send(post("/predictions/echo", bytes(100_000))[:-1])
    raw.close()
    assert client.get("/predictions/plain").status_code == 200


def test_a_client_that_leaves_before_its_answer_disturbs_nobody(
    raw: RawConnection, client: httpx.Client, tmp_path: Path
) -> None:
    raw.send(post("/predictions/gate", str(tmp_path).encode()))
    wait_until(lambda: (tmp_path / "started").exists(), 10, "the request reaches the handler")
    raw.close()
    (tmp_path / "open").touch()
    assert client.post("/predictions/gate", content=str(tmp_path)).text == "passed"

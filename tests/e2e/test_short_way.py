"""Plain predictions take a short way around Sanic: what a client sees must not depend on which way its request took."""

import socket
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ringserve.server.testing import ServerProcess, wait_until

SLOW = """
import os, time

def handle(data, context):
    if data is None:
        return None
    answers = []
    for row in data:
        body = bytes(row["body"]).decode()
        if body.startswith("hold "):
            open(body[5:], "w").close()
            while os.path.exists(body[5:]):
                time.sleep(0.005)
        answers.append(body.upper())
    return answers
"""


def _connect(server: ServerProcess) -> socket.socket:
    address = urlsplit(server.inference_url)
    assert address.hostname is not None and address.port is not None
    return socket.create_connection((address.hostname, address.port), timeout=20)


def _post(body: bytes, path: str = "/predictions/loud", more: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n".encode()
    return head + more + b"\r\n" + body


def _read(reader: BufferedReader) -> tuple[int, dict[str, str], bytes]:
    """One answer: status, headers by lower-case name, body."""
    status = int(reader.readline().split()[1])
    headers = {}
    while (line := reader.readline().strip()) != b"":
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return status, headers, reader.read(int(headers["content-length"]))


@pytest.fixture(scope="module")
def loud(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("loud") / "store"
    archive(store, "loud", "loud.py:handle", source=SLOW, config="minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\n")
    with ServerProcess(store) as server:
        server.wait_for_log("is ready")
        yield server
    assert server.remains() == []


UNUSUAL = {
    "in two pieces": (_post(b"two")[:-1], b"o", 200, b"TWO"),
    "head and body apart": (_post(b"apart")[:-5], b"apart", 200, b"APART"),
    "chunked": (
        b"POST /predictions/loud HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"3\r\nabc\r\n0\r\n\r\n",
        200,
        b"ABC",
    ),
    "HTTP/1.0": (_post(b"old").replace(b"HTTP/1.1", b"HTTP/1.0"), b"", 200, b"OLD"),
    "another method": (_post(b"put").replace(b"POST", b"PUT"), b"", 200, b"PUT"),
    "escaped path": (_post(b"path", "/predictions/l%6Fud"), b"", 200, b"PATH"),
    "trailing slash": (_post(b"slash", "/predictions/loud/"), b"", 200, b"SLASH"),
    "query": (_post(b"query", "/predictions/loud?a=b"), b"", 200, b"QUERY"),
    "absolute target": (_post(b"far", "http://x/predictions/loud"), b"", 200, b"FAR"),
    "same header twice": (_post(b"twice", more=b"X-A: 1\r\nX-A: 2\r\n"), b"", 200, b"TWICE"),
    "expect": (_post(b"", more=b"Expect: 100-continue\r\n"), b"", 200, b""),
    "plain": (_post(b"plain"), b"", 200, b"PLAIN"),
    "plain, explicit version": (_post(b"one", "/predictions/loud/1.0"), b"", 200, b"ONE"),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_an_unusual_request_is_answered_like_a_plain_one(loud: ServerProcess, case: str) -> None:
    first, rest, status, body = UNUSUAL[case]
    with _connect(loud) as sock, sock.makefile("rb") as reader:
        sock.sendall(first)
        if rest:
            sock.sendall(rest)
        answer = _read(reader)
        assert (answer[0], answer[2]) == (status, body)
        expected = {
            "x-request-id",
            "pragma",
            "cache-control",
            "expires",
            "content-type",
            "content-length",
            "connection",
        }
        assert answer[1].keys() == expected


def test_requests_of_both_ways_follow_each_other_on_one_connection(loud: ServerProcess) -> None:
    with _connect(loud) as sock, sock.makefile("rb") as reader:
        for case in (
            "plain",
            "in two pieces",
            "plain",
            "chunked",
            "another method",
            "plain, explicit version",
            "plain",
        ):
            first, rest, status, body = UNUSUAL[case]
            sock.sendall(first)
            if rest:
                sock.sendall(rest)
            answer = _read(reader)
            assert (answer[0], answer[2], answer[1]["connection"]) == (status, body, "keep-alive"), case


@pytest.mark.parametrize("sends", [1, 7])
def test_pipelined_requests_are_answered_in_order(loud: ServerProcess, sends: int) -> None:
    """In one segment, or in pieces that cut requests anywhere."""
    stream = b"".join(_post(b"number %d" % number) for number in range(30))
    size = -(-len(stream) // sends)
    with _connect(loud) as sock, sock.makefile("rb") as reader:
        for at in range(0, len(stream), size):
            sock.sendall(stream[at : at + size])
        bodies = [_read(reader)[2] for _ in range(30)]
    assert bodies == [b"NUMBER %d" % number for number in range(30)]


def test_what_arrives_while_a_prediction_runs_waits_for_its_answer(loud: ServerProcess, tmp_path: Path) -> None:
    held = tmp_path / "held"
    with _connect(loud) as sock, sock.makefile("rb") as reader:
        sock.sendall(_post(b"hold %b" % str(held).encode()))
        wait_until(held.exists, 10, "the model has the request")
        sock.sendall(_post(b"next") + b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        held.unlink()
        assert _read(reader)[2] == f"HOLD {held}".upper().encode()
        assert _read(reader)[2] == b"NEXT"
        assert _read(reader)[0] == 200


def test_a_client_that_leaves_during_a_prediction_disturbs_nobody(loud: ServerProcess, tmp_path: Path) -> None:
    held = tmp_path / "held"
    with _connect(loud) as sock:
        sock.sendall(_post(b"hold %b" % str(held).encode()))
        wait_until(held.exists, 10, "the model has the request")
    held.unlink()
    with _connect(loud) as sock, sock.makefile("rb") as reader:
        sock.sendall(_post(b"here"))
        assert _read(reader)[2] == b"HERE"
    assert "Traceback" not in loud.log


def test_a_malformed_request_that_begins_like_a_plain_one_is_refused(loud: ServerProcess) -> None:
    for broken in (
        b"POST /predictions/loud HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /predictions/loud HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /predictions/loud HTTP/9.9\r\n\r\n",
        b"POST /predictions/loud HTTP/1.1\r\nno colon\r\n\r\n",
    ):
        with _connect(loud) as sock, sock.makefile("rb") as reader:
            sock.sendall(broken)
            status, headers, _ = _read(reader)
            assert status == 400, broken
            assert headers["connection"] == "close"


def test_a_connection_says_close_when_the_client_asked_for_it(loud: ServerProcess) -> None:
    with _connect(loud) as sock, sock.makefile("rb") as reader:
        sock.sendall(_post(b"hello"))
        assert _read(reader)[1]["connection"] == "keep-alive"
        sock.sendall(_post(b"bye", more=b"Connection: close\r\n"))
        status, headers, body = _read(reader)
        assert (status, headers["connection"], body) == (200, "close", b"BYE")
        assert reader.read() == b""


def test_the_body_of_a_refused_request_is_never_read_as_a_request(loud: ServerProcess, tmp_path: Path) -> None:
    """The refusal comes before the body; what follows is that body, whatever it looks like."""
    touched = tmp_path / "touched"
    smuggled = _post(b"hold %b" % str(touched).encode())
    for target in (b"/predictions/nobody", b"/nothing"):
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (target, len(smuggled))
        with _connect(loud) as sock, sock.makefile("rb") as reader:
            sock.sendall(_post(b"first"))
            assert _read(reader)[2] == b"FIRST"
            sock.sendall(head)
            status, headers, _ = _read(reader)
            assert (status, headers["connection"]) == (404, "close")
            sock.sendall(smuggled)
            assert reader.read() == b""
    assert not touched.exists()


def test_a_client_that_waits_to_continue_is_refused_and_never_asked_for_its_body(loud: ServerProcess) -> None:
    with _connect(loud) as sock, sock.makefile("rb") as reader:
        head = b"POST /predictions/nobody HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        sock.sendall(head)
        assert _read(reader)[0] == 404
        assert reader.read() == b""


@pytest.mark.parametrize("follower", [_post(b"second"), b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["POST", "GET"])
def test_a_request_cut_anywhere_behind_a_whole_one_is_answered(loud: ServerProcess, follower: bytes) -> None:
    with _connect(loud) as sock, sock.makefile("rb") as reader:
        sock.sendall(_post(b"zero"))
        assert _read(reader)[2] == b"ZERO"
        for cut in range(1, len(follower)):
            sock.sendall(_post(b"first") + follower[:cut])
            assert _read(reader)[2] == b"FIRST", cut
            sock.sendall(follower[cut:])
            assert _read(reader)[0] == 200, cut

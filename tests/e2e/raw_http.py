"""A client by hand: the test decides what is sent, when, in which pieces, and what is read."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import time
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from ringserve.server.testing import ServerProcess, wait_until

ANSWER_S_MAX = 20.0
_SLABS = re.compile(r"dispatcher (.+): free slabs (\d+) of (\d+), waiting (\d+), held (\d+)")


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """`read_buffer_bytes` keeps the kernel from reading ahead for a client that does not read."""

    def __init__(self, server: ServerProcess, *, read_buffer_bytes: int = 0) -> None:
        address = urlsplit(server.inference_url)
        assert address.hostname is not None and address.port is not None
        self.socket = socket.socket()
        self.socket.settimeout(ANSWER_S_MAX)
        if read_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_buffer_bytes)
        self.socket.connect((address.hostname, address.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self.socket.getsockname()[1]
        self._reader = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def send(self, *pieces: bytes, pause_s: float = 0) -> None:
        for piece in pieces:
            self.socket.sendall(piece)
            time.sleep(pause_s)

    def answer(self) -> Answer:
        """The next one that is final; servers may say before it that they are still there."""
        while (answer := self.response()).status < 200:
            pass
        return answer

    def response(self) -> Answer:
        """The next one, final or not."""
        line = self._reader.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = http.client.parse_headers(self._reader)
        return Answer(int(line.split()[1]), headers, self._reader.read(int(headers.get("content-length", 0))))

    def rest(self) -> bytes:
        """All that still comes until the server ends the connection, in either way."""
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := self._reader.read1():
                parts.append(part)
        return b"".join(parts)

    def end_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Go without a goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._reader.close()
        self.socket.close()


def head(target: str, *headers: str, method: str = "POST", version: str = "1.1") -> bytes:
    return "\r\n".join((f"{method} {target} HTTP/{version}", "host: x", *headers, "", "")).encode()


def post(body: bytes, target: str = "/predictions/echo", *headers: str, method: str = "POST") -> bytes:
    return head(target, f"content-length: {len(body)}", *headers, method=method) + body


def act(target: str, *headers: str, **wanted: object) -> bytes:
    """A request to a model made of `handlers/act.py`."""
    return post(json.dumps(wanted).encode(), f"/predictions/{target}", "content-type: application/json", *headers)


def settle(server: ServerProcess) -> None:
    """Until the server has read what was sent before now: it has answered a client that came later."""
    with Connection(server) as later:
        later.send(head("/health/live", method="GET"))
        assert later.answer().status == 200


def pending(server: ServerProcess, model: str) -> int:
    """How many requests wait for a worker."""
    management = http.client.HTTPConnection(urlsplit(server.management_url).netloc, timeout=ANSWER_S_MAX)
    with contextlib.closing(management):
        management.request("GET", f"/models/{model}")
        [described] = json.loads(management.getresponse().read())
    return int(described["jobQueueStatus"]["pendingRequests"])


def taken_slabs(server: ServerProcess, dispatchers: int) -> list[str]:
    """The dispatchers that hold anything, as the front ends tell when they are asked by a signal; `dispatchers` is how many
    there are in all of them."""
    told = len(server.log)
    for pid in server.front_ends():
        os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: len(_SLABS.findall(server.log[told:])) >= dispatchers, ANSWER_S_MAX, "every dispatcher's slabs")
    found = _SLABS.finditer(server.log[told:])
    return [match[0] for match in found if match[2] != match[3] or (match[4], match[5]) != ("0", "0")]


def wait_until_free(server: ServerProcess, dispatchers: int) -> None:
    """Until nobody holds a slab, a row or a place in a queue."""
    wait_until(lambda: not taken_slabs(server, dispatchers), ANSWER_S_MAX, "free slabs")

"""Clients hang up while their requests are queued or executed: what they held is free for others."""

import contextlib
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ringserve.server.testing import wait_until
from tests.chaos.descriptors import fd_counts

if TYPE_CHECKING:
    from tests.chaos.conftest import Site

pytestmark = pytest.mark.e2e

DISCONNECTS = 300
OPEN_MAX = 24
# More than any lane here has slabs, each of one row.
PARALLEL = 40
GROWTH_BYTES_MAX = 16 << 20
# Larger than a slab's byte region: such a body travels in a segment of its own.
PARCEL_BYTES = 1_200_000


def request_bytes(number: int, random_one: random.Random) -> bytes:
    body = f"{number} sleep:0.002".encode()
    if random_one.random() < 0.1:
        body = body.ljust(PARCEL_BYTES)
    return b"POST /predictions/actor HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def hang_up(sock: socket.socket, random_one: random.Random) -> None:
    if random_one.random() < 0.5:  # a reset instead of an orderly end
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def leave_often(site: "Site", random_one: random.Random, times: int) -> None:
    """Send requests, some of them not to their end, and hang up on them in any order."""
    host, _, port = site.server.inference_url.removeprefix("http://").partition(":")
    open_ones: list[socket.socket] = []
    for number in range(times):
        sock = socket.create_connection((host, int(port)), timeout=10)
        data = request_bytes(number, random_one)
        if random_one.random() < 0.1:
            data = data[: random_one.randrange(len(data))]
        sock.sendall(data)
        open_ones.append(sock)
        if random_one.random() < 0.2:  # one of them is polite
            with contextlib.suppress(TimeoutError):
                open_ones[0].settimeout(0.02)
                open_ones[0].recv(4096)
        while len(open_ones) > random_one.randrange(OPEN_MAX):
            hang_up(open_ones.pop(random_one.randrange(len(open_ones))), random_one)
    for sock in open_ones:
        hang_up(sock, random_one)


def pending(site: "Site") -> int:
    status = site.manage("GET", "/models/actor").json()[0]["jobQueueStatus"]
    return int(status["pendingRequests"])


@pytest.mark.parametrize("killing", [False, True], ids=["", "while workers are killed"])
def test_hundreds_of_disconnects_cost_no_slab_no_descriptor_and_no_memory(
    archive: Callable[..., Path], start: "Callable[..., Site]", killing: bool
) -> None:
    random_one = random.Random(7)
    site = start(archive("actor"), job_queue_size=1000)
    memory, descriptors = [], []
    for _ in range(3):
        if killing:
            for _ in range(5):
                leave_often(site, random_one, DISCONNECTS // 10)
                [worker] = site.wait_ready("actor")
                leave_often(site, random_one, DISCONNECTS // 10)
                site.kill_worker(worker)
        else:
            leave_often(site, random_one, DISCONNECTS)
        [worker] = site.wait_ready("actor")
        wait_until(lambda: pending(site) == 0, 20, "an empty queue")
        with site.load("actor", PARALLEL) as load:
            wait_until(lambda seen=load: seen.right > 5 * PARALLEL, 20, "answers")  # type: ignore[misc]
        load.check()
        assert load.errors.total() == 0
        wait_until(lambda: site.connections() == 0, 10, "closed connections")
        memory.append(psutil.Process(site.front_end).memory_info().rss)
        descriptors.append(fd_counts(site.front_end, worker, site.server.pid))
    assert memory[-1] - memory[0] < GROWTH_BYTES_MAX
    assert descriptors[-1] == descriptors[0], "of the front end, the worker and the supervisor"

"""A gigabyte in, and half of one out: between socket and model, none of it stays in the front end's memory."""

import hashlib
import http.client
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from ringserve.server.testing import ServerProcess

GIANT_BYTES = 1 << 30
BLOCK_BYTES = 4 << 20
LIMIT_BYTES = 2_000_000_000
MEMORY_BYTES_MIN = 6 << 30
GROWTH_BYTES_MAX = 64 << 20
ANSWER_S_MAX = 120.0

pytestmark = pytest.mark.skipif(
    psutil.virtual_memory().total < MEMORY_BYTES_MIN, reason="a gigabyte in two processes needs 6 GB of memory"
)


@pytest.fixture(scope="module")
def server(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("giant") / "store"
    archive(store, "digest", "digest.py:handle")
    archive(store, "ramp", "ramp.py:handle")
    config = {"max_request_size": LIMIT_BYTES, "max_response_size": LIMIT_BYTES, "frontends": 1}
    with ServerProcess(store, config={"default_workers_per_model": 1, **config}) as server:
        yield server
        assert "Traceback" not in server.log, server.log
    assert server.remains() == []


@pytest.fixture
def connection(server: ServerProcess) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(server.inference_url).netloc, timeout=ANSWER_S_MAX)
    yield connection
    connection.close()


class Growth:
    """How much resident memory the front end has gained since it started, at the most seen."""

    def __init__(self, server: ServerProcess) -> None:
        [pid] = server.front_ends()
        self._process = psutil.Process(pid)
        self._start_bytes = self._process.memory_info().rss
        self.bytes_max = 0

    def look(self) -> None:
        self.bytes_max = max(self.bytes_max, self._process.memory_info().rss - self._start_bytes)


@pytest.fixture(scope="module")
def growth(server: ServerProcess) -> Growth:
    return Growth(server)


@pytest.mark.parametrize(("framing", "size"), [("content-length", GIANT_BYTES), ("chunked", GIANT_BYTES // 4)])
def test_a_gigabyte_arrives_at_the_model(
    growth: Growth, connection: http.client.HTTPConnection, framing: str, size: int
) -> None:
    expected = hashlib.sha256()
    block = random.Random(1).randbytes(BLOCK_BYTES)

    def blocks() -> Iterator[bytes]:
        """Each with its number, so that one in the wrong place is noticed."""
        for number in range(size // BLOCK_BYTES):
            numbered = struct.pack("<Q", number) + block[8:]
            expected.update(numbered)
            yield numbered
            growth.look()

    chunked = framing == "chunked"
    headers = {"transfer-encoding": "chunked"} if chunked else {"content-length": str(size)}
    connection.request("POST", "/predictions/digest", blocks(), headers, encode_chunked=chunked)
    response = connection.getresponse()
    growth.look()
    assert response.status == 200
    assert json.loads(response.read())["body"] == ["bytearray", size, expected.hexdigest()]
    assert growth.bytes_max < GROWTH_BYTES_MAX


def test_half_a_gigabyte_of_answer_arrives_at_the_client(
    growth: Growth, connection: http.client.HTTPConnection
) -> None:
    words = GIANT_BYTES // 2 // 4
    connection.request("POST", "/predictions/ramp", str(words))
    response = connection.getresponse()
    assert (response.status, response.headers["content-length"]) == (200, str(words * 4))
    for at in range(0, words, BLOCK_BYTES // 4):
        block = np.frombuffer(response.read(BLOCK_BYTES), "<u4")
        assert np.array_equal(block, np.arange(at, at + BLOCK_BYTES // 4, dtype="<u4"))
        growth.look()
    assert growth.bytes_max < GROWTH_BYTES_MAX

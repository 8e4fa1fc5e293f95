"""Whatever clients send: they are refused or answered, the server makes no mistake of its own, and nothing is left behind."""

import asyncio
import copy
import gzip
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ringserve.protocol.datatypes import DATATYPES
from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.raw_http import wait_until_free

REQUESTS = 4000
CONNECTIONS = 20
MODELS = 6  # of the server
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
PATHS = {
    "/v2/models/sums/infer": 6,
    "/v2/models/types/infer": 6,
    "/v2/models/types/versions/1.0/infer": 1,
    "/v2/models/sums/generate": 2,
    "/v2/models/types/generate_stream": 1,
    "/v2/models/words/generate_stream": 1,
    "/v2/models/nobody/infer": 1,
    "/v2/models/sums": 1,
}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, 10**30, 1.5, 1e300, "", "x", "FP32", "é\0", [], {}, [[]], [1, 2, 3], [None],
    [1, 3], [1, [2, [3]]], {"a": 1}, [{}], "x" * 3000, [0, 3], [2**40, 2**40],
]  # fmt: skip
WORDS = (
    *DATATYPES, "left", "right", "sum", "double", "OUT_FP32", "name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "id",
    "binary_data_size", "binary_data", "binary_data_output", "classification", "shared_memory_region", "shared_memory_byte_size",
    "sequence_id", "sequence_start", "priority", "timeout", "triton_x", "text_input",
)  # fmt: skip
HEADERS: list[tuple[str, tuple[str, ...]]] = [
    ("inference-header-content-length", ("0", "1", "7", "-1", "x", "99999999999", "2147483647")),
    ("content-encoding", ("gzip", "deflate", "identity")),
    ("accept-encoding", ("gzip", "deflate;q=0.1", "*;q=x", ",")),
    ("x-request-timeout-ms", ("60000", "0", "x")),
    ("content-type", ("application/json", "multipart/form-data; boundary=x", "")),
    ("connection", ("close",)),
]


class Fuzz:
    """Requests that were right once."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def request(self) -> bytes:
        chance = self.random.random
        path = self.random.choices(list(PATHS), list(PATHS.values()))[0]
        headers: dict[str, str] = {}
        said, tail = self._generate() if "generate" in path else self._infer()
        for _ in range(self.random.choice((0, 0, 1, 1, 3))):
            said = self._mutated(said)
        text = json.dumps(said).encode()
        if tail or chance() < 0.1:
            headers["inference-header-content-length"] = str(len(text))
        body = text + tail
        for _ in range(self.random.choice((0, 0, 0, 0, 1, 3))):
            body = self._damaged(body)
        if chance() < 0.1:
            headers["content-encoding"] = self.random.choice(("gzip", "deflate"))
            body = gzip.compress(body, 1)
            if chance() < 0.5:
                body = self._damaged(body)
        if chance() < 0.15:
            name, values = self.random.choice(HEADERS)
            headers[name] = self.random.choice(values)
        usual = "GET" if path.endswith("sums") else "POST"
        method = usual if chance() < 0.97 else self.random.choice(("GET", "PUT", "DELETE", "PATCH"))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body

    def _infer(self) -> tuple[dict[str, Any], bytes]:
        names = self.random.choice((("left", "right"), ("FP32", "INT8"), ("BYTES",), ("BOOL", "UINT64", "BF16"), ()))
        inputs, tail = [], b""
        for name in names:
            row: dict[str, Any] = {"name": name, "shape": [1, 3], "datatype": name if name in DATATYPES else "FP32"}
            if self.random.random() < 0.4:
                size = self.random.choice((12, 3, 24, 6))
                row["parameters"] = {"binary_data_size": size}
                tail += self.random.randbytes(size)
            else:
                row["data"] = {"BYTES": ["a", "b", "c"], "BOOL": [True, False, True]}.get(name, [1, 2, 3])
            inputs.append(row)
        said: dict[str, Any] = {"id": "f", "inputs": inputs}
        if self.random.random() < 0.5:
            about = self.random.choice(({}, {"binary_data": True}, {"classification": 2}))
            said["outputs"] = [{"name": self.random.choice(("sum", "OUT_FP32", "OUT_BYTES")), "parameters": about}]
        if self.random.random() < 0.3:
            said["parameters"] = {"binary_data_output": True, "priority": 1, "a": "b"}
        return said, tail

    def _generate(self) -> tuple[dict[str, Any], bytes]:
        return {"text_input": "a b", "left": [1, 2, 3], "right": 1, "BYTES": "x", "INT8": [1, 2], "p": 1}, b""

    def _mutated(self, said: Any) -> Any:
        """Something in it is something else now."""
        said = copy.deepcopy(said)
        at = said
        while isinstance(at, (dict, list)) and at:
            key: Any = self.random.choice(list(at)) if isinstance(at, dict) else self.random.randrange(len(at))
            inner = at[key]
            if isinstance(inner, (dict, list)) and inner and self.random.random() < 0.7:
                at = inner
                continue
            what = self.random.random()
            if what < 0.5:
                at[key] = self.random.choice(VALUES)
            elif what < 0.7 and isinstance(at, dict):
                at[self.random.choice(WORDS)] = at.pop(key)
            elif what < 0.85:
                at[key] = self.random.choice(WORDS)
            elif isinstance(at, list):
                at.insert(key, copy.deepcopy(inner))
            else:
                del at[key]
            break
        return said

    def _damaged(self, body: bytes) -> bytes:
        at = self.random.randrange(len(body) + 1)
        damages: list[Callable[[], bytes]] = [
            lambda: body[:at],
            lambda: body[:at] + self.random.randbytes(3) + body[at:],
            lambda: body[:at] + b"[" * 300 + body[at:],
            lambda: body[:at] + b"\xff" + body[at + 1 :],
            lambda: body[at:],
        ]
        return self.random.choice(damages)()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Its status, and whether the connection stays."""
    head = await reader.readuntil(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 1"):
        head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    if length is not None:
        await reader.readexactly(int(length[1]))
    else:
        assert b"transfer-encoding: chunked" in head, head
        await reader.readuntil(b"0\r\n\r\n")
    return int(head[9:12]), b"\r\nconnection: close\r\n" not in head


async def talk(server: ServerProcess, seed: int, count: int, found: Counter[int], wrong: list[bytes]) -> None:
    address = urlsplit(server.inference_url)
    fuzz, stays, writer = Fuzz(seed), False, None
    for _ in range(count):
        request = fuzz.request()
        if not stays:
            if writer is not None:
                writer.close()
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
        assert writer is not None
        writer.write(request)
        status, stays = await asyncio.wait_for(answer_of(reader), 20)
        found[status] += 1
        if status >= 500:
            wrong.append(request)
    if writer is not None:
        writer.close()


def test_thousands_of_damaged_requests_do_no_harm(v2_server: ServerProcess) -> None:
    (front_end,) = v2_server.front_ends()
    descriptors = Path(f"/proc/{front_end}/fd")

    async def run(count: int, first: int) -> tuple[Counter[int], list[bytes]]:
        found: Counter[int] = Counter()
        wrong: list[bytes] = []
        each = count // CONNECTIONS
        await asyncio.gather(*(talk(v2_server, first + at, each, found, wrong) for at in range(CONNECTIONS)))
        return found, wrong

    asyncio.run(run(400, 10_000))  # what every process takes once, it has taken now
    before, pages = len(os.listdir(descriptors)), resident_bytes(front_end)
    workers = v2_server.workers()
    found, wrong = asyncio.run(run(REQUESTS, 1))
    assert wrong == [], found
    assert found.total() == REQUESTS
    assert min(found[200], found[400], found[404]) > REQUESTS // 50, f"requests of every fate: {found}"
    wait_until_free(v2_server, MODELS)
    # One or two are opened once and kept, whenever they are first needed.
    wait_until(lambda: len(os.listdir(descriptors)) <= before + 2, 20, "closed connections")
    assert v2_server.workers() == workers, "no worker died of it"
    assert v2_server.front_ends() == [front_end]
    assert resident_bytes(front_end) < pages + (32 << 20), "what is held grows with the requests"
    assert "failed inside the server" not in v2_server.log


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

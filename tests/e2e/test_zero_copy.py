"""A tensor is written once: what the backend computes on lies in the lane's memory, which the front end wrote."""

import asyncio
import struct
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess
from ringserve.tools.archiver import ArchiveRequest, write_archive

# Answers each row with where the model found it, and with what it found there.
MODEL = """
import os
import numpy as np

class Addresses:
    def predict(self, inputs, outputs):
        rows = inputs["x"]
        for row in range(len(rows)):
            outputs["seen"][row] = (
                os.getpid(), len(rows), rows[row].ctypes.data, outputs["seen"][row].ctypes.data, int(rows[row, 0])
            )
"""
CONFIG = """
backend: python
batchSize: 8
minWorkers: 1
maxWorkers: 1
inputs:
  - {name: x, dtype: float32, shape: [512]}
outputs:
  - {name: seen, dtype: int64, shape: [5]}
"""
ROW_BYTES, SEEN_BYTES = 512 * 4, 5 * 8
REQUESTS = 400
CLIENTS = 32

Mapping = tuple[int, int, str, str]  # begin, end, device and inode, name


def _mappings(pid: int) -> list[Mapping]:
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _, _, device, inode, *name = line.split(maxsplit=5)
        begin, end = (int(part, 16) for part in span.split("-"))
        found.append((begin, end, f"{device}:{inode}", name[0] if name else ""))
    return found


async def _under_load(url: str) -> list[tuple[int, list[int]]]:
    """(number sent, what was seen) of every request."""
    numbers, seen = iter(range(REQUESTS)), []

    async def client(session: httpx.AsyncClient) -> None:
        for number in numbers:
            body = struct.pack("<f", number) + bytes(ROW_BYTES - 4)
            answer = await session.post(url, content=body)
            assert answer.status_code == 200
            seen.append((number, answer.json()))

    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(limits=limits, timeout=30) as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    return seen


@pytest.mark.e2e
def test_under_load_the_batch_that_the_backend_sees_is_a_view_of_the_slab_that_the_front_end_filled(
    tmp_path: Path,
) -> None:
    (tmp_path / "addresses.py").write_text(MODEL)
    (tmp_path / "model-config.yaml").write_text(CONFIG)
    store = tmp_path / "store"
    write_archive(
        ArchiveRequest(
            "addresses",
            "1.0",
            str(tmp_path / "addresses.py"),
            config_file=tmp_path / "model-config.yaml",
            export_path=store,
        )
    )
    with ServerProcess(store) as server:
        seen = asyncio.run(_under_load(f"{server.inference_url}/predictions/addresses"))
        (worker,) = server.workers()
        (front_end,) = server.front_ends()
        shared = [each for each in _mappings(worker) if "ringserve" in each[3] and each[1] - each[0] > 4096]
        written_by_front_end = {identity for _, _, identity, _ in _mappings(front_end)}
    assert server.remains() == []
    assert len(seen) == REQUESTS
    assert len(shared) == 1, "the worker maps one lane"
    begin, end, identity, _ = shared[0]
    assert identity in written_by_front_end, "both processes map the same memory"
    batches = [rows for _, (_, rows, *_) in seen]
    assert max(batches) > 1, "a load of many clients makes batches"
    for number, (pid, rows, input_at, output_at, first) in seen:
        assert pid == worker
        assert first == number, "each request saw its own number, written by the front end"
        assert 1 <= rows <= 8
        assert begin <= input_at < input_at + ROW_BYTES <= end
        assert begin <= output_at < output_at + SEEN_BYTES <= end
    addresses = {input_at for _, (_, _, input_at, _, _) in seen}
    assert len(addresses) < REQUESTS, "rows are reused"
    assert any(address + ROW_BYTES in addresses for address in addresses), "rows of a batch lie next to each other"

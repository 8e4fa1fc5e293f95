"""A server whose /dev/shm is as small as a container's, full, or not there: it answers the same."""

import os
import random
import shlex
import subprocess
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from ringserve.server import testing
from ringserve.server.testing import ServerProcess

IN_SMALL_SHM = Path(__file__).parent.parent / "in_small_shm.sh"
SKIPPED = 77
MOUNT_BYTES = 64 << 20
ANSWER_S_MAX = 60.0
IMAGE_BYTES = 602_112
SIZES = (1, 3_136, IMAGE_BYTES, 6_000_000)
REQUESTS = 60
CLIENTS = 8

LARGE_TYPED = """
backend: python
batchSize: 8
inputs:
  - {name: image, dtype: float32, shape: [3, 640, 640]}
  - {name: mask, dtype: uint8, shape: [100]}
outputs:
  - {name: crcs, dtype: int64, shape: [2]}
"""

Start = Callable[[str], ServerProcess]


@pytest.fixture
def start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    archive: Callable[..., Path],
    sums_config: str,
    start_server: Callable[..., ServerProcess],
) -> Start:
    """A server with four models where /dev/shm has `size`, or is `none`."""

    def started(size: str) -> ServerProcess:
        trial = [str(IN_SMALL_SHM), size, "true"]
        tried = subprocess.run(trial, capture_output=True, text=True, timeout=ANSWER_S_MAX, check=False)
        if tried.returncode == SKIPPED:
            pytest.skip(tried.stderr.strip())
        assert tried.returncode == 0, tried.stderr
        store, wrapper = tmp_path / "store", tmp_path / "ringserve"
        archive(store, "echo", "echo.py", config="batchSize: 8\n")
        archive(store, "single", "echo.py")
        archive(store, "sums", "sums.py", config=sums_config)
        archive(store, "checksums", "checksums.py", config=LARGE_TYPED)
        words = shlex.join([str(IN_SMALL_SHM), size, testing.command()])
        wrapper.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setattr(testing, "command", lambda: str(wrapper))
        return start_server(store, config={"job_queue_size": 1000})

    return started


def mount_of(server: ServerProcess) -> Path:
    """Its /dev/shm, seen from outside of its namespace."""
    return Path(f"/proc/{server.pid}/root/dev/shm")


def lanes(server: ServerProcess) -> list[str]:
    """What stands behind the shared memory of its first front end, a word for each segment."""
    folder = Path(f"/proc/{server.front_ends()[0]}/fd")
    targets = [os.readlink(entry) for entry in folder.iterdir() if entry.is_symlink()]
    return sorted(
        "mount" if target.startswith("/dev/shm/") else "memfd"
        for target in targets
        if target.startswith(("/dev/shm/ringserve-", "/memfd:ringserve"))
    )


def everything_is_answered(server: ServerProcess) -> None:
    """Bodies of all sizes to all models, many at a time, each with an answer that only it has."""
    client = httpx.Client(base_url=server.inference_url, timeout=ANSWER_S_MAX, trust_env=False)

    def ask(number: int) -> None:
        chance = random.Random(number)
        model = ("echo", "single", "sums", "checksums")[number % 4]
        if model == "sums":
            left, right = (np.array([chance.random() for _ in range(3)], np.float32) for _ in range(2))
            answer = client.post("/predictions/sums", content=left.tobytes() + right.tobytes())
            assert np.allclose(answer.json()["sum"], left + right)
        elif model == "checksums":
            image, mask = chance.randbytes(3 * 640 * 640 * 4), chance.randbytes(100)
            answer = client.post("/predictions/checksums", content=image + mask)
            assert answer.json() == [zlib.crc32(image), zlib.crc32(mask)]
        else:
            body = chance.randbytes(chance.choice(SIZES))
            answer = client.post(f"/predictions/{model}", content=body)
            assert answer.content == body
        assert answer.status_code == 200

    with client, ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(REQUESTS)))


def test_a_mount_of_64_mb_serves_small_lanes_and_memory_files_serve_large_ones(start: Start) -> None:
    server = start("64m")
    everything_is_answered(server)
    assert set(lanes(server)) == {"mount", "memfd"}
    assert list(mount_of(server).iterdir()) == []
    assert server.stop() == 0, server.log


def test_without_a_mount_everything_is_in_memory_files(start: Start) -> None:
    server = start("none")
    assert not mount_of(server).exists()
    everything_is_answered(server)
    assert set(lanes(server)) == {"memfd"}
    assert server.stop() == 0, server.log


def test_a_mount_that_somebody_else_has_filled_is_no_sigbus(start: Start) -> None:
    """What lies on the mount was reserved before; what comes later goes elsewhere."""
    server = start("64m")
    filler = mount_of(server) / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        for _ in range(2 * MOUNT_BYTES >> 20):
            assert file.write(bytes(1 << 20))
    everything_is_answered(server)
    management = httpx.Client(base_url=server.management_url, timeout=ANSWER_S_MAX, trust_env=False)
    with management:
        assert management.delete("/models/sums").status_code == 200
        again = management.post("/models", params={"url": "sums.mar", "initial_workers": 1, "synchronous": True})
        assert again.status_code == 200, again.text
    everything_is_answered(server)
    assert server.stop() == 0, server.log

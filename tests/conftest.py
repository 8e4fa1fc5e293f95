"""What tests of several folders need."""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

import pytest

LET_GO_S_MAX = 0.5


def _sockets() -> int:
    """How many this process has open."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return found


@pytest.fixture(autouse=True, scope="module")
def grpc_has_let_go() -> Iterator[None]:
    """gRPC closes sockets some time after its channels and servers are closed, from threads of its own, and what it waits with when
    that is collected. Other modules, in the same process, count their descriptors."""
    before = _sockets()
    yield
    if "grpc" in sys.modules:
        gc.collect()
        end = time.monotonic() + LET_GO_S_MAX
        while _sockets() > before and time.monotonic() < end:
            time.sleep(0.005)


def _make_wheel(folder: Path, name: str, version: str, source: str) -> Path:
    """A package of one module, as pip installs it without any network or build."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    members = {
        f"{name}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members[f"{info}/RECORD"] = "".join(f"{each},,\n" for each in [*members, f"{info}/RECORD"])
    with ZipFile(path, "w") as wheel:
        for member, text in members.items():
            wheel.writestr(member, text)
    return path


@pytest.fixture(scope="session")
def make_wheel() -> Callable[[Path, str, str, str], Path]:
    return _make_wheel

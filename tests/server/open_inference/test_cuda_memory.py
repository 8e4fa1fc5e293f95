"""Memory on a GPU, as far as a machine without one can show it: the driver that is called is a stand-in for CUDA's, compiled here,
whose memory is that of this process."""

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from ringserve.server.open_inference.cuda_memory import Cuda, CudaRegion
from ringserve.shm.region import RegionError

SOURCE = Path(__file__).parent / "stand_in_driver.c"
COMPILER = shutil.which("cc")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    if COMPILER is None:
        pytest.skip("there is no C compiler")
    path = tmp_path_factory.mktemp("driver") / "libstandin.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", path, SOURCE], check=True)
    return str(path)


def handle_of(memory: ctypes.Array[ctypes.c_char], size_bytes: int | None = None) -> bytes:
    return struct.pack("<QQ48x", ctypes.addressof(memory), len(memory) if size_bytes is None else size_bytes)


def test_bytes_are_copied_from_and_to_the_memory_behind_the_handle(library: str) -> None:
    memory = ctypes.create_string_buffer(bytes(range(64)), 64)
    region = CudaRegion("card", handle_of(memory), 0, 32, Cuda(library))
    read = bytearray(4)
    region.read_into(8, memoryview(read))
    assert list(read) == [8, 9, 10, 11]
    region.write(2, b"abc")
    region.write(5, memoryview(bytearray(b"de")))
    assert memory.raw[:8] == bytes([0, 1]) + b"abcde" + bytes([7])


def test_the_handle_is_closed_when_nobody_needs_it_any_more(library: str) -> None:
    memory = ctypes.create_string_buffer(64)
    opened = ctypes.c_int.in_dll(ctypes.CDLL(library), "open_handles")
    before = opened.value
    region = CudaRegion("card", handle_of(memory), 1, 64, Cuda(library))
    assert opened.value == before + 1
    del region
    assert opened.value == before


def test_memory_shorter_than_was_said_is_refused_and_closed(library: str) -> None:
    memory = ctypes.create_string_buffer(64)
    opened = ctypes.c_int.in_dll(ctypes.CDLL(library), "open_handles")
    before = opened.value
    with pytest.raises(RegionError, match="expected at least 65 bytes behind the handle, got 64"):
        CudaRegion("card", handle_of(memory), 0, 65, Cuda(library))
    assert opened.value == before


@pytest.mark.parametrize(("device", "address", "call"), [(0, 0, "cuIpcOpenMemHandle"), (7, 1, "cuDeviceGet")])
def test_what_the_driver_refuses_says_which_call(library: str, device: int, address: int, call: str) -> None:
    with pytest.raises(RegionError, match=rf"{call}: CUDA_ERROR_OTHER \(\d+\)"):
        CudaRegion("card", struct.pack("<QQ48x", address, 64), device, 8, Cuda(library))


def test_without_a_driver_it_says_so() -> None:
    with pytest.raises(RegionError, match="there is no CUDA driver on this machine"):
        Cuda("libnothere.so.1")

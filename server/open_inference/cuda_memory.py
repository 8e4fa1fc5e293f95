"""Memory on a GPU that a client shares by a `cudaIpcMemHandle_t` (protocol extension `cuda_shared_memory`).

The driver is called directly (`libcuda`, CUDA driver API): a front end imports no framework, and has no context on a GPU before a
client registers memory there. Tensors are copied between the GPU and a slab, once each way.
"""

import contextlib
import ctypes
import weakref
from functools import cache, partial
from typing import Any

from ringserve.shm.region import RegionError

LIBRARY = "libcuda.so.1"
HANDLE_BYTES = 64  # CU_IPC_HANDLE_SIZE
LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_POINTER = ctypes.c_uint64  # CUdeviceptr


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class Cuda:
    """The driver. Raises `RegionError` where there is none, or no GPU."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._driver = ctypes.CDLL(library)
        except OSError:
            raise RegionError("there is no CUDA driver on this machine") from None
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._check("cuInit", self._driver.cuInit(0))

    def _check(self, call: str, status: int) -> None:
        if status:
            name = ctypes.c_char_p()
            self._driver.cuGetErrorName(status, ctypes.byref(name))
            raise RegionError(f"{call}: {(name.value or b'unknown error').decode()} ({status})")

    def enter(self, device: int) -> None:
        """Have what follows happen on this device. Its context is the one that every library of this process uses."""
        context = self._contexts.get(device)
        if context is None:
            found, context = ctypes.c_int(), ctypes.c_void_p()
            self._check("cuDeviceGet", self._driver.cuDeviceGet(ctypes.byref(found), device))
            self._check("cuDevicePrimaryCtxRetain", self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), found))
            self._contexts[device] = context
        self._check("cuCtxSetCurrent", self._driver.cuCtxSetCurrent(context))

    def open(self, device: int, handle: bytes) -> int:
        """The address of the memory behind a handle."""
        self.enter(device)
        address = _POINTER()
        self._check(
            "cuIpcOpenMemHandle",
            self._driver.cuIpcOpenMemHandle_v2(
                ctypes.byref(address), _Handle.from_buffer_copy(handle), ctypes.c_uint(LAZY_PEER_ACCESS)
            ),
        )
        return address.value

    def size(self, device: int, address: int) -> int:
        """How many bytes there are from an address to the end of its allocation."""
        self.enter(device)
        base, size = _POINTER(), ctypes.c_size_t()
        self._check(
            "cuMemGetAddressRange",
            self._driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), _POINTER(address)),
        )
        return base.value + size.value - address

    def close(self, device: int, address: int) -> None:
        self.enter(device)
        self._check("cuIpcCloseMemHandle", self._driver.cuIpcCloseMemHandle(_POINTER(address)))

    def read(self, device: int, address: int, memory: memoryview) -> None:
        """Fill `memory` from the GPU."""
        self.enter(device)
        place = (ctypes.c_char * len(memory)).from_buffer(memory)
        self._check(
            "cuMemcpyDtoH", self._driver.cuMemcpyDtoH_v2(place, _POINTER(address), ctypes.c_size_t(len(memory)))
        )

    def write(self, device: int, address: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` on the GPU."""
        self.enter(device)
        view = memoryview(data).cast("B")
        # A slab is writable, and lends its address; anything else is short, and copied.
        kind = ctypes.c_char * len(view)
        place = kind.from_buffer_copy(view) if view.readonly else kind.from_buffer(view)
        self._check("cuMemcpyHtoD", self._driver.cuMemcpyHtoD_v2(_POINTER(address), place, ctypes.c_size_t(len(view))))


@cache
def driver() -> Cuda:
    """This process' driver. Raises `RegionError`, each time anew where there is none."""
    return Cuda()


class CudaRegion:
    """`size_bytes` of what is behind a handle, on one device. It is closed when nobody refers to it any more."""

    __slots__ = ("__weakref__", "_address", "_cuda", "_device", "name", "size_bytes")

    def __init__(self, name: str, handle: bytes, device: int, size_bytes: int, cuda: Cuda | None = None) -> None:
        """Raises `RegionError` when the driver cannot open it, or it is shorter."""
        self.name = name
        self.size_bytes = size_bytes
        self._device = device
        self._cuda = driver() if cuda is None else cuda
        self._address = self._cuda.open(device, handle)
        close: Any = partial(_closed, self._cuda, device, self._address)
        weakref.finalize(self, close).atexit = False
        has = self._cuda.size(device, self._address)
        if size_bytes > has:
            raise RegionError(f"expected at least {size_bytes} bytes behind the handle, got {has}")

    def read_into(self, at: int, memory: memoryview) -> None:
        """Fill `memory` from byte `at` on. Raises `RegionError`."""
        self._cuda.read(self._device, self._address + at, memory)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at byte `at`. Raises `RegionError`."""
        self._cuda.write(self._device, self._address + at, data)


def _closed(cuda: Cuda, device: int, address: int) -> None:
    with contextlib.suppress(RegionError):  # its owner may be gone, and the memory with it
        cuda.close(device, address)

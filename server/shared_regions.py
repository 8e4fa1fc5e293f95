"""What clients have registered of the memory that they share with the server (extensions `system_shared_memory` and
`cuda_shared_memory` of the Open Inference Protocol).

The supervisor opens a client's object once and gives every front end a descriptor of it before it answers, so that a client may
ask any of them from then on. A front end that is started later is given all of them.
"""

import asyncio
import os
import resource
from base64 import b64decode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ringserve.protocol.errors import AlreadyExists, BadRequest, NotFound, Unsupported
from ringserve.server.messages import Message
from ringserve.server.region_messages import DropRegions, RegionRefused, ShareCudaRegion, ShareRegion
from ringserve.shm.region import RegionError, check_key, open_object

# Each is a descriptor in every front end.
REGIONS_MAX = 1024
NAME_CHARACTERS_MAX = 1024
BYTES_MAX = 2**63 - 1
HANDLE_BYTES = 64
DEVICES_MAX = 1024
SYSTEM, CUDA = "system", "CUDA"
DISABLED = (
    "Client shared memory is disabled. Start the server with 'allow_client_shm=true' in config.properties to enable it."
)

Send = Callable[[Message, Sequence[int]], None]
# Tells every front end, and waits until they have obeyed or are gone.
TellAll = Callable[..., Awaitable[list[object]]]


@dataclass(frozen=True, slots=True)
class SystemRegion:
    """`size_bytes` of the object `key`, from `offset` on; `fds` holds the supervisor's descriptor of it."""

    name: str
    key: str
    offset: int
    size_bytes: int
    fds: tuple[int, ...]

    kind = SYSTEM

    def described(self) -> dict[str, Any]:
        """Its entry in a status."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.size_bytes}

    def message(self, epoch: int) -> ShareRegion:
        return ShareRegion(epoch, self.name, self.offset, self.size_bytes)


@dataclass(frozen=True, slots=True)
class CudaRegion:
    """`size_bytes` on GPU number `device`, behind a `cudaIpcMemHandle_t`; every front end opens it for itself."""

    name: str
    handle: bytes
    device: int
    size_bytes: int

    kind = CUDA
    fds: tuple[int, ...] = ()

    def described(self) -> dict[str, Any]:
        """Its entry in a status."""
        return {"name": self.name, "device_id": self.device, "byte_size": self.size_bytes}

    def message(self, epoch: int) -> ShareCudaRegion:
        return ShareCudaRegion(epoch, self.name, self.handle, self.device, self.size_bytes)


class SharedRegions:
    """The registered regions. `tell_all` reaches the front ends, once there are any."""

    def __init__(self, *, allowed: bool) -> None:
        self.allowed = allowed
        self.tell_all: TellAll = _nobody
        self._regions: dict[str, SystemRegion | CudaRegion] = {}
        self._changing = asyncio.Lock()

    async def register(self, name: str, body: object, kind: str = SYSTEM) -> None:
        """Open memory under a name. `body` is the request's: `key`, `byte_size` and perhaps `offset`; on a GPU `raw_handle`, `device_id`
        and `byte_size`. Raises `Unsupported` where no client may, `AlreadyExists`, or `BadRequest`."""
        self._check_allowed()
        read = _read_system if kind == SYSTEM else _read_cuda
        async with self._changing:
            region = read(name, body)
            try:
                self._check_free(name)
            except BaseException:
                _close(region.fds)
                raise
            # Before anybody is told: a front end that starts meanwhile is not among those, and gets what is here.
            self._regions[name] = region
            try:
                await self._tell_of(region)
            except BaseException:
                del self._regions[name]
                _close(region.fds)
                raise

    async def _tell_of(self, region: SystemRegion | CudaRegion) -> None:
        """Raises `BadRequest` when a front end cannot open it, after all have dropped it."""
        refusals = [each for each in await self.tell_all(region.message, region.fds) if isinstance(each, RegionRefused)]
        if refusals:
            await self.tell_all(lambda epoch: DropRegions(epoch, (region.name,)))
            raise BadRequest(
                f"failed to register {region.kind} shared memory region '{region.name}': {refusals[0].cause}"
            )

    def _check_free(self, name: str) -> None:
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
        # A quarter of the files that a process may open: connections and workers need the others.
        most = min(REGIONS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        if len(self._regions) >= most:
            raise BadRequest(f"cannot register shared memory region '{name}': {most} are registered already")

    async def unregister(self, name: str, kind: str) -> None:
        """Forget a region, or with "" all of that kind; one that nobody knows is forgotten already. Raises `Unsupported` where no client
        may register any, and `BadRequest` for a region of the other kind."""
        self._check_allowed()
        async with self._changing:
            if name and name in self._regions and self._regions[name].kind != kind:
                other = self._regions[name].kind
                raise BadRequest(
                    f"The region named '{name}' is registered as {other} shared memory, not {kind} shared memory"
                )
            leaving = [each for each in self._regions.values() if each.kind == kind and name in ("", each.name)]
            for each in leaving:  # before the others are told, as with a registration
                del self._regions[each.name]
            try:
                if leaving:
                    names = tuple(each.name for each in leaving)
                    await self.tell_all(lambda epoch: DropRegions(epoch, names))
            finally:
                for each in leaving:
                    _close(each.fds)

    def status(self, name: str, kind: str) -> list[dict[str, Any]]:
        """The regions of one kind, or with a name that one. Raises `NotFound`."""
        if not name:
            return [each.described() for each in self._regions.values() if each.kind == kind]
        region = self._regions.get(name)
        if region is None or region.kind != kind:
            word = "system" if kind == SYSTEM else "cuda"
            raise NotFound(f"Unable to find {word} shared memory region: '{name}'")
        return [region.described()]

    def equip(self, send: Send, epoch: int) -> None:
        """Tell a front end that has just started of all of them."""
        for region in self._regions.values():
            send(region.message(epoch), region.fds)

    def close(self) -> None:
        for region in self._regions.values():
            _close(region.fds)
        self._regions.clear()

    def _check_allowed(self) -> None:
        if not self.allowed:
            raise Unsupported(DISABLED)


async def _nobody(make: Callable[[int], Message], fds: Sequence[int] = ()) -> list[object]:
    """Who starts later is told then."""
    return []


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _check_fields(name: str, body: object, kind: str, *fields: str) -> dict[str, Any]:
    """Raises `BadRequest`."""
    if not name:
        raise BadRequest(f"'region name' is necessary to register {kind} shared memory region")
    if len(name) > NAME_CHARACTERS_MAX:
        raise BadRequest(f"Region name: expected at most {NAME_CHARACTERS_MAX} characters, got {len(name)}")
    found = body if isinstance(body, dict) else {}
    for field in fields:
        if field not in found:
            raise BadRequest(f"Shared memory register request has no '{field}' field")
    return found


def _count(value: object, field: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= BYTES_MAX:
        return value
    raise BadRequest(f"'{field}': expected a whole number from 0 to {BYTES_MAX}, got {value!r:.100}")


def _read_system(name: str, body: object) -> SystemRegion:
    """Opens the object. Raises `BadRequest`."""
    found = _check_fields(name, body, "system", "key", "byte_size")
    key = found["key"]
    if not isinstance(key, str):
        raise BadRequest(f"'key': expected a string, got {type(key).__name__}")
    offset, size_bytes = _count(found.get("offset", 0), "offset"), _count(found["byte_size"], "byte_size")
    try:
        object_name = check_key(key)
    except RegionError as error:
        reason = f"- {error}" if "invalid" in str(error) else f"with key '{key}' as {error}"
        raise BadRequest(f"cannot register shared memory region '{name}' {reason}") from None
    try:
        fd, object_bytes = open_object(object_name)
    except RegionError as error:
        raise BadRequest(f"{error}") from None
    if offset + size_bytes > object_bytes or not size_bytes:
        os.close(fd)
        raise BadRequest(f"failed to register shared memory region '{name}': invalid args")
    return SystemRegion(name, key, offset, size_bytes, (fd,))


def _read_cuda(name: str, body: object) -> CudaRegion:
    """Raises `BadRequest`."""
    found = _check_fields(name, body, "cuda", "raw_handle", "device_id", "byte_size")
    raw = found["raw_handle"]
    text = raw.get("b64") if isinstance(raw, dict) else None
    try:
        handle = b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        handle = b""
    if len(handle) != HANDLE_BYTES:
        raise BadRequest(f"'raw_handle': expected the {HANDLE_BYTES} bytes of a cudaIpcMemHandle_t as {{'b64': text}}")
    device = _count(found["device_id"], "device_id")
    if device >= DEVICES_MAX:
        raise BadRequest(f"'device_id': expected the number of a GPU, got {device}")
    return CudaRegion(name, handle, device, _count(found["byte_size"], "byte_size"))

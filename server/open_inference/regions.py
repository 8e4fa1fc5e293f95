"""The regions that clients share with the server, in one front end: tensors are read from them into slabs and written to them from
slabs, each copied once (protocol extension `system_shared_memory`)."""

from typing import Protocol

from ringserve.protocol.errors import BadRequest, NotFound
from ringserve.protocol.request import Elsewhere
from ringserve.server.open_inference.call import RegionPlace
from ringserve.shm.region import RegionError


class Memory(Protocol):
    """One region, wherever its memory is. Both raise `RegionError`."""

    size_bytes: int

    def read_into(self, at: int, memory: memoryview) -> None:
        """Fill `memory` from byte `at` on."""

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at byte `at`."""


class _Part:
    """Bytes of one input. They are read when the request gets its place in a slab."""

    __slots__ = ("_at", "_memory", "nbytes")

    def __init__(self, memory: Memory, at: int, nbytes: int) -> None:
        self._memory = memory
        self._at = at
        self.nbytes = nbytes

    def part(self, offset: int, nbytes: int) -> "_Part":
        return _Part(self._memory, self._at + offset, nbytes)

    def read_into(self, memory: memoryview) -> None:
        try:
            self._memory.read_into(self._at, memory)
        except RegionError as error:
            raise BadRequest(f"{error}") from None


class Regions:
    """By name. The supervisor says what is shared, so that every front end has the same."""

    def __init__(self) -> None:
        self._regions: dict[str, Memory] = {}

    def share(self, name: str, memory: Memory) -> None:
        self._regions[name] = memory

    def drop(self, names: tuple[str, ...]) -> None:
        """Requests under way keep theirs."""
        for name in names:
            self._regions.pop(name, None)

    def _find(self, place: RegionPlace) -> Memory:
        """The region, when the place lies in it. Raises `NotFound` or `BadRequest`."""
        memory = self._regions.get(place.region)
        if memory is None:
            raise NotFound(f"Unable to find shared memory region: '{place.region[:256]}'")
        if not 0 <= place.offset < max(memory.size_bytes, 1):
            raise BadRequest(f"Invalid offset for shared memory region: '{place.region}'")
        if place.nbytes < 0 or place.offset + place.nbytes > memory.size_bytes:
            raise BadRequest(f"Invalid offset + byte size for shared memory region: '{place.region}'")
        return memory

    def input(self, place: RegionPlace) -> Elsewhere:
        """The bytes of an input. Raises `NotFound` or `BadRequest`."""
        return _Part(self._find(place), place.offset, place.nbytes)

    def output(self, place: RegionPlace) -> "OutputPlace":
        """Where an output is to go; asked for before the model runs, so that what is wrong costs nothing. Raises as `input`."""
        return OutputPlace(self._find(place), place)


class OutputPlace:
    """The place of one output: it stays, even when the region is unregistered while the model runs."""

    __slots__ = ("_memory", "_place")

    def __init__(self, memory: Memory, place: RegionPlace) -> None:
        self._memory = memory
        self._place = place

    def write(self, output: str, data: bytes | bytearray | memoryview) -> None:
        """Put the output's bytes there. Raises `BadRequest` when there are more than the client has room for."""
        if len(data) > self._place.nbytes:
            raise BadRequest(
                f"shared memory size specified with the request for output '{output}' ({self._place.nbytes} bytes) should be at"
                f" least {len(data)} bytes to hold the results"
            )
        try:
            self._memory.write(self._place.offset, data)
        except RegionError as error:
            raise BadRequest(f"{error}") from None

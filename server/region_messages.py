"""What the supervisor tells front ends of the memory that clients share with the server (shm/region.py)."""

from ringserve.server.messages import Message


class ShareRegion(Message, frozen=True):
    """Requests may name this region from now on: `size_bytes` of an object from `offset` on. Answered with `Applied`. Descriptor: the
    object."""

    epoch: int
    name: str
    offset: int
    size_bytes: int


class ShareCudaRegion(Message, frozen=True):
    """The same of memory on a GPU: `size_bytes` behind a `cudaIpcMemHandle_t` of device number `device`. Answered with `Applied`, or
    with `RegionRefused`."""

    epoch: int
    name: str
    handle: bytes
    device: int
    size_bytes: int


class RegionRefused(Message, frozen=True):
    """This front end cannot open the region that it was told of in `epoch`."""

    epoch: int
    cause: str


class DropRegions(Message, frozen=True):
    """No new request may name these any more; those under way keep them. Answered with `Applied`."""

    epoch: int
    names: tuple[str, ...]

"""What is in flight: the rows of every slab between its first arrival and its last answer."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from ringserve.protocol.errors import Internal, RingServeError
from ringserve.protocol.request import Answer
from ringserve.server.payloads import Payload
from ringserve.server.replies import FLAG_ERROR, read_reply
from ringserve.shm.lane import Slab
from ringserve.shm.layout import REPLY_FLAGS, REPLY_ID
from ringserve.shm.link import FrontLink
from ringserve.shm.segment import Segment

logger = logging.getLogger("ringserve.dispatch")

# One-off segments a batch may carry: their descriptors wait in the link's socket, whose buffer holds a few hundred.
PARCELS_MAX = 64

Renderer = Callable[[Slab, int], bytes]


class Pending:
    """A request that waits for its answer."""

    __slots__ = ("future", "payload", "row_id")

    def __init__(self, future: asyncio.Future[Answer], payload: Payload) -> None:
        self.future = future
        self.payload: Payload | None = payload
        self.row_id = 0

    def fail(self, error: RingServeError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class SlabBatch:
    """A slab being filled, and then the batch it holds. `rows[i]` waits for row i."""

    __slots__ = ("oldest_ns", "parcels", "rows", "sequence", "slab", "used_bytes")

    def __init__(self, slab: Slab, now_ns: int) -> None:
        self.slab = slab
        self.rows: list[Pending] = []
        self.used_bytes = 0
        self.oldest_ns = now_ns
        self.parcels: list[Segment] = []
        self.sequence = -1

    def try_add(self, pending: Pending, row_id: int) -> bool:
        """Write the request into the next row; False when the byte region has no room left for it. A payload that no
        region could hold travels in a parcel. Raises `OutOfSharedMemory`; the row is untouched then."""
        payload = pending.payload
        assert payload is not None
        row, needed = len(self.rows), payload.slab_bytes()
        region = len(self.slab.bytes_in)
        if needed > region:
            if len(self.parcels) >= PARCELS_MAX:
                return False
            self.parcels.append(payload.write_parcel(self.slab, row, row_id))
        elif self.used_bytes + needed > region:
            return False
        else:
            payload.write(self.slab, row, row_id, self.used_bytes)
            self.used_bytes += needed
        pending.row_id = row_id
        pending.payload = None  # the bytes are in the slab; the request's own are free to go
        self.rows.append(pending)
        return True

    def fail(self, error: RingServeError) -> None:
        for pending in self.rows:
            pending.fail(error)

    def close_parcels(self) -> None:
        for parcel in self.parcels:
            parcel.close()
        self.parcels.clear()

    def deliver(self, render: Renderer | None, overflow: Segment | None) -> int:
        """Give every row its own answer; returns how many reply lines did not carry their row's id. `render` makes the
        body of a typed row, None for byte payloads."""
        slab, mismatched = self.slab, 0
        lines = slab.table[: len(self.rows), REPLY_ID:].tolist()
        for row, (pending, line) in enumerate(zip(self.rows, lines, strict=True)):
            future = pending.future
            if line[0] != pending.row_id:
                mismatched += 1
                pending.fail(Internal("The worker's answer does not belong to this request; it was dropped."))
            elif future.done():
                continue  # the client is gone
            elif render is not None and not line[REPLY_FLAGS - REPLY_ID] & FLAG_ERROR:
                future.set_result(Answer(render(slab, row), "application/json"))
            else:
                reply = read_reply(slab, line, overflow)
                if isinstance(reply, Answer):
                    future.set_result(reply)
                else:
                    future.set_exception(reply)
        return mismatched


class LinkState:
    """One worker as its dispatcher sees it: the link and the batches it was given and has not answered."""

    __slots__ = (
        "alive",
        "believed",
        "link",
        "number",
        "on_detached",
        "outstanding",
        "pushed",
        "reported_stuck",
        "since_ns",
        "worker_id",
    )

    def __init__(self, worker_id: str, link: FrontLink, number: int) -> None:
        self.worker_id = worker_id
        self.number = number  # tells the links of one worker id, over its restarts, apart
        self.link = link
        self.outstanding: deque[SlabBatch] = deque()
        self.pushed = 0
        self.alive = True
        self.believed = True  # until it breaks its ring
        self.on_detached: Callable[[], None] | None = None  # set: it is given nothing more
        self.reported_stuck = False
        self.since_ns = 0  # when the oldest outstanding batch became the one being executed

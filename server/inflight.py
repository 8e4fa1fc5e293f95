"""What is in flight: the requests, the rows they take in a slab, and the batches that carry those to the workers.

    a row:  [receiving] ─▶ waiting ─▶ sent ─▶ over          its body arrives in place, or it is written at once
                 └────────────┴─▶ a hole                     client gone, or its time is over; the next arrival fills it

A batch is a range of rows of one slab. Usually that is all of them; while the body of a row is still arriving, the rows
before and after it leave without it. The slab is free again when none of its rows needs its memory any more: answered, and,
where the answer is sent straight from the slab, flushed.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, Self

from ringserve.protocol.errors import RingServeError
from ringserve.protocol.request import Answer, InferRequest
from ringserve.server.batching import OUTSTANDING_MAX
from ringserve.server.metrics.meter import BatchTimes
from ringserve.server.payloads import Payload
from ringserve.server.sources import Frame, ReplyStream
from ringserve.shm.faults import reach
from ringserve.shm.lane import Slab
from ringserve.shm.layout import CACHE_LINE, ROW_CANCELLED, ROW_DEADLINE_NS, ROW_FLAGS, ROW_PARCEL_BYTES
from ringserve.shm.link import CHUNK_CREDITS, FrontLink
from ringserve.shm.ring import Completion
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import PeerGone, RingCorrupt
from ringserve.shm.spool import Spool

# One-off segments a batch may carry: their descriptors wait in the link's socket, whose buffer holds a few hundred.
PARCELS_MAX = 64


class State(IntEnum):
    """Where a request is."""

    BACKLOG = 0  # no slab has room for it yet
    RECEIVING = 1  # its body is arriving in its row
    WAITING = 2  # in its row, for a worker
    SENT = 3
    OVER = 4


BACKLOG, RECEIVING, WAITING, SENT, OVER = State  # a name is looked up faster than an attribute


class Pending(asyncio.Future[Answer]):
    """A request and the answer that somebody awaits. Cancelling it takes it out of the queue, or tells its worker.

    `wait_until_ns` is when it must have been taken up by a worker, `deadline_ns` when it must be answered (CLOCK_MONOTONIC,
    0: never).
    """

    # What every request needs is a slot; what few need is a default here. No __init__: that of a future costs 0.3 µs, one in
    # Python five times as much. `begin` sets the slots.
    __slots__ = ("fill", "on_forsaken", "payload", "row", "row_id", "state", "times")
    fill: "Fill | None"
    on_forsaken: "Callable[[Pending], None]"
    payload: Payload | None  # until it is in a slab
    row: int
    row_id: int
    state: State
    times: BatchTimes | None  # of the batch that it was executed with, where that is measured
    request: InferRequest | None = None  # until it is encoded
    parcel: Segment | Spool | None = None  # what does not fit into a slab
    wait_until_ns = deadline_ns = 0
    binary = False  # a typed answer is wanted as the bytes of its arrays
    wanted: Sequence[str] | None = (
        None  # the outputs that are wanted as tensors, () for all; None: the request was no tensors
    )
    stream: "ReplyStream | None" = None
    entry: object = None  # in the lines that server/scheduling keeps, until it leaves them
    expires_ns = 0  # when it is refused there, if no worker has begun with it

    @classmethod
    def begin(cls, loop: asyncio.AbstractEventLoop, on_forsaken: "Callable[[Pending], None]") -> Self:
        pending = cls(loop=loop)
        pending.on_forsaken = on_forsaken
        pending.state = BACKLOG
        pending.fill = pending.payload = pending.times = None
        pending.row_id = 0
        return pending

    def cancel(self, msg: Any | None = None) -> bool:
        """The client is gone."""
        cancelled = super().cancel(msg)
        if cancelled:
            self.on_forsaken(self)
        elif not self.cancelled() and self.exception() is None:
            self.result().close()  # it was answered a moment ago, and nobody will look at that
        return cancelled

    @property
    def row_deadline_ns(self) -> int:
        """After which no worker should begin with it; 0: never."""
        if self.wait_until_ns and self.deadline_ns:
            return min(self.wait_until_ns, self.deadline_ns)
        return self.wait_until_ns or self.deadline_ns

    def fail(self, error: RingServeError) -> None:
        """Answer with an error, unless it is answered or given up."""
        if self.stream is not None:
            self.stream.break_off(error)
        elif not self.done():
            self.set_exception(error)

    def mark_cancelled(self) -> None:
        """Tell the worker, which may have begun, that nobody waits for this row any more."""
        if self.state is SENT and self.fill is not None:
            self.fill.slab.table[self.row, ROW_FLAGS] = ROW_CANCELLED

    def lift_deadline(self) -> None:
        """The answer has begun: it may take its time."""
        self.deadline_ns = self.wait_until_ns = 0
        if self.fill is not None:
            self.fill.slab.table[self.row, ROW_DEADLINE_NS] = 0

    def close_parcel(self) -> None:
        if self.parcel is not None:
            self.parcel.close()
            self.parcel = None


class Fill:
    """A slab and the requests in its rows. `rows[i]` is None where row i is a hole."""

    __slots__ = (
        "capacity",
        "holes",
        "live",
        "oldest_ns",
        "out_used",
        "parcels",
        "queued",
        "ready",
        "rows",
        "sealed",
        "slab",
        "spare",
        "used_bytes",
    )

    def __init__(self, slab: Slab) -> None:
        self.slab = slab
        self.capacity = len(slab.table)
        self.rows: list[Pending | None] = []
        self.ready = 0  # rows that wait for a worker
        self.live = 0  # rows that need the slab's memory
        self.sealed = False  # no more arrivals
        self.holes: list[int] = []  # rows nobody wants any more
        self.used_bytes = 0
        self.out_used = 0
        self.spare: list[tuple[int, int]] = []  # room for answers that came back with its batch
        self.parcels = 0
        self.oldest_ns = 0  # when its first row came
        self.queued = False  # among those whose rows wait for a worker

    @property
    def is_full(self) -> bool:
        return len(self.rows) == self.capacity and not self.holes

    def place(self, needed: int) -> tuple[int, int] | None:
        """A row, and `needed` bytes of the region for it (offset); None when there is no room. Raises `OutOfSharedMemory`; nothing
        has changed then."""
        slab, at = self.slab, self.used_bytes
        end = at + needed
        if end > len(slab.bytes_in):
            return None
        row = self.holes[-1] if self.holes else len(self.rows)
        if row == self.capacity:
            return None
        if row >= slab.rows_ready or end > slab.in_ready:
            slab.reserve_row(row, end)
        if self.holes:
            self.holes.pop()
        else:
            self.rows.append(None)
        self.used_bytes = end
        return row, at

    def try_add(self, pending: Pending, row_id: int) -> bool:
        """Write a request into a row; False when there is no room. One that no region could hold travels in a parcel. Raises
        `OutOfSharedMemory`; nothing has changed then."""
        payload, slab, rows, at = pending.payload, self.slab, self.rows, self.used_bytes
        assert payload is not None
        row, end = len(rows), at + payload.slab_bytes()
        if row >= slab.rows_ready or end > slab.in_ready or self.holes:
            return self._try_add_anywhere(pending, payload, row_id)
        deadline_ns = pending.row_deadline_ns if pending.deadline_ns or pending.wait_until_ns else 0
        payload.write(slab, row, at, row_id, deadline_ns)
        self.used_bytes = end
        rows.append(pending)
        if not self.live:
            self.oldest_ns = time.monotonic_ns()
        self.live += 1
        self.ready += 1
        pending.fill, pending.row, pending.row_id, pending.payload, pending.state = self, row, row_id, None, WAITING
        reach("row-written")
        return True

    def _try_add_anywhere(self, pending: Pending, payload: Payload, row_id: int) -> bool:
        """Where more is to be looked at than the next row: holes, memory that is not there yet, parcels."""
        needed, parcel = payload.slab_bytes(), None
        too_long = needed > len(self.slab.bytes_in)
        if too_long and self.parcels >= PARCELS_MAX:
            return False
        place = self.place(0 if too_long else needed)
        if place is None:
            return False
        row, at = place
        if too_long:
            try:
                parcel = payload.to_parcel()
            except BaseException:
                self.unplace(row)
                raise
        try:
            payload.write(self.slab, row, at, row_id, pending.row_deadline_ns)
        except BaseException:
            self.unplace(row)
            raise
        if parcel is not None:
            pending.parcel = parcel
            self.parcels += 1
        self.enter(pending, row, row_id)
        pending.state = WAITING
        self.ready += 1
        reach("row-written")
        return True

    def unplace(self, row: int) -> None:
        """Nothing came into a row that had been placed."""
        self.slab.table[row, ROW_FLAGS] = ROW_CANCELLED
        self.slab.table[row, ROW_PARCEL_BYTES] = 0
        self.holes.append(row)

    def enter(self, pending: Pending, row: int, row_id: int) -> None:
        """The row is this request's now."""
        if not self.live:
            self.oldest_ns = time.monotonic_ns()
        self.rows[row] = pending
        self.live += 1
        pending.fill, pending.row, pending.row_id = self, row, row_id
        pending.payload = None  # the bytes are in the slab; the request's own are free to go

    def punch(self, pending: Pending) -> None:
        """A row that no worker was given is not wanted any more: the next arrival may have it."""
        row = pending.row
        assert self.rows[row] is pending
        if pending.state is WAITING:
            self.ready -= 1
        pending.state = OVER
        pending.close_parcel()
        self.rows[row] = None
        self.live -= 1
        # It may lie in the middle of a batch, whose worker must not wait for a parcel that nobody sends.
        self.slab.table[row, ROW_FLAGS] = ROW_CANCELLED
        self.slab.table[row, ROW_PARCEL_BYTES] = 0
        if not self.live:
            self.rows.clear()
            self.holes.clear()
            self.used_bytes = self.parcels = 0
        elif not self.sealed:
            self.holes.append(row)

    def take(self) -> "Batch":
        """The first rows that can leave together, as a batch. No row is added after that."""
        assert self.ready > 0
        self.sealed = True
        rows = self.rows
        first, end = 0, len(rows)
        if self.ready < end:
            first, end = self._range()
        taken = rows[first:end]
        count, others = 0, self.ready
        if others < self.live:
            others += sum(1 for each in rows if each is not None and each.state is RECEIVING)
        batch = Batch(self, first, taken)
        for pending in taken:
            if pending is not None:
                count += 1
                pending.state = SENT
        self.ready -= count
        batch.count = count
        self._give_room(batch, others)
        reach("batch-sealed")
        return batch

    def _range(self) -> tuple[int, int]:
        """From the first waiting row on, as far as rows wait or are holes."""
        rows = self.rows
        first = next(i for i, each in enumerate(rows) if each is not None and each.state is WAITING)
        end = last = first
        while end < len(rows):
            each = rows[end]
            if each is not None:
                if each.state is not WAITING:
                    break
                last = end
            end += 1
        return first, last + 1

    def _give_room(self, batch: "Batch", others: int) -> None:
        """Its part of the region for answers: all that is left, or its share when other rows will need some."""
        if self.spare:
            batch.out_at, batch.out_bytes = self.spare.pop()
            return
        left = self.slab.out_ready - self.out_used
        share = left if batch.count == others else left * batch.count // others
        share -= share % CACHE_LINE if batch.count != others else 0
        batch.out_at, batch.out_bytes = self.out_used, share
        self.out_used += share

    def put_back(self, batch: "Batch") -> int:
        """A batch that its worker never began: its rows wait again. Returns how many do."""
        count = 0
        self.spare.append((batch.out_at, batch.out_bytes))
        for pending in batch.rows:
            if pending is None:
                continue
            pending.state = WAITING
            self.ready += 1
            if pending.stream is not None:
                pending.stream.break_off()  # no honest worker streams what it never began
            if pending.done():
                self.punch(pending)
            else:
                count += 1
        return count


class Batch:
    """Rows of a slab on their way through a worker. `rows[i]` is the request of row `first + i`, None for a hole."""

    __slots__ = ("count", "fill", "first", "out_at", "out_bytes", "rows", "sent_s", "sequence", "times")

    def __init__(self, fill: Fill, first: int, rows: list[Pending | None]) -> None:
        self.fill = fill
        self.first = first
        self.rows = rows
        self.count = 0  # rows that are none
        self.sequence, self.sent_s = -1, 0.0
        self.times: BatchTimes | None = None  # once it is executed, where that is measured
        self.out_at = self.out_bytes = 0

    def holds(self, pending: Pending) -> bool:
        return pending.fill is self.fill and 0 <= pending.row - self.first < len(self.rows)

    def fail(self, error: RingServeError) -> None:
        for pending in self.rows:
            if pending is not None:
                pending.fail(error)


class LinkState:
    """One worker as its dispatcher sees it: the link and the batches it was given and has not answered."""

    __slots__ = (
        "alive",
        "believed",
        "frames",
        "heard_ns",
        "link",
        "number",
        "on_detached",
        "outstanding",
        "pushed",
        "reported_stuck",
        "since_ns",
        "timer",
        "worker_id",
    )

    def __init__(self, worker_id: str, link: FrontLink, number: int) -> None:
        self.worker_id = worker_id
        self.number = number  # tells the links of one worker id, over its restarts, apart
        self.link = link
        self.outstanding: deque[Batch] = deque()
        self.frames: deque[Frame] = deque()  # chunks of streamed answers that not all of their clients have taken
        self.pushed = 0
        self.alive = True
        self.believed = True  # until it breaks its ring
        self.on_detached: Callable[[], None] | None = None  # set: it is given nothing more
        self.reported_stuck = False
        self.since_ns = 0  # when the oldest outstanding batch became that
        self.heard_ns = 0  # when it last sent a chunk, or one was passed on
        self.timer: asyncio.TimerHandle | None = None  # until when it must have answered

    def has_begun(self, batch: Batch) -> bool:
        """Whether the worker has taken this batch of its up."""
        return batch.sequence < self.link.commands.taken

    def open_frame(self, entry: Completion, on_gone: "Callable[[LinkState], None]") -> "tuple[memoryview, Frame]":
        """A chunk of streamed answers, and what counts its pieces. Credit for it goes back in the order the chunks came. Raises
        `RingCorrupt`."""
        batch, end = self.outstanding[0], entry.chunk_at + entry.chunk_bytes
        if not batch.out_at <= entry.chunk_at <= end <= batch.out_at + batch.out_bytes:
            raise RingCorrupt(
                f"a chunk at bytes {entry.chunk_at} to {end} lies outside of its batch's part of the slab"
            )
        if len(self.frames) >= CHUNK_CREDITS:
            raise RingCorrupt("a chunk came for which there was no credit")
        self.heard_ns = time.monotonic_ns()

        def give_credit() -> None:
            while self.frames and self.frames[0].left <= 0:
                self.frames.popleft()
                self.heard_ns = time.monotonic_ns()  # it may have waited for that
                if self.alive:
                    try:
                        self.link.credits.ring()
                    except PeerGone:
                        on_gone(self)

        frame = Frame(1, give_credit)
        self.frames.append(frame)
        return batch.fill.slab.bytes_out[entry.chunk_at : end], frame

    def left_s(self, timeout_s: float, front_ends: int) -> float:
        """How much longer it may be silent. What counts is when it took the batch: before, it may be busy with a batch of each
        other front end. While it waits for clients to take what it has streamed, it is not to blame."""
        if len(self.frames) == CHUNK_CREDITS:
            return timeout_s
        now_ns = time.monotonic_ns()
        at_work_ns = min(self.link.commands.taken_ns, now_ns)
        if self.has_begun(self.outstanding[0]):
            return timeout_s - (now_ns - max(at_work_ns, self.heard_ns)) / 1e9
        return timeout_s * front_ends - (now_ns - max(at_work_ns, self.since_ns)) / 1e9


def least_loaded(states: Iterable[LinkState]) -> LinkState | None:
    """The worker that is to have the next batch; None when all have enough."""
    best, fewest = None, OUTSTANDING_MAX
    for state in states:
        if state.alive and state.on_detached is None and len(state.outstanding) < fewest:
            best, fewest = state, len(state.outstanding)
    return best


def has_begun(states: Iterable[LinkState], pending: Pending) -> bool:
    """Whether some worker has taken this request up."""
    if pending.state is not SENT:
        return False
    return any(state.has_begun(batch) for state in states for batch in state.outstanding if batch.holds(pending))

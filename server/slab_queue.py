"""Requests on their way into slabs, and slabs on their way to workers. No event loop, no links: dispatch.py has those.

accept ─▶ open slab ─▶ leaving slabs ─▶ next_batch          arrivals fill the open slab; one that is full, or of which rows
  │ ▲                                                       have left, takes no more and leaves when a worker is there
  ▼ │
early (no lane yet), backlog (no slab free)
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence

from ringserve.protocol.errors import OutOfResources, RingServeError
from ringserve.protocol.request import InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.admission import Admission
from ringserve.server.batching import BatchPolicy, Hold, WaitUntil
from ringserve.server.encoders import Encoder, encoder_for
from ringserve.server.inflight import OVER, RECEIVING, SENT, WAITING, Batch, Fill, Pending
from ringserve.server.payloads import Payload, TypedEncoder
from ringserve.server.tensor_payloads import FramePayload
from ringserve.shm.faults import reach
from ringserve.shm.lane import Lane, Slab
from ringserve.shm.layout import ROW_DEADLINE_NS
from ringserve.shm.shm_errors import OutOfSharedMemory
from ringserve.shm.spool import Spool

# Clients that send or read slowly may keep slabs only while as many as this are free: the rest of the traffic goes on, by way
# of one copy more.
FREE_MIN = 2
RELEASED = -1
GIVEN_AT_ONCE = 3


class SlabQueue:
    """The requests of one version that no worker has been given yet."""

    def __init__(self, label: str, policy: BatchPolicy, admission: Admission) -> None:
        self._label = label
        self._policy = policy
        self._admission = admission
        self._early: deque[Pending] = deque()
        self._backlog: deque[Pending] = deque()
        self._open: Fill | None = None
        self._leaving: deque[Fill] = deque()
        self._free: list[Slab] = []  # last in, first out: warm in the cache
        self._encoder: Encoder | None = None
        self._lane: Lane | None = None
        self._row_id = 0
        self._counts_items, self._items = False, 0  # those of the open slab
        self._free_min = 0  # the fewest free slabs since memory was last given back

    # ---- arrivals

    def accept(self, pending: Pending, request: InferRequest, spool: Spool | None) -> None:
        """Take a request in; its place in the queue has been claimed. Raises `BadRequest`; it has no place then."""
        if self._encoder is None:
            pending.parcel, pending.request = spool, request
            self._early.append(pending)
            return
        if spool is not None:
            pending.parcel = spool
        self._encode(pending, request)
        if self._backlog or not self._place(pending):
            self._backlog.append(pending)

    @property
    def opened(self) -> bool:
        """Whether the version's memory is here, and its declaration known."""
        return self._encoder is not None

    def rows_of(self, request: InferRequest) -> int:
        """How many rows a request in tensors takes. Raises `BadRequest`."""
        return self._encoder.rows_of(request) if isinstance(self._encoder, TypedEncoder) else 1

    def accept_rows(self, rows: Sequence[Pending], request: InferRequest) -> None:
        """Take in a request that takes several rows, whose places have been claimed: into one slab where it has room for all. Raises
        `BadRequest`; none has a place then."""
        assert isinstance(self._encoder, TypedEncoder)
        try:
            payloads = self._encoder.encode_rows(request, len(rows))
        except BaseException:
            for pending in rows:
                self.drop(pending)
            raise
        opened = self._open
        if opened is not None and opened.live and len(rows) > opened.capacity - opened.live and not self._backlog:
            self._seal_open()
        for pending, payload in zip(rows, payloads, strict=True):
            pending.payload = payload
        for pending in list(rows):
            if pending.state is OVER:
                continue  # one before it has failed, and all of them with it
            if self._backlog or not self._place(pending):
                self._backlog.append(pending)

    def _encode(self, pending: Pending, request: InferRequest) -> None:
        assert self._encoder is not None
        try:
            if pending.parcel is None:
                pending.payload = self._encoder.encode(request)
            else:
                assert isinstance(pending.parcel, Spool)
                pending.payload = self._encoder.encode_spooled(request, pending.parcel)
        except BaseException:
            self._admission.leave()
            pending.state = OVER
            pending.close_parcel()
            raise

    def land(self, pending: Pending, request: InferRequest, body_bytes: int) -> list[memoryview] | None:
        """A row for a request whose body is still to come, as the places to write that to; None when it has to be received
        elsewhere. Raises `BadRequest`, before anything has been read."""
        if self._encoder is None:
            return None
        return self.open_row(pending, self._encoder.expect(request, body_bytes))

    def land_tensors(self, pending: Pending, request: InferRequest, lengths: Sequence[int]) -> list[memoryview] | None:
        """The same for those of a request's inputs whose `lengths` are not negative, in their order. Raises `BadRequest`."""
        return None if self._encoder is None else self.open_row(pending, self._encoder.expect_tensors(request, lengths))

    def open_row(self, pending: Pending, payload: Payload | None) -> list[memoryview] | None:
        """The places of what is still to come of a payload, whose row they are; None when there is no row for it now."""
        if payload is None or self._backlog or not self.may_hold():
            return None
        needed = payload.slab_bytes()
        assert self._lane is not None
        if needed > self._lane.shape.bytes_in:
            return None
        place = None
        if self._open is not None and (place := self._open.place(needed)) is None:
            self._seal_open()
        if place is None:
            fill = self._fresh()
            if fill is None or (place := fill.place(needed)) is None:
                return None
        assert self._open is not None
        fill = self._open
        row, at = place
        self._row_id += 1
        try:
            places = payload.open(fill.slab, row, at, self._row_id, pending.row_deadline_ns)
        except BaseException:
            fill.unplace(row)
            raise
        fill.enter(pending, row, self._row_id)
        pending.state = RECEIVING
        if fill.is_full:
            self._seal_open()
        return places

    def landed(self, pending: Pending) -> bool:
        """The body is there. False when there is no place in the queue."""
        fill = pending.fill
        assert fill is not None
        assert pending.state is RECEIVING
        reach("body-landed")
        if not self._admission.try_enter():
            return False
        fill.slab.table[pending.row, ROW_DEADLINE_NS] = pending.row_deadline_ns
        pending.state = WAITING
        fill.ready += 1
        if fill.sealed:
            self._line_up(fill)
        return True

    def full_text(self) -> str:
        waiting, capacity = self._admission.total, self._admission.capacity
        return f"{self._label} has {waiting} requests waiting, job_queue_size is {capacity}"

    def drop(self, pending: Pending) -> None:
        """A request that no worker was given is not wanted any more; its place is free at once."""
        state, fill = pending.state, pending.fill
        assert state is not SENT
        if state is OVER:
            return
        if state is not RECEIVING:
            self._admission.leave()
        if fill is None:  # early or in the backlog, which skip it when they come to it
            pending.state = OVER
            pending.payload = pending.request = None
            pending.close_parcel()
        else:
            fill.punch(pending)
            self.release(fill)

    # ---- the lane

    def open_lane(self, lane: Lane, signature: Signature) -> None:
        """The version's memory is here: encode what came early."""
        assert self._lane is None
        self._lane = lane
        self._free = list(reversed(lane.slabs))
        self._encoder = encoder_for(signature)
        self._counts_items = signature.framed and signature.batches
        while self._early:
            pending = self._early.popleft()
            request, pending.request = pending.request, None
            if pending.state is OVER:
                continue
            assert request is not None
            try:
                self._encode(pending, request)
            except RingServeError as error:
                pending.fail(error)
            else:
                self._backlog.append(pending)
        self.refill()

    def close_lane(self) -> None:
        if self._lane is not None:
            self._free.clear()
            if self._open is not None:
                self._open.sealed = True  # a body may still be arriving there
                self._open = None
            self._lane.close()
            self._lane = None

    def may_hold(self) -> bool:
        """Whether the network may keep a slab for as long as a client sends or reads."""
        return len(self._free) >= FREE_MIN

    def release(self, fill: Fill) -> None:
        """Its slab is free when no row needs it any more."""
        if fill.live == 0 and fill is not self._open:
            assert fill.sealed
            fill.live = RELEASED
            fill.slab.in_peak = max(fill.slab.in_peak, fill.used_bytes)
            reach("slab-released")
            self._free.append(fill.slab)

    @property
    def backlogged(self) -> bool:
        """Whether somebody waits for a slab."""
        return bool(self._backlog)

    def refill(self) -> None:
        """Out of the backlog, as far as slabs are free."""
        while self._backlog:
            first = self._backlog[0]
            if first.state is not OVER and not self._place(first):  # it is over when its client is gone
                return
            self._backlog.popleft()

    def _place(self, pending: Pending) -> bool:
        """Into the open slab, or a fresh one; False when no slab is free."""
        self._row_id += 1
        try:
            if self._counts_items:
                self._make_room(pending)
            fill = self._open
            if fill is None or not fill.try_add(pending, self._row_id):
                if fill is not None:
                    self._seal_open()
                fill = self._fresh()
                if fill is None:
                    return False
                added = fill.try_add(pending, self._row_id)
                assert added, "an empty slab takes any payload"
            if fill.is_full or (self._counts_items and self._items >= fill.capacity):
                self._seal_open()
        except OutOfSharedMemory as error:
            self.drop(pending)
            pending.fail(OutOfResources(f"The request does not fit into memory: {error}"))
        except RingServeError as error:  # a part of it, which is in its client's memory, could not be read
            self.drop(pending)
            pending.fail(error)
        return True

    def _make_room(self, pending: Pending) -> None:
        """A row of a framed model may hold several items, and a batch as many as it would have rows: what is more leaves in the
        next, perhaps to another worker."""
        fill, payload = self._open, pending.payload
        assert isinstance(payload, FramePayload)
        if fill is None or not fill.live:
            self._items = 0
        elif self._items + payload.items > fill.capacity:
            self._seal_open()
            self._items = 0
        self._items += payload.items

    def _fresh(self) -> Fill | None:
        """A new open slab. Raises `OutOfSharedMemory`."""
        if not self._free:
            return None
        self._free[-1].reserve()
        reach("slab-taken")
        self._open = Fill(self._free.pop())
        self._free_min = min(self._free_min, len(self._free))
        return self._open

    def _seal_open(self) -> None:
        fill, self._open = self._open, None
        assert fill is not None
        fill.sealed = True
        if fill.ready:
            self._line_up(fill)
        else:
            self.release(fill)

    def _line_up(self, fill: Fill) -> None:
        if not fill.queued:
            fill.queued = True
            self._leaving.append(fill)

    def give_back(self) -> bool:
        """Let the memory go of slabs that nobody needed since the last look, or not nearly all of; a few at a time, since it takes
        a while. Whether there may be more."""
        if self._open is not None and not self._open.live:
            self._seal_open()
        given = 0
        for index, slab in enumerate(self._free):
            if index < self._free_min or slab.is_oversized:
                given += slab.give_back()
            slab.in_peak = 0
            if given == GIVEN_AT_ONCE:
                return True
        more, self._free_min = given > 0 or self._free_min < len(self._free), len(self._free)
        return more

    def want_out(self, answer_bytes: int) -> None:
        """The answers of a batch took this much and did not fit into its part of the slab."""
        if self._lane is not None:
            self._lane.want_out(answer_bytes)

    # ---- departures

    def next_batch(self, outstanding: int) -> Batch | WaitUntil | None:
        """What leaves now to a worker with so many batches, or when to ask again."""
        leaving = self._leaving
        while leaving:
            fill = leaving[0]
            batch = fill.take() if fill.ready else None
            if not fill.ready:
                leaving.popleft()
                fill.queued = False
            if batch is not None:
                return batch
        opened = self._open
        if opened is None or not opened.ready:
            return None
        decision = self._policy.decide(opened.ready, opened.oldest_ns, outstanding, time.monotonic_ns())
        if isinstance(decision, Hold):
            return None
        if isinstance(decision, WaitUntil):
            return decision
        self._open = None
        batch = opened.take()
        if opened.ready:
            self._line_up(opened)
        return batch

    def sent(self, batch: Batch) -> None:
        """A worker has it."""
        self._admission.leave(batch.count)

    def put_back(self, batch: Batch, *, was_sent: bool) -> None:
        """Its worker never began with it: it is the next to leave."""
        fill = batch.fill
        waiting = fill.put_back(batch)
        if was_sent:
            self._admission.enter(waiting)
        if fill.ready and not fill.queued:
            fill.queued = True
            self._leaving.appendleft(fill)
        self.release(fill)

    # ---- the end

    def _waiting(self) -> Iterator[Pending]:
        yield from self._early
        yield from self._backlog
        for fill in (*self._leaving, *((self._open,) if self._open is not None else ())):
            yield from [each for each in fill.rows if each is not None and each.state is WAITING]

    def fail_all(self, error: RingServeError) -> None:
        """Answer everybody who waits."""
        for pending in list(self._waiting()):
            self.drop(pending)
            pending.fail(error)
        self._early.clear()
        self._backlog.clear()

    @property
    def oldest_ns(self) -> int:
        """Since when somebody has waited in a slab; 0: nobody does."""
        fills = (*self._leaving, *((self._open,) if self._open is not None else ()))
        return min((fill.oldest_ns for fill in fills if fill.ready), default=0)

    def lined_up(self) -> int:
        """Slabs with rows that wait for a worker."""
        opened = self._open is not None and self._open.live > 0
        return sum(1 for fill in self._leaving if fill.ready) + opened

    def counts(self) -> tuple[int, int]:
        """(free slabs, all slabs); an open one without rows is free."""
        total = 0 if self._lane is None else len(self._lane.slabs)
        return len(self._free) + (self._open is not None and not self._open.live), total

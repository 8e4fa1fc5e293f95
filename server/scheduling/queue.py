"""The requests of a version with priorities, queue policies, preferred sizes or a delay, that no worker has been given yet.

    accept ─▶ lines (lines.py) ─▶ next_batch, when a worker can take one: into a fresh slab

Requests wait encoded outside of slabs, for one that comes later may leave earlier, and nobody knows before a worker is free who will
be in its batch.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Sequence

from ringserve.protocol.errors import BadRequest, OutOfResources, QueueTimeout, RingServeError
from ringserve.protocol.request import InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.admission import Admission
from ringserve.server.batching import BatchPolicy, WaitUntil
from ringserve.server.inflight import OVER, Batch, Fill, Pending
from ringserve.server.payloads import Payload, TypedEncoder
from ringserve.server.scheduling.lines import Entry, Leave, Lines
from ringserve.server.scheduling.rules import NS_OF_US, Scheduling
from ringserve.server.slab_queue import SlabQueue
from ringserve.shm.lane import Lane
from ringserve.shm.shm_errors import OutOfSharedMemory
from ringserve.shm.spool import Spool

# Triton's sentences, which its clients look for.
FULL = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"


class Waiting(Entry):
    """A request in the lines, in as many rows as it has."""

    __slots__ = ("left", "rows")

    def __init__(self, arrived_ns: int, level: int, expires_ns: int, rows: Sequence[Pending]) -> None:
        super().__init__(arrived_ns, level, expires_ns)
        self.rows = rows
        self.left = len(rows)  # that somebody waits for

    def forget(self) -> None:
        """It has left the lines, and no cycle may be left of it."""
        for pending in self.rows:
            pending.entry = None
        self.rows = ()


class ScheduledQueue(SlabQueue):
    """In place of the open slab, the lines of `rules`. `on_wait(pending, ns)` is told until when somebody waits, at most."""

    def __init__(self, label: str, policy: BatchPolicy, admission: Admission, rules: Scheduling) -> None:
        super().__init__(label, policy, admission)
        self.on_wait: Callable[[Pending, int], None] = lambda pending, at_ns: None
        self._rules = rules
        self._lines = Lines(rules, min(policy.rows_max, rules.batch_size_max))
        self._signature = Signature()
        self._starved = False  # there was no slab for a batch

    def reschedule(self, rules: Scheduling, rows_max: int) -> None:
        """By other rules from now on; who waits keeps the time that the old ones gave."""
        waiting, self._rules = list(self._lines), rules
        self._lines = Lines(rules, min(rows_max, rules.batch_size_max))
        for entry in waiting:
            entry.present, entry.late, entry.level = False, False, rules.level_of(entry.level)
            self._lines.add(entry)

    # ---- arrivals

    def is_full(self, request: InferRequest) -> bool:
        """Whether there is no place in the line that the request belongs to."""
        return self._lines.is_full(self._level_of(request))

    def _level_of(self, request: InferRequest) -> int:
        return self._rules.level_of(request.tensors.priority if request.tensors is not None else 0)

    def accept(self, pending: Pending, request: InferRequest, spool: Spool | None) -> None:
        """Take a request in; its place in the queue has been claimed. Raises `BadRequest`; it has no place then."""
        pending.parcel = spool
        entry = self._entry((pending,), request)
        if self._encoder is None:
            pending.request = request
        else:
            self._encode_alone(entry, request)
        self._line_up_behind(entry)

    def accept_rows(self, rows: Sequence[Pending], request: InferRequest) -> None:
        """Take in a request of several rows, which leave together. Raises `BadRequest`; none of them has a place then."""
        assert isinstance(self._encoder, TypedEncoder)
        entry = self._entry(tuple(rows), request)
        try:
            payloads = self._encoder.encode_rows(request, len(rows))
        except BaseException:
            for pending in entry.rows:
                super().drop(pending)
            raise
        for pending, payload in zip(entry.rows, payloads, strict=True):
            pending.payload = payload
        entry.items = len(rows)
        self._line_up_behind(entry)

    def _entry(self, rows: Sequence[Pending], request: InferRequest) -> Waiting:
        level, now_ns = self._level_of(request), time.monotonic_ns()
        asked_us = request.tensors.queue_timeout_us if request.tensors is not None else 0
        patience_us = self._rules.policy_of(level).patience_us(asked_us)
        return Waiting(now_ns, level, now_ns + patience_us * NS_OF_US if patience_us else 0, rows)

    def _encode_alone(self, entry: Waiting, request: InferRequest) -> None:
        """Raises `BadRequest`; it has no place then."""
        self._encode(entry.rows[0], request)
        if not self._signature.typed:
            entry.items, entry.key = _shape_of(request, self._signature, self._rules.ragged_inputs)

    def _line_up_behind(self, entry: Waiting) -> None:
        refused_ns = 0 if self._rules.policy_of(entry.level).delays else entry.expires_ns
        for pending in entry.rows:
            pending.entry, pending.expires_ns = entry, refused_ns
        self._lines.add(entry)
        if entry.expires_ns:
            self.on_wait(entry.rows[0], entry.expires_ns)

    def open_row(self, pending: Pending, payload: Payload | None) -> list[memoryview] | None:
        """A slab of its own, where requests go alone and nobody waits. Otherwise none: with whom it will leave is not known yet."""
        rules = self._rules
        if rules.batches or rules.strict or rules.preserve_ordering or len(self._lines):
            return None
        try:
            return super().open_row(pending, payload)
        finally:
            if self._open is not None:
                self._seal_open()

    def full_text(self) -> str:
        return FULL

    def drop(self, pending: Pending) -> None:
        """A request that no worker was given is not wanted any more; its place is free at once."""
        if pending.state is OVER:
            return
        entry = pending.entry
        super().drop(pending)
        if isinstance(entry, Waiting):
            entry.left -= 1
            if not entry.left:
                self._leave_line(entry)

    def _leave_line(self, entry: Waiting) -> None:
        if entry.present:
            self._lines.remove(entry)
        entry.forget()

    def open_lane(self, lane: Lane, signature: Signature) -> None:
        """The version's memory is here: encode what came early."""
        super().open_lane(lane, signature)
        self._signature = signature
        for entry in list(self._lines):
            assert isinstance(entry, Waiting)
            pending = entry.rows[0]
            request, pending.request = pending.request, None
            assert request is not None
            try:
                self._encode_alone(entry, request)
            except RingServeError as error:
                self._leave_line(entry)
                pending.fail(error)

    # ---- departures

    def expire(self, now_ns: int) -> None:
        """Refuse those who have waited longer than their policy lets them, or put them behind their line."""
        for entry in self._lines.expire(now_ns):
            assert isinstance(entry, Waiting)
            self._fail(entry, QueueTimeout(EXPIRED))

    def next_batch(self, outstanding: int) -> Batch | WaitUntil | None:
        """What leaves now to a worker with so many batches, or when to ask again."""
        if self._leaving and (batch := super().next_batch(outstanding)) is not None:
            return batch  # it came back from a worker that died
        if self._encoder is None or (outstanding and self._rules.strict):
            return None
        now_ns = time.monotonic_ns()
        self.expire(now_ns)
        self._starved = False
        while isinstance(chosen := self._lines.choose(now_ns, ahead=outstanding > 0), Leave):
            fill = self._filled(chosen.entries)
            if fill is not None and fill.ready:
                return fill.take()
            if self._starved:
                return None
        return chosen

    def _filled(self, entries: list[Entry]) -> Fill | None:
        """Those of these that have room in one slab, which leave their lines; None when no slab is free."""
        fill: Fill | None = None
        for entry in entries:
            assert isinstance(entry, Waiting)
            try:
                fill = fill or self._fresh()
                if fill is None:
                    self._starved = True
                    break
                if fill.rows and len(fill.rows) + entry.left > fill.capacity:
                    break
                if not self._write(fill, entry):
                    break
            except OutOfSharedMemory as error:
                self._fail(entry, OutOfResources(f"The request does not fit into memory: {error}"))
            except RingServeError as error:
                self._fail(entry, error)
            else:
                self._leave_line(entry)
        self._open = None
        if fill is not None:
            fill.sealed = True
            if not fill.ready:
                self.release(fill)
        return fill

    def _write(self, fill: Fill, entry: Waiting) -> bool:
        """Into the slab; False when there is no room. Raises `OutOfSharedMemory`, and `BadRequest` when a region of the client's has
        gone."""
        if entry.left > fill.capacity:
            raise BadRequest(f"The request has {entry.left} items, expected at most {fill.capacity}.")
        for pending in entry.rows:
            if pending.state is OVER:
                continue
            self._row_id += 1
            if not fill.try_add(pending, self._row_id):
                assert pending is entry.rows[0], "only requests of one row take part of the slab's bytes"
                return False
        return True

    def _fail(self, entry: Waiting, error: RingServeError) -> None:
        """None of its rows waits any longer, in the lines or in a slab that has not left."""
        rows = entry.rows
        self._leave_line(entry)
        for pending in rows:
            self.drop(pending)
            pending.fail(error)

    @property
    def backlogged(self) -> bool:
        """Whether somebody waits for a slab."""
        return self._starved

    # ---- the end

    def _waiting(self) -> Iterator[Pending]:
        for entry in self._lines:
            assert isinstance(entry, Waiting)
            yield from [pending for pending in entry.rows if pending.state is not OVER]
        yield from super()._waiting()

    @property
    def oldest_ns(self) -> int:
        """Since when somebody has waited; 0: nobody does."""
        in_slabs = super().oldest_ns
        in_lines = min((entry.arrived_ns for entry in self._lines), default=0)
        return min(in_slabs or in_lines, in_lines or in_slabs)


def _shape_of(request: InferRequest, signature: Signature, ragged: Sequence[str]) -> tuple[int, Hashable]:
    """The items of a request of tensors, and what those have in common with others that can be put next to them."""
    if request.tensors is None:
        return 1, object()  # its shapes are not known before the model sees them: it goes alone
    inputs = request.tensors.inputs
    if not signature.batches or not inputs or not inputs[0].shape:
        return 1, object()
    key = frozenset((each.name, () if each.name in ragged else each.shape[1:]) for each in inputs)
    return inputs[0].shape[0], key

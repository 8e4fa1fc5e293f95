"""The requests of one model version, on their way into its queue: who is let in, where bodies arrive, and for how long one waits.

What happens to them behind the queue is the dispatcher's (dispatch.py), which is one of these.
"""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from ringserve.protocol.errors import NoWorker, OutOfResources, QueueFull, RingServeError
from ringserve.protocol.request import InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.admission import Admission
from ringserve.server.arrivals import Arrivals
from ringserve.server.batching import BatchPolicy
from ringserve.server.deadlines import Deadlines
from ringserve.server.drain_rate import DrainRate, seconds_until
from ringserve.server.inflight import Pending
from ringserve.server.landing import BufferLanding, GrowingLanding, Landing, SlabLanding
from ringserve.server.limits import Limits
from ringserve.server.served_model import ServedModel
from ringserve.server.slab_queue import SlabQueue
from ringserve.server.tensor_rows import JoinedPending, RowPending
from ringserve.shm.shm_errors import OutOfSharedMemory
from ringserve.shm.spool import Spool

# A shorter body is received elsewhere and copied: while it arrives, its row would part the batch.
LANDED_BYTES_MIN = 64 << 10


class Intake(ABC):
    """One version in this front end, up to its queue."""

    def __init__(self, label: str, policy: BatchPolicy, limits: Limits) -> None:
        self.label = label
        self.limits = limits
        self._is_limited = limits.queue_timeout_ms > 0 or limits.request_timeout_ms > 0
        self.admission = Admission(limits.queue_size)
        self.arrivals = Arrivals(self._notice_idle)
        self._loop = asyncio.get_running_loop()
        self._begin = Pending.begin
        self._queue = self._make_queue(policy)
        self._deadlines = Deadlines(self._loop, self._expire)
        self._drain = DrainRate(time.monotonic())
        self._serviceable = False
        self._probe_at_ns = 0
        self._typed, self.signature = False, Signature()  # until a worker has said
        self.served: ServedModel | None = None  # likewise
        self._pump_due = False

    def _make_queue(self, policy: BatchPolicy) -> SlabQueue:
        return SlabQueue(self.label, policy, self.admission)

    @property
    def waiting(self) -> int:
        """Requests not yet handed to a worker."""
        return self.admission.waiting

    @property
    def typed(self) -> bool:
        """Whether headers are of no use to this model."""
        return self._typed

    def submit(self, request: InferRequest, spool: Spool | None = None) -> Pending:
        """Queue a request, whose body may be in a spool. Raises `NoWorker`, `QueueFull`, `BadRequest`; the future may raise any
        `RingServeError`."""
        if request.tensors is not None:
            return self._submit_tensors(request)
        try:
            if not self._serviceable:
                raise self._no_worker()
            if not self.admission.try_enter() and not self._entered_after_pump():
                raise self._full()
        except RingServeError:
            if spool is not None:
                spool.close()
            raise
        pending = self._pending(request)
        self._queue.accept(pending, request, spool)
        if pending.deadline_ns or pending.wait_until_ns:
            self._watch(pending)
        self._pump_soon()
        return pending

    def _entered_after_pump(self, count: int = 1) -> bool:
        """What came in this tick of the loop may leave before somebody is refused: workers may have room for it."""
        if not self._pump_due:
            return False
        self._pump()
        return self.admission.try_enter(count)

    @property
    def opened(self) -> bool:
        """Whether a worker has said what the model takes: before that, nobody could say what tensors mean."""
        return self._queue.opened

    def _submit_tensors(self, request: InferRequest) -> Pending:
        """As `submit`. Of a typed model the request takes as many rows as its batch dimension says, all of them or none."""
        assert request.tensors is not None
        if not self._serviceable or not self.opened:
            raise self._no_worker()
        rows = self._queue.rows_of(request)
        if not self.admission.try_enter(rows) and not self._entered_after_pump(rows):
            raise self._full()
        if rows > 1:
            pending: Pending = self._submit_rows(request, rows)
        else:
            pending = self._pending(request)
            pending.binary, pending.wanted = True, request.tensors.outputs
            self._queue.accept(pending, request, None)
            if pending.deadline_ns or pending.wait_until_ns:
                self._watch(pending)
        self._pump_soon()
        return pending

    def _submit_rows(self, request: InferRequest, rows: int) -> JoinedPending:
        assert request.tensors is not None
        whole = JoinedPending.of(self._loop, request.tensors.outputs)
        for _ in range(rows):
            row = RowPending.begin(self._loop, self._forsaken)
            self._limit(row, request)
            whole.add(row)
        self._queue.accept_rows(whole.rows, request)
        for row in whole.rows:
            if row.deadline_ns or row.wait_until_ns:
                self._watch(row)
        return whole

    def land(self, request: InferRequest, body_bytes: int, limit_bytes: int) -> Landing:
        """Where the body of a request is to be received. Raises as `submit` does, as far as that can be known before."""
        self.refuse()
        request = self.limits.stamped(request)
        if body_bytes < LANDED_BYTES_MIN:
            return BufferLanding(body_bytes, request, self.submit)
        try:
            pending = self._pending(request)
            places = self._queue.land(pending, request, body_bytes)
            if places is not None:
                return SlabLanding(pending, places, self._landed, self._forsaken)
            if self.signature.declared:
                return BufferLanding(body_bytes, request, self.submit)
            return GrowingLanding(limit_bytes, request, self.submit, spooled=True)
        except OutOfSharedMemory as error:
            raise OutOfResources(f"The request does not fit into memory: {error}") from None

    def land_unknown(self, request: InferRequest, limit_bytes: int) -> Landing:
        """The same for a body whose length nobody has told."""
        self.refuse()
        return GrowingLanding(limit_bytes, self.limits.stamped(request), self.submit)

    def land_tensors(self, request: InferRequest, lengths: Sequence[int]) -> Landing | None:
        """Where those of a request's inputs are to be received whose `lengths` are not negative, one after the other as the request
        has them; None where they have to be received elsewhere and then submitted. What is here of the request is copied at once.
        Raises as `submit` does, as far as that can be known before."""
        assert request.tensors is not None
        self.refuse()
        if not self.opened or sum(length for length in lengths if length > 0) < LANDED_BYTES_MIN:
            return None
        pending = self._pending(self.limits.stamped(request))
        pending.binary, pending.wanted = True, request.tensors.outputs
        try:
            places = self._queue.land_tensors(pending, request, lengths)
        except OutOfSharedMemory as error:
            raise OutOfResources(f"The request does not fit into memory: {error}") from None
        if places is None:
            return None
        return SlabLanding(pending, [place for place in places if place], self._landed, self._forsaken)

    def refuse(self) -> None:
        """Raises `NoWorker` or `QueueFull` where it is plain now that a request would be refused: its body need not come."""
        if not self._serviceable:
            raise self._no_worker()
        if self.admission.total >= self.admission.capacity:
            raise self._full()

    def _no_worker(self) -> NoWorker:
        after_s = seconds_until(self._probe_at_ns, time.monotonic_ns())
        return NoWorker(f"{self.label} has no worker", retry_after_s=after_s)

    def _full(self) -> RingServeError:
        after_s = self._drain.seconds_for(self.admission.waiting, time.monotonic())
        return QueueFull(self._queue.full_text(), retry_after_s=math.ceil(after_s))

    def _pending(self, request: InferRequest) -> Pending:
        pending = self._begin(self._loop, self._forsaken)
        if request.binary:
            pending.binary = True
        if request.timeout_ms or self._is_limited:
            self._limit(pending, request)
        return pending

    def _limit(self, pending: Pending, request: InferRequest) -> None:
        """How long it may wait, and for what."""
        limits = self.limits
        timeout_ms = limits.patience_ms(request)
        if timeout_ms or limits.queue_timeout_ms:
            now_ns = time.monotonic_ns()
            pending.deadline_ns = request.deadline_ns or (now_ns + timeout_ms * 1_000_000 if timeout_ms else 0)
            pending.wait_until_ns = now_ns + limits.queue_timeout_ms * 1_000_000 if limits.queue_timeout_ms else 0

    def _landed(self, pending: Pending) -> None:
        if not self._serviceable:
            self._forsaken(pending)
            raise self._no_worker()
        if pending.wait_until_ns:  # it waits from now on
            pending.wait_until_ns = time.monotonic_ns() + self.limits.queue_timeout_ms * 1_000_000
        if not self._queue.landed(pending):
            self._forsaken(pending)
            raise self._full()
        if pending.row_deadline_ns:
            self._watch(pending)
        self._pump_soon()

    def _watch(self, pending: Pending) -> None:
        for at_ns in {pending.wait_until_ns, pending.deadline_ns} - {0}:
            self._deadlines.watch(pending, at_ns)

    def _pump_soon(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    # ---- the dispatcher's

    @abstractmethod
    def _pump(self) -> None:
        """Give the workers what they can take."""

    @abstractmethod
    def _expire(self, pending: Pending) -> None:
        """One of its deadlines has passed."""

    @abstractmethod
    def _forsaken(self, pending: Pending) -> None:
        """Nobody waits for it any more."""

    @abstractmethod
    def _notice_idle(self) -> None:
        """There may be nothing left to do."""

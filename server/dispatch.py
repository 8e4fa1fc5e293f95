"""The requests of one model version in one front end: into slabs, to workers, and back to who waits for them.

    submit ─▶ open slab ─▶ full slabs ─▶ a worker's ring (at most two batches) ─▶ answers ─▶ free slabs
        └───▶ backlog, while there is no lane yet or no slab is free

Transport-free: a request comes in, a future with its `Answer` goes out. Everything runs on the event loop's thread. Requests
parsed in one tick of the loop leave together, because the pump runs at the tick's end.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from ringserve.protocol.errors import Internal, NoWorker, OutOfResources, QueueFull, RingServeError
from ringserve.protocol.request import Answer, InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.batching import OUTSTANDING_MAX, BatchPolicy, Hold, WaitUntil
from ringserve.server.inflight import LinkState, Pending, Renderer, SlabBatch
from ringserve.server.payloads import BytesEncoder, TypedEncoder
from ringserve.server.replies import STATUS_OVERFLOW, typed_renderer
from ringserve.shm.lane import Lane, Slab
from ringserve.shm.link import FrontLink
from ringserve.shm.ring import Entry
from ringserve.shm.shm_errors import OutOfSharedMemory, PeerGone, ShmError

logger = logging.getLogger("ringserve.dispatch")

# How soon the supervisor says that a worker whose link closed has ended.
GONE_S_MAX = 1.0


class Dispatcher:
    """`capacity` is `job_queue_size`: how many requests may wait for a worker."""

    def __init__(self, label: str, policy: BatchPolicy, capacity: int, response_timeout_s: int) -> None:
        self.label = label
        self.policy = policy
        self.capacity = capacity
        self.response_timeout_s = response_timeout_s
        self.waiting = 0  # requests not yet handed to a worker
        self.mismatched_replies = 0
        self.on_stuck: Callable[[str], None] = lambda worker_id: None
        self._serviceable = False
        self._loop = asyncio.get_running_loop()
        self._unencoded: deque[tuple[asyncio.Future[Answer], InferRequest]] = deque()  # before the lane is open
        self._backlog: deque[Pending] = deque()
        self._open: SlabBatch | None = None
        self._full: deque[SlabBatch] = deque()
        self._free: list[Slab] = []  # last in, first out: warm in the cache
        self._links: dict[str, LinkState] = {}
        self._lane: Lane | None = None
        self._encoder: TypedEncoder | BytesEncoder | None = None
        self._render: Renderer | None = None
        self._row_id = 0
        self._last_link = 0
        self._pump_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._on_idle: Callable[[], None] | None = None

    # ---- requests

    @property
    def typed(self) -> bool:
        """Whether headers are of no use to this model."""
        return self._render is not None

    def submit(self, request: InferRequest) -> asyncio.Future[Answer]:
        """Queue a request. Raises `NoWorker`, `QueueFull`, `BadRequest`; the future may raise any `RingServeError`."""
        if not self._serviceable:
            raise NoWorker(f"{self.label} has no worker")
        if self.waiting >= self.capacity:
            raise QueueFull(f"{self.label} has {self.waiting} requests waiting, job_queue_size is {self.capacity}")
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self._encoder is None:
            self._unencoded.append((future, request))
        else:
            pending = Pending(future, self._encoder.encode(request))
            if self._backlog or not self._place(pending):
                self._backlog.append(pending)
            if not self._pump_due:
                self._pump_due = True
                self._loop.call_soon(self._pump)
        self.waiting += 1
        return future

    def set_serviceable(self, serviceable: bool) -> None:
        """Whether some worker runs, starts or restarts. Without one nobody may wait: all are answered now."""
        self._serviceable = serviceable
        if not serviceable:
            self._fail_waiting(NoWorker(f"{self.label} has no worker"))

    # ---- the lane and its workers

    def open_lane(self, lane: Lane, signature: Signature) -> None:
        """The version's memory is here: encode what came early."""
        assert self._lane is None
        self._lane = lane
        self._free = list(reversed(lane.slabs))
        self._encoder = TypedEncoder(signature) if signature.typed else BytesEncoder()
        self._render = typed_renderer(signature) if signature.typed else None
        while self._unencoded:
            future, request = self._unencoded.popleft()
            try:
                self._backlog.append(Pending(future, self._encoder.encode(request)))
            except RingServeError as error:
                self.waiting -= 1
                if not future.done():
                    future.set_exception(error)
        self._refill()

    def attach(self, worker_id: str, link: FrontLink) -> None:
        self._last_link += 1
        state = LinkState(worker_id, link, self._last_link)
        assert worker_id not in self._links
        self._links[worker_id] = state
        self._loop.add_reader(link.listener.fd, self._on_bell, state)
        self._pump()

    def detach(self, worker_id: str, on_detached: Callable[[], None]) -> None:
        """Give the worker nothing more; `on_detached` is called when it has answered what it has."""
        state = self._links.get(worker_id)
        if state is None:
            on_detached()
            return
        state.on_detached = on_detached
        self._notice_detached(state)

    def worker_gone(self, worker_id: str, error: RingServeError) -> None:
        """The worker's process ended: the batch it executed is answered with `error`, the next ones move on."""
        state = self._links.get(worker_id)
        if state is None:
            return
        self._on_bell(state)  # what it finished before it died
        if worker_id not in self._links:
            return  # it was leaving, and that was all it had
        started = state.link.commands.taken
        requeued = []
        for batch in state.outstanding:
            if batch.sequence < started:
                batch.fail(error)
                self._release(batch)
            else:
                self.waiting += len(batch.rows)
                requeued.append(batch)
        state.outstanding.clear()
        self._full.extendleft(reversed(requeued))
        if state.on_detached is not None:
            self._notice_detached(state)
        else:
            self._drop(state)
        if not self._serviceable:
            self._fail_waiting(NoWorker(f"{self.label} has no worker"))
        self._refill()
        self._pump()
        self._notice_idle()

    def check_stuck(self, now_ns: int) -> None:
        """Report workers that have executed one batch for longer than the response timeout."""
        limit_ns = self.response_timeout_s * 1_000_000_000
        for state in self._links.values():
            if state.outstanding and now_ns - state.since_ns > limit_ns > 0 and not state.reported_stuck:
                state.reported_stuck = True
                self.on_stuck(state.worker_id)

    def close(self, on_closed: Callable[[], None]) -> None:
        """No more requests will come; `on_closed` is called once every one that came is answered."""
        self._on_idle = on_closed
        self._notice_idle()

    def abandon(self, error: RingServeError) -> None:
        """Answer everything that waits, now."""
        self._fail_waiting(error)
        for state in self._links.values():
            for batch in state.outstanding:
                batch.fail(error)

    # ---- inside

    def _place(self, pending: Pending) -> bool:
        """Into the open slab, or a fresh one; False when no slab is free."""
        self._row_id += 1
        batch = self._open
        if batch is not None:
            if self._added(batch, pending):
                return True
            self._full.append(batch)
            self._open = None
        if not self._free:
            return False
        batch = self._open = SlabBatch(self._free.pop(), time.monotonic_ns())
        added = self._added(batch, pending)
        assert added, "an empty slab takes any payload"
        return True

    def _added(self, batch: SlabBatch, pending: Pending) -> bool:
        try:
            if not batch.try_add(pending, self._row_id):
                return False
        except OutOfSharedMemory as error:
            self.waiting -= 1
            pending.fail(OutOfResources(f"The request does not fit into memory: {error}"))
            return True
        if len(batch.rows) == self.policy.rows_max:
            self._full.append(batch)
            self._open = None
        return True

    def _refill(self) -> None:
        while self._backlog:
            if self._backlog[0].future.done():  # the client is gone before its turn
                self._backlog.popleft()
                self.waiting -= 1
            elif self._place(self._backlog[0]):
                self._backlog.popleft()
            else:
                return

    def _pump(self) -> None:
        self._pump_due = False
        while (state := self._least_loaded()) is not None:
            batch = self._next_batch(len(state.outstanding))
            if batch is None:
                return
            self._send(batch, state)
            if self._backlog:
                self._refill()

    def _least_loaded(self) -> LinkState | None:
        best, fewest = None, OUTSTANDING_MAX
        for state in self._links.values():
            if state.alive and state.on_detached is None and len(state.outstanding) < fewest:
                best, fewest = state, len(state.outstanding)
        return best

    def _next_batch(self, outstanding: int) -> SlabBatch | None:
        if self._full:
            return self._full.popleft()
        batch = self._open
        if batch is None or not batch.rows:
            return None
        now_ns = time.monotonic_ns()
        decision = self.policy.decide(len(batch.rows), batch.oldest_ns, outstanding, now_ns)
        if isinstance(decision, Hold):
            return None
        if isinstance(decision, WaitUntil):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later((decision.at_ns - now_ns) / 1e9, self._pump)
            return None
        self._open = None
        return batch

    def _send(self, batch: SlabBatch, state: LinkState) -> None:
        link = state.link
        batch.sequence = state.pushed
        try:
            for parcel in batch.parcels:
                link.send_parcel(parcel)
            pushed = link.commands.try_push(Entry(batch.sequence, batch.slab.index, len(batch.rows)))
            assert pushed, "the ring holds more entries than a worker may have outstanding"
            link.bell.ring()
        except PeerGone:
            # It died a moment ago; the supervisor will say so. The batch was not started and goes to another worker.
            self._silence(state)
            self._full.appendleft(batch)
            return
        state.pushed += 1
        if not state.outstanding:
            state.since_ns = time.monotonic_ns()
        state.outstanding.append(batch)
        self.waiting -= len(batch.rows)

    def _on_bell(self, state: LinkState) -> None:
        try:
            for _ in range(state.link.listener.collect() if state.believed else 0):
                self._complete(state)
        except PeerGone:
            self._silence(state)
            self._loop.call_later(GONE_S_MAX, self._doubt, state.worker_id, state.number)
        except ShmError as error:
            # A worker that breaks its ring cannot be believed any more: its death will answer what it holds.
            logger.error("worker %s of %s: %s", state.worker_id, self.label, error)
            self._silence(state)
            state.believed = False
            self.on_stuck(state.worker_id)
        if state.on_detached is not None:
            self._notice_detached(state)
        self._refill()
        self._pump()
        self._notice_idle()

    def _doubt(self, worker_id: str, number: int) -> None:
        """A link that closed while its process lives: nothing will ever be answered through it. Known by its number, for a
        clock that held the link would keep its memory and descriptors."""
        state = self._links.get(worker_id)
        if state is not None and state.number == number:
            self.on_stuck(worker_id)

    def _complete(self, state: LinkState) -> None:
        entry = state.link.completions.take()
        if not state.outstanding or state.outstanding[0].sequence != entry.sequence:
            raise ShmError(f"completion of batch {entry.sequence}, which is not the oldest outstanding one")
        overflow = state.link.receive_parcel() if entry.status == STATUS_OVERFLOW else None
        batch = state.outstanding.popleft()
        state.since_ns = time.monotonic_ns()
        state.reported_stuck = False
        try:
            mismatched = batch.deliver(self._render, overflow)
            if mismatched:
                self.mismatched_replies += mismatched
                logger.error("%d answers of worker %s belong to no request of its batch", mismatched, state.worker_id)
        except Exception as error:
            logger.exception("an answer of %s could not be delivered", self.label)
            batch.fail(Internal(f"The answer could not be read: {error}."))
        finally:
            if overflow is not None:
                overflow.close()
            self._release(batch)

    def _release(self, batch: SlabBatch) -> None:
        batch.close_parcels()
        self._free.append(batch.slab)

    def _silence(self, state: LinkState) -> None:
        if state.alive:
            state.alive = False
            self._loop.remove_reader(state.link.listener.fd)

    def _notice_detached(self, state: LinkState) -> None:
        if state.on_detached is not None and not state.outstanding:
            callback, state.on_detached = state.on_detached, None
            self._drop(state)
            callback()
            self._notice_idle()

    def _drop(self, state: LinkState) -> None:
        self._silence(state)
        state.link.close()
        del self._links[state.worker_id]

    def _fail_waiting(self, error: RingServeError) -> None:
        for future, _ in self._unencoded:
            if not future.done():
                future.set_exception(error)
        self._unencoded.clear()
        for pending in self._backlog:
            pending.fail(error)
        self._backlog.clear()
        if self._open is not None:
            self._full.append(self._open)
            self._open = None
        while self._full:
            batch = self._full.popleft()
            batch.fail(error)
            self._release(batch)
        self.waiting = 0
        self._notice_idle()

    @property
    def idle(self) -> bool:
        return self.waiting == 0 and not any(state.outstanding for state in self._links.values())

    def _notice_idle(self) -> None:
        if self._on_idle is None:
            return
        if self.waiting and not self._links:
            self._fail_waiting(NoWorker(f"{self.label} was unregistered"))  # comes back here with nothing waiting
        elif self.idle:
            callback, self._on_idle = self._on_idle, None
            for state in list(self._links.values()):
                self._drop(state)
            if self._lane is not None:
                self._free.clear()
                self._lane.close()
                self._lane = None
            callback()

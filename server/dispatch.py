"""The requests of one model version in one front end: from their arrival to the workers, and back to who waits for them.

    submit, land ─▶ slab queue ─▶ a worker's ring (at most two batches) ─▶ delivery ─▶ free slabs

What lies before the queue is in intake.py. Transport-free: a request comes in, a future with its `Answer` goes out. Everything runs on the event loop's thread. Requests
parsed in one tick of the loop leave together, because the pump runs at the tick's end.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from ringserve.protocol.errors import DeadlineExceeded, Internal, NoWorker, OutOfResources, RingServeError
from ringserve.protocol.tensor import Signature
from ringserve.server.batching import BatchPolicy, WaitUntil
from ringserve.server.control import Load
from ringserve.server.delivery import Delivery
from ringserve.server.inflight import SENT, Batch, Fill, LinkState, Pending, has_begun, least_loaded
from ringserve.server.intake import Intake
from ringserve.server.landing import SOCKET_TO_SLAB
from ringserve.server.limits import Limits
from ringserve.server.load import SlabUse, load_of, slab_use
from ringserve.server.metrics.meter import Meter
from ringserve.server.replies import STATUS_CHUNK, STATUS_OVERFLOW, Overflow
from ringserve.shm.faults import reach
from ringserve.shm.lane import Lane
from ringserve.shm.link import FrontLink
from ringserve.shm.ring import Command, Completion
from ringserve.shm.shm_errors import OutOfSharedMemory, PeerGone, RingCorrupt, ShmError

logger = logging.getLogger("ringserve.dispatch")

# How soon the supervisor says that a worker whose link closed has ended.
GONE_S_MAX = 1.0
# How often a slab that was not needed in the meantime gives its memory back.
GIVE_BACK_S = 5.0


class Dispatcher(Intake):
    """One version in this front end. `on_stuck(worker_id)` asks for a worker to be replaced."""

    def __init__(self, label: str, policy: BatchPolicy, limits: Limits) -> None:
        super().__init__(label, policy, limits)
        self.meter: Meter | None = None
        self.mismatched_replies = 0
        self.on_stuck: Callable[[str], None] = lambda worker_id: None
        self._delivery: Delivery | None = None
        self._links: dict[str, LinkState] = {}
        self._last_link = 0
        self._timer: asyncio.TimerHandle | None = None
        self._give_back_timer: asyncio.TimerHandle | None = None
        self._on_idle: Callable[[], None] | None = None

    @property
    def load(self) -> Load:
        return load_of(self._queue, self._links.values(), self.waiting, self._drain)

    @property
    def slab_use(self) -> SlabUse:
        return slab_use(self._queue, self._links.values())

    # ---- whose time is over

    def _expire(self, pending: Pending) -> None:
        """One of its deadlines has passed."""
        now_ns = time.monotonic_ns()
        if not 0 < pending.deadline_ns <= now_ns and has_begun(self._links.values(), pending):
            return  # it did not wait too long
        self._forsaken(pending)
        pending.fail(DeadlineExceeded("The request was not answered in time."))

    def _forsaken(self, pending: Pending) -> None:
        """Nobody waits for it any more."""
        if pending.state is SENT:
            pending.mark_cancelled()
        else:
            self._queue.drop(pending)
            self._serve_backlog()
            self._notice_idle()

    def set_serviceable(self, serviceable: bool, probe_at_ns: int = 0) -> None:
        """Whether some worker runs, starts or restarts. Without one nobody may wait: all are answered now, and told when the
        next one is tried."""
        self._serviceable, self._probe_at_ns = serviceable, probe_at_ns
        if not serviceable:
            self._fail_waiting(self._no_worker())

    # ---- the lane and its workers

    def open_lane(self, lane: Lane, signature: Signature) -> None:
        """The version's memory is here: encode what came early."""
        self._typed, self.signature = signature.typed, signature
        may_hold = self._queue.may_hold if SOCKET_TO_SLAB else bool  # bool() is false
        self._delivery = Delivery(signature, self._row_over, may_hold)
        self._queue.open_lane(lane, signature)

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
        batches = list(state.outstanding)
        state.outstanding.clear()
        for batch in reversed(batches):
            if state.has_begun(batch):
                batch.fail(error)
                self._end(batch)
            else:
                self._queue.put_back(batch, was_sent=True)
        if state.on_detached is not None:
            self._notice_detached(state)
        else:
            self._drop(state)
        if not self._serviceable:
            self._fail_waiting(self._no_worker())
        self._go_on()

    def close(self, on_closed: Callable[[], None]) -> None:
        """No more requests will come; `on_closed` is called once every one that came is answered."""
        self._on_idle = on_closed
        self.arrivals.limit()
        self._notice_idle()

    def abandon(self, error: RingServeError) -> None:
        """Answer everything that waits, now."""
        self._fail_waiting(error)
        for state in self._links.values():
            for batch in state.outstanding:
                batch.fail(error)

    # ---- to the workers

    def _row_over(self, fill: Fill) -> None:
        self._queue.release(fill)
        if self._give_back_timer is None:
            self._give_back_timer = self._loop.call_later(GIVE_BACK_S, self._give_back)
        self._serve_backlog()

    def _serve_backlog(self) -> None:
        """A slab may have come free."""
        if self._queue.backlogged:
            self._pump_soon()

    def _go_on(self) -> None:
        self._pump()
        self._notice_idle()

    def _pump(self) -> None:
        self._pump_due = False
        self._queue.refill()
        while (state := least_loaded(self._links.values())) is not None:
            batch = self._queue.next_batch(len(state.outstanding))
            if isinstance(batch, Batch):
                self._send(batch, state)
                self._queue.refill()
                continue
            if isinstance(batch, WaitUntil):
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._loop.call_later(max(0, batch.at_ns - time.monotonic_ns()) / 1e9, self._pump)
            return

    def _send(self, batch: Batch, state: LinkState) -> None:
        link, fill = state.link, batch.fill
        batch.sequence, batch.sent_s = state.pushed, time.monotonic()
        try:
            if fill.parcels:
                for pending in batch.rows:
                    if pending is not None and pending.parcel is not None:
                        link.send_parcel(pending.parcel)
            command = Command(
                batch.sequence, fill.slab.index, batch.first, len(batch.rows), batch.out_at, batch.out_bytes
            )
            if not link.commands.try_push(command):
                raise RingCorrupt("the ring is full, which holds more entries than a worker may have outstanding")
            reach("command-pushed")
            link.bell.ring()
            reach("command-rung")
        except PeerGone:
            # It died a moment ago; the supervisor will say so. The batch was not started and goes to another worker.
            self._silence(state)
            self._queue.put_back(batch, was_sent=False)
            return
        except (ShmError, OSError) as error:
            self._condemn(state, error)
            self._queue.put_back(batch, was_sent=False)
            return
        state.pushed += 1
        if not state.outstanding:
            state.since_ns = time.monotonic_ns()
        state.outstanding.append(batch)
        self._queue.sent(batch)
        if state.timer is None and self.limits.response_timeout_s:
            state.timer = self._loop.call_later(self.limits.response_timeout_s, self._look, state)

    def _look(self, state: LinkState) -> None:
        """Has this worker executed one batch for longer than it may?"""
        state.timer = None
        if not state.outstanding or state.reported_stuck:
            return
        if state.left_s(self.limits.response_timeout_s, self.limits.front_ends) <= 0:
            self._on_bell(state)  # this process may have slept, and the answer be here
            if not state.outstanding or self._links.get(state.worker_id) is not state:
                return
        left_s = state.left_s(self.limits.response_timeout_s, self.limits.front_ends)
        if left_s > 0:
            # Soon enough for the next batch as well: before one is begun, more than its own time may be left.
            state.timer = self._loop.call_later(min(left_s, self.limits.response_timeout_s), self._look, state)
        else:
            state.reported_stuck = True
            self.on_stuck(state.worker_id)

    # ---- from the workers

    def _on_bell(self, state: LinkState) -> None:
        try:
            for _ in range(state.link.listener.collect() if state.believed else 0):
                self._heard(state, state.link.completions.take())
        except PeerGone:
            self._silence(state)
            self._loop.call_later(GONE_S_MAX, self._doubt, state.worker_id, state.number)
        except Exception as error:  # noqa: BLE001 - whatever it was, what the worker holds must be answered
            self._condemn(state, error)
        if state.on_detached is not None:
            self._notice_detached(state)
        self._go_on()

    def _condemn(self, state: LinkState, error: Exception) -> None:
        """A worker that breaks its ring cannot be believed any more: its death will answer what it holds."""
        logger.error(
            "worker %s of %s: %s", state.worker_id, self.label, error, exc_info=not isinstance(error, ShmError)
        )
        self._silence(state)
        state.believed = False
        self.on_stuck(state.worker_id)

    def _doubt(self, worker_id: str, number: int) -> None:
        """A link that closed while its process lives: nothing will ever be answered through it. Known by its number, for a
        clock that held the link would keep its memory and descriptors."""
        state = self._links.get(worker_id)
        if state is not None and state.number == number:
            self.on_stuck(worker_id)

    def _heard(self, state: LinkState, entry: Completion) -> None:
        if not state.outstanding or state.outstanding[0].sequence != entry.sequence:
            raise ShmError(f"completion of batch {entry.sequence}, which is not the oldest outstanding one")
        reach("completion-taken")
        if entry.status == STATUS_CHUNK:
            assert self._delivery is not None
            self._delivery.pass_on(state.outstanding[0], *state.open_frame(entry, self._silence))
        else:
            self._complete(state, entry)

    def _complete(self, state: LinkState, entry: Completion) -> None:
        assert self._delivery is not None
        overflow: Overflow | None = None
        failure: RingServeError | None = None
        if entry.status == STATUS_OVERFLOW:
            try:
                overflow = Overflow(state.link.receive_parcel())
            except OutOfSharedMemory as error:
                failure = OutOfResources(f"The answer does not fit into memory: {error}.")
        batch = state.outstanding.popleft()
        began_ns, state.since_ns = state.since_ns, time.monotonic_ns()
        state.reported_stuck = False
        self._drain.answered(batch.count, state.since_ns - began_ns)
        if self.meter is not None and entry.ended_ns:
            batch.times = self.meter.batch(batch.sent_s, entry, state.since_ns, batch.count)
        try:
            if failure is not None:
                batch.fail(failure)
            elif mismatched := self._delivery.deliver(batch, overflow):
                self.mismatched_replies += mismatched
                if self.meter is not None:
                    self.meter.mismatched += mismatched
                logger.error("%d answers of worker %s belong to no request of its batch", mismatched, state.worker_id)
        except Exception as error:
            logger.exception("an answer of %s could not be delivered", self.label)
            batch.fail(Internal(f"The answer could not be read: {error}."))
        finally:
            if overflow is not None:
                self._queue.want_out(batch.out_bytes + overflow.segment.size_bytes)
                overflow.drop()
            reach("batch-delivered")
            self._end(batch)

    def _end(self, batch: Batch) -> None:
        assert self._delivery is not None
        self._delivery.end(batch)

    def _give_back(self) -> None:
        """One look after another as long as there is something to give back; an idle server has none."""
        more = self._queue.give_back()
        self._give_back_timer = self._loop.call_later(GIVE_BACK_S, self._give_back) if more else None

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
        if state.timer is not None:
            state.timer.cancel()
        state.link.close()
        del self._links[state.worker_id]

    # ---- the end

    def _fail_waiting(self, error: RingServeError) -> None:
        self._queue.fail_all(error)
        self._notice_idle()

    @property
    def idle(self) -> bool:
        sent = any(state.outstanding for state in self._links.values())
        return self.waiting == 0 and not sent and not self.arrivals.awaited

    def _notice_idle(self) -> None:
        if self._on_idle is None:
            return
        if self.waiting and not self._links:
            self._queue.fail_all(NoWorker(f"{self.label} was unregistered"))
        if self.idle:
            callback, self._on_idle = self._on_idle, None
            for state in list(self._links.values()):
                self._drop(state)
            self._serviceable = False
            self._deadlines.close()
            if self._give_back_timer is not None:
                self._give_back_timer.cancel()
            self._queue.close_lane()
            callback()

"""A version with `useJobTicket`: a request is let in when there is a worker for it, and none waits behind another.

A place is a ticket. There are as many as workers, over all front ends, and one is given back when the request is answered, not when it
is sent. Who gets none is told at once.
"""

import math
import time
from collections.abc import Callable

from ringserve.protocol.errors import NoTicket
from ringserve.server.batching import BatchPolicy
from ringserve.server.control import Load
from ringserve.server.dispatch import Dispatcher
from ringserve.server.inflight import Batch, LinkState
from ringserve.server.slab_queue import SlabQueue
from ringserve.shm.link import FrontLink


class TicketQueue(SlabQueue):
    """Requests keep their places when they leave for a worker."""

    def sent(self, batch: Batch) -> None:
        """They come back with the answers."""

    def put_back(self, batch: Batch, *, was_sent: bool) -> None:
        """Those whose clients have gone meanwhile need no answer."""
        before = batch.count
        waiting = sum(1 for each in batch.rows if each is not None and not each.done())
        super().put_back(batch, was_sent=False)
        self._admission.leave(before - waiting)


class TicketDispatcher(Dispatcher):
    """Its capacity is its workers."""

    def _make_queue(self, policy: BatchPolicy) -> SlabQueue:
        self.admission.capacity = 0
        return TicketQueue(self.label, policy, self.admission)

    @property
    def load(self) -> Load:
        """When there is no ticket left, somebody would wait if they might."""
        load = super().load
        if self.admission.total >= self.admission.capacity:
            return load
        return Load(0, 0, load.answered, load.busy_ns)

    def _full(self) -> NoTicket:
        taken, workers = self.admission.total, self.admission.capacity
        after_s = math.ceil(self._drain.seconds_for(1, time.monotonic()))
        cause = f"{self.label} has {workers} workers and {taken} requests, useJobTicket is true"
        return NoTicket(cause, retry_after_s=after_s)

    def attach(self, worker_id: str, link: FrontLink) -> None:
        super().attach(worker_id, link)
        self._count_workers()

    def detach(self, worker_id: str, on_detached: Callable[[], None]) -> None:
        super().detach(worker_id, on_detached)
        self._count_workers()

    def _silence(self, state: LinkState) -> None:
        super()._silence(state)
        self._count_workers()

    def _count_workers(self) -> None:
        takers = [each for each in self._links.values() if each.alive and each.on_detached is None]
        self.admission.capacity = len(takers)

    def _end(self, batch: Batch) -> None:
        self.admission.leave(batch.count)
        super()._end(batch)

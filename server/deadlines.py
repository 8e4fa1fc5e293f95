"""When requests have waited long enough: one timer for all of a version's deadlines."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable

from ringserve.server.inflight import Pending

# A heap of answered requests is thrown away from time to time: most deadlines are never reached.
SWEEP_MIN = 1024


class Deadlines:
    """Calls `on_due(pending)` when a deadline that it was told of has passed and the request is not answered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[Pending], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._heap: list[tuple[int, int, Pending]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_ns = 0
        self._sweep_at = SWEEP_MIN

    def watch(self, pending: Pending, at_ns: int) -> None:
        heapq.heappush(self._heap, (at_ns, next(self._numbers), pending))
        if len(self._heap) >= self._sweep_at:
            self._heap = [entry for entry in self._heap if not entry[2].done()]
            heapq.heapify(self._heap)
            self._sweep_at = max(SWEEP_MIN, 2 * len(self._heap))
        if self._timer is None or at_ns < self._armed_ns:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap and self._heap[0][2].done():
            heapq.heappop(self._heap)
        if self._heap:
            self._armed_ns = self._heap[0][0]
            # uvloop's timers count whole milliseconds: one too few would fire before the deadline, again and again.
            delay_s = max(0, self._armed_ns - time.monotonic_ns()) / 1e9 + 0.001
            self._timer = self._loop.call_later(delay_s, self._strike)

    def _strike(self) -> None:
        self._timer = None
        now_ns = time.monotonic_ns()
        while self._heap and self._heap[0][0] <= now_ns:
            pending = heapq.heappop(self._heap)[2]
            if not pending.done():
                self._on_due(pending)
        self._arm()

    def close(self) -> None:
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

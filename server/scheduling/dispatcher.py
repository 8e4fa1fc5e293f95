"""One version in this front end whose requests have priorities, timeouts, preferred batch sizes or a delay, as Triton's configuration
says. All else is as for any version.
"""

import time

from ringserve.protocol.errors import QueueFull, QueueTimeout
from ringserve.protocol.request import InferRequest
from ringserve.server.batching import BatchPolicy
from ringserve.server.dispatch import Dispatcher
from ringserve.server.inflight import Pending, has_begun
from ringserve.server.limits import Limits
from ringserve.server.open_inference.errors import request_mark
from ringserve.server.scheduling.ordering import InOrder
from ringserve.server.scheduling.queue import EXPIRED, FULL, ScheduledQueue
from ringserve.server.scheduling.rules import Scheduling
from ringserve.shm.spool import Spool


class ScheduledDispatcher(Dispatcher):
    """By `rules`, in place of the policy's."""

    def __init__(self, label: str, policy: BatchPolicy, limits: Limits, rules: Scheduling) -> None:
        self.rules = rules
        super().__init__(label, policy, limits)
        self._scheduled.on_wait = self._deadlines.watch
        self._in_order = InOrder(self._loop) if rules.preserve_ordering else None

    def reschedule(self, rules: Scheduling, rows_max: int) -> None:
        """The model itself may complete its configuration when it is loaded: what that says then holds from here on."""
        if rules != self.rules:
            self.rules = rules
            self._scheduled.reschedule(rules, rows_max)

    def _make_queue(self, policy: BatchPolicy) -> ScheduledQueue:
        self._scheduled = ScheduledQueue(self.label, policy, self.admission, self.rules)
        return self._scheduled

    def submit(self, request: InferRequest, spool: Spool | None = None) -> Pending:
        """As for any version; the line of the request's priority may be full besides."""
        if self._scheduled.is_full(request) and not self._has_room_after_pump(request):
            if spool is not None:
                spool.close()
            raise QueueFull(f"{request_mark(request.request_id)}{FULL}", retry_after_s=self._full().retry_after_s)
        pending = super().submit(request, spool)
        return pending if self._in_order is None else self._in_order.behind(pending)

    def _has_room_after_pump(self, request: InferRequest) -> bool:
        """What came in this tick of the loop may leave before somebody is refused: workers may have room for it."""
        if not self._pump_due:
            return False
        self._pump()
        return not self._scheduled.is_full(request)

    def _expire(self, pending: Pending) -> None:
        """Its time in the line is over, or one of its deadlines has passed. Behind the batch of another front end it still waits."""
        now_ns = time.monotonic_ns()
        self._scheduled.expire(now_ns)
        if not pending.done() and 0 < pending.expires_ns <= now_ns and not has_begun(self._links.values(), pending):
            self._forsaken(pending)
            pending.fail(QueueTimeout(EXPIRED))
        if not pending.done() and (0 < pending.deadline_ns <= now_ns or 0 < pending.wait_until_ns <= now_ns):
            super()._expire(pending)
        self._pump_soon()
        self._notice_idle()

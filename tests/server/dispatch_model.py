"""What may come of one request, told without a dispatcher: what the machine of test_dispatch_machine.py compares with."""

import asyncio
from typing import TYPE_CHECKING

from ringserve.protocol.errors import DeadlineExceeded, NoWorker, PredictionFailed, WorkerLost
from ringserve.protocol.request import Answer, Source
from ringserve.server.inflight import Fill, Pending
from ringserve.server.landing import Landing
from ringserve.server.scheduling.rules import QueuePolicy, Scheduling

if TYPE_CHECKING:
    from tests.server.conftest import Clock

QUEUE_TIMEOUT_MS = 1000
ROWS = 3
# A machine is typed or not, fills batches for so long, and has rules for them: none, pairs, one at a time to idle workers, alone.
KINDS = [
    (False, 0, None),
    (True, 0, None),
    (False, 400_000_000, None),
    (True, 300_000_000, Scheduling(ROWS, batches=True, preferred_batch_sizes=(2,), queue_delay_us_max=300_000)),
    (False, 0, Scheduling(ROWS, batches=True, default_policy=QueuePolicy(overridable=True))),
    (True, 0, Scheduling(ROWS)),
]
# The dispatcher's timer allows itself as much, and a number of seconds rounds.
SLACK_NS = 1_000_100
RAISES = 0xEE


class Request:
    """One request from its client's side, and what is known of it from the workers' side."""

    def __init__(self, body: bytes, timeout_ms: int, now_ns: int, *, binary: bool) -> None:
        self.body = body
        self.binary = binary
        self.raises = RAISES in body
        self.landing: Landing | None = None
        self.arrived = 0  # bytes of the body
        self.pending: Pending | None = None  # since it is in the queue
        self.outcomes = 0
        self.done_ns = 0
        self.left = False  # the client is gone
        self.turned_away = False  # there was nobody to wait for
        self.taken_by: str | None = None  # the worker whose batch it is in
        self.worker: str | None = None  # that one, if it computes it
        self.begun_ns = 0
        self.streamed = b""
        self.source: Source | None = None  # until it is read
        self._seen = False
        self.fill: Fill | None = None  # the slab that it was seen in last
        self._parts: list[bytes | memoryview] = []
        self.deadline_ns = now_ns + timeout_ms * 1_000_000 if timeout_ms else 0
        self.arrive(now_ns)

    def arrive(self, now_ns: int) -> None:
        """It begins to wait for a worker; its client has waited since the head came."""
        self._queued_ns = now_ns
        self._wait_until_ns = now_ns + QUEUE_TIMEOUT_MS * 1_000_000

    def enter(self, pending: Pending, clock: "Clock") -> None:
        """It is in the queue."""
        self.pending = pending

        def over(future: "asyncio.Future[Answer]") -> None:
            self.outcomes += 1
            self.done_ns = clock.now_ns

        pending.add_done_callback(over)

    def look(self) -> None:
        """Note where it is, and take the answer up."""
        if self.pending is not None and self.pending.fill is not None:
            self.fill = self.pending.fill
        if self._seen or self.pending is None or not self.pending.done():
            return
        self._seen = True
        if not self.pending.cancelled() and self.pending.exception() is None:
            self.source = self.pending.result().source

    def read(self, buried: set[str], *, typed: bool) -> None:
        """A part. At the end everything is compared, which was not copied before, and let go."""
        assert self.source is not None
        part = self.source.next()
        if part is not None:
            self._parts.append(part)
        elif self.source.ended:
            found = b"".join(self._parts)
            if self.source.broken:
                assert self.raises or self.worker in buried
                assert self.streamed.startswith(found)
            else:
                assert found == self.answer(typed=typed)
            self.stop_reading()

    def stop_reading(self) -> None:
        """To the end, or not."""
        source, self.source = self.source, None
        self._parts.clear()
        assert source is not None
        source.close()

    @property
    def waits(self) -> bool:
        """For its answer."""
        return self.pending is not None and not self.pending.done()

    def answer(self, *, typed: bool) -> bytes:
        inverted = bytes(255 - byte for byte in self.body)
        if not typed:
            return self.streamed + b"answer to " + self.body
        return inverted if self.binary else b"[%b]" % b",".join(b"%d" % byte for byte in inverted)

    def must_be_over(self, now_ns: int) -> bool:
        if self.deadline_ns > 0 and max(self.deadline_ns, self._queued_ns) + SLACK_NS <= now_ns:
            return True
        return not self.begun_ns and self._wait_until_ns + SLACK_NS <= now_ns

    def deserves(self, error: BaseException, buried: set[str]) -> bool:
        """Whether it may have ended with this; `buried` are the workers that died."""
        if isinstance(error, DeadlineExceeded):
            return self._may_be_over()
        if isinstance(error, NoWorker):
            return self.turned_away
        if isinstance(error, WorkerLost):
            return self.taken_by in buried
        return isinstance(error, PredictionFailed) and self.raises and self.worker is not None

    def _may_be_over(self) -> bool:
        """When it was told so: of waiting it had enough only as long as no worker had begun."""
        if 0 < self.deadline_ns <= self.done_ns:
            return True
        return self._wait_until_ns <= self.done_ns and not 0 < self.begun_ns <= self._wait_until_ns

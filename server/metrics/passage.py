"""One prediction on the long way through a front end, for the meter of its version: it ends in one of three ways, and is counted
once whichever comes first."""

from time import monotonic

from ringserve.server.inflight import Pending
from ringserve.server.metrics.meter import Meter


class Passage:
    """From the head of a request to the last byte of its answer."""

    __slots__ = ("_complete_s", "_meter", "_named", "_pending", "arrived_s")

    def __init__(self, arrived_s: float) -> None:
        self.arrived_s = self._complete_s = arrived_s
        self._meter: Meter | None = None
        self._named = False
        self._pending: Pending | None = None

    def begin(self, meter: Meter | None, *, named: bool) -> None:
        """Its version is found. What ends before that is no version's."""
        self._meter, self._named = meter, named

    def enter(self, pending: Pending) -> Pending:
        """Its body is complete; it waits for its answer now."""
        self._complete_s, self._pending = monotonic(), pending
        return pending

    @property
    def entered(self) -> bool:
        """Whether it waits, or has waited, for an answer."""
        return self._pending is not None

    def end(self, written_s: float, reason: str = "") -> None:
        """Its answer is written, which is a refusal when there is a reason."""
        meter, self._meter = self._meter, None
        if meter is None:
            return
        times = None if self._pending is None else self._pending.times
        meter.ended(times, self.arrived_s, self._complete_s, written_s, named=self._named, reason=reason)

    def miss(self, reason: str) -> None:
        """Nobody has its whole answer."""
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.failed(reason, named=self._named, took_s=monotonic() - self.arrived_s)

"""How fast a version answers, for telling a refused client when to come back, and how busy its workers are with that."""

import math

# The rate is that of the last period and what has passed of the present one.
PERIOD_S = 2.0
# The clock is read only when somebody is refused. What was answered in a longer time than this without refusals was as much as
# came, and not as much as could be.
PERIOD_S_MAX = 10.0
RETRY_S_MIN, RETRY_S_MAX = 1.0, 60.0


class DrainRate:
    """Counts answers; looks at the clock only when it is asked. Times are seconds of a monotonic clock. `total` rows were ever
    answered, and kept workers busy for `busy_ns`."""

    __slots__ = ("_answered", "_began_s", "_per_s", "busy_ns", "total")

    def __init__(self, now_s: float) -> None:
        self._answered = 0
        self._began_s = now_s
        self._per_s = 0.0
        self.total = self.busy_ns = 0

    def answered(self, count: int, took_ns: int = 0) -> None:
        self._answered += count
        self.total += count
        self.busy_ns += took_ns

    def seconds_for(self, waiting: int, now_s: float) -> float:
        """How long so many need at the present rate, from 1 to 60 s; 1 where there is none to go by."""
        passed_s = now_s - self._began_s
        if passed_s >= PERIOD_S:
            self._per_s = self._answered / passed_s if passed_s <= PERIOD_S_MAX else 0.0
            self._answered, self._began_s = 0, now_s
        rate = self._per_s or (self._answered / passed_s if passed_s > 0 else 0.0)
        return min(max(waiting / rate, RETRY_S_MIN), RETRY_S_MAX) if rate else RETRY_S_MIN


def seconds_until(probe_at_ns: int, now_ns: int) -> int | None:
    """When a worker will be tried next, from 1 to 60 s; None where nobody knows (0). Once that time has come, it may be there any
    moment."""
    if not probe_at_ns:
        return None
    return math.ceil(min(max((probe_at_ns - now_ns) / 1e9, RETRY_S_MIN), RETRY_S_MAX))

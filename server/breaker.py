"""When the workers of a version may be started: at once, after a pause, or one at a time. Pure: the time comes in.

    closed ──3 failures in a row──▶ open ──the pause is over──▶ half-open: one worker probes, the others wait
      ▲                              ▲                             │
      └── a probe loads, or proves ──┼─────────────────────────────┤
          itself                     └────────── it fails ─────────┘   the next pause is twice as long, up to a minute

A failure is a start that came to nothing, or the life of a process that loaded, took its first batch and died of it. A process
that answers a batch, or lives for a while, has proved itself. The breaker never gives up.

Attempts are counted over the whole version, however many workers it has: of 64 workers of a model that cannot load, only the
first few are tried at once, and there are at most eight failed attempts a minute.
"""

import math
import sys
from collections import deque

from ringserve.server.lifecycle import FAILURES_TOLERATED, retry_delay_s

# A process that has lived this long after it was ready does not count as a failure when it dies.
PROVEN_S = 10.0
ATTEMPTS_MAX = 8  # that fail, in any
ATTEMPTS_WINDOW_S = 60.0
# Without a load in the last minute, and none that failed since, so many are tried at once; the others follow the first success.
UNDER_WAY_MAX = 4


class Breaker:
    """Of one version. Times are seconds of a monotonic clock."""

    __slots__ = (
        "_failed_s",
        "_last_load_s",
        "_needs_proof",
        "_not_before_s",
        "_round_s",
        "_rounds",
        "failures",
        "is_open",
    )

    def __init__(self) -> None:
        self.failures = 0  # in a row, of whichever worker
        self.is_open = False
        self._rounds = (
            0  # failures of processes that were under way at the same time say the same thing: they count once
        )
        self._round_s = -math.inf
        self._not_before_s = -math.inf
        self._needs_proof = False  # that a process loads proves nothing where loaded ones die
        self._last_load_s = -math.inf
        self._failed_s: deque[float] = deque(maxlen=ATTEMPTS_MAX)  # when the last attempts failed

    # ---- what happened

    def loaded(self, now_s: float) -> None:
        """A process is ready."""
        self._last_load_s = now_s
        if not self._needs_proof:
            self._close()

    def proved(self) -> None:
        """A process has answered, or lived for a while. Where others cannot load, that says nothing new."""
        if self._needs_proof:
            self._close()

    def start_failed(self, now_s: float, began_s: float, jitter: float) -> None:
        """A process that began at `began_s` did not become ready."""
        self._failed_s.append(now_s)
        self._last_load_s = -math.inf
        self._failed(now_s, began_s)
        self._pause(now_s, jitter)
        self.is_open = self.is_open or self.failures >= FAILURES_TOLERATED

    def died_idle(self, now_s: float, began_s: float, jitter: float) -> None:
        """A process was ready, and died by itself before it had anything to do."""
        self.start_failed(now_s, began_s, jitter)
        self._needs_proof = True

    def died_young(self, now_s: float, began_s: float, jitter: float) -> None:
        """A process was ready, took a batch, and died before it had answered any. A few times its request may be to blame."""
        self._failed(now_s, began_s)
        self._needs_proof = True
        if self.is_open or self.failures > FAILURES_TOLERATED:
            self.is_open = True
            self._pause(now_s, jitter)
        else:
            self._rounds = 0

    def _failed(self, now_s: float, began_s: float) -> None:
        self.failures += 1
        if began_s > self._round_s:
            self._rounds += 1
            self._round_s = now_s

    def _pause(self, now_s: float, jitter: float) -> None:
        self._not_before_s = max(self._not_before_s, now_s + retry_delay_s(max(1, self._rounds), jitter))

    def _close(self) -> None:
        self.failures = self._rounds = 0
        self.is_open = self._needs_proof = False
        self._not_before_s = self._round_s = -math.inf

    # ---- what may happen

    def next_start_s(self) -> float:
        """The earliest time of the next start; as far as time alone decides."""
        if len(self._failed_s) < ATTEMPTS_MAX:
            return self._not_before_s
        return max(self._not_before_s, min(self._failed_s) + ATTEMPTS_WINDOW_S)

    def starts_allowed(self, now_s: float, under_way: int) -> int:
        """How many processes may be started now, while `under_way` others have not come out yet."""
        if now_s < self.next_start_s():
            return 0
        if self.is_open:
            return max(0, 1 - under_way)
        if now_s - self._last_load_s < ATTEMPTS_WINDOW_S:
            return sys.maxsize
        # Added as above, not subtracted: rounding must not make this later than next_start_s says.
        failed = sum(failed_s + ATTEMPTS_WINDOW_S > now_s for failed_s in self._failed_s)
        return max(0, min(UNDER_WAY_MAX, ATTEMPTS_MAX - failed) - under_way)

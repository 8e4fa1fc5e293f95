"""What a handler emits, between two messages to the supervisor.

A handler may emit thousands of values a second, so one costs it an entry in a queue: they are added up many at a time, and told several
times a second. Nothing here waits for the supervisor: what one that does not listen has not taken yet is added up further, and the
single values, which the log of metrics has, are kept up to a bound. What goes beyond is counted, and said.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Sequence

from ringserve.backends.ts.metrics.wire import metric_line, print_line
from ringserve.server.channel import Channel, ControlClosed, ControlFull
from ringserve.server.metrics.listing import Emission, Emitted, MetricPlan, Series

PERIOD_S = 0.2
# Between two messages.
SERIES_MAX = 2000
LINES_MAX = 2000
LINES_BYTES_MAX = 1 << 20
QUEUE_MAX = 4096  # then they are added up, whoever has just added one
# Of a name, a unit, the name of a dimension or its value.
TEXT_CHARS_MAX = 512
UNLISTED_MAX = 500

Dimensions = Sequence[tuple[str, str]]


class Recorder:
    """Takes the values of one name with one set of dimensions, for as long as whoever has it likes."""

    __slots__ = ("_emissions", "at", "fresh", "series")

    def __init__(self, emissions: "Emissions", series: Series) -> None:
        self._emissions = emissions
        self.fresh = series  # of what it is, without a value
        self.series = series
        self.at = -1  # its place in the next message, where it has one

    def record(self, value: float, request_ids: str) -> None:
        """One value. Neither waits nor raises."""
        emissions = self._emissions
        queue = emissions.queue
        if not queue:
            emissions.wake()
        queue.append((self, value, request_ids, time.time()))
        if len(queue) > QUEUE_MAX:
            emissions.add_up()


class _Printing(deque[tuple[Recorder, float, str, float]]):
    """In place of the queue, in a process that the model has forked: what nobody sends, the supervisor reads as lines."""

    def append(self, value: tuple[Recorder, float, str, float]) -> None:
        """Print it; the queue stays empty."""
        recorder, number, request_ids, at_s = value
        fresh = recorder.fresh
        print_line(metric_line(fresh.name, fresh.unit, number, fresh.dimensions, fresh.kind.upper(), request_ids, at_s))


class _Nothing(Recorder):
    """For what is not reported."""

    __slots__ = ()

    def record(self, value: float, request_ids: str) -> None:
        pass


class Emissions:
    """Takes what a handler reports, in any thread of its process. `wake_fd` is readable when there is something to send that a thread
    has reported which is not the one that sends."""

    def __init__(self, plan: MetricPlan) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.queue: deque[tuple[Recorder, float, str, float]] = deque()  # what, for which requests, and when
        self._plan = plan
        self._kinds = {each.name: each.kind for each in plan.listed}
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._recorders: dict[tuple[str, str, tuple[tuple[str, str], ...]], Recorder] = {}
        self._nothing = _Nothing(self, Series("", "", "", ()))
        self._changed: list[Recorder] = []  # since the last message
        self._lines: list[Emission] = []
        self._lines_bytes = 0
        self._dropped_values = self._dropped_lines = 0
        self._unlisted: set[str] = set()  # ever
        self._news: list[str] = []  # of those, the ones that nobody was told of
        self._unsent: Emitted | None = None  # the supervisor had no room for it
        self._next_s = 0.0
        os.register_at_fork(after_in_child=self._print_from_now_on)

    def _print_from_now_on(self) -> None:
        self._lock, self.queue = threading.Lock(), _Printing()

    # ---- any thread

    def recorder(self, name: str, unit: str, kind: str, dimensions: Dimensions) -> Recorder:
        """Who takes the values of that name with these dimensions."""
        key = (name, kind, tuple(dimensions))
        found = self._recorders.get(key)
        if found is not None:
            return found
        with self._lock:
            listed = self._kinds.get(name)
            if listed is None and not self._plan.every:
                self._refuse(name)
                return self._nothing
            pairs = tuple((_text(each), _text(text)) for each, text in dimensions)
            found = Recorder(self, Series(_text(name), listed or kind.lower(), _text(unit), pairs))
            if len(self._recorders) < SERIES_MAX:
                self._recorders[key] = found
        return found

    def wake(self) -> None:
        """Something comes into an empty queue."""
        if threading.get_ident() != self._thread:
            os.eventfd_write(self.wake_fd, 1)

    def add_up(self) -> None:
        """Empty the queue. Of several threads one does."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._add_up()
        finally:
            self._lock.release()

    def _add_up(self) -> None:
        queue, changed, wants_lines = self.queue, self._changed, self._plan.lines
        while queue:
            recorder, value, request_ids, at_s = queue.popleft()
            if recorder.at < 0:
                if len(changed) >= SERIES_MAX:
                    self._dropped_values += 1
                    continue
                fresh = recorder.fresh
                recorder.series = Series(fresh.name, fresh.kind, fresh.unit, fresh.dimensions)
                recorder.at = len(changed)
                changed.append(recorder)
            if not recorder.series.add(value):  # a counter, which was emitted as something else
                self._dropped_values += 1
                continue
            if wants_lines:
                self._lines_bytes += len(request_ids) + 40
                if len(self._lines) < LINES_MAX and self._lines_bytes < LINES_BYTES_MAX:
                    self._lines.append(Emission(recorder.at, value, int(at_s), request_ids))
                else:
                    self._dropped_lines += 1

    def _refuse(self, name: str) -> None:
        if name not in self._unlisted and len(self._unlisted) < UNLISTED_MAX:
            self._unlisted.add(name)
            self._news.append(_text(name))
            self.wake()

    # ---- the thread that sends

    def woken(self) -> None:
        """Not again until something else is reported."""
        os.eventfd_read(self.wake_fd)

    @property
    def pending(self) -> bool:
        """Whether there is something that the supervisor does not know."""
        return bool(self.queue or self._changed or self._unsent or self._news)

    def wait_ms(self) -> int | None:
        """How long the thread may wait for other things; None: as long as it likes."""
        if not self.pending:
            return None
        return max(0, int((self._next_s - time.monotonic()) * 1000) + 1)

    def flush(self, channel: Channel, *, at_once: bool = False) -> None:
        """Tell the supervisor, if it is time."""
        if not self.pending:
            return
        now_s = time.monotonic()
        if now_s < self._next_s and not at_once:
            return
        self._next_s = now_s + PERIOD_S
        if self._unsent is None:
            self._unsent = self._taken()
        elif self.queue:
            self.add_up()
        try:
            channel.send(self._unsent, wait=False)
        except ControlFull:
            return
        except ControlClosed:
            pass  # there is nobody to tell
        self._unsent = None

    def _taken(self) -> Emitted:
        with self._lock:
            self._add_up()
            series = tuple(each.series for each in self._changed)
            taken = Emitted(series, tuple(self._lines), tuple(self._news), self._dropped_values, self._dropped_lines)
            for each in self._changed:
                each.at = -1
            self._changed, self._lines, self._news = [], [], []
            self._lines_bytes = self._dropped_values = self._dropped_lines = 0
            if len(self._recorders) >= SERIES_MAX:  # of values that may never come again
                self._recorders = {}
        return taken


def _text(text: str) -> str:
    """What every message can carry."""
    return text[:TEXT_CHARS_MAX].encode("utf-8", "replace").decode()

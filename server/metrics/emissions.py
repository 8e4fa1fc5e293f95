"""What a handler emits, between two messages to the supervisor.

A handler may emit thousands of values a second, and a value must not cost it a system call. So they are added up here, and told
several times a second. Nothing here waits for the supervisor: what one that does not listen has not taken yet is added up further,
and the single values, which the log of metrics has, are kept up to a bound. What goes beyond is counted, and said.
"""

import os
import threading
import time
from collections.abc import Sequence

from ringserve.server.control import Channel, ControlClosed, ControlFull
from ringserve.server.metrics.listing import Emission, Emitted, MetricPlan, Series

PERIOD_S = 0.2
# Between two messages.
SERIES_MAX = 2000
LINES_MAX = 2000
LINES_BYTES_MAX = 1 << 20
# Of a name, a unit, the name of a dimension or its value.
TEXT_CHARS_MAX = 512
UNLISTED_MAX = 500

Dimensions = Sequence[tuple[str, str]]


class Emissions:
    """Takes what a handler reports, in any thread of its process. `wake_fd` is readable when there is something to send that a thread
    has reported which is not the one that sends."""

    def __init__(self, plan: MetricPlan) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._plan = plan
        self._kinds = {each.name: each.kind for each in plan.listed}
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str, tuple[tuple[str, str], ...]], tuple[int, Series]] = {}
        self._lines: list[Emission] = []
        self._lines_bytes = 0
        self._dropped_values = self._dropped_lines = 0
        self._unlisted: set[str] = set()  # ever
        self._news: list[str] = []  # of those, the ones that nobody was told of
        self._unsent: Emitted | None = None  # the supervisor had no room for it
        self._next_s = 0.0

    def report(self, name: str, unit: str, kind: str, dimensions: Dimensions, value: float, request_ids: str) -> None:
        """One value. Neither waits nor raises."""
        with self._lock:
            idle = not self.pending
            self._add(name, unit, kind, dimensions, value, request_ids)
        if idle and threading.get_ident() != self._thread:
            os.eventfd_write(self.wake_fd, 1)

    def woken(self) -> None:
        """Not again until something else is reported."""
        os.eventfd_read(self.wake_fd)

    @property
    def pending(self) -> bool:
        """Whether there is something that the supervisor does not know."""
        return bool(self._series or self._unsent or self._news or self._dropped_values)

    def wait_ms(self) -> int | None:
        """How long whoever sends may wait for other things; None: as long as it likes."""
        if not self.pending:
            return None
        return max(0, int((self._next_s - time.monotonic()) * 1000) + 1)

    def flush(self, channel: Channel, *, at_once: bool = False) -> None:
        """Tell the supervisor, if it is time. Only one thread does."""
        if not self.pending:
            return
        now_s = time.monotonic()
        if now_s < self._next_s and not at_once:
            return
        self._next_s = now_s + PERIOD_S
        if self._unsent is None:
            self._unsent = self._taken()
        try:
            channel.send(self._unsent, wait=False)
        except ControlFull:
            return
        except ControlClosed:
            pass  # there is nobody to tell
        self._unsent = None

    def _taken(self) -> Emitted:
        with self._lock:
            series = tuple(each for _, each in self._series.values())
            taken = Emitted(series, tuple(self._lines), tuple(self._news), self._dropped_values, self._dropped_lines)
            self._series, self._lines, self._news = {}, [], []
            self._lines_bytes = self._dropped_values = self._dropped_lines = 0
        return taken

    def _add(self, name: str, unit: str, kind: str, dimensions: Dimensions, value: float, request_ids: str) -> None:
        key = (name, kind, tuple(dimensions))
        found = self._series.get(key)
        if found is None:
            listed = self._kinds.get(name)
            if listed is None and not self._plan.every:
                self._refuse(name)
                return
            if len(self._series) >= SERIES_MAX:
                self._dropped_values += 1
                return
            pairs = tuple((_text(each), _text(text)) for each, text in dimensions)
            found = (len(self._series), Series(_text(name), listed or kind.lower(), _text(unit), pairs))
            self._series[key] = found
        at, series = found
        if series.kind == "counter" and value < 0:  # listed as one, and emitted as something else
            self._dropped_values += 1
            return
        series.add(value)
        if self._plan.lines:
            self._lines_bytes += len(request_ids) + 40
            if len(self._lines) < LINES_MAX and self._lines_bytes < LINES_BYTES_MAX:
                self._lines.append(Emission(at, value, int(time.time()), request_ids))
            else:
                self._dropped_lines += 1

    def _refuse(self, name: str) -> None:
        if name not in self._unlisted and len(self._unlisted) < UNLISTED_MAX:
            self._unlisted.add(name)
            self._news.append(_text(name))


def _text(text: str) -> str:
    """What every message can carry."""
    return text[:TEXT_CHARS_MAX].encode("utf-8", "replace").decode()

"""Where the metrics of a handler go.

A worker collects them (`collect_in`) and tells the server several at a time. Anywhere else, in the unit test of a handler say, each
is printed as the line that TorchServe's worker prints.
"""

import time
from collections.abc import Sequence
from typing import Protocol

from ringserve.backends.ts.metrics.wire import metric_line, print_line


class Sink(Protocol):
    """Takes every value that a handler reports. Called by any thread, in the middle of a prediction: it neither waits nor raises."""

    def report(
        self, name: str, unit: str, kind: str, dimensions: Sequence[tuple[str, str]], value: float, request_ids: str
    ) -> None: ...


class Printed:
    """To stdout."""

    def report(
        self, name: str, unit: str, kind: str, dimensions: Sequence[tuple[str, str]], value: float, request_ids: str
    ) -> None:
        print_line(metric_line(name, unit, value, dimensions, kind, request_ids, time.time()))


_sink: Sink = Printed()


def collect_in(sink: Sink) -> None:
    """From now on, in this process."""
    global _sink
    _sink = sink


def current() -> Sink:
    return _sink

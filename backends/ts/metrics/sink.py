"""Where the metrics of a handler go.

A worker collects them (`collect_in`) and tells the server several at a time. Anywhere else, in the unit test of a handler say, each
is printed as the line that TorchServe's worker prints.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ringserve.backends.ts.metrics.wire import metric_line, print_line

Dimensions = Sequence[tuple[str, str]]


class Recorder(Protocol):
    """Takes the values of one name with one set of dimensions. Called by any thread, in the middle of a prediction: it neither waits nor
    raises."""

    def record(self, value: float, request_ids: str) -> None: ...


class Sink(Protocol):
    """Has a recorder for whatever is reported."""

    def recorder(self, name: str, unit: str, kind: str, dimensions: Dimensions) -> Recorder: ...


class PrintingRecorder(NamedTuple):
    """To stdout."""

    name: str
    unit: str
    kind: str
    dimensions: Dimensions

    def record(self, value: float, request_ids: str) -> None:
        print_line(metric_line(self.name, self.unit, value, self.dimensions, self.kind, request_ids, time.time()))


class Printed:
    """Every value as a line."""

    def recorder(self, name: str, unit: str, kind: str, dimensions: Dimensions) -> Recorder:
        return PrintingRecorder(name, unit, kind, dimensions)


_sink: Sink = Printed()


def collect_in(sink: Sink) -> None:
    """From now on, in this process."""
    global _sink
    _sink = sink


def current() -> Sink:
    return _sink

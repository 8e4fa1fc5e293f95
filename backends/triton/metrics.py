"""`pb_utils.MetricFamily` and its metrics, which go where those of handlers go.

As with those, the server reports the names that its metrics file lists, or all with `model_metrics_auto_detect` (docs/metrics.md).
"""

import math
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import ClassVar

from ringserve.backends.triton.errors import TritonModelException
from ringserve.backends.ts.metrics.sink import current


class MetricKind(Enum):
    """The numbers are those of Triton's own enum."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


class Metric:
    """One series of a family. Its methods may be called from any thread."""

    def __init__(self, family: "MetricFamily", labels: Mapping[str, str]) -> None:
        self._kind = family.kind
        dimensions = tuple((str(name), str(value)) for name, value in labels.items())
        self._recorder = current().recorder(family.name, "", family.kind.name, dimensions)
        self._value = 0.0
        self._lock = threading.Lock()

    def increment(self, value: float) -> None:
        """Raises `TritonModelException` for a histogram, and for a counter that would shrink."""
        self._refuse(MetricKind.HISTOGRAM, "increment")
        number = _finite(value)
        if self._kind is MetricKind.COUNTER and number < 0:
            raise TritonModelException(f"A counter can only grow: increment({number}).")
        with self._lock:
            self._value += number
            said = number if self._kind is MetricKind.COUNTER else self._value
        self._recorder.record(said, "")

    def set(self, value: float) -> None:
        """Raises `TritonModelException` unless it is a gauge."""
        for kind in (MetricKind.COUNTER, MetricKind.HISTOGRAM):
            self._refuse(kind, "set")
        with self._lock:
            self._value = _finite(value)
        self._recorder.record(self._value, "")

    def observe(self, value: float) -> None:
        """Raises `TritonModelException` unless it is a histogram."""
        for kind in (MetricKind.COUNTER, MetricKind.GAUGE):
            self._refuse(kind, "observe")
        self._recorder.record(_finite(value), "")

    def value(self) -> float:
        """What this worker has made of it; other workers of the model have values of their own."""
        self._refuse(MetricKind.HISTOGRAM, "value")
        return self._value

    def _refuse(self, kind: MetricKind, method: str) -> None:
        if self._kind is kind:
            raise TritonModelException(f"A metric of the kind {kind.name} has no {method}().")


class MetricFamily:
    """`MetricFamily(name, description, kind)`, with kind one of COUNTER, GAUGE and HISTOGRAM."""

    COUNTER: ClassVar = MetricKind.COUNTER
    GAUGE: ClassVar = MetricKind.GAUGE
    HISTOGRAM: ClassVar = MetricKind.HISTOGRAM

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        """The description is the metrics file's to give. Raises `TypeError` for a kind that is none of this class'."""
        if not isinstance(kind, MetricKind):
            raise TypeError(f"kind must be MetricFamily.COUNTER, GAUGE or HISTOGRAM, got {kind!r}.")
        self.name = name
        self.description = description
        self.kind = kind

    def Metric(self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None) -> Metric:
        """One series of it. The buckets of a histogram are the server's."""
        return Metric(self, labels or {})


def _finite(value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise TritonModelException(f"A metric needs a finite number, got {number}.")
    return number

"""Which metrics of handlers are reported, and what a worker says of those that its handler has emitted."""

from bisect import bisect_left

import msgspec

# TorchServe's (contract section 3.1); one more bucket is for what lies above.
HISTOGRAM_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
KINDS = ("counter", "gauge", "histogram")


class ListedMetric(msgspec.Struct, frozen=True, array_like=True):
    """One entry of metrics.yaml."""

    name: str
    kind: str
    unit: str
    dimensions: tuple[str, ...]


class MetricPlan(msgspec.Struct, frozen=True, array_like=True):
    """What a worker is to tell of. `every`: also what is not listed. `lines`: every single value, for the log of metrics."""

    listed: tuple[ListedMetric, ...] = ()
    every: bool = False
    lines: bool = False


class Series(msgspec.Struct, array_like=True):
    """What a handler has emitted under one name with one set of dimensions. The value is the sum for a counter and a histogram, the
    last one for a gauge; `buckets` are a histogram's counts, one more than there are bounds."""

    name: str
    kind: str
    unit: str
    dimensions: tuple[tuple[str, str], ...]
    value: float = 0.0
    buckets: list[int] = []

    def add(self, value: float) -> bool:
        """False for a value that a counter cannot take."""
        kind = self.kind
        if kind == "gauge":
            self.value = value
            return True
        if kind == "counter":
            if value < 0:
                return False
            self.value += value
        else:
            self.value += value
            if not self.buckets:
                self.buckets = [0] * (len(HISTOGRAM_BOUNDS) + 1)
            self.buckets[bisect_left(HISTOGRAM_BOUNDS, value)] += 1
        return True


class Emission(msgspec.Struct, frozen=True, array_like=True):
    """One value of the series at that place, when it was emitted (seconds since 1970), and for which requests."""

    series: int
    value: float
    at_s: int
    request_ids: str


class Emitted(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A message of server/control.py: what a handler has emitted since the last one. The lines are its single values, where those are wanted; `unlisted` are
    names that are not reported, `dropped` is what there was too much of."""

    series: tuple[Series, ...]
    lines: tuple[Emission, ...] = ()
    unlisted: tuple[str, ...] = ()
    dropped_values: int = 0
    dropped_lines: int = 0

"""The kinds of metric."""

import enum


class MetricTypes(enum.Enum):
    """A counter adds up, a gauge says the last value, a histogram counts values by size."""

    # One of them is looked up for every value that is reported; Python's own hash of a member is slower.
    __hash__ = object.__hash__

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"

"""The kinds of metric."""

import enum


class MetricTypes(enum.Enum):
    """A counter adds up, a gauge says the last value, a histogram counts values by size."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"

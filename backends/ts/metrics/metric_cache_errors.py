"""What the metrics of a handler may raise."""


class MetricsCacheValueError(ValueError):
    """A unit, a type or a number of dimension values that the metric does not have."""


class MetricsCacheKeyError(KeyError):
    """No metric of that name and type."""

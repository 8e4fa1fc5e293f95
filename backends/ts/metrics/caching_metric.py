"""A metric that a handler has registered."""

import logging
from collections.abc import Sequence

from ringserve.backends.ts.metrics.dimension import Dimension
from ringserve.backends.ts.metrics.metric_cache_errors import MetricsCacheValueError
from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes
from ringserve.backends.ts.metrics.wire import emit, metric_line, now_s

LOGGER = logging.getLogger("ringserve.model")


class CachingMetric:
    """Name, unit and dimension names. Every value is reported at once; who reads the reports adds them up."""

    def __init__(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        self.metric_name = metric_name
        self.unit = unit
        self.dimension_names = list(dimension_names)
        self.metric_type = metric_type

    def add_or_update(self, value: float, dimension_values: Sequence[object] = (), request_id: str = "") -> None:
        """Report `value`. A counter that would go down and a value that is not finite are logged and not reported.

        Raises `MetricsCacheValueError` unless there is one value per dimension name.
        """
        if len(dimension_values) != len(self.dimension_names):
            raise MetricsCacheValueError(
                f"The metric {self.metric_name} has the dimensions {self.dimension_names},"
                f" got {len(dimension_values)} values."
            )
        if self.metric_type is MetricTypes.COUNTER and value < 0:
            LOGGER.error("The counter %s cannot go down by %s: not reported", self.metric_name, value)
            return
        pairs = [(name, str(item)) for name, item in zip(self.dimension_names, dimension_values, strict=True)]
        kind = self.metric_type.name
        try:
            line = metric_line(self.metric_name, self.unit, value, pairs, kind, request_id, now_s())
        except ValueError as error:
            LOGGER.error("Not reported: %s", error)
            return
        emit(line)

    def update(self, value: float, request_id: str = "", dimensions: Sequence[Dimension] = ()) -> None:
        """The older form of `add_or_update`."""
        self.add_or_update(value, [dimension.value for dimension in dimensions], request_id)

"""A metric that a handler has registered."""

import logging
import math
from collections.abc import Sequence
from typing import SupportsFloat, cast

from ringserve.backends.ts.metrics.dimension import Dimension
from ringserve.backends.ts.metrics.metric_abstract import MetricAbstract
from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes
from ringserve.backends.ts.metrics.sink import Recorder, current

LOGGER = logging.getLogger("ringserve.model")

_WHOLE_NUMBERS = range(-(2**63), 2**63)  # that any message can carry


class CachingMetric(MetricAbstract):
    """Every value is reported at once; who takes the reports adds them up."""

    def add_or_update(
        self, value: float, dimension_values: Sequence[object] | None = (), request_id: str | None = ""
    ) -> None:
        """Report `value`, with one dimension value for each name. What cannot be reported is logged and not raised: a prediction
        does not fail over a metric."""
        try:
            number = self._checked(value, dimension_values)
        except (TypeError, ValueError) as error:
            LOGGER.error("The metric %s is not updated: %s", self.metric_name, error)
            return
        self.recorder(dimension_values or ()).record(number, request_id or "")

    def update(self, value: float, request_id: str = "", dimensions: Sequence[Dimension] = ()) -> None:
        """The older form of `add_or_update`: the metric has these dimensions from now on."""
        self.dimension_names = [dimension.name for dimension in dimensions]
        self.add_or_update(value, [dimension.value for dimension in dimensions], request_id)

    def recorder(self, dimension_values: Sequence[object]) -> Recorder:
        """Who takes the values with these dimensions, one for each name."""
        dimensions = tuple(zip(self.dimension_names, map(str, dimension_values), strict=True))
        return current().recorder(self.metric_name, self.unit, self.metric_type.name, dimensions)

    def _checked(self, value: object, dimension_values: Sequence[object] | None) -> float:
        """The number that `value` is. Raises `TypeError` or `ValueError`."""
        if dimension_values is None or len(dimension_values) != len(self.dimension_names):
            raise ValueError(f"expected values for the dimensions {self.dimension_names}, got {dimension_values}")
        # Frameworks give numbers of their own kinds; Python's whole numbers are reported as such.
        number = value if type(value) is int and value in _WHOLE_NUMBERS else _as_float(value)
        if not math.isfinite(number):
            raise ValueError(f"expected a finite number, got {number}")
        if self.metric_type is MetricTypes.COUNTER and number < 0:
            raise ValueError(f"expected a counter to grow, got {number}")
        return number


def _as_float(value: object) -> float:
    try:
        return float(cast(SupportsFloat, value))
    except OverflowError:
        raise ValueError("expected a number of 64 bits, got a longer one") from None

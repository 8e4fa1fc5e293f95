"""What every metric has."""

import abc
from collections.abc import Sequence

from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes
from ringserve.backends.ts.metrics.unit import UNITS


class MetricAbstract(abc.ABC):
    """A name, a unit by its long name, the names of its dimensions, and a type."""

    def __init__(
        self,
        metric_name: str,
        unit: str | None,
        dimension_names: Sequence[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        self.metric_name = metric_name
        self.unit = UNITS.get(unit, str(unit))
        self.dimension_names = list(dimension_names or ())
        self.metric_type = metric_type

    @abc.abstractmethod
    def add_or_update(self, value: float, dimension_values: Sequence[object], request_id: str = "") -> None:
        """Report a value."""

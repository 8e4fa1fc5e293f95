"""The metric of TorchServe's first releases, which some handlers still make themselves."""

import socket
import time
from collections.abc import Sequence
from typing import Any

from ringserve.backends.ts.metrics.caching_metric import CachingMetric
from ringserve.backends.ts.metrics.dimension import Dimension
from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes


class Metric:
    """A value with its name, unit and dimensions. Making one reports nothing; `update` does."""

    def __init__(
        self,
        name: str,
        value: Any,
        unit: str,
        dimensions: Sequence[Dimension],
        request_id: str | None = None,
        metric_method: str | None = None,
    ) -> None:
        self.metric_type = MetricTypes.COUNTER
        self.dimensions = dimensions
        self.dimension_names = [dimension.name for dimension in dimensions]
        self.dimension_values = [dimension.value for dimension in dimensions]
        self._caching_metric = CachingMetric(name, unit, self.dimension_names, self.metric_type)
        self.name = self._caching_metric.metric_name
        self.unit = self._caching_metric.unit
        self.metric_method = metric_method
        self.value = value
        self.request_id = request_id

    def update(self, value: float) -> None:
        """Report a value."""
        self._caching_metric.add_or_update(value, self.dimension_values, self.request_id)

    def reset(self) -> None:
        """Report 0."""
        self.update(0)

    def __str__(self) -> str:
        labels = ",".join(map(str, self.dimensions))
        ids = f",{self.request_id}" if self.request_id else ""
        now_s = int(time.time())
        return f"{self.name}.{self.unit}:{self.value}|#{labels}|#hostname:{socket.gethostname()},{now_s}{ids}"

    def to_dict(self) -> dict[str, Any]:
        """Everything by name."""
        return {
            "MetricName": self.name,
            "Value": self.value,
            "Unit": self.unit,
            "Dimensions": self.dimensions,
            "Timestamp": int(time.time()),
            "HostName": socket.gethostname(),
            "RequestId": self.request_id,
        }

"""Uses every way to report a metric, and looks one up again."""

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes


class Measures:
    def initialize(self, context):
        self.requests = context.metrics.add_metric_to_cache(
            metric_name="SuiteRequests", unit="count", dimension_names=["ModelName"], metric_type=MetricTypes.COUNTER
        )

    def handle(self, data, context):
        metrics = context.metrics
        self.requests.add_or_update(len(data), [context.model_name])
        metrics.add_counter("SuiteCounter", 2)
        metrics.add_time("SuiteTime", 12.5, None, "ms")
        metrics.add_size("SuiteSize", 10, 0, "MB")
        metrics.add_percent("SuitePercent", 50)
        metrics.add_error("SuiteError", 1)
        metrics.add_metric("SuiteMetric", 7, "count", dimensions=[Dimension("Level", "Model")])
        found = metrics.get_metric("SuiteRequests", MetricTypes.COUNTER)
        return [{"found": found is self.requests, "names": found.dimension_names} for _ in data]

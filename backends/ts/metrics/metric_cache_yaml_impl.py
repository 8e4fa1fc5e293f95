"""`context.metrics`: TorchServe's custom metrics API."""

from collections.abc import Sequence

from ringserve.backends.ts.metrics.caching_metric import CachingMetric
from ringserve.backends.ts.metrics.dimension import Dimension
from ringserve.backends.ts.metrics.metric_cache_errors import MetricsCacheKeyError, MetricsCacheValueError
from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes

TIME_UNITS = ("ms", "s")
SIZE_UNITS = ("MB", "kB", "GB", "B")

Dimensions = Sequence[Dimension] | None


class MetricsCacheYamlImpl:
    """The metrics of one model. `request_ids` are those of the batch being answered."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.request_ids: Sequence[str] = ()
        self._cache: dict[tuple[str, MetricTypes], CachingMetric] = {}

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str,
        idx: int | None = None,
        dimensions: Dimensions = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """Report `value`, for row `idx` of the batch or for all of it, with the model's name and level as dimensions."""
        every = self._with_model(dimensions)
        metric = self._cached(name, unit, [dimension.name for dimension in every], metric_type)
        metric.add_or_update(value, [dimension.value for dimension in every], self._request_id(idx))

    def add_counter(self, name: str, value: float, idx: int | None = None, dimensions: Dimensions = None) -> None:
        """Add to a count."""
        self.add_metric(name, value, "count", idx, dimensions, MetricTypes.COUNTER)

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: Dimensions = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Report a duration in `ms` or `s`. Raises `MetricsCacheValueError` for another unit."""
        _check_unit(unit, TIME_UNITS)
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Dimensions = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Report a size in `MB`, `kB`, `GB` or `B`. Raises `MetricsCacheValueError` for another unit."""
        _check_unit(unit, SIZE_UNITS)
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: Dimensions = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Report a share in percent."""
        self.add_metric(name, value, "percent", idx, dimensions, metric_type)

    def add_error(self, name: str, value: float, dimensions: Dimensions = None) -> None:
        """Count an error."""
        self.add_metric(name, value, "", None, [*(dimensions or ()), Dimension("Level", "Error")])

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> CachingMetric:
        """Register a metric without reporting anything; report with what is returned."""
        metric = CachingMetric(metric_name, unit, dimension_names, metric_type)
        self._cache[metric_name, metric_type] = metric
        return metric

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> CachingMetric:
        """A registered metric. Raises `MetricsCacheKeyError` when there is none of that name and type."""
        metric = self._cache.get((metric_name, metric_type))
        if metric is None:
            raise MetricsCacheKeyError(f"no {metric_type.value} called {metric_name}")
        return metric

    def _cached(self, name: str, unit: str, names: list[str], metric_type: MetricTypes) -> CachingMetric:
        metric = self._cache.get((name, metric_type))
        if metric is None or metric.dimension_names != names or metric.unit != unit:
            return self.add_metric_to_cache(name, unit, names, metric_type)
        return metric

    def _with_model(self, dimensions: Dimensions) -> list[Dimension]:
        # A list of our own: TorchServe appends to the caller's, which then grows with every call.
        every = list(dimensions or ())
        names = {dimension.name for dimension in every}
        if "ModelName" not in names:
            every.append(Dimension("ModelName", self.model_name))
        if "Level" not in names:
            every.append(Dimension("Level", "Model"))
        return every

    def _request_id(self, idx: int | None) -> str:
        return ",".join(self.request_ids) if idx is None else self.request_ids[idx]


def _check_unit(unit: str, accepted: tuple[str, ...]) -> None:
    if unit not in accepted:
        raise MetricsCacheValueError(f"The unit {unit!r} is none of {', '.join(accepted)}.")

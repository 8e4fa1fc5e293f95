"""The calls that handlers make on `context.metrics`."""

import abc
from collections.abc import Callable, Mapping, Sequence

from ringserve.backends.ts.metrics.caching_metric import CachingMetric
from ringserve.backends.ts.metrics.dimension import Dimension
from ringserve.backends.ts.metrics.metric_cache_errors import MetricsCacheValueError
from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes

TIME_UNITS = ["ms", "s"]
SIZE_UNITS = ["MB", "kB", "GB", "B"]

# What nearly all metrics have: these dimensions, and values that any message can carry.
USUAL_NAMES = ["ModelName", "Level"]
USUAL_MAX = 10**18
NUMBERS = frozenset((int, float))

Dimensions = Sequence[Dimension] | None
Record = Callable[[float, str], None]
RequestIds = Mapping[int, str] | str | None


class MetricCacheAbstract(abc.ABC):
    """The metrics of one model, by type and name. `request_ids` are those of the batch that is being answered, by row."""

    def __init__(self, config_file_path: str | None = None) -> None:
        self.config_file_path = config_file_path
        self.model_name: str | None = None
        self.cache: dict[MetricTypes, dict[str, CachingMetric]] = {}
        self._request_ids: RequestIds = None
        self._every_id: str | None = None  # all of them in one text, once that was needed
        self._usual: dict[tuple[str, MetricTypes], Record] = {}  # of metrics that have no dimensions of the caller's

    @property
    def request_ids(self) -> RequestIds:
        """Those of the batch that is being answered, by row."""
        return self._request_ids

    @request_ids.setter
    def request_ids(self, request_ids: RequestIds) -> None:
        self._request_ids, self._every_id = request_ids, None

    def set_request_ids(self, request_ids: RequestIds) -> None:
        """The ids of the next batch."""
        self.request_ids = request_ids

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str,
        idx: int | None = None,
        dimensions: Dimensions = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """Report `value`, for row `idx` of the batch or for all of it, with the model's name and level behind the dimensions."""
        record = None if dimensions else self._usual.get((name, metric_type))
        # Nothing needs to be asked about such a number; a counter does not go down, but may stay.
        if record is not None and type(value) in NUMBERS and 0 <= value <= USUAL_MAX:
            record(value, self._every_id if idx is None and self._every_id is not None else self._get_req(idx))
            return
        every = self._with_model(dimensions)
        metric = self._get_or_add_metric(name, unit, every, metric_type)
        if not dimensions and metric.dimension_names == USUAL_NAMES:
            self._usual[name, metric_type] = metric.recorder([dimension.value for dimension in every]).record
        metric.add_or_update(value, [dimension.value for dimension in every], self._get_req(idx))

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
        if unit not in TIME_UNITS:
            raise MetricsCacheValueError(f"the unit for a timed metric should be one of {TIME_UNITS}")
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
        """Report a size in `MB`, `kB`, `GB` or `B`. Raises `ValueError` for another unit, as TorchServe does."""
        if unit not in SIZE_UNITS:
            raise ValueError("The unit for size based metric is one of ['MB','kB', 'GB', 'B']")
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
        """Count an error, which belongs to no request."""
        every = list(dimensions or ())
        if all(dimension.name != "Level" for dimension in every):
            every.append(Dimension("Level", "Error"))
        metric = self._get_or_add_metric(name, "", every, MetricTypes.COUNTER)
        metric.add_or_update(value, [dimension.value for dimension in every])

    @abc.abstractmethod
    def initialize_cache(self) -> None:
        """Register what the file lists."""

    @abc.abstractmethod
    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> CachingMetric:
        """A registered metric. Raises `MetricsCacheKeyError` when there is none of that name and type."""

    @abc.abstractmethod
    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> CachingMetric:
        """Register a metric."""

    def _get_or_add_metric(
        self, name: str, unit: str, dimensions: Sequence[Dimension], metric_type: MetricTypes
    ) -> CachingMetric:
        try:
            return self.cache[metric_type][name]
        except KeyError:
            names = [dimension.name for dimension in dimensions]
            return self.add_metric_to_cache(name, unit, names, metric_type)

    def _with_model(self, dimensions: Dimensions) -> list[Dimension]:
        # A list of our own: TorchServe appends to the caller's, which then grows with every call.
        every = list(dimensions or ())
        names = {dimension.name for dimension in every}
        if "ModelName" not in names:
            every.append(Dimension("ModelName", self.model_name))
        if "Level" not in names:
            every.append(Dimension("Level", "Model"))
        return every

    def _get_req(self, idx: int | None) -> str:
        """The id of row `idx`; of all rows, where there is no such row."""
        ids = self._request_ids
        if ids is None or isinstance(ids, str):
            return ids or ""
        if idx is not None and idx in ids:
            return ids[idx]
        if self._every_id is None:
            self._every_id = ",".join(ids.values())
        return self._every_id

"""The store of TorchServe's first releases: it keeps what it is told, and reports the second value of a metric and those after."""

from collections.abc import Mapping, Sequence

from ringserve.backends.ts.metrics.dimension import Dimension
from ringserve.backends.ts.metrics.metric import Metric
from ringserve.backends.ts.metrics.metric_cache_abstract import SIZE_UNITS, TIME_UNITS

Dimensions = Sequence[Dimension] | None


class MetricsStore:
    """Deprecated by TorchServe; `context.metrics` is what replaced it."""

    def __init__(self, request_ids: Mapping[int, str] | str | None, model_name: str) -> None:
        self.store: list[Metric] = []
        self.request_ids = request_ids
        self.model_name = model_name
        self.cache: dict[str, Metric] = {}

    def add_counter(self, name: str, value: float, idx: int | None = None, dimensions: Dimensions = None) -> None:
        """Add to a count."""
        self._add_or_update(name, value, self._get_req(idx), "count", dimensions, "counter")

    def add_time(
        self, name: str, value: float, idx: int | None = None, unit: str = "ms", dimensions: Dimensions = None
    ) -> None:
        """A duration. Raises ValueError unless the unit is `ms` or `s`."""
        if unit not in TIME_UNITS:
            raise ValueError("the unit for a timed metric should be one of ['ms', 's']")
        self._add_or_update(name, value, self._get_req(idx), unit, dimensions)

    def add_size(
        self, name: str, value: float, idx: int | None = None, unit: str = "MB", dimensions: Dimensions = None
    ) -> None:
        """A size. Raises ValueError unless the unit is `MB`, `kB`, `GB` or `B`."""
        if unit not in SIZE_UNITS:
            raise ValueError("The unit for size based metric is one of ['MB','kB', 'GB', 'B']")
        self._add_or_update(name, value, self._get_req(idx), unit, dimensions)

    def add_percent(self, name: str, value: float, idx: int | None = None, dimensions: Dimensions = None) -> None:
        """A share in percent."""
        self._add_or_update(name, value, self._get_req(idx), "percent", dimensions)

    def add_error(self, name: str, value: object, dimensions: Dimensions = None) -> None:
        """An error, which belongs to no request."""
        self._add_or_update(name, value, None, "", dimensions)

    def add_metric(
        self, name: str, value: float, unit: str, idx: int | None = None, dimensions: Dimensions = None
    ) -> None:
        """Anything else."""
        self._add_or_update(name, value, self._get_req(idx), unit, dimensions)

    def _add_or_update(
        self,
        name: str,
        value: object,
        request_id: str | None,
        unit: str,
        dimensions: Dimensions,
        method: str | None = None,
    ) -> None:
        if dimensions is not None and not isinstance(dimensions, list):
            raise ValueError("Please provide a list of dimensions")
        if request_id is None:
            own = [Dimension("Level", "Error")]
        else:
            own = [Dimension("ModelName", self.model_name), Dimension("Level", "Model")]
        every = [*(dimensions or ()), *own]
        key = "-".join([name, unit, str(request_id), *map(str, every)])
        known = self.cache.get(key)
        if known is None:
            known = self.cache[key] = Metric(name, value, unit, every, request_id, method)
            self.store.append(known)
        else:
            known.update(value)  # type: ignore[arg-type]  # what cannot be reported is logged

    def _get_req(self, idx: int | None) -> str | None:
        ids = self.request_ids
        if ids is None or isinstance(ids, str):
            return ids
        return ids[idx] if idx is not None and idx in ids else ",".join(ids.values())

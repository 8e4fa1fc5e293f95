"""`context.metrics`: TorchServe's custom metrics API, over the metrics that a file in the format of metrics.yaml lists."""

import logging
from collections.abc import Sequence
from typing import Any

from ringserve.backends.ts.metrics.caching_metric import CachingMetric
from ringserve.backends.ts.metrics.metric_cache_abstract import MetricCacheAbstract
from ringserve.backends.ts.metrics.metric_cache_errors import (
    MetricsCacheKeyError,
    MetricsCacheTypeError,
    MetricsCacheValueError,
)
from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes

LOGGER = logging.getLogger("ringserve.model")


class MetricsCacheYamlImpl(MetricCacheAbstract):
    """In a server, the metrics that are listed are registered from the start, and there is no file. The unit test of a handler may
    give one, and calls `initialize_cache`."""

    def __init__(self, config_file_path: str | None = None) -> None:
        super().__init__(config_file_path)
        self._parsed_file: Any = {} if config_file_path is None else _parse(config_file_path)

    def initialize_cache(self) -> None:
        """Register the metrics of the file's section `model_metrics`. Raises one of metric_cache_errors.py for what is wrong with
        it."""
        section = self._parse_metrics_section()
        if not section:
            raise MetricsCacheValueError("Missing `model_metrics` specification")
        for kind, metrics in section.items():
            try:
                metric_type = MetricTypes(kind)
            except ValueError as error:
                raise MetricsCacheKeyError(f"Invalid metric type: {error}") from None
            for metric in metrics:
                try:
                    name, unit, dimensions = metric["name"], metric["unit"], metric["dimensions"]
                except KeyError as error:
                    raise MetricsCacheKeyError(f"Key not found in cache spec: {error}") from None
                self.add_metric_to_cache(name, unit, dimensions, metric_type)

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> CachingMetric:
        """Register a metric without reporting anything; report with what is returned. Raises `MetricsCacheTypeError`."""
        _check_type(metric_name, str, "`metric_name` must be a str")
        _check_type(unit, str, "`unit` must be a str")
        _check_type(metric_type, MetricTypes, "`metric_type` must be a MetricTypes enum")
        _check_type(
            dimension_names or [], (list, tuple), "`dimension_names` should be a list of dimension name strings"
        )
        metric = CachingMetric(metric_name, unit, dimension_names, metric_type)
        known = self.cache.setdefault(metric_type, {})
        if metric_name in known:
            LOGGER.warning(
                "The %s %s is registered again, and takes the place of the first", metric_type.value, metric_name
            )
        known[metric_name] = metric
        self._usual.pop((metric_name, metric_type), None)
        return metric

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> CachingMetric:
        """A registered metric. Raises `MetricsCacheKeyError` when there is none of that name and type."""
        _check_type(metric_name, str, "`metric_name` must be a str")
        _check_type(metric_type, MetricTypes, "`metric_type` must be a MetricTypes enum")
        try:
            return self.cache[metric_type][metric_name]
        except KeyError:
            raise MetricsCacheKeyError(
                f"Metric of type '{metric_type}' and name '{metric_name}' doesn't exist"
            ) from None

    def cache_keys(self) -> list[str]:
        """What is registered, each as `type:name`."""
        return [f"{kind.value}:{name}" for kind, metrics in self.cache.items() for name in metrics]

    def _parse_metrics_section(self, key: str = "model_metrics") -> Any:
        try:
            return self._parsed_file[key]
        except (KeyError, TypeError):
            raise MetricsCacheKeyError(f"'{key}' key not found in yaml file: {self.config_file_path}") from None


def _parse(path: str) -> Any:
    from ringserve.backends.ts.metrics.yaml_file import read  # not above: no worker has such a file

    return read(path)


def _check_type(value: object, expected: type | tuple[type, ...], message: str) -> None:
    if not isinstance(value, expected):
        raise MetricsCacheTypeError(message)

"""What the metrics of a handler may raise."""

from importlib import import_module
from typing import Any


class GeneralMetricsCacheError(Exception):
    """The base of what has no better name."""


class MetricsCacheIOError(OSError):
    """The file of metrics cannot be read."""


class MetricsCacheTypeError(TypeError):
    """An argument of the wrong type."""


class MetricsCacheValueError(ValueError):
    """A unit or a file that metrics cannot have."""


class MetricsCacheKeyError(KeyError):
    """No metric of that name and type, or no such section of the file."""


def __getattr__(name: str) -> Any:
    """The one that needs YAML."""
    if name != "MetricsCachePyYamlError":
        raise AttributeError(name)
    return import_module("ringserve.backends.ts.metrics.yaml_file").MetricsCachePyYamlError

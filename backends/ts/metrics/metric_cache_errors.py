"""What the metrics of a handler may raise."""

import yaml


class GeneralMetricsCacheError(Exception):
    """The base of what has no better name."""


class MetricsCacheIOError(OSError):
    """The file of metrics cannot be read."""


class MetricsCachePyYamlError(yaml.YAMLError):
    """The file of metrics is no YAML."""


class MetricsCacheTypeError(TypeError):
    """An argument of the wrong type."""


class MetricsCacheValueError(ValueError):
    """A unit or a file that metrics cannot have."""


class MetricsCacheKeyError(KeyError):
    """No metric of that name and type, or no such section of the file."""

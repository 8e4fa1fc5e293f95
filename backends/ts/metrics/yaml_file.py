"""Reads a file of metrics, and is imported only by who has one: a worker in a server has none, and starts sooner without YAML."""

from typing import Any

import yaml

from ringserve.backends.ts.metrics.metric_cache_errors import MetricsCacheIOError


class MetricsCachePyYamlError(yaml.YAMLError):
    """The file of metrics is no YAML. TorchServe has it in metric_cache_errors.py, where it is found as well."""


def read(path: str) -> Any:
    """What is in the file. Raises `MetricsCachePyYamlError` or `MetricsCacheIOError`."""
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise MetricsCachePyYamlError(f"Error parsing file {path}: {error}") from error
    except OSError as error:
        raise MetricsCacheIOError(f"Error reading file {path}: {error}") from error

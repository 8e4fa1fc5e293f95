"""Emits the metrics that a request asks for, `kind name value` to a line."""

import os
import sys
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes


def handle(data: Any, context: Any) -> list[str] | None:
    if data is None:
        context.metrics.add_counter("Starts", 1)
        return None
    for idx, row in enumerate(data):
        for line in bytes(row["body"]).decode().splitlines():
            act(context.metrics, idx, *line.split(" ", 2))
    return [str(os.getpid())] * len(data)


def act(metrics: Any, idx: int, kind: str, name: str, value: str = "") -> None:
    if kind == "print":
        sys.stdout.write(f"{name} {value}\n")
        sys.stdout.flush()
    elif kind == "label":
        metrics.add_counter(name, 1, idx, [Dimension("User", value)])
    else:
        metrics.add_metric(name, float(value), "things", idx, metric_type=MetricTypes(kind))

"""Metrics that a worker's process prints: any line of this form on its stdout is one (contract section 3.5).

[METRICS]Name.Unit:value|#Dim:val,Dim:val|#type:GAUGE|#hostname:H,EPOCH[,request id,...]
"""

import math
import re
from typing import NamedTuple

from ringserve.server.metrics.listing import KINDS

PREFIX = "[METRICS]"
_LINE = re.compile(
    r"\[METRICS\]([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)(?:\|#(?!type:|hostname:)([^|]*))?(?:\|#type:(\w+))?\|#hostname:([^,]+),([0-9]{1,15})(?:,(.*))?",
)


class PrintedMetric(NamedTuple):
    """One value as it was printed."""

    name: str
    kind: str
    unit: str
    dimensions: tuple[tuple[str, str], ...]
    value: float
    hostname: str
    at_s: int
    request_ids: str


def parse(line: str) -> PrintedMetric | None:
    """None for what is no such line."""
    match = _LINE.fullmatch(line.strip())
    if match is None:
        return None
    name, unit, digits, labels, kind, hostname, at_s, request_ids = match.groups()
    kind = "counter" if kind is None else kind.lower()
    pairs = [tuple(each.split(":")) for each in labels.split(",")] if labels else []
    try:
        value = float(digits)
    except ValueError:
        return None
    if kind not in KINDS or not math.isfinite(value) or any(len(pair) != 2 for pair in pairs):
        return None
    dimensions = tuple((pair[0].strip(), pair[1].strip()) for pair in pairs)
    return PrintedMetric(name, kind, unit, dimensions, value, hostname, int(at_s), request_ids or "")

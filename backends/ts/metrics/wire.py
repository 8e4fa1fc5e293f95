"""The line in which a worker reports one metric value: TorchServe's, so that anything that parses it keeps working.

[METRICS]Name.Unit:value|#Dim:val,Dim:val|#type:GAUGE|#hostname:H,EPOCH[,request id,...]
"""

import math
import socket
import sys
import time
from collections.abc import Sequence

UNITS = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "kB": "Kilobytes",
    "B": "Bytes",
    "": "unit",
}

# The characters that the line's grammar owns; in a name or a value they would start another field, or another line.
_OWNED = str.maketrans(dict.fromkeys(":,|#\r\n", "_"))
_HOSTNAME = socket.gethostname()


def metric_line(
    name: str,
    unit: str,
    value: float,
    dimensions: Sequence[tuple[str, str]],
    metric_type: str,
    request_ids: str,
    now_s: float,
) -> str:
    """The line without its end. `now_s` is seconds since the epoch. Raises ValueError for a value that is not finite."""
    number = value if type(value) is int else float(value)
    if not math.isfinite(number):
        raise ValueError(f"the metric {name} has no line for the value {number}")
    labels = ",".join(f"{key.translate(_OWNED)}:{text.translate(_OWNED)}" for key, text in dimensions)
    digits = repr(number).replace("+", "")  # the grammar's numbers have no plus sign: 1e20
    ids = f",{request_ids}" if request_ids else ""
    head = f"[METRICS]{name.translate(_OWNED)}.{UNITS.get(unit, unit).translate(_OWNED)}:{digits}"
    return f"{head}|#{labels}|#type:{metric_type}|#hostname:{_HOSTNAME},{int(now_s)}{ids}"


def emit(line: str) -> None:
    """Report to whoever reads the worker's stdout. One write, flushed: lines of several threads stay whole."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def now_s() -> float:
    """Seconds since the epoch."""
    return time.time()

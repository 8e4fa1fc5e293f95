"""The line that stands for one metric value: TorchServe's, so that anything that parses it keeps working.

[METRICS]Name.Unit:value|#Dim:val,Dim:val|#type:GAUGE|#hostname:H,EPOCH[,request id,...]
"""

import socket
import sys
from collections.abc import Sequence

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
    """The line without its end. `now_s` is seconds since the epoch."""
    labels = ",".join(f"{key.translate(_OWNED)}:{text.translate(_OWNED)}" for key, text in dimensions)
    digits = repr(value).replace("+", "")  # the grammar's numbers have no plus sign: 1e20
    ids = f",{request_ids}" if request_ids else ""
    head = f"[METRICS]{name.translate(_OWNED)}.{unit.translate(_OWNED)}:{digits}"
    return f"{head}|#{labels}|#type:{metric_type}|#hostname:{_HOSTNAME},{int(now_s)}{ids}"


def print_line(line: str) -> None:
    """To whoever reads stdout. One write, flushed: lines of several threads stay whole."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

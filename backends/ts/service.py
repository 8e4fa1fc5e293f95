"""The place from which TorchServe's documentation imports `PredictionException`.

TorchServe's class `Service`, which runs a handler inside its worker, is not here: the handler backend has its place.
"""

from collections.abc import Iterable

from ringserve.backends.ts.metrics.metric import Metric
from ringserve.backends.ts.utils.util import PredictionException

__all__ = ["PredictionException", "emit_metrics"]


def emit_metrics(metrics: Iterable[Metric] | None) -> None:
    """Print metrics in the form that the server reads from the output of workers. `context.metrics` needs no such call."""
    for metric in metrics or ():
        print(f"[METRICS]{metric}", flush=True)

"""The place from which TorchServe's documentation imports `PredictionException`."""

from ringserve.backends.ts.utils.util import PredictionException

__all__ = ["PredictionException"]

"""The sum of a sequence's numbers so far: a model that keeps state between requests."""

from typing import Any

import numpy as np


class RunningSum:
    def __init__(self) -> None:
        self._sums: dict[int | str, int] = {}

    def predict(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], context: Any) -> None:
        """Requests of several sequences come in one batch, one row each. All of a sequence's come to this process, in order."""
        sums = []
        for request, value in zip(context.requests, inputs["VALUE"][:, 0].tolist(), strict=True):
            before = 0 if request.sequence_start else self._sums[request.sequence_id]
            sums.append(before + value)
            self._sums[request.sequence_id] = sums[-1]
            if request.sequence_end:
                del self._sums[request.sequence_id]
        outputs["SUM"] = np.array(sums)[:, np.newaxis]

"""The answers of classifiers: labels and how likely they are."""

from typing import Any

import torch

from ringserve.backends.ts.handler_utils.timer import timed
from ringserve.backends.ts.utils.util import map_class_to_label


class LikeliestClasses:
    """The `postprocess` of handlers whose models give a score per class, [rows, classes]. It stands before the handler that
    they are made from, whose `mapping` has the labels."""

    topk = 5
    mapping: dict[str, Any] | None

    def set_max_result_classes(self, topk: int) -> None:
        """Answer the `topk` likeliest classes; of a model that has fewer, all."""
        self.topk = topk

    def get_max_result_classes(self) -> int:
        """How many classes an answer has at most."""
        return self.topk

    @timed
    def postprocess(self, data: torch.Tensor) -> list[dict[str, Any]]:
        """Per row `{label: probability}` of the likeliest classes, the likeliest first."""
        probabilities = torch.softmax(data, dim=1)
        best, classes = torch.topk(probabilities, min(self.topk, probabilities.shape[1]), dim=1)
        return map_class_to_label(best.tolist(), self.mapping, classes.tolist())

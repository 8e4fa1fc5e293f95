"""`DALIHandler`: images are decoded and prepared by NVIDIA DALI, on the device."""

from abc import ABC
from typing import Any

import numpy as np
import torch

from ringserve.backends.ts.handler_utils.explanations import integrated_gradients
from ringserve.backends.ts.handler_utils.preprocess.dali import get_dali_pipeline
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler


class DALIHandler(BaseHandler, ABC):
    """A base for image handlers. model-config.yaml describes the pipeline (`get_dali_pipeline`)."""

    def initialize(self, context: Any) -> None:
        """Load the model and the pipeline. Raises what both raise."""
        self.pipeline = get_dali_pipeline(context)
        super().initialize(context)

    def preprocess(self, data: Any) -> torch.Tensor:
        """The images of a batch, encoded, as the pipeline's tensor `[rows, ...]` on the model's device."""
        images = [row.get("data") or row.get("body") for row in data]
        encoded = [
            np.frombuffer(image, dtype=np.uint8) if isinstance(image, bytes | bytearray) else image for image in images
        ]
        (output, *_) = self.pipeline.run(source=encoded)
        return torch.stack([torch.tensor(output.at(row)) for row in range(len(encoded))]).to(self.device)

    def get_insights(self, tensor_data: torch.Tensor, _: Any, target: Any = 0) -> list[Any]:
        """How much each number of each image adds to the score of class `target`, by integrated gradients."""
        insights: list[Any] = (
            integrated_gradients(self.model).attribute(tensor_data, target=target, n_steps=15).tolist()
        )
        return insights

"""A handler on TorchServe's base class: state dict and model file are loaded by the base, the rest is what users write."""

from typing import Any

import torch
from ts.torch_handler.base_handler import BaseHandler


class TwoLayersHandler(BaseHandler):  # type: ignore[misc]  # ts is importable in a worker only
    def preprocess(self, data: Any) -> torch.Tensor:
        return torch.tensor([row["body"] for row in data], dtype=torch.float32)

    def postprocess(self, data: torch.Tensor) -> list[Any]:
        return list(data.tolist())

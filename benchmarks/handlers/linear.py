"""A small model in torch, as TorchServe's users write one: their base class, a model made in `initialize`."""

from typing import Any

import torch
from ts.torch_handler.base_handler import BaseHandler


class Linear(BaseHandler):  # type: ignore[misc]  # ts is importable in a worker only
    def initialize(self, context: Any) -> None:
        torch.manual_seed(7)
        self.model = torch.nn.Linear(4, 3).eval()
        self.device = torch.device("cpu")
        self.initialized = True

    def preprocess(self, data: Any) -> torch.Tensor:
        return torch.tensor([row["body"] for row in data], dtype=torch.float32)

    def postprocess(self, data: torch.Tensor) -> list[Any]:
        return list(data.tolist())

"""A handler made from TorchServe's `BaseHandler`: some of its steps are the model's own, the others are inherited."""

from typing import Any

import torch
from ts.torch_handler.base_handler import BaseHandler


class Model(BaseHandler):  # type: ignore[misc,unused-ignore]
    def initialize(self, context: Any) -> None:
        self.context, self.manifest = context, context.manifest
        self.device = torch.device("cpu")
        self.model = torch.nn.Identity()
        self.initialized = True

    def preprocess(self, data: Any) -> Any:
        rows = [row.get("data", row.get("body")) for row in data]
        return torch.as_tensor([row if isinstance(row, list) else [float(row)] for row in rows])

    def get_insights(self, tensor: Any, inputs: Any, target: Any) -> list[Any]:
        return [{"target": repr(target), "inputs": repr(inputs), "of": tensor.tolist()}]

    def describe_handle(self) -> list[Any]:
        return [{"steps": ["preprocess"]}]

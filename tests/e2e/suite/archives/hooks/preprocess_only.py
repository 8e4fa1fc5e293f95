"""Overrides one hook of BaseHandler; the others are the server's."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class Preprocessing(BaseHandler):
    def preprocess(self, data):
        return torch.as_tensor([row["body"] for row in data], dtype=torch.float32, device=self.device)

"""Overrides one hook of BaseHandler; the others are the server's."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class Inferring(BaseHandler):
    def preprocess(self, data):
        return super().preprocess([row["body"] for row in data])

    def inference(self, data, *args, **kwargs):
        with torch.no_grad():
            return self.model(data.float() * 10)

"""Loads its weights itself."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class Loading(BaseHandler):
    def _load_pickled_model(self, model_dir, model_file, model_pt_path):
        model = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.constant_(model.weight, 0.5)
        return model

    def preprocess(self, data):
        return torch.tensor([row["body"] for row in data], dtype=torch.float32)

"""Overrides one hook of BaseHandler besides the one that unwraps its rows, and answers with tensors."""

from ts.torch_handler.base_handler import BaseHandler


class Postprocessing(BaseHandler):
    def preprocess(self, data):
        return super().preprocess([row["body"] for row in data]).float()

    def postprocess(self, data):
        return list(data.argmax(dim=1)) if self.model_yaml_config.get("tensors") else data.argmax(dim=1).tolist()

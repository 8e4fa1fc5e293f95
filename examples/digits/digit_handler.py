"""A TorchServe handler: a picture of a digit in, {"digit": 7, "probability": 0.99} out. Runs under TorchServe unchanged."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException

SIDE = 8  # the network's images are 8x8


class DigitHandler(BaseHandler):  # type: ignore[misc]  # `ts` exists only in a worker, so the base has no type here
    """`BaseHandler` loads the model file and the state dict and runs the network; this adds the two ends."""

    def preprocess(self, data: list[dict[str, Any]]) -> torch.Tensor:
        """One [1, 8, 8] row per picture, scaled to 0..1."""
        return torch.stack([self._pixels(row.get("data") or row.get("body") or b"") for row in data])

    def postprocess(self, data: torch.Tensor) -> list[dict[str, Any]]:
        """The likeliest digit of each row."""
        probabilities, digits = torch.softmax(data, dim=1).max(dim=1)
        pairs = zip(digits.tolist(), probabilities.tolist(), strict=True)
        return [{"digit": digit, "probability": round(probability, 4)} for digit, probability in pairs]

    @staticmethod
    def _pixels(picture: bytes | bytearray) -> torch.Tensor:
        try:
            with Image.open(io.BytesIO(picture)) as image:
                grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        except (UnidentifiedImageError, OSError) as error:  # OSError: a picture that is cut short
            raise PredictionException("The body is not a picture.", 400) from error
        return torch.from_numpy(np.array(grey, dtype=np.float32) / 255).unsqueeze(0)

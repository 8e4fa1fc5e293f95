"""`--handler image_segmenter`: the class of every pixel."""

from typing import Any

import torch

from ringserve.backends.ts.handler_utils.preprocess.images import imagenet_steps
from ringserve.backends.ts.handler_utils.timer import timed
from ringserve.backends.ts.torch_handler.vision_handler import VisionHandler


class ImageSegmenter(VisionHandler):
    """For models that take float32 [rows, 3, 224, 224] and give a dict whose `out` has a score per class and pixel,
    [rows, classes, height, width]."""

    image_processing: Any = imagenet_steps()

    @timed
    def postprocess(self, data: Any) -> Any:
        """Per row nested lists [height][width][2]: the likeliest class, as a float, and its probability."""
        best = torch.softmax(data["out"], dim=1).max(dim=1)
        return torch.stack([best.indices.to(best.values.dtype), best.values], dim=3).tolist()

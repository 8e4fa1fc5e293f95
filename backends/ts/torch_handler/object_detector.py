"""`--handler object_detector`: what an image shows, and where."""

from typing import Any

import torch

from ringserve.backends.ts.handler_utils.preprocess.images import Compose, ToRgb, ToTensor
from ringserve.backends.ts.handler_utils.timer import timed
from ringserve.backends.ts.torch_handler.vision_handler import VisionHandler
from ringserve.backends.ts.utils.util import map_class_to_label


class ObjectDetector(VisionHandler):
    """For models that take float32 [rows, 3, height, width], between 0 and 1, and give per row a dict of `boxes` [found, 4],
    `labels` [found] and `scores` [found], as torchvision's detectors do."""

    image_processing: Any = Compose([ToRgb(), ToTensor()])
    threshold = 0.5

    @timed
    def preprocess(self, data: Any) -> Any:
        """One tensor of all images, or a list of tensors when they are not all of one size."""
        images = [self._image_tensor(row) for row in data]
        if len({image.shape for image in images}) == 1:
            return torch.stack(images).to(self.device)
        return [image.to(self.device) for image in images]

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's finds for each image. Images of different sizes make no tensor: each size is asked for by itself."""
        if not isinstance(data, list):
            return super().inference(data, *args, **kwargs)
        of_size: dict[Any, list[int]] = {}
        for row, image in enumerate(data):
            of_size.setdefault(image.shape, []).append(row)
        finds: list[Any] = [None] * len(data)
        for rows in of_size.values():
            batch = torch.stack([data[row] for row in rows])
            for row, found in zip(rows, super().inference(batch, *args, **kwargs), strict=True):
                finds[row] = found
        return finds

    @timed
    def postprocess(self, data: Any) -> list[list[dict[str, Any]]]:
        """Per row a list of `{label: [x1, y1, x2, y2], "score": s}` of what was found with a score of `threshold` or more."""
        return [self._named(found) for found in data]

    def _named(self, found: Any) -> list[dict[str, Any]]:
        sure = found["scores"] >= self.threshold
        boxes, labels, scores = (found[key][sure].tolist() for key in ("boxes", "labels", "scores"))
        named = map_class_to_label([[box] for box in boxes], self.mapping, [[label] for label in labels])
        return [{**box, "score": score} for box, score in zip(named, scores, strict=True)]

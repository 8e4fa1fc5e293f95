"""`--handler image_classifier`: which classes an image shows, and how sure the model is."""

from typing import Any

from ringserve.backends.ts.handler_utils.likeliest_classes import LikeliestClasses
from ringserve.backends.ts.handler_utils.preprocess.images import imagenet_steps
from ringserve.backends.ts.torch_handler.vision_handler import VisionHandler


class ImageClassifier(LikeliestClasses, VisionHandler):
    """For models that take float32 [rows, 3, 224, 224] and give a score per class, [rows, classes]."""

    image_processing: Any = imagenet_steps()

"""The default handler `dali_image_classifier`."""

from ringserve.backends.ts.handler_utils.likeliest_classes import LikeliestClasses
from ringserve.backends.ts.torch_handler.dali_handler import DALIHandler


class DALIImageClassifier(LikeliestClasses, DALIHandler):
    """For models that take what the pipeline makes of images, and give a score per class, [rows, classes]."""

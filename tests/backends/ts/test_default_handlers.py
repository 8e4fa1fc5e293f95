"""The handlers that an archive may name instead of bringing one."""

from importlib import import_module

import pytest

from ringserve.backends.entry_point import DEFAULT_HANDLERS, classes_of
from ringserve.backends.ts_import import install
from ringserve.tools.archiver import PYTHON_HANDLERS

CLASSES = {
    "base_handler": "BaseHandler",
    "image_classifier": "ImageClassifier",
    "image_segmenter": "ImageSegmenter",
    "object_detector": "ObjectDetector",
    "text_classifier": "TextClassifier",
    "densenet_handler": "DenseNetHandler",
    "vision_handler": "VisionHandler",
    "text_handler": "TextHandler",
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_file_of_a_handler_has_its_class_and_no_other(name: str) -> None:
    """The one class of a handler's file is what is started."""
    install()
    module = import_module(f"{DEFAULT_HANDLERS}.{name}")
    assert [kind.__name__ for kind in classes_of(module)] == [CLASSES[name]]


@pytest.mark.parametrize("name", PYTHON_HANDLERS)
def test_every_handler_that_the_archiver_knows_by_name_can_be_imported(name: str) -> None:
    install()
    import_module(f"{DEFAULT_HANDLERS}.{name}")


def test_handlers_are_derived_from_these_by_torchserves_names() -> None:
    install()
    vision = import_module("ts.torch_handler.vision_handler").VisionHandler
    base = import_module("ts.torch_handler.base_handler").BaseHandler
    for name in ("image_classifier", "image_segmenter", "object_detector"):
        assert issubclass(getattr(import_module(f"ts.torch_handler.{name}"), CLASSES[name]), vision)
    text = import_module("ts.torch_handler.text_handler").TextHandler
    assert issubclass(import_module("ts.torch_handler.text_classifier").TextClassifier, text)
    assert issubclass(vision, base)
    assert issubclass(text, base)

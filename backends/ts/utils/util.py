"""Helpers that handlers import."""

import enum
import functools
import inspect
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

LOGGER = logging.getLogger("ringserve.model")

HTTP_INTERNAL_ERROR = 500

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# HTML tags and entities, for handlers that clean texts with it.
CLEANUP_REGEX = re.compile(r"<.*?>|&([a-z0-9]+|#[0-9]{1,6}|#x[0-9a-f]{1,6});")


class PT2Backend(str, enum.Enum):  # noqa: UP042 - a StrEnum prints as "eager", TorchServe's as "PT2Backend.EAGER"
    """The `torch.compile` backends that a model-config.yaml may name."""

    EAGER = "eager"
    AOT_EAGER = "aot_eager"
    INDUCTOR = "inductor"
    NVFUSER = "nvfuser"
    AOT_NVFUSER = "aot_nvfuser"
    AOT_CUDAGRAPHS = "aot_cudagraphs"
    OFI = "ofi"
    FX2TRT = "fx2trt"
    ONNXRT = "onnxrt"
    IPEX = "ipex"
    TORCHXLA_TRACE_ONCE = "torchxla_trace_once"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    HPU_BACKEND = "hpu_backend"


class PredictionException(Exception):
    """What a handler raises to answer a batch with a message and an HTTP status of its own."""

    def __init__(self, message: str, error_code: int = HTTP_INTERNAL_ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


def check_valid_pt2_backend(backend: str) -> bool:
    """Whether `backend` is one that `PT2Backend` lists; a warning says so if not."""
    known = [each.value for each in PT2Backend]
    if backend in known:
        return True
    LOGGER.warning("%s is no torch.compile backend that is accepted here: %s", backend, ", ".join(known))
    return False


def deprecated(
    version: str, replacement: str = "", klass: type[Warning] = PendingDeprecationWarning
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Mark a function as one that goes with `version`: a call of it warns, with the category `klass`."""

    def mark(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            warnings.warn(
                f"{function.__name__} is deprecated in {version} and moved to {replacement}", klass, stacklevel=2
            )
            return function(*args, **kwargs)

        return wrapper

    return mark


def get_yaml_config(yaml_file_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a YAML file, {} for an empty one."""
    import yaml  # not above: nearly no worker reads such a file, and all start sooner without

    return yaml.safe_load(Path(yaml_file_path).read_text(encoding="utf-8")) or {}


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """The classes that `module` itself defines, those below `parent_class` if given."""
    found = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    return [kind for kind in found if parent_class is None or issubclass(kind, parent_class)]


def load_label_mapping(mapping_file_path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The labels in an `index_to_name.json`, by class index as text; None (and a warning) when the file is missing.

    Three forms: `{"0": "cat"}`, `{"0": ["n02123045", "cat"]}` (the last element counts) and
    `{"object_type_names": ["cat", "dog"]}`. Raises TypeError when the file holds anything else.
    """
    path = Path(mapping_file_path)
    if not path.is_file():
        LOGGER.warning("%s is missing: answers will say class numbers instead of labels.", path)
        return None
    mapping = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(mapping, dict):
        raise TypeError(f'{path} should hold an object, {{"class number": "label"}}.')
    names = mapping.get("object_type_names")
    if isinstance(names, list):
        return {str(index): name for index, name in enumerate(names)}
    labels = {key: label[-1] if isinstance(label, list) and label else label for key, label in mapping.items()}
    for key, label in labels.items():
        if not isinstance(label, str):
            raise TypeError(
                f"{path} should give every class a label, a text or a list that ends in one, got {label!r} for {key}."
            )
    return labels


def map_class_to_label(
    probs: Sequence[Sequence[Any]],
    mapping: dict[str, Any] | None = None,
    lbl_classes: Iterable[Iterable[Any]] | None = None,
) -> list[dict[str, Any]]:
    """One `{label: probability}` per row of `probs`.

    `lbl_classes` gives the class number of each probability, row by row; without it they are numbered from 0. Without
    `mapping` the class number, as text, is the label. Raises TypeError for arguments of another type.
    """
    if not isinstance(probs, list):
        raise TypeError("map_class_to_label takes the probabilities as a list of lists.")
    if mapping is not None and not isinstance(mapping, dict):
        raise TypeError("map_class_to_label takes the mapping as a dict.")
    classes = lbl_classes if lbl_classes is not None else [range(len(row)) for row in probs]
    return [
        {
            (str(number) if mapping is None else mapping[str(number)]): prob
            for number, prob in zip(numbers, row, strict=False)
        }
        for numbers, row in zip(classes, probs, strict=False)
    ]

"""`triton_python_backend_utils`, the module that Triton's Python models import as `pb_utils`.

It bears that name only in a worker that runs such a model (`install`). The classes are those of this package; the functions that
ask other models, or load them, raise.
"""

import logging
import sys
from enum import Enum
from typing import Any, ClassVar, Final

import numpy as np

from ringserve.backends.triton.datatypes import (
    numpy_to_triton_type,
    triton_string_to_numpy,
    triton_to_numpy_type,
)
from ringserve.backends.triton.errors import TritonError, TritonModelException
from ringserve.backends.triton.metrics import Metric, MetricFamily
from ringserve.backends.triton.model_config import (
    ModelConfig,
    get_input_config_by_name,
    get_output_config_by_name,
    using_decoupled_model_transaction_policy,
)
from ringserve.backends.triton.requests import (
    NO_CALLS,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    InferenceRequest,
    InferenceTrace,
    MemoryType,
    PreferredMemory,
)
from ringserve.backends.triton.responses import (
    TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    InferenceResponse,
    InferenceResponseSender,
)
from ringserve.backends.triton.tensor import Tensor, tensor_named
from ringserve.protocol.datatypes import join_elements, split_elements

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "Metric",
    "MetricFamily",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]

TRITONSERVER_MEMORY_GPU: Final = MemoryType.TRITONSERVER_MEMORY_GPU
TRITONSERVER_MEMORY_CPU: Final = MemoryType.TRITONSERVER_MEMORY_CPU

# The second is the compiled half of Triton's module, which some models import from.
NAMES = ("triton_python_backend_utils", "c_python_backend_utils")
LOGGER = logging.getLogger("ringserve.model")

_model_dir = ""


def install(model_dir: str) -> None:
    """Let `import triton_python_backend_utils` work in this process. `model_dir` is the folder of the model's version."""
    global _model_dir
    _model_dir = model_dir
    for name in NAMES:
        sys.modules[name] = sys.modules[__name__]


def get_model_dir() -> str:
    """The folder of the model's version, which holds model.py."""
    return _model_dir


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """None where the request has no such input."""
    return tensor_named(inference_request.inputs(), name)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """None where the response has no such output."""
    return tensor_named(inference_response.output_tensors(), name)


def serialize_byte_tensor(input_tensor: np.ndarray) -> np.ndarray:
    """The elements, each behind its length, as a flat array of bytes. Raises `TritonModelException` for other than texts."""
    if input_tensor.dtype != np.object_ and input_tensor.dtype.kind != "S":
        raise TritonModelException(f"cannot serialize bytes tensor: its elements are {input_tensor.dtype}.")
    elements = (each if isinstance(each, bytes) else str(each).encode() for each in input_tensor.ravel().tolist())
    return np.frombuffer(join_elements(elements), np.uint8)


def deserialize_bytes_tensor(encoded_tensor: bytes | np.ndarray) -> np.ndarray:
    """The reverse: a flat array of `bytes`. Raises `ValueError` where a length does not fit."""
    elements = split_elements(bytes(encoded_tensor))
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


class Level(Enum):
    """The numbers are those of Triton's own enum."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


_LEVELS = {
    Level.INFO: logging.INFO,
    Level.WARNING: logging.WARNING,
    Level.ERROR: logging.ERROR,
    Level.VERBOSE: logging.DEBUG,
}


class Logger:
    """The model's log, which is the server's `model` log."""

    LogLevel: ClassVar = Level
    INFO: ClassVar = Level.INFO
    WARNING: ClassVar = Level.WARNING
    ERROR: ClassVar = Level.ERROR
    VERBOSE: ClassVar = Level.VERBOSE

    @staticmethod
    def log(message: str, level: Level = Level.INFO) -> None:
        LOGGER.log(_LEVELS[level], "%s", message)

    @staticmethod
    def log_info(message: str) -> None:
        LOGGER.info("%s", message)

    @staticmethod
    def log_warn(message: str) -> None:
        LOGGER.warning("%s", message)

    @staticmethod
    def log_error(message: str) -> None:
        LOGGER.error("%s", message)

    @staticmethod
    def log_verbose(message: str) -> None:
        LOGGER.debug("%s", message)


def load_model(model_name: str, files: Any = None, config: Any = None) -> None:
    """Raises `TritonModelException`: models are loaded by the server's repository API."""
    raise TritonModelException(NO_CALLS)


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Raises `TritonModelException`: models are unloaded by the server's repository API."""
    raise TritonModelException(NO_CALLS)


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Raises `TritonModelException`: a model cannot ask about others."""
    raise TritonModelException(NO_CALLS)

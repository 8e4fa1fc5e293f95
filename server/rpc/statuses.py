"""Errors as gRPC's statuses (contract torchserve.md 5.3), and the other way about for counters.

The details of TorchServe's services are the message, a line break and the name of a Java class; the Open Inference Protocol has
texts of its own (server/open_inference/errors.py).
"""

from collections.abc import Callable

import grpc

from ringserve.protocol.errors import BadRequest, InvalidKey, NoWorker, QueueFull, RingServeError

StatusOf = Callable[[RingServeError], tuple[grpc.StatusCode, str]]

REFUSED = "InternalServerException.()"
# A status' text is metadata, of which clients take 8 KiB in all. Written there, a byte may take three.
DETAILS_CHARS_MAX = 2_000
_BY_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    416: grpc.StatusCode.OUT_OF_RANGE,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Those of a client's own doing.
_CLIENTS = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    )
)
# Where TorchServe's clients find the class of an error.
_JAVA_CLASSES = {
    "BadRequestException": "org.pytorch.serve.http.BadRequestException",
    "InternalServerException": "org.pytorch.serve.http.InternalServerException",
    "ModelNotFoundException": "org.pytorch.serve.archive.model.ModelNotFoundException",
    "ModelVersionNotFoundException": "org.pytorch.serve.archive.model.ModelVersionNotFoundException",
    "InvalidModelException": "org.pytorch.serve.archive.model.InvalidModelException",
    "InvalidModelVersionException": "org.pytorch.serve.archive.model.InvalidModelVersionException",
    "DownloadArchiveException": "org.pytorch.serve.archive.DownloadArchiveException",
    "ModelException": "org.pytorch.serve.archive.model.ModelException",
    "ConflictStatusException": "org.pytorch.serve.http.ConflictStatusException",
    "RequestTimeoutException": "org.pytorch.serve.http.messages.RequestTimeoutException",
    "ResourceNotFoundException": "org.pytorch.serve.http.ResourceNotFoundException",
}


def code_of(http_status: int) -> grpc.StatusCode:
    """What TorchServe makes of a status of HTTP."""
    found = _BY_STATUS.get(http_status)
    if found is not None:
        return found
    if http_status < 200 or http_status >= 600:
        return grpc.StatusCode.UNKNOWN
    if http_status < 300:
        return grpc.StatusCode.OK
    if 400 <= http_status < 500:
        return grpc.StatusCode.FAILED_PRECONDITION
    return grpc.StatusCode.INTERNAL if http_status >= 500 else grpc.StatusCode.UNKNOWN


def java_class(error_type: str) -> str:
    """As it stands behind the message."""
    return _JAVA_CLASSES.get(error_type, f"{error_type}.()")


def with_class(message: str, error_type: str) -> str:
    """The details of a status as TorchServe writes them."""
    return f"{shortened(message)}\n{java_class(error_type)}"


def shortened(message: str) -> str:
    """As it can be sent, and not longer than that."""
    if len(message) > DETAILS_CHARS_MAX:
        message = f"{message[:DETAILS_CHARS_MAX]}..."
    return message.encode("utf-8", "replace").decode()


def torchserve_status(error: RingServeError) -> tuple[grpc.StatusCode, str]:
    """Of `ManagementAPIsService`, and where nothing else is said of `InferenceAPIsService`."""
    if isinstance(error, InvalidKey):
        return grpc.StatusCode.PERMISSION_DENIED, error.message
    return code_of(error.http_status), with_class(error.message, error.type)


def inference_status(error: RingServeError) -> tuple[grpc.StatusCode, str]:
    """Of `InferenceAPIsService`: what is refused before a handler sees it has a class without a package there."""
    if isinstance(error, NoWorker | QueueFull):
        return code_of(error.http_status), f"{shortened(error.message)}\n{REFUSED}"
    if isinstance(error, BadRequest):
        return code_of(error.http_status), f"{shortened(error.message)}\n{error.type}.()"
    return torchserve_status(error)


def plain_status(error: RingServeError) -> tuple[grpc.StatusCode, str]:
    """Of services that are neither TorchServe's nor the Open Inference Protocol's."""
    if isinstance(error, InvalidKey):
        return grpc.StatusCode.PERMISSION_DENIED, error.message
    return code_of(error.http_status), shortened(error.message)


def http_class_of(code: int) -> int:
    """The status of HTTP as which a call is counted that ended with this code."""
    if code == 0:
        return 200
    return 400 if code in _CLIENTS else 500

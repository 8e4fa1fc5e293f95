"""What the protocol says when something is wrong: its sentences, which clients look for, and the statuses of both transports.

Sources: Triton 2.51's answers, and the Open Inference Protocol's table of codes (contract section 1.6). Where Triton answers 500 to
what the client got wrong, this server answers 400 with the same sentence.
"""

from ringserve.protocol.errors import (
    AlreadyExists,
    BadRequest,
    ClientError,
    Conflict,
    InvalidKey,
    ModelNotFound,
    NoWorker,
    PredictionFailed,
    QueueFull,
    RingServeError,
    VersionNotFound,
)

MODEL_NAME_CHARS_MAX = 256  # that a sentence repeats
ID_CHARS_MAX = 256
DECOUPLED_REST = "HTTP end point doesn't support models with decoupled transaction policy"
DECOUPLED_GRPC = "ModelInfer RPC doesn't support models with decoupled transaction policy"

_GRPC = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ALREADY_EXISTS",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "RESOURCE_EXHAUSTED",
}


def v2_status(error: RingServeError, queue_full: int = 503) -> tuple[int, str]:
    """The HTTP status and the name of the gRPC code that clients of the protocol expect. `queue_full` is what HTTP says of a full
    queue."""
    if isinstance(error, InvalidKey):
        return error.http_status, "UNAUTHENTICATED"
    if isinstance(error, AlreadyExists | Conflict):
        return 400, "ALREADY_EXISTS"
    if isinstance(error, QueueFull):
        return queue_full, "UNAVAILABLE"
    if isinstance(error, PredictionFailed) and error.http_status == PredictionFailed.status:
        return 500, "INTERNAL"  # the model failed; 503 would have clients and balancers send the same again
    status = error.http_status
    known = _GRPC.get(status)
    if known is None:
        known = "INVALID_ARGUMENT" if isinstance(error, ClientError) else "INTERNAL"
    return status, known


def request_mark(call_id: str) -> str:
    """What sentences about the contents of a request begin with. Those about its model do not: clients look at their beginning."""
    return f"[request id: {call_id[:ID_CHARS_MAX] or '<id_unknown>'}] "


def unknown_model(model: str) -> ModelNotFound:
    return ModelNotFound(f"Request for unknown model: '{model[:MODEL_NAME_CHARS_MAX]}' is not found")


def unknown_version(model: str, version: str) -> VersionNotFound:
    shown = version[:MODEL_NAME_CHARS_MAX]
    return VersionNotFound(f"Request for unknown model: '{model}' version {shown} is not found")


def not_ready(model: str, version: str, retry_after_s: int | None = None) -> NoWorker:
    text = f"Request for unknown model: '{model}' version {version} is not at ready state"
    return NoWorker(text, retry_after_s=retry_after_s)


def bad_json(what: str, why: str) -> BadRequest:
    """A member of a JSON request that is not what it must be."""
    return BadRequest(f"Unable to parse '{what}': {why}")


def too_long_json(size: int, limit: int) -> BadRequest:
    return BadRequest(f"request JSON size of {size} bytes exceeds the maximum allowed input size of {limit} bytes.")

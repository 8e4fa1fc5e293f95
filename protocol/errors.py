"""The one tree of errors. The type carries the answer: HTTP status, TorchServe's class name, a code, and whether to retry.

    RingServeError
    ├── ClientError                     the request is at fault; the same request will fail again
    │   ├── BadRequest              400
    │   ├── InvalidKey              400   no token, or not the one that is asked for
    │   ├── InvalidModel            400   an archive that cannot be served
    │   ├── DownloadFailed          400
    │   ├── ModelError              400   what the model requires cannot be installed
    │   ├── InvalidVersionUse       403   removing a default version that still has siblings
    │   ├── NotFound                404
    │   │   ├── ModelNotFound       404
    │   │   ├── VersionNotFound     404
    │   │   └── WorkflowNotFound    404
    │   ├── MethodNotAllowed        405
    │   ├── Conflict                409
    │   ├── AlreadyExists           400   the Open Inference Protocol's word for the same
    │   ├── Unsupported             501   the server, or the model, does not do that
    │   └── BodyTooLarge            413
    └── ServerError                     the server or the model is at fault
        ├── Internal                500
        ├── WorkerLost              500   the process that ran the request died
        ├── WorkerStartFailed       500
        ├── NoWorker                503   retry: nobody serves this version now
        │   ├── NoTicket            503   retry: every worker is busy, and the model takes no more requests than those
        │   └── SequenceRejected    503   too many sequences or requests in one, or it has ended
        ├── QueueFull               503   retry: `job_queue_size` requests already wait
        ├── QueueTimeout            503   retry: it waited longer than its queue's policy lets it
        ├── ShuttingDown            503   retry elsewhere
        ├── PredictionFailed        503   the model raised, or answered out of contract
        ├── RequestTimeout          408   a management operation took too long
        ├── DeadlineExceeded        504   the request waited longer than it may
        └── OutOfResources          507

Statuses and `type` names are TorchServe 0.12's (its REST errors, `{"code", "type", "message"}`).
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar


class RingServeError(Exception):
    """Base of everything the server answers with. `str(error)` is the sentence the client reads."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "InternalServerException"
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    retry_after_s: int | None = None  # when it is worth trying again, where somebody knows
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})  # of the response, besides those that every one has

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.http_status = self.status if status is None else status
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class ClientError(RingServeError):
    status, type, code = 400, "BadRequestException", "bad_request"


class BadRequest(ClientError):
    """A parameter or body is not what the route or the model declares."""


class InvalidKey(ClientError):
    """The token is missing, wrong, expired or another plane's; which of these is nobody's to know."""

    type, code = "InvalidKeyException", "invalid_key"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class InvalidModel(ClientError):
    """The archive, its manifest or its configuration cannot be served."""

    type, code = "InvalidModelException", "invalid_model"


class DownloadFailed(ClientError):
    """The archive's source could not be read."""

    type, code = "DownloadArchiveException", "download_failed"


class ModelError(ClientError):
    """The Python environment that the model requires could not be made."""

    type, code = "ModelException", "model_error"


class InvalidVersionUse(ClientError):
    """The operation is not allowed on this version."""

    status, type, code = 403, "InvalidModelVersionException", "invalid_version_use"


class NotFound(ClientError):
    """No such route."""

    status, type, code = 404, "ResourceNotFoundException", "not_found"


class ModelNotFound(NotFound):
    type, code = "ModelNotFoundException", "model_not_found"


class VersionNotFound(NotFound):
    type, code = "ModelVersionNotFoundException", "version_not_found"


class WorkflowNotFound(NotFound):
    type, code = "WorkflowNotFoundException", "workflow_not_found"


class MethodNotAllowed(ClientError):
    """A method that a path does not have, or that the server was not told to allow."""

    status, type, code = 405, "MethodNotAllowedException", "method_not_allowed"


METHOD_NOT_ALLOWED = "Requested method is not allowed, please refer to API document."  # TorchServe's, in both cases


class Conflict(ClientError):
    status, type, code = 409, "ConflictStatusException", "conflict"


class AlreadyExists(ClientError):
    """A name of the Open Inference Protocol that is taken."""

    code = "already_exists"


class Unsupported(ClientError):
    """Something that the protocol has and this server or model has not, or that was not allowed."""

    status, code = 501, "unsupported"


class BodyTooLarge(ClientError):
    """The body is longer than `max_request_size`."""

    status, type, code = 413, "RequestEntityTooLargeException", "body_too_large"


class ServerError(RingServeError):
    pass


class Internal(ServerError):
    """Our own mistake: an invariant that did not hold."""


class WorkerLost(ServerError):
    """The worker died while it ran the request. Status 507 when the kernel killed it for memory."""

    code, retryable = "worker_lost", True


class WorkerStartFailed(ServerError):
    """No worker could load the model; the message ends with the last lines of its stderr."""

    code = "worker_start_failed"


class NoWorker(ServerError):
    status, type, code, retryable = 503, "ServiceUnavailableException", "no_worker", True


class NoTicket(NoWorker):
    """The model has `useJobTicket`, and every worker has a request."""

    code = "no_ticket"


class SequenceRejected(NoWorker):
    """There are `maxNumSequence` sequences, `maxSequenceJobQueueSize` requests wait in this one, or it has ended."""

    code = "sequence_rejected"


class QueueFull(ServerError):
    """`job_queue_size` requests already wait for this version."""

    status, type, code, retryable = 503, "ServiceUnavailableException", "queue_full", True


class QueueTimeout(ServerError):
    """The request waited longer than the policy of its queue lets it."""

    status, type, code, retryable = 503, "ServiceUnavailableException", "queue_timeout", True


class ShuttingDown(ServerError):
    status, type, code, retryable = 503, "ServiceUnavailableException", "shutting_down", True


class PredictionFailed(ServerError):
    """The model raised, or its answer broke the handler contract."""

    status, code = 503, "prediction_failed"


class RequestTimeout(ServerError):
    status, type, code, retryable = 408, "RequestTimeoutException", "request_timeout", True


class DeadlineExceeded(ServerError):
    """The request's time was over before a worker took it up, or before the answer was there."""

    status, type, code = 504, "DeadlineExceededException", "deadline_exceeded"


class OutOfResources(ServerError):
    """The model ran out of memory, host or device."""

    status, code = 507, "out_of_resources"


def _tree(root: type[RingServeError]) -> Iterator[type[RingServeError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def error_from(code: str, message: str, status: int) -> RingServeError:
    """The error that another process raised, by its `code`. An unknown code is `Internal`."""
    return _BY_CODE.get(code, Internal)(message, status=status)


# The first class of a code wins: a child that inherits its parent's code is not a different answer.
_BY_CODE: dict[str, type[RingServeError]] = {}
for _error in _tree(RingServeError):
    _BY_CODE.setdefault(_error.code, _error)

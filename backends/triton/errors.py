"""The errors of Triton's Python models: what a model says went wrong, and what using these classes wrongly raises."""

from enum import Enum
from typing import ClassVar

from ringserve.protocol.errors import (
    AlreadyExists,
    BadRequest,
    NotFound,
    NoWorker,
    PredictionFailed,
    RingServeError,
    Unsupported,
)


class TritonModelException(Exception):
    """A model asked for what cannot be done."""


class ErrorCode(Enum):
    """The numbers are those of Triton's own enum."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


class TritonError:
    """Why one request has no answer: `TritonError(message, code)`."""

    UNKNOWN: ClassVar = ErrorCode.UNKNOWN
    INTERNAL: ClassVar = ErrorCode.INTERNAL
    NOT_FOUND: ClassVar = ErrorCode.NOT_FOUND
    INVALID_ARG: ClassVar = ErrorCode.INVALID_ARG
    UNAVAILABLE: ClassVar = ErrorCode.UNAVAILABLE
    UNSUPPORTED: ClassVar = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS: ClassVar = ErrorCode.ALREADY_EXISTS
    CANCELLED: ClassVar = ErrorCode.CANCELLED

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        """Raises `TypeError` for a message that is no text, or a code that is none of this class'."""
        if not isinstance(message, str) or not isinstance(code, ErrorCode):
            raise TypeError(f"TritonError expects a text and one of its codes, got {message!r} and {code!r}.")
        self._message = message
        self._code = code

    def code(self) -> ErrorCode:
        return self._code

    def message(self) -> str:
        return self._message


_CLASSES: dict[ErrorCode, type[RingServeError]] = {
    ErrorCode.NOT_FOUND: NotFound,
    ErrorCode.INVALID_ARG: BadRequest,
    ErrorCode.UNAVAILABLE: NoWorker,
    ErrorCode.UNSUPPORTED: Unsupported,
    ErrorCode.ALREADY_EXISTS: AlreadyExists,
}


def answer_of(error: TritonError) -> RingServeError:
    """What the client reads: the model's own sentence, with the status of its code."""
    kind = _CLASSES.get(error.code())
    if kind is not None:
        return kind(error.message())
    return PredictionFailed(error.message(), status=500 if error.code() is ErrorCode.INTERNAL else 400)

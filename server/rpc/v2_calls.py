"""What the rpcs of the Open Inference Protocol have in common: until when they matter, and which status an error is."""

import asyncio
import re
import time
from types import TracebackType
from typing import Any

import grpc

from ringserve.protocol.errors import BadRequest, Internal, RingServeError, VersionNotFound
from ringserve.server.metrics.passage import Passage
from ringserve.server.open_inference.errors import v2_status

Context = Any  # grpc.aio.ServicerContext, whose types know no generated message

# A status' text is metadata, of which clients take 8 KiB in all. Written there, a byte may take three.
DETAILS_CHARS_MAX = 2_000
_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,18}")


class Refused(RingServeError):
    """The supervisor's refusal, with the status that it named itself."""

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.grpc_code = code


def v2_grpc_status(error: RingServeError) -> tuple[grpc.StatusCode, str]:
    """Of `GRPCInferenceService`: the text is the protocol's sentence and nothing else, for clients compare it."""
    code = error.grpc_code if isinstance(error, Refused) else grpc.StatusCode[v2_status(error)[1]]
    return code, details_of(error)


def details_of(error: RingServeError) -> str:
    """What the client reads, never longer than it can be sent."""
    text = error.message
    if len(text) > DETAILS_CHARS_MAX:
        text = f"{text[:DETAILS_CHARS_MAX]}..."
    return text.encode("utf-8", "replace").decode()


def deadline_ns(context: Context) -> int:
    """When the client stops waiting (CLOCK_MONOTONIC); 0 where it has not said."""
    remaining_s = context.time_remaining()
    return 0 if remaining_s is None else time.monotonic_ns() + int(remaining_s * 1e9)


def not_there(error: VersionNotFound, version: str) -> RingServeError:
    """What to say of a version that a model has not. Any text names a version here; where it is none and no number either, clients
    expect the sentence of a server that knows only numbers."""
    number = _NUMBER.match(version)
    if number is None:
        return BadRequest(
            f"failed to get model version from specified version string '{version:.256}' (details: stol), version should be an"
            " integral value > 0"
        )
    if int(number[0]) < 0:
        return BadRequest(f"invalid model version specified '{version:.256}' , version should be an integral value > 0")
    return error


class Metered:
    """One inference for the meter of its version: what the body of the `with` does with it, from here to its answer."""

    __slots__ = ("passage",)

    def __init__(self) -> None:
        self.passage = Passage(time.monotonic())

    def __enter__(self) -> Passage:
        return self.passage

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.passage.end(time.monotonic())
        elif isinstance(error, RingServeError):
            self.passage.end(time.monotonic(), error.code)
        else:
            gone = isinstance(error, asyncio.CancelledError | GeneratorExit)
            self.passage.miss("cancelled" if gone else Internal.code)

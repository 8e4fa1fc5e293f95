"""TorchServe's `InferenceAPIsService` (contract sections 5.1 and 5.3), over the same dispatch as HTTP.

Each entry of a request's `input` is a part of it, as a field of a form is over HTTP. What a handler says with the status and the headers
of its answer, which TorchServe drops, travels in the trailing metadata: the status as `x-response-status`.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import monotonic
from typing import Any

from ringserve.protocol.errors import BadRequest, RingServeError
from ringserve.protocol.grpc import torchserve_inference_pb2 as pb
from ringserve.protocol.grpc import torchserve_inference_pb2_grpc as pb_grpc
from ringserve.protocol.request import Answer, InferRequest
from ringserve.server.metrics.passage import Passage
from ringserve.server.routes.targets import Asked, find
from ringserve.server.routing import Target
from ringserve.server.rpc.calls import Services, timeout_ms
from ringserve.server.rpc.context import RpcContext
from ringserve.server.rpc.parts import bodies_of, whole
from ringserve.server.rpc.sequence_stream import SequenceStream, asked_by, count, refusal
from ringserve.server.rpc.statuses import inference_status
from ringserve.server.wire import json_text

NO_MODEL_NAME = "Parameter model_name is required."
STATUS_METADATA = "x-response-status"
# What gRPC keeps for itself, and what describes a body that is no HTTP response here.
_NOT_METADATA = frozenset(("content-type", "content-length", "te", "connection", "transfer-encoding"))
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")


def add_torchserve_inference(services: Services, context: RpcContext) -> None:
    """To the listener of inference."""
    services.add(pb_grpc.add_InferenceAPIsServiceServicer_to_server, InferenceService(context), inference_status)


class InferenceService:
    """The four methods. What they raise becomes the status of the call."""

    def __init__(self, context: RpcContext) -> None:
        self._table = context.table

    async def Ping(self, request: Any, context: Any) -> pb.TorchServeHealthResponse:
        health = "Healthy" if self._table.healthy else "Unhealthy"
        return pb.TorchServeHealthResponse(health=json_text({"status": health}).decode().rstrip())

    async def Predictions(self, request: pb.PredictionsRequest, context: Any) -> pb.PredictionResponse:
        passage = Passage(monotonic())
        target = self._target(request)
        passage.begin(target.dispatcher.meter, named=target.named)
        try:
            answer = await passage.enter(target.dispatcher.submit(self._asked(request, target, context)))
            body = await whole(answer)
        except RingServeError as error:
            count(error, passage)
            raise refusal(error, target) from None
        except BaseException as error:
            count(error, passage)
            raise
        if answer.status != 200 or answer.headers:
            _say_more(context, answer)
        passage.end(monotonic())
        return pb.PredictionResponse(prediction=body)

    async def StreamPredictions(
        self, request: pb.PredictionsRequest, context: Any
    ) -> AsyncGenerator[pb.PredictionResponse]:
        """A message for each part that the handler sends, and for what it returns; one for a handler that sends none."""
        passage = Passage(monotonic())
        target = self._target(request)
        passage.begin(target.dispatcher.meter, named=target.named)
        try:
            answer = await passage.enter(target.dispatcher.submit(self._asked(request, target, context)))
            async with aclosing(bodies_of(answer)) as bodies:
                async for body in bodies:
                    yield pb.PredictionResponse(prediction=body)
        except RingServeError as error:
            count(error, passage)
            raise refusal(error, target) from None
        except BaseException as error:
            count(error, passage)
            raise
        _say_more(context, answer)
        passage.end(monotonic())

    async def StreamPredictions2(self, requests: Any, context: Any) -> AsyncGenerator[pb.PredictionResponse]:
        """The requests of sequences, each answered by messages of its own; what goes wrong with one is in its message."""
        async with aclosing(SequenceStream(self._table, self._target, context).replies(requests)) as replies:
            async for reply in replies:
                yield reply

    def _target(self, request: pb.PredictionsRequest) -> Target:
        """Raises `BadRequest`, `ModelNotFound`, `VersionNotFound`."""
        name = request.model_name
        if not name:
            raise BadRequest(NO_MODEL_NAME)
        return find(self._table, Asked(name, request.model_version or None), name)

    def _asked(self, request: pb.PredictionsRequest, target: Target, context: Any) -> InferRequest:
        route = self._table.routes[target.model].versions[target.version]
        return asked_by(request, route, context, timeout_ms(context))


def _say_more(context: Any, answer: Answer) -> None:
    """What the handler says of its answer besides the body."""
    more = [(STATUS_METADATA, str(answer.status))] if answer.status != 200 else []
    for name, value in (answer.headers or {}).items():
        key = name.lower()
        sendable = key not in _NOT_METADATA and not key.startswith("grpc-") and not key.endswith("-bin")
        if sendable and key and _NAME_CHARACTERS.issuperset(key) and value.isascii() and value.isprintable():
            more.append((key, value))
    if more:
        context.set_trailing_metadata(tuple(more))

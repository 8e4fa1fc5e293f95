"""`StreamPredictions2`: the requests of sequences come as messages of one stream, and so do their answers.

Each request is queued as it comes, which keeps those of a sequence in order, and answered as it is answered. What goes wrong with one
is told in its message, and the stream goes on. TorchServe ends the stream when the client has sent its last request, whatever is still
to be answered; here everything is answered first.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from time import monotonic
from typing import Any

from ringserve.protocol.errors import Internal, NoWorker, RingServeError
from ringserve.protocol.grpc import google_rpc_pb2
from ringserve.protocol.grpc import torchserve_inference_pb2 as pb
from ringserve.protocol.request import FormPart, InferRequest
from ringserve.server.control import SequenceRules, VersionRoute
from ringserve.server.metrics.passage import Passage
from ringserve.server.routes.targets import no_worker_text
from ringserve.server.routing import RouteTable, Target
from ringserve.server.rpc.calls import metadata_of, timeout_ms
from ringserve.server.rpc.parts import BrokenOff, bodies_of
from ringserve.server.rpc.statuses import java_class, torchserve_status
from ringserve.server.wire import request_id

NO_SEQUENCE = "Parameter sequenceId is required."
NO_SEQUENCE_REASON = "BadRequestException.()"
# Requests of one stream that are not answered yet, or whose answers the client has not taken. More of them are not read.
OUTSTANDING_MAX = 256
_NAMES = SequenceRules(0, 0)  # of the headers, where the model has no sequences


def asked_by(request: pb.PredictionsRequest, route: VersionRoute, context: Any, timeout: int) -> InferRequest:
    """What a message asks of the model. Its sequence is in the headers, as over HTTP; a map has no order, so the parts have that of
    their names."""
    names = route.sequences or _NAMES
    headers = {names.id_header: request.sequence_id} if request.sequence_id else {}
    for name in (names.start_header, names.end_header):
        if is_true(request.input, name):
            headers[name] = "true"
    rid = request_id(metadata_of(context, "x-request-id") or None)
    parts = [FormPart(name, "", request.input[name]) for name in sorted(request.input)]
    return InferRequest(rid, "", headers, b"", parts, timeout_ms=timeout)


def is_true(inputs: Mapping[str, bytes], name: str) -> bool:
    """As Java reads it."""
    return name in inputs and inputs[name].strip().lower() == b"true"


def refusal(error: RingServeError, target: Target) -> RingServeError:
    """What the client is told of an error of the dispatcher."""
    if isinstance(error, NoWorker):
        return type(error)(no_worker_text(target), retry_after_s=error.retry_after_s)
    return error


def count(error: BaseException, passage: Passage) -> None:
    """A prediction has ended with this."""
    if not isinstance(error, RingServeError):
        passage.miss("cancelled")
    elif isinstance(error, BrokenOff):
        passage.miss("broken_off")
    else:
        passage.end(monotonic(), error.code)


class SequenceStream:
    """One call. `find` says whom a message means; it raises `RingServeError`."""

    def __init__(self, table: RouteTable, find: Callable[[pb.PredictionsRequest], Target], context: Any) -> None:
        self._table = table
        self._find = find
        self._context = context
        self._replies: asyncio.Queue[pb.PredictionResponse | None] = asyncio.Queue(OUTSTANDING_MAX)  # None: no more
        self._free = asyncio.Semaphore(OUTSTANDING_MAX)
        self._running: set[asyncio.Task[None]] = set()

    async def replies(self, requests: AsyncIterator[pb.PredictionsRequest]) -> AsyncGenerator[pb.PredictionResponse]:
        """Until the last request is answered."""
        reading = asyncio.create_task(self._read(requests))
        try:
            while (reply := await self._replies.get()) is not None:
                yield reply
            await reading
        finally:
            for task in (reading, *self._running):
                task.cancel()
            await asyncio.gather(reading, *self._running, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.PredictionsRequest]) -> None:
        failure: Exception | None = None
        try:
            async for request in requests:
                await self._free.acquire()
                task = asyncio.create_task(self._answered(request))
                self._running.add(task)
                task.add_done_callback(self._over)
                await asyncio.sleep(0)  # it is queued now, before the next one
        except Exception as error:  # noqa: BLE001 - whatever it was, what had come is answered first
            failure = error
        while self._running:
            await asyncio.wait(self._running)
        await self._replies.put(None)
        if failure is not None:
            raise failure

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._free.release()

    async def _answered(self, request: pb.PredictionsRequest) -> None:
        """All messages of one request. It is queued before this waits for anything."""
        passage = Passage(monotonic())
        sequence_id = request.sequence_id or None
        try:
            target = self._find(request)
            passage.begin(target.dispatcher.meter, named=target.named)
            route = self._table.routes[target.model].versions[target.version]
            asked = asked_by(request, route, self._context, timeout_ms(self._context))
            names = route.sequences or _NAMES
            if not sequence_id and names.start_header not in asked.headers:
                raise Internal(NO_SEQUENCE)
            try:
                pending = passage.enter(target.dispatcher.submit(asked))
                sequence_id = asked.headers.get(names.id_header)  # where there was none, it has got one
                async with aclosing(bodies_of(await pending)) as bodies:
                    async for body in bodies:
                        await self._say(pb.PredictionResponse(prediction=body, sequence_id=sequence_id))
            except RingServeError as error:
                raise refusal(error, target) from None
            passage.end(monotonic())
        except RingServeError as error:
            count(error, passage)
            await self._say(pb.PredictionResponse(sequence_id=sequence_id, status=status_of(error)))
        except BaseException as error:
            count(error, passage)
            raise

    async def _say(self, reply: pb.PredictionResponse) -> None:
        await self._replies.put(reply)


def status_of(error: RingServeError) -> google_rpc_pb2.Status:
    """As TorchServe puts it into a message: the class of the error is the reason in its details."""
    code, _ = torchserve_status(error)
    status = google_rpc_pb2.Status(code=code.value[0], message=error.message)
    reason = NO_SEQUENCE_REASON if error.message == NO_SEQUENCE else java_class(error.type)
    status.details.add().Pack(google_rpc_pb2.ErrorInfo(reason=reason))
    return status

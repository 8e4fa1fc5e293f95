"""ModelStreamInfer: many requests on one call, to any models.

    the stream is read ─▶ submitted in this order ─▶ answers of a model that gives one each: in the order of the requests
                                                   ─▶ answers of decoupled models: as they come, any number

What goes wrong with one request is said in its answer, and the stream goes on; a client that would rather see the status asks for that
with the metadata `triton_grpc_error: true`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc.aio

from ringserve.protocol.errors import DeadlineExceeded, RingServeError, VersionNotFound
from ringserve.protocol.grpc.open_inference_pb2 import ModelInferResponse
from ringserve.server.inflight import Pending
from ringserve.server.open_inference.call import InferCall
from ringserve.server.open_inference.service import Found, OpenInference, Started
from ringserve.server.rpc.calls import write_within
from ringserve.server.rpc.tensors import InferMessage, call_of, in_stream, response_bytes
from ringserve.server.rpc.v2_calls import Context, Metered, deadline_ns, details_of, not_there

# Requests of one stream that are not answered yet. With more, the stream is not read: gRPC's flow control tells the client.
STREAM_REQUESTS_MAX = 128
STATUS_WANTED = "triton_grpc_error"
EMPTY_FINAL_WANTED = "triton_enable_empty_final_response"
# What the write to a client raises that has gone.
GONE = (grpc.aio.InternalError, grpc.aio.UsageError)


class _Ended(Exception):
    """The stream ends with the status of this error; None where the client has gone."""

    def __init__(self, error: RingServeError | None) -> None:
        super().__init__()
        self.error = error


class InferStream:
    """Serves each stream in a `_Conversation` of its own."""

    def __init__(self, core: OpenInference, write_timeout_s: float) -> None:
        self._core = core
        self._write_timeout_s = write_timeout_s

    async def serve(self, requests: AsyncIterator[InferMessage], context: Context) -> None:
        """Until the client has said everything and all of it is answered. Cancelled, it cancels every request. Raises the
        `RingServeError` that a client wants as status."""
        conversation, error = _Conversation(self._core, context, self._write_timeout_s), None
        try:
            await conversation.run(requests)
        except* _Ended as ended:
            error = _first(ended)
        if error is not None:
            raise error


def _first(group: BaseExceptionGroup[_Ended]) -> RingServeError | None:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first.error


class _Conversation:
    def __init__(self, core: OpenInference, context: Context, write_timeout_s: float) -> None:
        self._core = core
        self._write_timeout_s = write_timeout_s
        self._context = context
        self._deadline_ns = deadline_ns(context)
        self._status_wanted = (STATUS_WANTED, "true") in (context.invocation_metadata() or ())
        self._places = asyncio.Semaphore(STREAM_REQUESTS_MAX)
        self._writing = asyncio.Lock()
        self._over = False  # nothing is written any more: the status is next
        self._turn: asyncio.Future[None] | None = None  # done when the last ordered request is answered

    async def run(self, requests: AsyncIterator[InferMessage]) -> None:
        async with asyncio.TaskGroup() as group:
            try:
                async for message in requests:
                    await self._places.acquire()
                    self._take_up(message, group)
            except RingServeError as error:  # a message that is none
                await self._end(error)

    def _take_up(self, message: InferMessage, group: asyncio.TaskGroup) -> None:
        """Submit a request. Nothing is awaited before that: requests of one sequence must not overtake each other."""
        fields = message.fields
        told = ModelInferResponse(model_name=fields.model_name, model_version=fields.model_version, id=fields.id)
        metered = Metered()
        begun: Started | RingServeError
        try:
            found = self._core.find(fields.model_name, fields.model_version)
            told.model_version = found.version
            metered.passage.begin(found.dispatcher.meter, named=found.named)
            call = call_of(message, self._deadline_ns, lying_at=self._core.lying_at)
            if found.declaration is not None and found.declaration.signature.decoupled:
                group.create_task(self._answer_many(call, found, told, metered))
                return
            begun = self._core.begin(call, found)
        except VersionNotFound as error:
            begun = not_there(error, fields.model_version)
        except RingServeError as error:
            begun = error
        before, self._turn = self._turn, asyncio.get_running_loop().create_future()
        task = group.create_task(self._answer_in_turn(begun, told, metered, before, self._turn))
        if isinstance(begun, Started):
            _cancelled_with(task, begun.pending)

    async def _answer_in_turn(
        self,
        begun: Started | RingServeError,
        told: ModelInferResponse,
        metered: Metered,
        before: asyncio.Future[None] | None,
        turn: asyncio.Future[None],
    ) -> None:
        said: bytes | RingServeError
        try:
            with metered as passage:
                if isinstance(begun, RingServeError):
                    raise begun
                result = self._core.finish(begun, await passage.enter(begun.pending))
                said = in_stream(response_bytes(result, streamed=True))
        except RingServeError as error:
            said = error
        if before is not None:
            await before
        if isinstance(said, RingServeError):
            await self._fail(said, told)
        else:
            await self._write(said)
        turn.set_result(None)
        self._places.release()

    async def _answer_many(self, call: InferCall, found: Found, told: ModelInferResponse, metered: Metered) -> None:
        empty_final = call.parameters.get(EMPTY_FINAL_WANTED) is True
        try:
            with metered as passage:
                async with contextlib.aclosing(self._core.stream(call, passage.enter, found)) as results:
                    async for result in results:
                        if result.outputs or not result.final or empty_final:
                            await self._write(in_stream(response_bytes(result, streamed=True)))
        except RingServeError as error:
            await self._fail(error, told)
        self._places.release()

    async def _fail(self, error: RingServeError, told: ModelInferResponse) -> None:
        """Say what is wrong with one request, or end the stream with that."""
        if not self._status_wanted:
            told.parameters["triton_final_response"].bool_param = True
            await self._write(in_stream(told.SerializeToString(), details_of(error)))
            return
        await self._end(error)

    async def _end(self, error: RingServeError) -> None:
        async with self._writing:  # a write that is cancelled half way would leave gRPC unable to send the status
            self._over = True
            raise _Ended(error)

    async def _write(self, said: bytes) -> None:
        async with self._writing:
            if self._over:
                return
            try:
                await write_within(self._write_timeout_s, self._context, said)
            except GONE:
                raise _Ended(None) from None
            except DeadlineExceeded as error:
                self._over = True
                raise _Ended(error) from None


def _cancelled_with(task: asyncio.Task[None], pending: Pending) -> None:
    """Take the request back when its task is cancelled, also before its first step."""
    task.add_done_callback(lambda task: pending.cancel() if task.cancelled() else None)

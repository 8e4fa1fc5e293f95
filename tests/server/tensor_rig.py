"""A dispatcher and a worker's execution at both ends of one link, in one process, with a model that the test writes."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from ringserve.backends.contract import Batch, LoadedModel
from ringserve.protocol.datatypes import BYTES, DATATYPE_OF, DTYPES, join_elements, split_elements
from ringserve.protocol.errors import BadRequest, WorkerLost
from ringserve.protocol.request import Answer, InferRequest, Tensor, TensorRequest
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from ringserve.server.batching import BatchPolicy
from ringserve.server.budget import arrays_of
from ringserve.server.dispatch import Dispatcher
from ringserve.server.execution import Execution
from ringserve.server.inflight import Pending
from ringserve.server.limits import Limits
from ringserve.server.replies import STATUS_OVERFLOW
from ringserve.server.streaming import Chunks
from ringserve.shm.lane import Lane, create_lane
from ringserve.shm.layout import LaneShape
from ringserve.shm.link import FrontLink, WorkerLink, create_link
from ringserve.shm.ring import Completion

LIMIT = 1 << 22
REGION = 1 << 16
Run = Callable[[Batch], None]


class Model:
    """A backend that does what the test says; `batches` are those it was called with."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.batches: list[Batch] = []

    def load(self, model: LoadedModel) -> Signature:
        raise AssertionError("nothing is loaded here")

    def execute(self, batch: Batch) -> None:
        self.batches.append(batch)
        self._run(batch)

    def describe(self) -> object:
        return None

    def close(self) -> None:
        pass


class Served:
    """One version with one worker. `work` lets that one answer what it was given."""

    def __init__(
        self, signature: Signature, run: Run, *, rows: int, capacity: int, slabs: int, region: int, limit: int
    ) -> None:
        self.signature = signature
        self.model = Model(run)
        self.execution = Execution(self.model, signature, limit)
        shape = LaneShape(slabs, rows, *arrays_of(signature), 0 if signature.typed else region, region)
        self.segment = create_lane(shape)
        self.dispatcher = Dispatcher("m", BatchPolicy(rows), Limits(capacity))
        self.dispatcher.set_serviceable(True)
        self.dispatcher.open_lane(Lane.attach(os.dup(self.segment.fd), shape), signature)
        self.lane = Lane.attach(os.dup(self.segment.fd), shape)
        self._due = self._worker = 0
        self._connect()

    def _connect(self) -> None:
        self._due, self._worker = 0, self._worker + 1
        self.fds = create_link()
        self.link = WorkerLink(self.fds.worker)
        self.chunks = Chunks(self.link)

    def attach(self) -> None:
        """The worker is there: what waits leaves for it."""
        self.dispatcher.attach(str(self._worker), FrontLink(self.fds.front))

    def replace_worker(self, *, began: bool) -> None:
        """It dies, perhaps while it executes a batch, and another one comes."""
        self._due += self.link.listener.collect()
        if began and self._due:
            self.link.commands.take()
        self.link.close()
        self.dispatcher.worker_gone(str(self._worker), WorkerLost("it died"))
        self._connect()
        self.attach()

    def send(self, *inputs: Tensor, **fields: Any) -> Pending:
        request_fields = {name: fields.pop(name) for name in ("headers", "model", "timeout_ms") if name in fields}
        headers = request_fields.pop("headers", {})
        tensors = TensorRequest(inputs, **fields)
        return self.dispatcher.submit(InferRequest("id", "", headers, b"", tensors=tensors, **request_fields))

    def post(self, body: bytes, content_type: str = "", **fields: Any) -> Pending:
        return self.dispatcher.submit(InferRequest("id", content_type, {}, body, **fields))

    def work(self) -> int:
        """Execute and answer the batches that are here."""
        self._due += self.link.listener.collect()
        done = 0
        while self._due:
            self._due -= 1
            done += 1
            command = self.link.commands.take()
            slab = self.lane.slabs[command.slab]
            overflow = self.execution.run(slab, command, self.chunks, self.link.receive_parcel)
            if overflow is not None:
                self.link.send_parcel(overflow)
                overflow.close()
            status = STATUS_OVERFLOW if overflow is not None else 0
            assert self.link.completions.try_push(Completion(command.sequence, slab.index, command.rows, status))
            self.link.bell.ring()
        return done

    async def settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    async def answered(self, *pendings: Pending) -> list[Answer | BaseException]:
        """Let the worker work until all of these have their answers."""
        await self.settle()
        while self.work():
            await self.settle()
        return await asyncio.gather(*pendings, return_exceptions=True)

    def in_thread(self) -> "asyncio.Future[int]":
        """Let the worker work beside the loop, as a streaming model must."""
        return asyncio.get_running_loop().run_in_executor(None, self.work)

    @property
    def free(self) -> tuple[int, int]:
        return self.dispatcher._queue.counts()

    @property
    def waiting(self) -> int:
        return self.dispatcher.waiting

    def close(self) -> None:
        for state in list(self.dispatcher._links.values()):
            self.dispatcher._drop(state)
        self.dispatcher._queue.close_lane()
        self.link.close()
        self.lane.close()
        self.segment.close()


@contextlib.asynccontextmanager
async def served(
    signature: Signature,
    run: Run,
    *,
    rows: int = 4,
    capacity: int = 100,
    slabs: int = 4,
    region: int = REGION,
    limit: int = LIMIT,
    attached: bool = True,
) -> AsyncIterator[Served]:
    """On the running loop. Nothing may be left when it is closed."""
    raised: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
    made = Served(signature, run, rows=rows, capacity=capacity, slabs=slabs, region=region, limit=limit)
    if attached:
        made.attach()
    try:
        yield made
        await made.settle()
        assert made.waiting == 0
        assert made.free == (slabs, slabs)
    finally:
        made.close()
    assert raised == []


def tensor(name: str, array: np.ndarray | Sequence[Any], datatype: str | None = None) -> Tensor:
    """As a client sends it; texts and bytes are BYTES."""
    array = np.asarray(array)
    if array.dtype.kind in "OSU" or datatype == BYTES:
        elements = [each if isinstance(each, bytes) else each.encode() for each in array.ravel().tolist()]
        return Tensor(name, BYTES, array.shape, join_elements(elements))
    return Tensor(name, datatype or DATATYPE_OF[array.dtype.name], array.shape, array.tobytes())


def value(of: Tensor) -> Any:
    """As nested lists."""
    assert isinstance(of.data, bytes | bytearray | memoryview)
    if of.datatype == BYTES:
        array = np.empty(int(np.prod(of.shape)), dtype=object)
        array[:] = split_elements(of.data)
        return array.reshape(of.shape).tolist()
    dtype = "<u2" if of.datatype == "BF16" else DTYPES[of.datatype]
    return np.frombuffer(of.data, dtype).reshape(of.shape).tolist()


def values(answer: Answer | BaseException) -> dict[str, Any]:
    """The outputs of an answer by name."""
    if isinstance(answer, BaseException):
        raise answer
    assert answer.tensors is not None
    return {each.name: value(each) for each in answer.tensors.outputs}


# ---- models and requests that several tests have

X, Y = TensorSpec("x", "float32", (2,)), TensorSpec("y", "float32", (2,))
TYPED = Signature((X, TensorSpec("k", "int32", ())), (Y, TensorSpec("n", "int32", ())))
ANY_X, ANY_Y = TensorSpec("x", "float32", (ANY,)), TensorSpec("y", "float32", (ANY,))
FRAMED = Signature((ANY_X,), (ANY_Y,))


def double_typed(batch: Batch) -> None:
    batch.outputs["y"][:] = batch.inputs["x"] * 2
    batch.outputs["n"][:] = batch.inputs["k"] + 1


def double(batch: Batch) -> None:
    batch.outputs = {"y": batch.inputs["x"] * 2}


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(bounded())


def x_of(rows: int, columns: int = 2, first: int = 0) -> Tensor:
    return tensor("x", np.arange(first, first + rows * columns, dtype="float32").reshape(rows, columns))


def k_of(rows: int) -> Tensor:
    return tensor("k", np.arange(rows, dtype="int32"))


class Far:
    """Bytes in a client's memory."""

    def __init__(self, data: bytes, *, gone: bool = False) -> None:
        self.data = data
        self.nbytes = len(data)
        self.gone = gone

    def read_into(self, memory: memoryview) -> None:
        assert len(memory) == self.nbytes
        if self.gone:
            raise BadRequest("the region is gone")
        memory[:] = self.data

    def part(self, offset: int, nbytes: int) -> "Far":
        assert 0 <= offset <= offset + nbytes <= self.nbytes
        return Far(self.data[offset : offset + nbytes], gone=self.gone)


def far(of: Tensor, *, gone: bool = False) -> Tensor:
    return of._replace(data=Far(bytes(of.data), gone=gone))  # type: ignore[arg-type]

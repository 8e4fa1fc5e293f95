"""A dispatcher with real lanes and links, and workers on the same loop that do only what they are told."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest

from ringserve.backends.contract import Reply
from ringserve.protocol.errors import RingServeError, WorkerLost
from ringserve.protocol.request import Answer, InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.batching import BatchPolicy
from ringserve.server.budget import lane_shape
from ringserve.server.dispatch import Dispatcher
from ringserve.server.payloads import read_requests
from ringserve.server.replies import STATUS_OVERFLOW, write_replies
from ringserve.shm.lane import Lane, create_lane
from ringserve.shm.layout import ROW_ID, LaneShape
from ringserve.shm.link import FrontLink, WorkerLink, create_link
from ringserve.shm.ring import Entry
from ringserve.shm.segment import Segment

LIMIT = 1 << 20
LOST = WorkerLost("Worker died. It was killed by the test.")


class DirectedWorker:
    """A worker's end of a lane: it takes a batch when told `start` and answers it when told `finish`.

    Every request is answered with `answer to ` and its body, unless `reply` says otherwise.
    """

    def __init__(self, worker_id: str, lane: Lane, link: WorkerLink) -> None:
        self.worker_id = worker_id
        self.lane = lane
        self.link = link
        self.due = 0
        self.running: Entry | None = None
        self.batches: list[list[bytes]] = []  # the bodies it was given, batch by batch
        self.reply: Callable[[bytes], Reply | RingServeError] = lambda body: Reply(b"answer to " + body, None)
        self.spoil_row_ids = False
        self.headers: list[Mapping[str, str]] = []

    def start(self) -> bool:
        """Begin the next batch; False when there is none."""
        self.due += self.link.listener.collect()
        if self.running is not None or not self.due:
            return False
        self.due -= 1
        self.running = self.link.commands.take()
        requests, parcels = read_requests(self._slab, self.running.rows, self.link.receive_parcel)
        self.batches.append([b"".join(bytes(part.data) for part in request.parts) for request in requests])
        self.headers += [request.headers for request in requests]
        del requests
        for parcel in parcels:
            parcel.close()
        return True

    @property
    def _slab(self) -> Any:
        assert self.running is not None
        return self.lane.slabs[self.running.slab]

    def finish(self) -> None:
        """Answer the batch that was begun."""
        assert self.running is not None
        slab = self._slab
        if self.spoil_row_ids:
            slab.table[: self.running.rows, ROW_ID] += 1000
        overflow = write_replies(slab, [self.reply(body) for body in self.batches[-1]], LIMIT)
        if overflow is not None:
            self.link.send_parcel(overflow)
            overflow.close()
        status = STATUS_OVERFLOW if overflow is not None else 0
        assert self.link.completions.try_push(Entry(self.running.sequence, slab.index, self.running.rows, status))
        self.running = None
        self.link.bell.ring()

    def work(self) -> int:
        """Answer everything that is here; how many batches that was."""
        done = 0
        while self.start():
            self.finish()
            done += 1
        return done

    def die(self) -> None:
        self.link.close()
        self.lane.close()


class Stage:
    """One dispatcher, its lane, and its workers by id."""

    def __init__(self, policy: BatchPolicy, capacity: int, signature: Signature, shape: LaneShape) -> None:
        self.dispatcher = Dispatcher("m", policy, capacity, 120)
        self.dispatcher.set_serviceable(True)
        self.signature = signature
        self.shape = shape
        self.segment: Segment = create_lane(shape)
        self.workers: dict[str, DirectedWorker] = {}
        self.futures: list[asyncio.Future[Answer]] = []
        self._number = 0

    def open_lane(self) -> None:
        self.dispatcher.open_lane(Lane.attach(os.dup(self.segment.fd), self.shape), self.signature)

    def attach(self) -> DirectedWorker:
        self._number += 1
        fds = create_link()
        lane = Lane.attach(os.dup(self.segment.fd), self.shape)
        worker = DirectedWorker(str(self._number), lane, WorkerLink(fds.worker))
        self.workers[worker.worker_id] = worker
        self.dispatcher.attach(worker.worker_id, FrontLink(fds.front))
        return worker

    def kill(self, worker: DirectedWorker, *, noticed: bool = True) -> None:
        """End the worker; `noticed`: the supervisor tells the dispatcher at once."""
        worker.die()
        del self.workers[worker.worker_id]
        if noticed:
            self.dispatcher.worker_gone(worker.worker_id, LOST)

    def submit(self, body: bytes = b"x", headers: Mapping[str, str] | None = None) -> asyncio.Future[Answer]:
        future = self.dispatcher.submit(InferRequest("id", "", headers or {}, body))
        self.futures.append(future)
        return future

    async def settle(self) -> None:
        """Let the loop go round until nothing that has happened is unheard."""
        for _ in range(4):
            await asyncio.sleep(0)

    async def work(self) -> None:
        """Let all workers answer until nothing moves any more."""
        await self.settle()
        while sum(worker.work() for worker in self.workers.values()):
            await self.settle()

    async def work_until(self, closed: list[bool]) -> None:
        """Let workers answer until the dispatcher has closed, which ends their links."""
        for _ in range(100):
            for worker in self.workers.values():
                if not closed:
                    worker.work()
            await self.settle()
        assert closed == [True]

    def slabs(self) -> list[int]:
        """Where every slab is, by number: free, open, full or with a worker."""
        dispatcher = self.dispatcher
        batches = [*dispatcher._full, *([dispatcher._open] if dispatcher._open is not None else [])]
        for state in dispatcher._links.values():
            batches += state.outstanding
        return sorted([slab.index for slab in dispatcher._free] + [batch.slab.index for batch in batches])

    def free(self) -> int:
        """Slabs that hold nothing: free ones, and an open one without rows."""
        opened = self.dispatcher._open
        return len(self.dispatcher._free) + (opened is not None and not opened.rows)

    def clear(self) -> None:
        for worker in list(self.workers.values()):
            self.kill(worker)
        self.dispatcher.abandon(LOST)
        self.segment.close()
        for future in self.futures:  # a test need not look at every outcome
            if future.done() and not future.cancelled():
                future.exception()


def make_stage(
    *,
    rows: int = 4,
    capacity: int = 100,
    slabs: int = 4,
    region: int = 4096,
    fill_ns: int = 0,
    signature: Signature | None = None,
    opened: bool = True,
) -> Stage:
    """On the running loop."""
    signature = Signature() if signature is None else signature
    shape = lane_shape(signature, rows, 1)
    shape = LaneShape(slabs, rows, shape.inputs, shape.outputs, 0 if signature.typed else region, region)
    stage = Stage(BatchPolicy(rows, fill_ns, fill=bool(fill_ns)), capacity, signature, shape)
    if opened:
        stage.open_lane()
    return stage


def outcome(future: asyncio.Future[Answer]) -> bytes | RingServeError:
    """The body of an answer, or the error."""
    error = future.exception()
    if error is None:
        return future.result().body
    assert isinstance(error, RingServeError)
    return error


Scenario = Callable[[Stage], Awaitable[None]]


@pytest.fixture
def play() -> Iterator[Callable[..., None]]:
    """Run a scenario on a stage of its own; whatever a callback of the loop raises fails the test."""

    def run(scenario: Scenario, **options: Any) -> None:
        async def main() -> None:
            raised: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
            stage = make_stage(**options)
            try:
                await scenario(stage)
            finally:
                stage.clear()
            assert raised == []

        asyncio.run(main())

    yield run


@pytest.fixture
def outcome_of() -> Callable[[asyncio.Future[Answer]], bytes | RingServeError]:
    """The body of an answer, or the error that came instead."""
    return outcome


@pytest.fixture
def new_stage() -> Callable[..., Stage]:
    """For tests that keep a loop of their own."""
    return make_stage

"""A dispatcher with real lanes and links, a clock that passes when told, and workers that do only what they are told."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from ringserve.backends.contract import Reply
from ringserve.protocol.errors import RingServeError, WorkerLost
from ringserve.protocol.request import Answer, InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.batching import BatchPolicy
from ringserve.server.budget import lane_shape
from ringserve.server.chunks import PIECE, Piece, write_frame
from ringserve.server.dispatch import Dispatcher
from ringserve.server.execution import wanted_rows
from ringserve.server.inflight import Fill, Pending
from ringserve.server.landing import Landing, SlabLanding, copy_into
from ringserve.server.limits import Limits
from ringserve.server.payloads import read_requests
from ringserve.server.replies import (
    STATUS_CHUNK,
    STATUS_OVERFLOW,
    RowMark,
    RowReply,
    encode_reply_head,
    write_replies,
    write_typed_success,
)
from ringserve.shm.lane import Lane, Slab, create_lane
from ringserve.shm.layout import CACHE_LINE, COMMAND, ENTRY_BYTES, RING_ENTRIES, ROW_ID, TAIL_AT, WORD, LaneShape
from ringserve.shm.link import CHUNK_CREDITS, FrontLink, WorkerLink, create_link
from ringserve.shm.ring import Command, Completion
from ringserve.shm.segment import Segment

# How long an example takes says more about the machine than about the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

LIMIT = 1 << 20
LOST = WorkerLost("Worker died. It was killed by the test.")


class Timer:
    """What a loop's `call_later` returns, as far as anybody uses it."""

    def __init__(self, at_ns: int, call: Callable[[], object]) -> None:
        self.at_ns = at_ns
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """Stands for the module `time`, and for the timers of a loop."""

    def __init__(self) -> None:
        self.now_ns = 10**15
        self.timers: list[Timer] = []

    def monotonic_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = Timer(self.now_ns + round(delay_s * 1e9), lambda: callback(*args))
        self.timers.append(timer)
        return timer

    def pass_s(self, seconds: float) -> None:
        """Call what is due until then, in order."""
        end_ns = self.now_ns + round(seconds * 1e9)
        while True:
            self.timers = [timer for timer in self.timers if not timer.cancelled]
            due = [timer for timer in self.timers if timer.at_ns <= end_ns]
            if not due:
                break
            first = min(due, key=lambda timer: timer.at_ns)
            self.timers.remove(first)
            self.now_ns = max(self.now_ns, first.at_ns)
            first.call()
        self.now_ns = end_ns


class DirectedWorker:
    """A worker's end of a lane: it takes a batch when told `start` and answers it when told `finish`.

    Every request is answered with `answer to ` and its body, unless `reply` says otherwise; of a typed model, with every byte
    of its row inverted. Rows that nobody waits for are not computed, as by a worker that computes.
    """

    def __init__(self, worker_id: str, lane: Lane, link: WorkerLink, clock: Clock, *, typed: bool) -> None:
        self.worker_id = worker_id
        self.lane = lane
        self.link = link
        self.due = 0
        self.running: Command | None = None
        self.bodies: list[bytes] = []  # of the batch that runs, a row each
        self.wanted: list[int] = []  # rows of it that are computed
        self.batches: list[list[bytes]] = []  # the bodies it computed, batch by batch
        self.ranges: list[tuple[int, int]] = []  # first row and rows of each batch
        self.reply: Callable[[bytes], Reply | RingServeError] = lambda body: Reply(b"answer to " + body, None)
        self.spoil_row_ids = False
        self.headers: list[Mapping[str, str]] = []
        self.credits = CHUNK_CREDITS
        self.chunks = 0  # of the batch that runs
        self._clock = clock
        self._typed = typed

    def start(self) -> bool:
        """Begin the next batch; False when there is none."""
        self.due += self.link.listener.collect()
        if self.running is not None or not self.due:
            return False
        self.due -= 1
        self.running = command = self.link.commands.take()
        self.bodies = self._typed_bodies(command) if self._typed else self._plain_bodies(command)
        self.wanted = list(wanted_rows(self.slab, command, self._clock.now_ns))
        self.batches.append([self.bodies[row] for row in self.wanted])
        self.ranges.append((command.first, command.rows))
        self.chunks = 0
        return True

    def _typed_bodies(self, command: Command) -> list[bytes]:
        rows = range(command.first, command.first + command.rows)
        return [b"".join(array[row].tobytes() for array in self.slab.inputs) for row in rows]

    def _plain_bodies(self, command: Command) -> list[bytes]:
        requests, parcels = read_requests(self.slab, command.first, command.rows, self.link.receive_parcel)
        bodies = [b"".join(bytes(part.data) for part in request.parts) for request in requests]
        self.headers += [request.headers for request in requests]
        requests.clear()
        for parcel in parcels:
            parcel.close()
        return bodies

    @property
    def slab(self) -> Slab:
        assert self.running is not None
        return self.lane.slabs[self.running.slab]

    def given(self) -> list[Command]:
        """What it was given and has not answered, as its ring tells."""
        ring, mask = self.link.commands, RING_ENTRIES - 1
        numbers = range(ring._head, ring._words[TAIL_AT // WORD])
        ats = [ring._entries_at + (number & mask) * ENTRY_BYTES for number in numbers]
        queued = [Command(*COMMAND.unpack_from(ring._memory, at)) for at in ats]
        return queued if self.running is None else [self.running, *queued]

    def given_ids(self) -> list[int]:
        """The ids of the rows of that."""
        return [row_id for command in self.given() for row_id in self._ids(command)]

    def running_ids(self) -> list[int]:
        """Those of the batch that runs."""
        assert self.running is not None
        return self._ids(self.running)

    def _ids(self, command: Command) -> list[int]:
        table = self.lane.slabs[command.slab].table
        ids: list[int] = table[command.first : command.first + command.rows, ROW_ID].tolist()
        return ids

    def collect_credits(self) -> int:
        """How many chunks it may send now."""
        self.credits += self.link.credits.collect()
        assert self.credits <= CHUNK_CREDITS
        return self.credits

    def stream(self, parts: Mapping[int, bytes]) -> bool:
        """Send one part of some rows' answers, by number in the batch; False when it has no credit, or no room."""
        assert self.running is not None
        head = encode_reply_head(Reply(b"", "text/plain"))
        # Each piece carries a head: only the first one of a row counts.
        pieces = [Piece(row, head, body) for row, body in parts.items()]
        needed = sum(PIECE.size + len(head) + len(body) for body in parts.values())
        if needed > self._slot_bytes or not self.collect_credits():
            return False
        self.credits -= 1
        at = self.running.out_at + self.chunks % CHUNK_CREDITS * self._slot_bytes
        size = write_frame(self.slab.bytes_out[at : at + self._slot_bytes], pieces)
        self.chunks += 1
        command = self.running
        self._push(Completion(command.sequence, command.slab, command.rows, STATUS_CHUNK, at, size))
        return True

    @property
    def _slot_bytes(self) -> int:
        assert self.running is not None
        return self.running.out_bytes // (CHUNK_CREDITS + 1) // CACHE_LINE * CACHE_LINE

    def finish(self) -> None:
        """Answer the batch that was begun."""
        command = self.running
        assert command is not None
        slab = self.slab
        if self.spoil_row_ids:
            slab.table[command.first : command.first + command.rows, ROW_ID] += 1000
        used = self._slot_bytes * CHUNK_CREDITS if self.chunks else 0
        room = command._replace(out_at=command.out_at + used, out_bytes=command.out_bytes - used)
        overflow = self._answer_typed(room) if self._typed else self._answer(room)
        if overflow is not None:
            self.link.send_parcel(overflow)
            overflow.close()
        status = STATUS_OVERFLOW if overflow is not None else 0
        self.running = None
        self._push(Completion(command.sequence, slab.index, command.rows, status))

    def _answer(self, command: Command) -> Segment | None:
        outcomes: list[RowReply] = [RowMark.NOT_COMPUTED] * command.rows
        for row in self.wanted:
            outcomes[row] = self.reply(self.bodies[row])
        return write_replies(self.slab, command, outcomes, LIMIT)

    def _answer_typed(self, command: Command) -> Segment | None:
        slab = self.slab
        for row in self.wanted:
            for given, answer in zip(slab.inputs, slab.outputs, strict=True):
                at = command.first + row
                answer[at] = np.frombuffer(inverted(given[at].tobytes()), answer.dtype).reshape(answer[at].shape)
        failed = {row: reply for row in self.wanted if isinstance(reply := self.reply(self.bodies[row]), Exception)}
        if len(self.wanted) == command.rows and not failed:
            write_typed_success(slab, command.first, command.rows)
            return None
        outcomes: list[RowReply] = [RowMark.NOT_COMPUTED] * command.rows
        for row in self.wanted:
            outcomes[row] = failed.get(row, RowMark.IN_ARRAYS)
        return write_replies(slab, command, outcomes, LIMIT)

    def _push(self, entry: Completion) -> None:
        assert self.link.completions.try_push(entry)
        self.link.bell.ring()

    def work(self) -> int:
        """Answer everything that is here; how many batches that was."""
        done = 0
        if self.running is not None:
            self.finish()
            done += 1
        while self.start():
            self.finish()
            done += 1
        return done

    def die(self) -> None:
        self.link.close()
        self.lane.close()


class Stage:
    """One dispatcher, its lane, and its workers by id."""

    def __init__(
        self,
        policy: BatchPolicy,
        limits: Limits,
        signature: Signature,
        shape: LaneShape,
        clock: Clock,
        make: Callable[[str, BatchPolicy, Limits], Dispatcher],
    ) -> None:
        self.clock = clock
        self.dispatcher = make("m", policy, limits)
        self.dispatcher.set_serviceable(True)
        self.signature = signature
        self.shape = shape
        self.segment: Segment = create_lane(shape)
        self.workers: dict[str, DirectedWorker] = {}
        self.pendings: list[Pending] = []  # all there ever were
        self.fills: list[Fill] = []  # likewise
        self._number = 0

    def open_lane(self) -> None:
        queue: Any = self.dispatcher._queue
        take_fresh = queue._fresh

        def fresh() -> Fill | None:
            fill: Fill | None = take_fresh()
            self.fills += [fill] if fill is not None else []
            return fill

        queue._fresh = fresh
        self.dispatcher.open_lane(Lane.attach(os.dup(self.segment.fd), self.shape), self.signature)

    def attach(self) -> DirectedWorker:
        self._number += 1
        fds = create_link()
        lane = Lane.attach(os.dup(self.segment.fd), self.shape)
        link = WorkerLink(fds.worker)
        worker = DirectedWorker(str(self._number), lane, link, self.clock, typed=self.signature.typed)
        self.workers[worker.worker_id] = worker
        self.dispatcher.attach(worker.worker_id, FrontLink(fds.front))
        return worker

    def kill(self, worker: DirectedWorker, *, noticed: bool = True) -> None:
        """End the worker; `noticed`: the supervisor tells the dispatcher at once."""
        worker.die()
        del self.workers[worker.worker_id]
        if noticed:
            self.dispatcher.worker_gone(worker.worker_id, LOST)

    def submit(self, body: bytes = b"x", headers: Mapping[str, str] | None = None, **fields: Any) -> Pending:
        pending = self.dispatcher.submit(InferRequest("id", "", dict(dict(headers or {})), body, **fields))
        self.pendings.append(pending)
        return pending

    def land(self, body_bytes: int, **fields: Any) -> Landing:
        landing = self.dispatcher.land(InferRequest("id", "", {}, b"", **fields), body_bytes, LIMIT)
        if isinstance(landing, SlabLanding):
            self.pendings.append(landing._pending)
        return landing

    def commit(self, landing: Landing, body: bytes = b"") -> Pending:
        """`body` is what is still to come of it."""
        copy_into(landing, body)
        pending = landing.commit()
        if pending not in self.pendings:
            self.pendings.append(pending)
        return pending

    async def settle(self) -> None:
        """Let the loop go round until nothing that has happened is unheard."""
        for _ in range(4):
            await asyncio.sleep(0)

    async def pass_s(self, seconds: float) -> None:
        self.clock.pass_s(seconds)
        await self.settle()

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
        """Every slab by number, as often as somebody has it: free, open, or needed by a row."""
        queue = self.dispatcher._queue
        used = [fill.slab.index for fill in self.fills if fill.live > 0 or fill is queue._open]
        return sorted([*(slab.index for slab in queue._free), *used])

    def free(self) -> int:
        """Slabs that hold nothing: free ones, and an open one without rows."""
        return self.dispatcher._queue.counts()[0]

    def clear(self) -> None:
        for worker in list(self.workers.values()):
            self.kill(worker)
        self.dispatcher.abandon(LOST)
        self.dispatcher._queue.close_lane()
        self.segment.close()
        for pending in self.pendings:  # a test need not look at every outcome
            if pending.done() and not pending.cancelled():
                pending.exception()


def inverted(row: bytes) -> bytes:
    """The answer of a typed model."""
    return bytes(255 - byte for byte in row)


def make_stage(
    clock: Clock,
    *,
    rows: int = 4,
    capacity: int = 100,
    slabs: int = 4,
    region: int = 4096,
    fill_ns: int = 0,
    signature: Signature | None = None,
    opened: bool = True,
    make: Callable[[str, BatchPolicy, Limits], Dispatcher] = Dispatcher,
    **timeouts: int,
) -> Stage:
    """On the running loop; `timeouts` are those of `Limits`."""
    signature = Signature() if signature is None else signature
    shape = lane_shape(signature, rows, 1)
    shape = LaneShape(slabs, rows, shape.inputs, shape.outputs, 0 if signature.typed else region, region)
    limits = Limits(capacity, **timeouts)
    loop: Any = asyncio.get_running_loop()
    loop.call_later = clock.call_later
    stage = Stage(BatchPolicy(rows, fill_ns, fill=bool(fill_ns)), limits, signature, shape, clock, make)
    if opened:
        stage.open_lane()
    return stage


def outcome(future: asyncio.Future[Answer]) -> bytes | RingServeError:
    """The whole body of an answer, whose source is used up then, or the error."""
    error = future.exception()
    if error is not None:
        assert isinstance(error, RingServeError)
        return error
    body, source = future.result().body, future.result().source
    if source is None:
        return body
    parts = [bytes(part) for part in iter(source.next, None)]
    source.close()
    return b"".join(parts)


Scenario = Callable[[Stage], Awaitable[None]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the front end and the rings take for the time."""
    made = Clock()
    server = (
        "dispatch",
        "intake",
        "slab_queue",
        "inflight",
        "deadlines",
        "limits",
        "sequences.waiting",
        "sequences.dispatcher",
    )
    scheduling = ("scheduling.queue", "scheduling.dispatcher", "sequences.tensors", "sequences.tensor_dispatcher")
    for module in (*(f"server.{name}" for name in (*server, *scheduling)), "shm.ring"):
        monkeypatch.setattr(f"ringserve.{module}.time", made)
    return made


@pytest.fixture
def play(clock: Clock) -> Iterator[Callable[..., None]]:
    """Run a scenario on a stage of its own; whatever a callback of the loop raises fails the test."""

    def run(scenario: Scenario, **options: Any) -> None:
        async def main() -> None:
            raised: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
            stage = make_stage(clock, **options)
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
def new_stage(clock: Clock) -> Callable[..., Stage]:
    """For tests that keep a loop of their own."""
    return lambda **options: make_stage(clock, **options)

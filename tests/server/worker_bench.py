"""A slab with a request in every row, and the two ends of a link: what a worker has of the world when it executes a batch."""

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ringserve.backends.contract import Batch, LoadedModel, Reply
from ringserve.protocol.payload import decode_reply_head
from ringserve.protocol.request import InferRequest
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.chunks import Piece, read_frame
from ringserve.server.execution import Execution
from ringserve.server.payloads import BytesEncoder
from ringserve.server.replies import FLAG_OVERFLOW, STATUS_CHUNK
from ringserve.server.streaming import Chunks
from ringserve.shm.lane import Lane, create_lane
from ringserve.shm.layout import (
    REPLY_BODY_AT,
    REPLY_BODY_BYTES,
    REPLY_FLAGS,
    REPLY_ID,
    REPLY_STATUS,
    ROW_CANCELLED,
    ROW_FLAGS,
    ROW_ID,
    LaneShape,
    Tensor,
)
from ringserve.shm.link import FrontLink, WorkerLink, create_link
from ringserve.shm.ring import Command

BYTES = Signature()
TYPED = Signature((TensorSpec("x", "float64", (2,)),), (TensorSpec("y", "float64", (2,)),))
ROWS = 8
REGION = 1 << 16
LIMIT = 1 << 20
WAIT_S_MAX = 20.0

Run = Callable[[Batch], None]


class Model:
    """A backend that does what the test says; `batches` are the sizes it was called with."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.batches: list[int] = []

    def load(self, model: LoadedModel) -> Signature:
        raise AssertionError("nothing is loaded here")

    def execute(self, batch: Batch) -> None:
        self.batches.append(batch.rows)
        self._run(batch)

    def describe(self) -> object:
        return None

    def close(self) -> None:
        pass


def tensors(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(Tensor(spec.name, spec.dtype, spec.shape, spec.row_bytes) for spec in specs)


class Outcome(NamedTuple):
    status: int
    flags: int
    body: bytes


class Bench:
    """A slab with a request in every row, the two ends of a link, and one model."""

    def __init__(self, signature: Signature, run: Run, *, region: int = REGION, retry_s_max: float = 60.0) -> None:
        self.model = Model(run)
        self.execution = Execution(self.model, signature, LIMIT, retry_s_max)
        inputs, outputs = tensors(signature.inputs), tensors(signature.outputs)
        shape = LaneShape(1, ROWS, inputs, outputs, 0 if signature.typed else REGION, region)
        segment = create_lane(shape)
        self.lane = Lane.attach(os.dup(segment.fd), shape)
        segment.close()
        self.slab: Any = self.lane.slabs[0]
        fds = create_link()
        self.front, self.link = FrontLink(fds.front), WorkerLink(fds.worker)
        self.front_is_open = True
        self.chunks = Chunks(self.link)
        for row in range(ROWS):
            if signature.typed:
                self.slab.inputs[0][row] = row
                self.slab.outputs[0][row] = -1
            else:
                payload = BytesEncoder().encode(InferRequest(f"id-{row}", "", {}, str(row).encode()))
                payload.write(self.slab, row, row * 256, 100 + row, 0)
            self.slab.table[row, ROW_ID] = 100 + row

    def cancel(self, *rows: int) -> None:
        for row in rows:
            self.slab.table[row, ROW_FLAGS] = ROW_CANCELLED

    def run(self, first: int = 0, rows: int = ROWS) -> list[Outcome]:
        """Execute rows first..first+rows; what their lines say. The rest of the slab belongs to somebody else."""
        out_bytes = len(self.slab.bytes_out) // 2
        command = Command(7, 0, first, rows, 64, out_bytes)
        before = self.slab.table.copy()
        overflow = self.execution.run(self.slab, command, self.chunks, self.link.receive_parcel)
        others = np.ones(ROWS, bool)
        others[first : first + rows] = False
        assert (self.slab.table[others] == before[others]).all()
        found = []
        for row in range(first, first + rows):
            line = self.slab.table[row].tolist()
            assert line[REPLY_ID] == 100 + row
            assert not line[REPLY_FLAGS] & FLAG_OVERFLOW or overflow is not None
            memory = (
                overflow.view if overflow is not None and line[REPLY_FLAGS] & FLAG_OVERFLOW else self.slab.bytes_out
            )
            body = bytes(memory[line[REPLY_BODY_AT] : line[REPLY_BODY_AT] + line[REPLY_BODY_BYTES]])
            found.append(Outcome(line[REPLY_STATUS], line[REPLY_FLAGS], body))
        if overflow is not None:
            overflow.close()
        return found

    def close_front(self) -> None:
        """The front end dies."""
        self.front.close()
        self.front_is_open = False

    def close(self) -> None:
        if self.front_is_open:
            self.front.close()
        self.link.close()
        self.lane.close()


class Client(threading.Thread):
    """The front end's side of a stream: it reads every chunk when it comes, and gives credit as it is told."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.pieces: list[Piece] = []
        self.sizes: list[int] = []
        self.may_credit = threading.Event()
        self.may_credit.set()
        self.arrived = threading.Semaphore(0)
        self._stop_fd, self._told_fd = os.pipe()
        self.start()

    def run(self) -> None:
        poller = select.poll()
        poller.register(self.bench.front.listener.fd, select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        stopped = False
        while not stopped:
            stopped = any(fd == self._stop_fd for fd, _ in poller.poll())
            for _ in range(self.bench.front.listener.collect()):
                chunk = self.bench.front.completions.take()
                assert (chunk.sequence, chunk.slab, chunk.status) == (7, 0, STATUS_CHUNK)
                self.pieces += read_frame(
                    self.bench.slab.bytes_out[chunk.chunk_at : chunk.chunk_at + chunk.chunk_bytes]
                )
                self.sizes.append(chunk.chunk_bytes)
                self.arrived.release()
                assert self.may_credit.wait(WAIT_S_MAX)
                self.bench.front.credits.ring()

    def finish(self) -> None:
        os.write(self._told_fd, b"x")
        self.join(WAIT_S_MAX)
        assert not self.is_alive()
        os.close(self._stop_fd)
        os.close(self._told_fd)

    def read_by(self, row: int) -> bytes:
        return b"".join(bytes(piece.body) for piece in self.pieces if piece.row == row)

    def head_of(self, row: int) -> tuple[int, str, dict[str, str]]:
        (head,) = (piece.head for piece in self.pieces if piece.row == row and piece.head)
        decoded = decode_reply_head(head)
        return decoded.status, decoded.phrase, decoded.headers


def echo(batch: Batch) -> None:
    batch.replies[:] = [Reply(bytes(request.parts[0].data)) for request in batch.requests]


def double(batch: Batch) -> None:
    batch.outputs["y"][:] = batch.inputs["x"] * 2


def refuse(offender: int, then: Run) -> Run:
    """Raise when the offender is in the batch."""

    def run(batch: Batch) -> None:
        rows = [int(row[0]) for row in batch.inputs["x"]] if batch.inputs else None
        if rows is None:
            rows = [int(bytes(request.parts[0].data)) for request in batch.requests]
        if offender in rows:
            raise ValueError(f"row {offender}")
        then(batch)

    return run


def succeeded(outcome: Outcome) -> bool:
    return (outcome.status, outcome.flags) == (200, 0)


MakeBench = Callable[..., Bench]


@contextlib.contextmanager
def benches() -> Iterator[MakeBench]:
    """As many as a test wants, closed at its end."""
    made: list[Bench] = []

    def make(signature: Signature, run: Run, **options: Any) -> Bench:
        made.append(Bench(signature, run, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()

"""A lane: the slabs that one front end shares with all workers of one model version.

A lane is as large as its slabs may ever need to be, and most of that is never used. So memory stands behind a slab only as far
as somebody is going to write: the front end reserves it when it takes the slab, when it adds a row and when it knows how
much the answers need, each time some pages more than asked for. What a slab has it keeps, since the next batch goes into the
slab that was used last; slabs that nobody needed for long give their memory back. A worker only maps: what it may write to was
reserved before it was told. The row tables, and lanes so small that none of this is worth a system call, have their memory
from the start.

Reserving costs 0.25 ms for each MiB, giving back 0.16, and a test of two numbers says that there is nothing to do.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ringserve.shm.layout import (
    HEADER,
    LANE_MAGIC,
    ROW_BYTES,
    ROW_WORDS,
    LaneShape,
    SlabPlan,
    align,
    check_header,
    lane_bytes,
    plan_slab,
    slab_at,
    write_header,
)
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import LayoutMismatch, OutOfSharedMemory

Words = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]


# Lanes up to this size are reserved as a whole when they are made.
WHOLE_BYTES = 4 << 20
# Reserved at a time, at least: 60 µs of the event loop.
STEP_BYTES = 256 << 10
# A slab with less than this is not worth the trouble of giving it back early.
OVERSIZED_BYTES_MIN = 1 << 20
# What the answers of a slab get before any was too long for it.
OUT_BYTES_FIRST = 1 << 20


class Backing:
    """What a lane's slabs share: the segment behind them, and how much of their outgoing byte region is in use."""

    __slots__ = ("out_goal", "pinned", "segment", "whole")

    def __init__(self, segment: Segment, shape: LaneShape) -> None:
        self.segment = segment
        self.whole = lane_bytes(shape) <= WHOLE_BYTES
        self.out_goal = shape.bytes_out if self.whole else min(shape.bytes_out, OUT_BYTES_FIRST)
        # A device reads and writes these pages by their physical address: they must stay where they are.
        self.pinned = False


class Slab:
    """The memory of one batch, seen from one process. Every attribute is a view; nothing here copies.

    `table` is `[rows, 16]` words (layout.py names them); `inputs` and `outputs` are arrays `[rows, *shape]` in declared
    order; `input_rows` and `output_rows` the same memory as bytes, a row after the other; `bytes_in` and `bytes_out` are the regions
    for undeclared payloads; `memory` is the whole slab.

    `rows_ready`, `in_ready` and `out_ready` say how many rows and how many bytes of the two regions have memory behind them,
    `in_peak` how much of the incoming one was needed lately. Only the front end knows, and only it asks.
    """

    __slots__ = (
        "_at",
        "_backing",
        "_plan",
        "_shape",
        "bytes_in",
        "bytes_out",
        "in_peak",
        "in_ready",
        "index",
        "input_rows",
        "inputs",
        "memory",
        "out_ready",
        "output_rows",
        "outputs",
        "rows_ready",
        "table",
    )

    def __init__(self, backing: Backing, index: int, shape: LaneShape, plan: SlabPlan) -> None:
        self._backing = backing
        self._shape = shape
        self._plan = plan
        self._at = slab_at(shape, plan, index)
        self.memory = memory = backing.segment.view[self._at : self._at + plan.slab_bytes]
        self.index = index
        self.table: Words = np.frombuffer(memory[: shape.rows * ROW_BYTES], dtype="<u8").reshape(shape.rows, ROW_WORDS)
        self.input_rows = [
            memory[at : at + shape.rows * tensor.row_bytes]
            for tensor, at in zip(shape.inputs, plan.inputs_at, strict=True)
        ]
        self.inputs: list[Array] = [
            np.frombuffer(rows, dtype=tensor.dtype).reshape(shape.rows, *tensor.shape)
            for tensor, rows in zip(shape.inputs, self.input_rows, strict=True)
        ]
        self.output_rows = [
            memory[at : at + shape.rows * tensor.row_bytes]
            for tensor, at in zip(shape.outputs, plan.outputs_at, strict=True)
        ]
        self.outputs: list[Array] = [
            np.frombuffer(rows, dtype=tensor.dtype).reshape(shape.rows, *tensor.shape)
            for tensor, rows in zip(shape.outputs, self.output_rows, strict=True)
        ]
        self.bytes_in = memory[plan.bytes_in_at : plan.bytes_in_at + shape.bytes_in]
        self.bytes_out = memory[plan.bytes_out_at : plan.bytes_out_at + shape.bytes_out]
        self.in_peak = 0
        self.rows_ready, self.in_ready, self.out_ready = (
            (shape.rows, shape.bytes_in, shape.bytes_out) if backing.whole else (0, 0, 0)
        )

    def reserve(self) -> None:
        """The slab was taken for a batch: make ready a first row and what its answers need. Raises `OutOfSharedMemory`; what
        is ready stays so."""
        if self.out_ready < self._backing.out_goal:
            self.out_ready = self._grown(self._plan.bytes_out_at, self.out_ready, self._backing.out_goal)
        if not self.rows_ready:
            self.reserve_row(0, 0)

    def reserve_row(self, row: int, in_end: int) -> None:
        """Make ready the rows up to `row` and the incoming byte region up to `in_end`. On the way of every request: call it
        when `row >= rows_ready or in_end > in_ready`. Raises `OutOfSharedMemory`."""
        if row >= self.rows_ready:
            self._reserve_rows(row)
        if in_end > self.in_ready:
            goal = min(len(self.bytes_in), align(in_end, STEP_BYTES))
            self.in_ready = self._grown(self._plan.bytes_in_at, self.in_ready, goal)

    def _reserve_rows(self, row: int) -> None:
        shape, plan, first = self._shape, self._plan, self.rows_ready
        row_bytes = sum(tensor.row_bytes for tensor in (*shape.inputs, *shape.outputs))
        step = max(1, STEP_BYTES // row_bytes) if row_bytes else shape.rows
        end = min(shape.rows, align(row + 1, step))
        tensors = zip((*shape.inputs, *shape.outputs), (*plan.inputs_at, *plan.outputs_at), strict=True)
        for tensor, at in tensors:
            self._grown(at, first * tensor.row_bytes, end * tensor.row_bytes)
        self.rows_ready = end

    def _grown(self, at: int, ready: int, goal: int) -> int:
        """Put memory behind bytes `ready` to `goal` of what begins at `at` in the slab; returns `goal`."""
        if ready < goal:
            self._backing.segment.reserve(self._at + at + ready, goal - ready)
        return goal

    @property
    def is_oversized(self) -> bool:
        """Whether it has much more memory for what comes in than was needed lately."""
        return self.in_ready > max(OVERSIZED_BYTES_MIN, 2 * self.in_peak)

    def give_back(self) -> bool:
        """Nobody uses the slab and nobody has for long: keep the row table, let the rest go. False when there is nothing."""
        if self._backing.whole or self._backing.pinned or not (self.rows_ready or self.in_ready or self.out_ready):
            return False
        table_bytes = self._shape.rows * ROW_BYTES
        self._backing.segment.give_back(self._at + table_bytes, self._plan.slab_bytes - table_bytes)
        self.rows_ready = self.in_ready = self.out_ready = 0
        return True


class Lane:
    """A lane as one process sees it."""

    def __init__(self, segment: Segment, shape: LaneShape) -> None:
        self.segment = segment
        self.shape = shape
        self._backing = Backing(segment, shape)
        plan = plan_slab(shape)
        self.slabs = [Slab(self._backing, index, shape, plan) for index in range(shape.slab_count)]

    @classmethod
    def attach(cls, fd: int, shape: LaneShape) -> "Lane":
        """Map a lane by its descriptor, which the lane owns from here on. Raises `LayoutMismatch`."""
        segment = Segment.attach(fd)
        try:
            if segment.size_bytes != lane_bytes(shape):
                raise LayoutMismatch(f"a lane of {lane_bytes(shape)} bytes was announced, {segment.size_bytes} came")
            check_header(segment.view, LANE_MAGIC, shape.fingerprint())
        except LayoutMismatch:
            segment.close()
            raise
        return cls(segment, shape)

    def want_out(self, answer_bytes: int) -> None:
        """The answers of a batch took this much and did not fit: let the slabs have twice that from their next use on, as far
        as the region goes. What no region can hold changes nothing."""
        if answer_bytes <= self.shape.bytes_out:
            wanted = min(self.shape.bytes_out, align(2 * answer_bytes, STEP_BYTES))
            self._backing.out_goal = max(self._backing.out_goal, wanted)

    def pin(self) -> None:
        """A worker has registered the lane with its device: no slab gives its memory back from now on."""
        self._backing.pinned = True

    def close(self) -> None:
        """Drop this process' views and mapping."""
        self.slabs.clear()
        self.segment.close()


def create_lane(shape: LaneShape, whole: bool = False) -> Segment:
    """A fresh lane's segment, header written, row tables reserved; `whole`: all of it, since a device will pin it. Raises
    `OutOfSharedMemory`."""
    size_bytes = lane_bytes(shape)
    if whole or size_bytes <= WHOLE_BYTES:
        segment = Segment.create(size_bytes)
    else:
        segment = Segment.create_sparse(size_bytes)
        try:
            segment.reserve(0, HEADER.size)
            plan = plan_slab(shape)
            for index in range(shape.slab_count):
                segment.reserve(slab_at(shape, plan, index), shape.rows * ROW_BYTES)
        except OutOfSharedMemory:
            segment.close()
            raise
    write_header(segment.view, LANE_MAGIC, shape.fingerprint())
    return segment

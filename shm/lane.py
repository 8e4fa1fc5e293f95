"""A lane: the slabs that one front end shares with all workers of one model version."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ringserve.shm.layout import (
    LANE_MAGIC,
    ROW_BYTES,
    ROW_WORDS,
    LaneShape,
    SlabPlan,
    check_header,
    lane_bytes,
    plan_slab,
    slab_at,
    write_header,
)
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import LayoutMismatch

Words = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]


class Slab:
    """The memory of one batch, seen from one process. Every attribute is a view; nothing here copies.

    `table` is `[rows, 16]` words (layout.py names them); `inputs` and `outputs` are arrays `[rows, *shape]` in declared
    order; `input_rows` the same memory as bytes, for writing a row as it came; `bytes_in` and `bytes_out` are the regions
    for undeclared payloads; `memory` is the whole slab.
    """

    __slots__ = ("bytes_in", "bytes_out", "index", "input_rows", "inputs", "memory", "outputs", "table")

    def __init__(self, memory: memoryview, index: int, shape: LaneShape, plan: SlabPlan) -> None:
        self.memory = memory
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
        self.outputs: list[Array] = [
            np.frombuffer(memory[at : at + shape.rows * tensor.row_bytes], dtype=tensor.dtype).reshape(
                shape.rows, *tensor.shape
            )
            for tensor, at in zip(shape.outputs, plan.outputs_at, strict=True)
        ]
        self.bytes_in = memory[plan.bytes_in_at : plan.bytes_in_at + shape.bytes_in]
        self.bytes_out = memory[plan.bytes_out_at : plan.bytes_out_at + shape.bytes_out]


class Lane:
    """A lane as one process sees it."""

    def __init__(self, segment: Segment, shape: LaneShape) -> None:
        self.segment = segment
        self.shape = shape
        plan = plan_slab(shape)
        self.slabs: list[Slab] = []
        for index in range(shape.slab_count):
            at = slab_at(shape, plan, index)
            self.slabs.append(Slab(segment.view[at : at + plan.slab_bytes], index, shape, plan))

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

    def close(self) -> None:
        """Drop this process' views and mapping."""
        self.slabs.clear()
        self.segment.close()


def create_lane(shape: LaneShape) -> Segment:
    """A fresh lane's segment, header written. Raises `OutOfSharedMemory`."""
    segment = Segment.create(lane_bytes(shape))
    write_header(segment.view, LANE_MAGIC, shape.fingerprint())
    return segment

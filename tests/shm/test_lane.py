"""Lanes: the views of one slab share memory, those of different slabs do not."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ringserve.shm.lane import Lane, Slab, create_lane
from ringserve.shm.layout import ENTRY, LINK_MAGIC, LaneShape, Tensor, write_header
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import LayoutMismatch

SHAPE = LaneShape(
    slab_count=3,
    rows=5,
    inputs=(Tensor("a", "float32", (2, 3), 24), Tensor("b", "uint8", (7,), 7), Tensor("c", "bool", (), 1)),
    outputs=(Tensor("d", "int64", (), 8), Tensor("e", "float16", (3,), 6)),
    bytes_in=100,
    bytes_out=33,
)


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = create_lane(SHAPE)
    yield made
    made.close()


def attached(segment: Segment, shape: LaneShape = SHAPE) -> Lane:
    return Lane.attach(os.dup(segment.fd), shape)


def test_a_row_written_as_bytes_is_seen_as_an_array(segment: Segment) -> None:
    lane = attached(segment)
    row = np.arange(6, dtype=np.float32).reshape(2, 3)
    for slab in lane.slabs:
        slab.input_rows[0][2 * 24 : 3 * 24] = row.tobytes()
        assert np.array_equal(slab.inputs[0][2], row)
        assert not slab.inputs[0][[0, 1, 3, 4]].any()
    lane.close()


def test_arrays_have_the_declared_types_and_a_row_dimension_in_front(segment: Segment) -> None:
    lane = attached(segment)
    slab = lane.slabs[1]
    assert slab.index == 1
    assert slab.table.shape == (5, 16)
    assert [(str(array.dtype), array.shape) for array in slab.inputs] == [
        ("float32", (5, 2, 3)),
        ("uint8", (5, 7)),
        ("bool", (5,)),
    ]
    assert [(str(array.dtype), array.shape) for array in slab.outputs] == [("int64", (5,)), ("float16", (5, 3))]
    assert (len(slab.bytes_in), len(slab.bytes_out)) == (100, 33)
    lane.close()


def _regions(slab: Slab) -> list[memoryview]:
    arrays: list[Any] = [slab.table, *slab.inputs, *slab.outputs]
    return [*(memoryview(array.reshape(-1).view(np.uint8)) for array in arrays), slab.bytes_in, slab.bytes_out]


def test_every_region_of_every_slab_is_its_own_memory(segment: Segment) -> None:
    """A different byte in each of them, written by one mapping and read back by another."""
    writer, reader = attached(segment), attached(segment)
    written: list[int] = []
    for slab in writer.slabs:
        for region in _regions(slab):
            written.append(len(written) + 1)
            region[:] = bytes([written[-1]]) * len(region)
    found = [set(region) for slab in reader.slabs for region in _regions(slab)]
    assert found == [{value} for value in written]
    assert len(written) == SHAPE.slab_count * 8
    writer.close()
    reader.close()


def wrong_size(segment: Segment) -> LaneShape:
    return LaneShape(SHAPE.slab_count + 1, SHAPE.rows)


def wrong_picture(segment: Segment) -> LaneShape:
    """The same number of bytes, laid out differently."""
    return LaneShape(SHAPE.slab_count, SHAPE.rows, tuple(reversed(SHAPE.inputs)), SHAPE.outputs, 100, 33)


def wrong_magic(segment: Segment) -> LaneShape:
    write_header(segment.view, LINK_MAGIC, SHAPE.fingerprint())
    return SHAPE


@pytest.mark.parametrize("case", [wrong_size, wrong_picture, wrong_magic])
def test_a_lane_that_is_not_the_announced_one_is_refused_and_closed(
    segment: Segment, case: Callable[[Segment], LaneShape]
) -> None:
    shape = case(segment)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(LayoutMismatch):
        attached(segment, shape)
    assert set(os.listdir("/proc/self/fd")) == before


def test_an_entry_names_any_slab_and_any_row_count() -> None:
    assert ENTRY.unpack(ENTRY.pack(0, SHAPE.slab_count - 1, SHAPE.rows, 0)) == (0, 2, 5, 0)

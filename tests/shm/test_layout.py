"""The byte picture: every region aligned, none overlapping, and no two pictures with the same fingerprint."""

import math
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.tensor import ITEM_BYTES
from ringserve.shm.layout import (
    CACHE_LINE,
    HEADER,
    LANE_MAGIC,
    LINK_MAGIC,
    PAGE,
    REPLY_ID,
    REPLY_LINE_AT,
    REPLY_PARCEL_BYTES,
    ROW_BYTES,
    ROW_PARCEL_BYTES,
    ROW_WORDS,
    VERSION,
    WORD,
    LaneShape,
    Tensor,
    align,
    check_header,
    lane_bytes,
    plan_slab,
    slab_at,
    write_header,
)
from ringserve.shm.shm_errors import LayoutMismatch


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = tuple(draw(st.lists(st.integers(1, 7), max_size=3)))
    return Tensor("t", dtype, shape, ITEM_BYTES[dtype] * math.prod(shape))


shapes = st.builds(
    LaneShape,
    slab_count=st.integers(1, 5),
    rows=st.integers(1, 33),
    inputs=st.lists(tensors(), max_size=3).map(tuple),
    outputs=st.lists(tensors(), max_size=3).map(tuple),
    bytes_in=st.integers(0, 5000),
    bytes_out=st.integers(0, 5000),
)

PLAIN = LaneShape(4, 8, (Tensor("x", "float32", (2,), 8),), (Tensor("y", "float32", (3,), 12),), 64, 128)
CHANGES: dict[str, Any] = {
    "slab_count": 5,
    "rows": 9,
    "inputs": (),
    "outputs": PLAIN.inputs,
    "bytes_in": 65,
    "bytes_out": 127,
}
TENSOR_CHANGES: dict[str, Any] = {"name": "z", "dtype": "int32", "shape": (2, 1), "row_bytes": 16}


def regions(shape: LaneShape) -> list[tuple[int, int]]:
    """Start and end of everything in one slab, in the order of the drawing."""
    plan = plan_slab(shape)
    found = [(0, shape.rows * ROW_BYTES)]
    for tensors_, places in ((shape.inputs, plan.inputs_at), (shape.outputs, plan.outputs_at)):
        found += [(at, at + shape.rows * tensor.row_bytes) for tensor, at in zip(tensors_, places, strict=True)]
    found.append((plan.bytes_in_at, plan.bytes_in_at + shape.bytes_in))
    found.append((plan.bytes_out_at, plan.bytes_out_at + shape.bytes_out))
    return found


@given(shapes)
def test_every_region_starts_a_cache_line(shape: LaneShape) -> None:
    assert [start % CACHE_LINE for start, _ in regions(shape)] == [0] * len(regions(shape))


@given(shapes)
def test_regions_follow_each_other_within_the_slab(shape: LaneShape) -> None:
    found = regions(shape)
    for (_, end), (start, _) in pairwise(found):
        assert end <= start
    assert found[-1][1] <= plan_slab(shape).slab_bytes


@given(shapes)
def test_slabs_fill_the_lane_behind_its_header(shape: LaneShape) -> None:
    plan = plan_slab(shape)
    starts = [slab_at(shape, plan, index) for index in range(shape.slab_count)]
    assert starts[0] == PAGE >= HEADER.size
    assert all(later - earlier == plan.slab_bytes for earlier, later in pairwise(starts))
    assert starts[-1] + plan.slab_bytes == lane_bytes(shape)
    assert all(start % CACHE_LINE == 0 for start in starts)


def test_the_two_writers_of_a_row_write_different_lines() -> None:
    assert ROW_PARCEL_BYTES < REPLY_ID
    assert REPLY_PARCEL_BYTES == ROW_WORDS - 1
    assert REPLY_ID * WORD == REPLY_LINE_AT == CACHE_LINE


@given(st.integers(0, 10**9), st.sampled_from([8, 64, 4096]))
def test_aligning_goes_up_by_less_than_a_step(offset: int, step: int) -> None:
    assert align(offset, step) % step == 0
    assert 0 <= align(offset, step) - offset < step


@pytest.mark.parametrize("field", LaneShape.__struct_fields__)
def test_the_fingerprint_changes_with_every_field(field: str) -> None:
    changed = msgspec.structs.replace(PLAIN, **{field: CHANGES[field]})
    assert changed.fingerprint() != PLAIN.fingerprint()


@pytest.mark.parametrize("field", Tensor.__struct_fields__)
def test_the_fingerprint_changes_with_every_field_of_a_tensor(field: str) -> None:
    tensor = msgspec.structs.replace(PLAIN.inputs[0], **{field: TENSOR_CHANGES[field]})
    assert msgspec.structs.replace(PLAIN, inputs=(tensor,)).fingerprint() != PLAIN.fingerprint()


def test_equal_shapes_have_equal_fingerprints_of_63_bits() -> None:
    copy: LaneShape = msgspec.msgpack.decode(msgspec.msgpack.encode(PLAIN), type=LaneShape)
    assert copy.fingerprint() == PLAIN.fingerprint() < 2**63


def test_a_header_is_accepted_by_who_wrote_it() -> None:
    view = memoryview(bytearray(PAGE))
    write_header(view, LANE_MAGIC, 42)
    check_header(view, LANE_MAGIC, 42)


@pytest.mark.parametrize(
    ("magic", "version", "fingerprint"),
    [(LINK_MAGIC, VERSION, 42), (LANE_MAGIC, VERSION + 1, 42), (LANE_MAGIC, VERSION, 43), (bytes(8), 0, 0)],
)
def test_a_header_that_differs_in_anything_is_refused(magic: bytes, version: int, fingerprint: int) -> None:
    view = memoryview(bytearray(PAGE))
    HEADER.pack_into(view, 0, magic, version, fingerprint)
    with pytest.raises(LayoutMismatch, match="expected header"):
        check_header(view, LANE_MAGIC, 42)


def test_a_segment_too_short_for_a_header_is_refused() -> None:
    with pytest.raises(LayoutMismatch, match="a segment of 3 bytes has no header"):
        check_header(memoryview(b"abc"), LANE_MAGIC, 42)

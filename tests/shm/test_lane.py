"""Lanes: the views of one slab share memory, those of different slabs do not, and memory is there before it is written to."""

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringserve.shm.lane import OUT_BYTES_FIRST, OVERSIZED_BYTES_MIN, WHOLE_BYTES, Lane, Slab, create_lane
from ringserve.shm.layout import COMMAND, LINK_MAGIC, LaneShape, Tensor, lane_bytes, plan_slab, write_header
from ringserve.shm.ring import Command
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import LayoutMismatch, OutOfSharedMemory

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


def test_a_command_names_any_slab_any_rows_and_any_part_of_the_region() -> None:
    command = Command(2**64 - 1, SHAPE.slab_count - 1, SHAPE.rows - 1, 1, SHAPE.bytes_out - 1, 1)
    assert Command(*COMMAND.unpack(COMMAND.pack(*command))) == command


# ---- memory behind a large lane

LARGE = LaneShape(
    slab_count=3,
    rows=4,
    inputs=(Tensor("x", "uint8", (700_001,), 700_001),),
    outputs=(Tensor("y", "uint8", (90_000,), 90_000),),
    bytes_in=3_000_000,
    bytes_out=5_000_000,
)
STRIDE = 4096


@pytest.fixture
def large() -> Iterator[Lane]:
    segment = create_lane(LARGE)
    lane = attached(segment, LARGE)
    yield lane
    lane.close()
    segment.close()


def behind(lane: Lane) -> int:
    return lane.segment.allocated_bytes


def test_a_large_lane_has_memory_behind_its_row_tables_alone(large: Lane) -> None:
    assert lane_bytes(LARGE) > WHOLE_BYTES
    assert 0 < behind(large) <= (1 + 2 * LARGE.slab_count) * STRIDE
    before = behind(large)
    for slab in large.slabs:
        slab.table[:] = 1
    assert behind(large) == before


def test_a_small_lane_is_reserved_from_the_start_and_keeps_its_memory(segment: Segment) -> None:
    lane = attached(segment)
    before = behind(lane)
    assert before >= lane_bytes(SHAPE)
    slab = lane.slabs[0]
    assert (slab.rows_ready, slab.in_ready, slab.out_ready) == (SHAPE.rows, SHAPE.bytes_in, SHAPE.bytes_out)
    slab.reserve()
    assert not slab.give_back()
    assert behind(lane) == before
    assert slab.rows_ready == SHAPE.rows
    lane.close()


def test_a_lane_for_a_device_is_reserved_as_a_whole() -> None:
    segment = create_lane(LARGE, whole=True)
    assert segment.allocated_bytes >= lane_bytes(LARGE)
    segment.close()


def test_a_slab_that_was_taken_is_ready_for_a_row_and_its_answer(large: Lane) -> None:
    slab = large.slabs[1]
    slab.reserve()
    assert 1 <= slab.rows_ready < LARGE.rows
    assert slab.out_ready == OUT_BYTES_FIRST
    reserved = behind(large)
    slab.input_rows[0][: slab.rows_ready * 700_001] = b"x" * (slab.rows_ready * 700_001)
    slab.outputs[0][: slab.rows_ready] = 2
    slab.bytes_out[: slab.out_ready] = b"y" * slab.out_ready
    assert behind(large) == reserved


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3_000_000)), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_what_was_reserved_needs_no_more_memory_when_it_is_written(
    large: Lane, wanted: list[tuple[int, int, int]]
) -> None:
    for slab in large.slabs:
        slab.give_back()
    for index, row, in_end in wanted:
        slab = large.slabs[index]
        slab.reserve()
        slab.reserve_row(row, in_end)
        assert slab.rows_ready > row
        assert slab.in_ready >= in_end
    reserved = behind(large)
    for slab in large.slabs:
        rows = slab.rows_ready
        for region in (slab.inputs[0][:rows], slab.outputs[0][:rows]):
            region[:] = 1
        for part in (slab.bytes_in[: slab.in_ready], slab.bytes_out[: slab.out_ready]):
            np.frombuffer(part, dtype=np.uint8)[:] = 1
    assert behind(large) == reserved


def test_a_ready_slab_asks_the_kernel_for_nothing(large: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    slab = large.slabs[0]
    slab.reserve()
    slab.reserve_row(3, 3_000_000)

    def refuse(fd: int, offset: int, length: int) -> None:
        raise AssertionError("a system call on the way of a request")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    slab.reserve()
    slab.reserve_row(3, 3_000_000)


def test_a_slab_gives_back_its_memory_and_nothing_of_its_neighbours(large: Lane) -> None:
    for slab in large.slabs:
        slab.reserve()
        slab.reserve_row(LARGE.rows - 1, LARGE.bytes_in)
        for region in _regions(slab):
            region[: len(region)] = bytes([slab.index + 1]) * len(region)
    full, given = behind(large), large.slabs[1]
    assert given.give_back()
    assert not given.give_back()
    assert full - behind(large) > plan_slab(LARGE).slab_bytes * 0.5
    assert (given.rows_ready, given.in_ready, given.out_ready) == (0, 0, 0)
    assert set(given.table.ravel()) == {0x0202020202020202}
    for slab in (large.slabs[0], large.slabs[2]):
        assert [set(region) for region in _regions(slab)] == [{slab.index + 1}] * 5
    given.reserve()
    assert set(given.bytes_out[: given.out_ready]) == {0}


def test_a_slab_that_holds_much_more_than_was_needed_lately_is_oversized(large: Lane) -> None:
    slab = large.slabs[0]
    slab.reserve()
    slab.reserve_row(0, LARGE.bytes_in)
    slab.in_peak = LARGE.bytes_in
    assert not slab.is_oversized
    slab.in_peak = 1000
    assert slab.is_oversized == (LARGE.bytes_in > OVERSIZED_BYTES_MIN)
    slab.give_back()
    assert not slab.is_oversized


def test_what_a_worker_has_mapped_is_given_back_too(large: Lane) -> None:
    worker = attached(large.segment, LARGE)
    large.slabs[0].reserve()
    worker.slabs[0].bytes_out[:OUT_BYTES_FIRST] = b"z" * OUT_BYTES_FIRST
    before = behind(large)
    large.slabs[0].give_back()
    assert before - behind(large) >= OUT_BYTES_FIRST - 2 * STRIDE
    large.slabs[0].reserve()
    assert set(worker.slabs[0].bytes_out[STRIDE : OUT_BYTES_FIRST - STRIDE]) == {0}
    worker.close()


def test_a_pinned_lane_gives_nothing_back(large: Lane) -> None:
    large.pin()
    large.slabs[0].reserve()
    before = behind(large)
    assert not large.slabs[0].give_back()
    assert behind(large) == before
    assert large.slabs[0].rows_ready


def test_answers_that_did_not_fit_get_more_room_next_time(large: Lane) -> None:
    slab = large.slabs[0]
    slab.reserve()
    large.want_out(900_000)
    assert slab.out_ready == OUT_BYTES_FIRST
    slab.reserve()
    assert slab.out_ready >= 1_800_000
    large.want_out(LARGE.bytes_out + 1)
    slab.reserve()
    assert slab.out_ready < LARGE.bytes_out, "nothing would make that fit"
    large.want_out(LARGE.bytes_out)
    slab.reserve()
    assert slab.out_ready == LARGE.bytes_out
    large.want_out(1)
    large.slabs[1].reserve()
    assert large.slabs[1].out_ready == LARGE.bytes_out


def test_memory_that_runs_out_is_a_sentence_and_the_slab_says_what_it_has(
    large: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    slab = large.slabs[0]
    slab.reserve()
    ready = slab.rows_ready, slab.in_ready, slab.out_ready

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutOfSharedMemory, match=r"more bytes of .* were needed"):
        slab.reserve_row(3, 0)
    with pytest.raises(OutOfSharedMemory, match="No space left on device"):
        slab.reserve_row(0, 1)
    large.want_out(900_000)
    with pytest.raises(OutOfSharedMemory):
        slab.reserve()
    assert (slab.rows_ready, slab.in_ready, slab.out_ready) == ready


def test_a_lane_whose_tables_find_no_memory_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OutOfSharedMemory):
        create_lane(LARGE)
    assert set(os.listdir("/proc/self/fd")) == before

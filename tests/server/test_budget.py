"""Lanes are sized by what workers can keep busy and by memory; processors by affinity and quota."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server import budget
from ringserve.server.batching import OUTSTANDING_MAX
from ringserve.server.budget import (
    LANE_BYTES_TARGET,
    REGION_BYTES_MAX,
    REGION_BYTES_MIN,
    SLABS_BESIDE_WORKERS,
    SLABS_MIN,
    WORKERS_PLANNED_MIN,
    cpu_count,
    describe_lane,
    lane_shape,
)
from ringserve.shm.layout import lane_bytes, plan_slab

UNTYPED = Signature()
MLP = Signature((TensorSpec("x", "float32", (784,)),), (TensorSpec("y", "float32", (10,)),))
IMAGES = Signature((TensorSpec("x", "float32", (3, 640, 640)),), (TensorSpec("y", "float32", (3, 640, 640)),))


@given(st.sampled_from([UNTYPED, MLP, IMAGES]), st.integers(1, 256), st.integers(0, 64))
def test_a_lane_is_large_enough_to_work_and_no_larger_than_it_can_use(
    signature: Signature, batch_size: int, workers: int
) -> None:
    shape = lane_shape(signature, batch_size, workers)
    assert shape.rows == batch_size
    wanted = SLABS_BESIDE_WORKERS + OUTSTANDING_MAX * max(workers, WORKERS_PLANNED_MIN)
    assert SLABS_MIN <= shape.slab_count <= wanted
    if shape.slab_count > SLABS_MIN:
        assert shape.slab_count * plan_slab(shape).slab_bytes <= LANE_BYTES_TARGET


@pytest.mark.parametrize(
    ("batch_size", "region"), [(1, REGION_BYTES_MIN), (64, 64 * (32 << 10)), (10_000, REGION_BYTES_MAX)]
)
def test_the_byte_region_grows_with_the_batch_within_bounds(batch_size: int, region: int) -> None:
    shape = lane_shape(UNTYPED, batch_size, 1)
    assert (shape.bytes_in, shape.bytes_out) == (region, region)


def test_a_typed_lane_holds_its_tensors_as_declared() -> None:
    shape = lane_shape(MLP, 32, 1)
    assert [(each.name, each.dtype, each.shape, each.row_bytes) for each in (*shape.inputs, *shape.outputs)] == [
        ("x", "float32", (784,), 3136),
        ("y", "float32", (10,), 40),
    ]
    assert shape.bytes_in == 0 < shape.bytes_out


def test_a_lane_describes_itself_in_one_line() -> None:
    shape = lane_shape(MLP, 32, 1)
    mebibytes = lane_bytes(shape) / (1 << 20)
    assert describe_lane(shape) == f"{shape.slab_count} slabs of 32 rows, {mebibytes:.1f} MiB of shared memory"


@pytest.mark.parametrize(
    ("content", "processors"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("", None),
        ("a b", None),
    ],
)
def test_a_cgroup_quota_is_whole_processors(tmp_path: Path, content: str, processors: int | None) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(content)
    assert budget._cgroup_quota(path) == processors


def test_without_a_cgroup_there_is_no_quota(tmp_path: Path) -> None:
    assert budget._cgroup_quota(tmp_path / "none") is None


@pytest.mark.parametrize(("quota", "processors"), [(None, 8), (3, 3), (99, 8)])
def test_the_smaller_of_affinity_and_quota_counts(
    monkeypatch: pytest.MonkeyPatch, quota: int | None, processors: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(budget, "_cgroup_quota", lambda path: quota)
    assert cpu_count() == processors

"""Lanes are sized by what may come, by what workers can keep busy and by memory; processors by affinity and quota."""

import os
import resource
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server import budget, cgroup
from ringserve.server.batching import OUTSTANDING_MAX
from ringserve.server.budget import (
    BODY_BYTES_MAX,
    LANE_BYTES_MAX,
    MIB,
    REGION_BYTES_MIN,
    ROWS_BESIDE_WORKERS,
    SLABS_BESIDE_WORKERS,
    SLABS_MIN,
    SLABS_WANTED_MIN,
    WORKERS_PLANNED_MIN,
    LaneBudget,
    cpu_count,
    describe_lane,
    front_ends_default,
    lane_budget,
    lane_shape,
    memory_limit_bytes,
    worker_threads,
)
from ringserve.shm.lane import create_lane
from ringserve.shm.layout import LaneShape, lane_bytes, plan_slab
from ringserve.shm.shm_errors import OutOfSharedMemory

UNTYPED = Signature()
MLP = Signature((TensorSpec("x", "float32", (784,)),), (TensorSpec("y", "float32", (10,)),))
IMAGES = Signature((TensorSpec("x", "float32", (3, 640, 640)),), (TensorSpec("y", "float32", (3, 640, 640)),))
PLENTY = LaneBudget(LANE_BYTES_MAX, 64 << 30, "there is plenty")
IMAGE_BYTES = 602_112

budgets = st.builds(
    lambda target, more: LaneBudget(target, target + more, "a test says so"),
    st.integers(1 * MIB, 1 << 30),
    st.integers(0, 1 << 34),
)


@given(st.sampled_from([UNTYPED, MLP, IMAGES]), st.integers(1, 256), st.integers(0, 64), budgets)
def test_a_lane_is_large_enough_to_work_and_no_larger_than_it_can_use(
    signature: Signature, batch_size: int, workers: int, budget: LaneBudget
) -> None:
    try:
        shape = lane_shape(signature, batch_size, workers, budget=budget)
    except OutOfSharedMemory as error:
        assert "a test says so" in str(error)
        return
    assert shape.rows == batch_size
    beside = max(SLABS_BESIDE_WORKERS, ROWS_BESIDE_WORKERS // batch_size)
    wanted = beside + OUTSTANDING_MAX * max(workers, WORKERS_PLANNED_MIN)
    assert SLABS_MIN <= shape.slab_count <= wanted
    slabs_bytes = shape.slab_count * plan_slab(shape).slab_bytes
    if shape.slab_count > SLABS_WANTED_MIN:
        assert slabs_bytes <= budget.target_bytes
    assert slabs_bytes <= max(budget.target_bytes, budget.bytes_max)


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_a_full_batch_of_images_fits_into_the_byte_regions(batch_size: int) -> None:
    shape = lane_shape(UNTYPED, batch_size, 1, budget=PLENTY)
    for region in (shape.bytes_in, shape.bytes_out):
        assert region >= batch_size * (IMAGE_BYTES + 1024)


def test_the_longest_body_fits_when_batches_have_one_row() -> None:
    shape = lane_shape(UNTYPED, 1, 1, budget=PLENTY)
    assert shape.bytes_in > BODY_BYTES_MAX
    assert shape.slab_count == ROWS_BESIDE_WORKERS + OUTSTANDING_MAX * WORKERS_PLANNED_MIN


def test_slabs_of_few_rows_are_many_so_that_clients_can_keep_some() -> None:
    assert lane_shape(MLP, 1, 1).slab_count == ROWS_BESIDE_WORKERS + OUTSTANDING_MAX * WORKERS_PLANNED_MIN
    assert lane_shape(MLP, 32, 1).slab_count == SLABS_BESIDE_WORKERS + OUTSTANDING_MAX * WORKERS_PLANNED_MIN


def test_each_region_follows_its_own_limit() -> None:
    shape = lane_shape(UNTYPED, 1, 1, request_bytes_max=2 * MIB, response_bytes_max=4 * MIB, budget=PLENTY)
    assert 2 * MIB < shape.bytes_in < 3 * MIB
    assert 4 * MIB < shape.bytes_out < 5 * MIB


def test_bodies_of_2_gb_do_not_make_a_lane_larger_than_its_budget() -> None:
    shape = lane_shape(UNTYPED, 64, 8, request_bytes_max=2**31 - 1, response_bytes_max=2**31 - 1, budget=PLENTY)
    assert lane_bytes(shape) <= LANE_BYTES_MAX + MIB
    assert shape.slab_count == SLABS_WANTED_MIN


def test_a_small_budget_makes_smaller_regions_first_and_never_useless_ones() -> None:
    small = lane_shape(UNTYPED, 8, 1, budget=LaneBudget(32 * MIB, 128 * MIB, ""))
    assert small.slab_count == SLABS_WANTED_MIN
    assert REGION_BYTES_MIN < small.bytes_in < IMAGE_BYTES * 8
    assert lane_bytes(small) <= 33 * MIB
    least = lane_shape(UNTYPED, 8, 1, budget=LaneBudget(1 * MIB, 64 * MIB, ""))
    assert least.bytes_in == least.bytes_out == REGION_BYTES_MIN


def test_tensors_may_take_more_than_the_target_with_fewer_slabs() -> None:
    slab_bytes = plan_slab(lane_shape(IMAGES, 8, 1, budget=PLENTY)).slab_bytes
    shapes = [lane_shape(IMAGES, 8, 1, budget=LaneBudget(MIB, n * slab_bytes, "")) for n in (2, 3, 6, 20)]
    assert [shape.slab_count for shape in shapes] == [2, 3, 6, 6]


def test_tensors_that_no_lane_can_hold_are_a_sentence_with_both_numbers() -> None:
    expected = r"batches of 8 rows need at least 2 slabs of 75\.1 MiB, 150\.1 MiB in all, and a lane may have 128\.0 MiB: a test"
    with pytest.raises(OutOfSharedMemory, match=expected):
        lane_shape(IMAGES, 8, 1, budget=LaneBudget(32 * MIB, 128 * MIB, "a test"))


def test_a_typed_lane_holds_its_tensors_as_declared() -> None:
    shape = lane_shape(MLP, 32, 1)
    assert [(each.name, each.dtype, each.shape, each.row_bytes) for each in (*shape.inputs, *shape.outputs)] == [
        ("x", "float32", (784,), 3136),
        ("y", "float32", (10,), 40),
    ]
    assert shape.bytes_in == 0 < shape.bytes_out


def test_a_lane_describes_itself_in_one_line() -> None:
    shape = LaneShape(8, 32, bytes_in=3 * MIB, bytes_out=MIB)
    assert describe_lane(shape) == "8 slabs of 32 rows and 4.0 MiB, 32.0 MiB of shared memory"
    segment = create_lane(shape)
    text = describe_lane(shape, segment, LaneBudget(64 * MIB, 256 * MIB, ""))
    assert f"shared memory in {segment.where}, 0." in text
    segment.close()
    assert text.endswith(" MiB reserved, at most 64.0 MiB wanted and 256.0 MiB allowed")


def limited(monkeypatch: pytest.MonkeyPatch, memory: int, **limits: int) -> None:
    monkeypatch.setattr(budget, "memory_limit_bytes", lambda: memory)
    found = {resource.RLIMIT_FSIZE: limits.get("file", resource.RLIM_INFINITY)}
    found[resource.RLIMIT_AS] = limits.get("address", resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (found[which], resource.RLIM_INFINITY))


def test_much_memory_is_not_all_for_one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 1 << 40)
    assert lane_budget().target_bytes == LANE_BYTES_MAX
    assert lane_budget(8).target_bytes == LANE_BYTES_MAX


def test_front_ends_share_the_memory_of_a_small_container(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 512 * MIB)
    assert (lane_budget().target_bytes, lane_budget().bytes_max) == (32 * MIB, 128 * MIB)
    assert (lane_budget(2).target_bytes, lane_budget(2).bytes_max) == (16 * MIB, 64 * MIB)


@pytest.mark.parametrize(
    ("limits", "bytes_max", "word"),
    [({"file": 10 * MIB}, 10 * MIB, "ulimit -f"), ({"address": 800 * MIB}, 100 * MIB, "ulimit -v")],
)
def test_a_limit_of_the_process_is_a_limit_of_the_lane(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], bytes_max: int, word: str
) -> None:
    limited(monkeypatch, 1 << 40, **limits)
    found = lane_budget()
    assert (found.target_bytes, found.bytes_max) == (min(bytes_max, LANE_BYTES_MAX), bytes_max)
    assert word in found.reason


@pytest.mark.parametrize(("limit", "expected"), [(None, "physical"), (2**63, "physical"), (5 * MIB, 5 * MIB)])
def test_memory_is_the_machine_s_or_what_is_left_of_it(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, expected: int | str
) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(cgroup, "memory_limit_bytes", lambda: limit)
    assert memory_limit_bytes() == (physical if expected == "physical" else expected)


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float | None], None]:
    def have(count: int, quota: float | None = None) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))
        monkeypatch.setattr(cgroup, "cpu_quota", lambda: quota)

    return have


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (3.0, 3), (1.5, 1), (0.2, 1), (99.0, 8)])
def test_the_smaller_of_affinity_and_quota_counts(
    processors: Callable[[int, float | None], None], quota: float | None, expected: int
) -> None:
    processors(8, quota)
    assert cpu_count() == expected


@pytest.mark.parametrize(
    ("count", "front_ends"), [(1, 1), (2, 1), (3, 1), (4, 1), (8, 2), (15, 3), (16, 4), (32, 8), (192, 8)]
)
def test_a_quarter_of_the_processors_are_front_ends_and_never_more_than_eight(
    processors: Callable[[int, float | None], None], count: int, front_ends: int
) -> None:
    processors(count, None)
    assert front_ends_default() == front_ends


def test_workers_share_the_processors_that_the_front_end_leaves(
    processors: Callable[[int, float | None], None],
) -> None:
    processors(9, None)
    assert [worker_threads(workers) for workers in (0, 1, 2, 3, 8, 100)] == [8, 8, 4, 2, 1, 1]

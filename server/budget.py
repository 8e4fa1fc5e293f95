"""What this process may use: processors, and the memory of a lane."""

import os
from pathlib import Path

from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.batching import OUTSTANDING_MAX
from ringserve.shm.layout import LaneShape, Tensor, lane_bytes, plan_slab

# A lane of undeclared payloads: this much of the byte region for each row, within bounds. Larger bodies travel in parcels.
ROW_REGION_BYTES = 32 << 10
REGION_BYTES_MIN = 1 << 20
REGION_BYTES_MAX = 4 << 20
# A typed lane needs bytes only for what a row says when it fails.
TYPED_REGION_BYTES = 64 << 10

LANE_BYTES_TARGET = 32 << 20
# One slab open, one being answered, and two in every worker's hands.
SLABS_BESIDE_WORKERS = 4
SLABS_MIN = SLABS_BESIDE_WORKERS + OUTSTANDING_MAX
WORKERS_PLANNED_MIN = 2


def cpu_count() -> int:
    """Processors this process may use: its affinity, cut by the cgroup's quota; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(Path("/sys/fs/cgroup/cpu.max"))
    return max(1, min(allowed, quota if quota is not None else allowed))


def worker_threads(workers: int) -> int:
    """How many threads each of `workers` may compute with. One processor is the front end's: numeric libraries spin while
    they wait for their threads, and a thread more than there are processors turned 1 ms into 48 ms (two processors)."""
    return max(1, (cpu_count() - 1) // max(1, workers))


def _cgroup_quota(path: Path) -> int | None:
    """Whole processors of a cgroup v2 quota; None without one."""
    try:
        quota, period = path.read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


def _tensors(specs: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
    return tuple(Tensor(spec.name, spec.dtype, spec.shape, spec.row_bytes) for spec in specs)


def lane_shape(signature: Signature, batch_size: int, workers: int) -> LaneShape:
    """How large a version's lanes are: as many slabs as its workers can keep busy, fewer when they are large."""
    if signature.typed:
        bytes_in, bytes_out = 0, TYPED_REGION_BYTES
    else:
        bytes_in = bytes_out = min(max(batch_size * ROW_REGION_BYTES, REGION_BYTES_MIN), REGION_BYTES_MAX)
    one = LaneShape(1, batch_size, _tensors(signature.inputs), _tensors(signature.outputs), bytes_in, bytes_out)
    wanted = SLABS_BESIDE_WORKERS + OUTSTANDING_MAX * max(workers, WORKERS_PLANNED_MIN)
    affordable = LANE_BYTES_TARGET // plan_slab(one).slab_bytes
    return LaneShape(max(SLABS_MIN, min(wanted, affordable)), batch_size, one.inputs, one.outputs, bytes_in, bytes_out)


def describe_lane(shape: LaneShape) -> str:
    """One line for the log."""
    return f"{shape.slab_count} slabs of {shape.rows} rows, {lane_bytes(shape) / (1 << 20):.1f} MiB of shared memory"

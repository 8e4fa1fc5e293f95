"""What this process may use: processors, and shared memory for its lanes."""

import os
import resource
from dataclasses import dataclass

from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server import cgroup
from ringserve.server.batching import OUTSTANDING_MAX
from ringserve.shm.layout import ROW_BYTES, LaneShape, Tensor, align, lane_bytes, plan_slab
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import OutOfSharedMemory

MIB = 1 << 20

# One slab open, one being answered, and two in every worker's hands. Where a slab has few rows, more: bodies on their way in and
# answers on their way out keep theirs, and those that find none free are copied.
SLABS_BESIDE_WORKERS = 4
ROWS_BESIDE_WORKERS = 12
SLABS_WANTED_MIN = SLABS_BESIDE_WORKERS + OUTSTANDING_MAX
# With one, nothing could arrive while a batch is executed.
SLABS_MIN = 2
WORKERS_PLANNED_MIN = 2

# What a lane may grow to, when there is plenty and when it needs more for its tensors; parts of all memory. A lane takes
# memory only as far as its slabs are used, so that many models may be allowed this much.
LANE_BYTES_MAX = 256 * MIB
LANE_PART = 16
LANE_PART_MAX = 4
# A process that may map only so much has other things to map.
ADDRESS_PART = 8

# TorchServe's default for the longest body, in and out. Longer ones, where they are allowed, travel in segments of their own.
BODY_BYTES_MAX = 6_553_500
# Beside a body in the byte region: what the request's head takes, some kilobytes of headers at most.
HEAD_BYTES = 16 << 10
# The byte regions of a lane of undeclared payloads are at least this large, whatever the budget.
REGION_BYTES_MIN = 1 * MIB
# A typed lane needs bytes only for what a row says when it fails.
TYPED_REGION_BYTES = 64 << 10

FRONT_ENDS_MAX = 8
CPUS_PER_FRONT_END = 4


def cpu_count() -> int:
    """Processors this process may use: its affinity, cut by the quotas of its control groups; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup.cpu_quota()
    return max(1, min(allowed, int(quota) if quota is not None else allowed))


def worker_threads(workers: int) -> int:
    """How many threads each of `workers` may compute with. One processor is the front end's: numeric libraries spin while
    they wait for their threads, and a thread more than there are processors turned 1 ms into 48 ms (two processors)."""
    return max(1, (cpu_count() - 1) // max(1, workers))


def front_ends_default() -> int:
    """How many front ends the processors are worth. One keeps a processor busy only with tens of thousands of requests a
    second, which take several processors to compute; and the models need the others."""
    return min(max(1, cpu_count() // CPUS_PER_FRONT_END), FRONT_ENDS_MAX)


def memory_limit_bytes() -> int:
    """The memory of the machine, or what the control groups leave of it."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = cgroup.memory_limit_bytes()
    return physical if limit is None else min(physical, limit)


@dataclass(frozen=True, slots=True)
class LaneBudget:
    """`target_bytes` is what a lane may grow to, `bytes_max` what one may have whose tensors leave no choice; `reason` says
    where the second number comes from."""

    target_bytes: int
    bytes_max: int
    reason: str


def lane_budget(front_ends: int = 1) -> LaneBudget:
    """For each lane of a version that `front_ends` front ends share."""
    memory = memory_limit_bytes() // front_ends
    limits = [(memory // LANE_PART_MAX, f"a quarter of {_size(memory)}, this front end's part of all memory")]
    file_bytes, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if file_bytes != resource.RLIM_INFINITY:
        limits.append((file_bytes, f"a file may have {_size(file_bytes)} (ulimit -f)"))
    address_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_bytes != resource.RLIM_INFINITY:
        part = address_bytes // ADDRESS_PART
        limits.append((part, f"an eighth of the {_size(address_bytes)} a process may map (ulimit -v)"))
    bytes_max, reason = min(limits)
    return LaneBudget(min(LANE_BYTES_MAX, memory // LANE_PART, bytes_max), bytes_max, reason)


def _size(count: int) -> str:
    return f"{count / MIB:.1f} MiB"


def arrays_of(signature: Signature) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs and outputs that a lane lays out: those of typed models, for all others send bytes."""
    if not signature.typed:
        return (), ()
    return tensors_of(signature.inputs), tensors_of(signature.outputs)


def tensors_of(specs: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
    """A declaration as a lane lays it out."""
    return tuple(Tensor(spec.name, spec.dtype, spec.shape, spec.row_bytes) for spec in specs)


def _region_bytes(batch_size: int, body_bytes_max: int, affordable: int) -> int:
    """A byte region that takes a full batch of the longest bodies, if that is affordable: a body that the region cannot take
    travels in a segment of its own, which costs more than the copy."""
    row_bytes = min(body_bytes_max, BODY_BYTES_MAX) + HEAD_BYTES
    return align(max(REGION_BYTES_MIN, min(batch_size * row_bytes, affordable)))


def lane_shape(
    signature: Signature,
    batch_size: int,
    workers: int,
    *,
    request_bytes_max: int = BODY_BYTES_MAX,
    response_bytes_max: int = BODY_BYTES_MAX,
    budget: LaneBudget | None = None,
) -> LaneShape:
    """How large a version's lanes are: slabs as large as the bodies that may come, and as many as its workers can keep busy,
    both within the budget. Raises `OutOfSharedMemory` when not even the declared tensors of the fewest slabs are."""
    budget = lane_budget() if budget is None else budget
    bytes_in, bytes_out = 0, TYPED_REGION_BYTES
    beside = max(SLABS_BESIDE_WORKERS, ROWS_BESIDE_WORKERS // batch_size)
    if not signature.typed:
        half = (budget.target_bytes // (beside + OUTSTANDING_MAX) - batch_size * ROW_BYTES) // 2
        bytes_in = _region_bytes(batch_size, request_bytes_max, half)
        bytes_out = _region_bytes(batch_size, response_bytes_max, half)
    one = LaneShape(1, batch_size, *arrays_of(signature), bytes_in, bytes_out)
    slab_bytes = plan_slab(one).slab_bytes
    wanted = beside + OUTSTANDING_MAX * max(workers, WORKERS_PLANNED_MIN)
    slabs = min(wanted, budget.target_bytes // slab_bytes)
    if slabs < SLABS_WANTED_MIN:
        slabs = min(SLABS_WANTED_MIN, budget.bytes_max // slab_bytes)
    if slabs < SLABS_MIN:
        raise OutOfSharedMemory(
            f"batches of {batch_size} rows need at least {SLABS_MIN} slabs of {_size(slab_bytes)},"
            f" {_size(SLABS_MIN * slab_bytes)} in all, and a lane may have {_size(budget.bytes_max)}: {budget.reason}"
        )
    return LaneShape(slabs, batch_size, one.inputs, one.outputs, bytes_in, bytes_out)


def describe_lane(shape: LaneShape, segment: Segment | None = None, budget: LaneBudget | None = None) -> str:
    """One line for the log."""
    text = (
        f"{shape.slab_count} slabs of {shape.rows} rows and {_size(plan_slab(shape).slab_bytes)},"
        f" {_size(lane_bytes(shape))} of shared memory"
    )
    if segment is not None:
        text += f" in {segment.where}, {_size(segment.allocated_bytes)} reserved"
    if budget is not None:
        text += f", at most {_size(budget.target_bytes)} wanted and {_size(budget.bytes_max)} allowed"
    return text

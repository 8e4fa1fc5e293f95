"""What a front end counts, in memory that outlives it.

One page for every model version and one for HTTP, made by the supervisor; in a page every front end has a part of its own, which it
alone writes. A front end that takes another's place goes on with its part, so that counters never fall. The supervisor reads: a
part says, by an odd first word, that it is being changed.

A part holds whole numbers only, times in nanoseconds, so that sums are exact: those of the phases and that of the total agree.
"""

import numpy as np

from ringserve.shm.layout import (
    CACHE_LINE,
    COUNTERS_MAGIC,
    check_header,
    counter_page_bytes,
    counter_part_at,
    write_header,
)
from ringserve.shm.segment import Segment

# The way of a request: its body comes, it waits for its batch to leave, for the worker to begin, for the model, for its answer to
# be written. The last is the sum of the others.
PHASES = ("receive", "queue", "batch_form", "execute", "respond", "total")
RECEIVE, QUEUE, BATCH_FORM, EXECUTE, RESPOND, TOTAL = range(6)
# Upper bounds of the buckets; one more bucket is for what lies above.
PHASE_BOUNDS_S = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
BATCH_SIZE_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# Why requests were refused for want of room, workers or time, before a model had to do with them; and why others failed. The words
# are codes of protocol/errors.py; a client that left is `cancelled`, an answer that ended half-way `broken_off`.
SHED_REASONS = (
    "queue_full",
    "queue_timeout",
    "no_worker",
    "no_ticket",
    "sequence_rejected",
    "deadline_exceeded",
    "shutting_down",
)
FAILURE_REASONS = (
    *("bad_request", "body_too_large", "worker_lost", "prediction_failed", "out_of_resources"),
    *("cancelled", "broken_off", "internal", "other"),
)
REASONS = (*SHED_REASONS, *FAILURE_REASONS)
# As in Triton, what was not even a request for the model is no failure of it.
NO_REQUEST = ("bad_request", "body_too_large")
OTHER = REASONS.index("other")
REASON_AT = {reason: at for at, reason in enumerate(REASONS)}

# TorchServe tells requests for the default version from those that name one.
DEFAULT, NAMED = range(2)
SLAB_STATES = ("free", "waiting", "executing", "held")

# The protocol's stages of an executed request (contract section 3.8): it waits until a worker takes its batch up, whose inputs are
# read, which the model executes, and whose outputs come back.
STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
# So many sizes of batches are told apart; all others have the first line together. What a line holds of its size: the size, how many
# executions there were, and how long the last three stages took them.
SIZES_MAX = 128
SIZE_WORDS = 5
# Of so many answers of a decoupled model to one request something is known: how many were so, and how long they took.
RESPONSES_MAX = 32
OUTCOMES = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
OUTCOME_AT = {outcome: at for at, outcome in enumerate(OUTCOMES)}

_WORD = np.int64
# The fields of a part lie next to each other, in this order.
VERSION_COUNTS = np.dtype(
    [
        ("changing", _WORD),
        ("phase", _WORD, (len(PHASES), len(PHASE_BOUNDS_S) + 1)),
        ("phase_ns", _WORD, (len(PHASES),)),
        ("batch_size", _WORD, (len(BATCH_SIZE_BOUNDS) + 1,)),
        ("batch_rows", _WORD),
        ("reason", _WORD, (len(REASONS),)),
        ("asked", _WORD, (2,)),  # of the default version, of a named one
        ("latency_ns", _WORD, (2,)),
        ("queue_ns", _WORD, (2,)),
        ("mismatched", _WORD),
        ("success", _WORD),
        ("success_ns", _WORD),
        ("fail_ns", _WORD),  # how many there were, `reason` says
        ("stage_ns", _WORD, (len(STAGES),)),
        ("executions", _WORD),
        ("items", _WORD),
        ("size", _WORD, (SIZES_MAX, SIZE_WORDS)),
        ("response", _WORD, (RESPONSES_MAX, len(OUTCOMES), 2)),  # by its number: count, ns
        ("last_ms", _WORD),  # when a batch was last executed, since 1970
        # What is so at the moment.
        ("last_ns", _WORD),  # when the next two were so, CLOCK_MONOTONIC
        ("last_queue_ns", _WORD),
        ("last_overhead_ns", _WORD),  # what the last batch spent between front end and worker, both ways
        ("waiting", _WORD),
        ("slabs", _WORD, (len(SLAB_STATES),)),
    ]
)
HTTP_COUNTS = np.dtype([("changing", _WORD), ("status", _WORD, (3,)), ("connections", _WORD)])
OK, CLIENT_ERROR, SERVER_ERROR = range(3)
# These do not add up over the lives of a front end: with it, they are gone.
MOMENTARY = frozenset(("changing", "last_ns", "last_queue_ns", "last_overhead_ns", "waiting", "slabs", "connections"))
# The supervisor may meet a change; one lasts microseconds, unless its front end was stopped or killed in the middle of it.
LOOKS_MAX = 100
_NOT_SUMS = frozenset(("changing", "last_ns", "last_queue_ns", "last_overhead_ns", "last_ms", "size"))

Counts = np.ndarray[tuple[()], np.dtype[np.void]]
Sizes = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def status_class(status: int) -> int:
    """TorchServe's three: what is neither good nor the client's fault is the server's."""
    return OK if 200 <= status < 300 else CLIENT_ERROR if 400 <= status < 500 else SERVER_ERROR


def _fingerprint(kind: np.dtype[np.void]) -> int:
    return kind.itemsize


class CounterPage:
    """A page as its maker sees it: the supervisor."""

    def __init__(self, front_ends: int, kind: np.dtype[np.void]) -> None:
        """Raises `OutOfSharedMemory`."""
        self._segment = Segment.create(counter_page_bytes(front_ends, kind.itemsize))
        write_header(self._segment.view, COUNTERS_MAGIC, _fingerprint(kind))
        self._parts = [part_of(self._segment.view, each, kind) for each in range(front_ends)]

    @property
    def fd(self) -> int:
        return self._segment.fd

    def parts(self) -> list[Counts]:
        """Copies of what every front end has counted."""
        return [_settled(each) for each in self._parts]

    def clear_moment(self, front_end: int) -> None:
        """A front end is gone: what was so at the moment is not any more. Its successor must not have been told of the page yet."""
        part = self._parts[front_end]
        for name in MOMENTARY.intersection(part.dtype.names or ()):
            part[name] = 0

    def close(self) -> None:
        self._parts.clear()
        self._segment.close()


def _settled(part: Counts) -> Counts:
    """A copy that was not being changed, as far as patience goes: numbers that do not quite agree are better than none."""
    for _ in range(LOOKS_MAX):
        before = int(part["changing"])
        copied = part.copy()
        if not before % 2 and before == int(part["changing"]):
            break
    return copied


def attach_counts(fd: int, own: int, kind: np.dtype[np.void]) -> Counts:
    """The part of front end number `own`, in a page that was made elsewhere. Takes the descriptor over; the memory stays as long as
    the part does. Raises `LayoutMismatch`."""
    segment = Segment.attach(fd)
    try:
        check_header(segment.view, COUNTERS_MAGIC, _fingerprint(kind))
        part = part_of(segment.view, own, kind)
        if part["changing"] % 2:  # whoever was here before died over it
            part["changing"] += 1
    finally:
        segment.close()
    return part


def part_of(memory: memoryview, front_end: int, kind: np.dtype[np.void]) -> Counts:
    at = counter_part_at(front_end, kind.itemsize)
    assert at % CACHE_LINE == 0
    part: Counts = np.frombuffer(memory, kind, 1, at).reshape(())  # which, unlike np.ndarray, keeps the memory there
    return part


def no_counts(kind: np.dtype[np.void]) -> Counts:
    """All of them zero, in memory of this process."""
    return np.zeros((), kind)


def add_up(parts: list[Counts], kind: np.dtype[np.void]) -> Counts:
    """The sum over front ends, and over what retired versions have left. Of what was so last, the newest counts."""
    total = no_counts(kind)
    for name in kind.names or ():
        if name not in _NOT_SUMS:
            total[name] = sum(part[name] for part in parts)
    if "size" in (kind.names or ()) and parts:
        total["last_ms"] = max(int(part["last_ms"]) for part in parts)
        for part in parts:
            lines = part["size"]
            for line in lines[lines[:, 1] > 0].tolist():
                add_size(total["size"], *line)
    if "last_ns" in (kind.names or ()) and parts:
        newest = max(parts, key=lambda part: int(part["last_ns"]))
        for name in ("last_ns", "last_queue_ns", "last_overhead_ns"):
            total[name] = newest[name]
    return total


def add_size(lines: Sizes, size: int, executions: int, *stages_ns: int) -> None:
    """Count executions of batches of that size. Lines are taken as sizes are met; who finds none left goes into the first."""
    found = np.flatnonzero((lines[1:, 0] == size) | (lines[1:, 1] == 0))
    at = 0 if not len(found) or size <= 0 else int(found[0]) + 1
    if at:
        lines[at, 0] = size
    lines[at, 1:] += (executions, *stages_ns)

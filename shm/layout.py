"""Byte layout of lanes and links. The only module that knows an offset.

A lane is the memory of its slabs; a link is the pair of rings between one front end and one worker. Words are unsigned
64-bit, little endian, aligned: a store or load of one is a single instruction on x86-64 and on ARM64, and every word has
exactly one writing process. What the words say becomes visible through the doorbell (a system call on both sides), never
by polling.

    lane     0          4096
             | header   | slab 0 | slab 1 | ...                     header written once, by the creator

    slab     | row table | inputs ... | outputs ... | bytes in | bytes out |      every region starts a cache line
             row i of input k lies at inputs[k] + i * row_bytes: rows 0..n are the array [n, *shape]

    row      | id, deadline, flags, head offset/length, body offset/length, parcel |   front end
             | id, status,   flags, head offset/length, body offset/length, parcel |   worker

    link     0        64       128              192                  704      768      832
             | header | c.tail | c.head,started | commands (8 x 64) | r.tail | r.head | completions (8 x 64) |
               creator  front    worker           front               worker   front    worker

A batch is a range of rows of a slab: its command says which, and which part of the slab's outgoing byte region is its own, so
that two batches of one slab never write to the same place.
"""

import hashlib
import struct
from typing import NamedTuple

import msgspec

from ringserve.shm.shm_errors import LayoutMismatch

CACHE_LINE = 64
WORD = 8
VERSION = 4
PAGE = 4096

HEADER = struct.Struct("<8sQQ")  # magic, layout version, hash of the shape
LANE_MAGIC = b"RINGLANE"
LINK_MAGIC = b"RINGLINK"

# Row table: two cache lines a row, the first written by the front end, the second by the worker. Indices of words.
ROW_WORDS = 16
ROW_BYTES = ROW_WORDS * WORD
(ROW_ID, ROW_DEADLINE_NS, ROW_FLAGS, ROW_HEAD_AT, ROW_HEAD_BYTES, ROW_BODY_AT, ROW_BODY_BYTES, ROW_PARCEL_BYTES) = (
    range(8)
)
(
    REPLY_ID,
    REPLY_STATUS,
    REPLY_FLAGS,
    REPLY_HEAD_AT,
    REPLY_HEAD_BYTES,
    REPLY_BODY_AT,
    REPLY_BODY_BYTES,
    REPLY_PARCEL_BYTES,
) = range(8, 16)
# The flags of a request row: its client is gone. Set while the row waits or runs; whoever looks later than that is too late.
ROW_CANCELLED = 1
REQUEST_WORDS = 8
REQUEST_LINE = struct.Struct("<8Q")
REPLY_LINE = struct.Struct("<8Q")
REPLY_LINE_AT = REQUEST_LINE.size

# Link: two rings.
RING_ENTRIES = 8
ENTRY_BYTES = 64
COMMAND = struct.Struct("<QIIIII36x")  # sequence number, slab, first row, rows, outgoing bytes: offset and length
# Sequence number, slab, rows, status, chunk: offset and length; executions, their items, when the batch was taken up and its
# execution began and ended.
COMPLETION = struct.Struct("<QIIIIIII4xQQQ")
RING_BYTES = 2 * CACHE_LINE + RING_ENTRIES * ENTRY_BYTES
COMMANDS_AT = CACHE_LINE
COMPLETIONS_AT = COMMANDS_AT + RING_BYTES
LINK_BYTES = PAGE
TAIL_AT, HEAD_AT, ENTRIES_AT = 0, CACHE_LINE, 2 * CACHE_LINE  # within a ring
STARTED_AT = HEAD_AT + WORD  # when the consumer took its last entry: CLOCK_MONOTONIC, ns

assert HEADER.size <= CACHE_LINE, "the header must not share a line with a cursor"
assert REQUEST_LINE.size == REPLY_LINE.size == CACHE_LINE, "a row's two writers must not share a line"
assert ROW_BYTES == 2 * CACHE_LINE
assert COMMAND.size == COMPLETION.size == ENTRY_BYTES
assert RING_BYTES % CACHE_LINE == 0, "rings must not share a line"
assert RING_ENTRIES & (RING_ENTRIES - 1) == 0, "entry numbers wrap by masking"
assert COMPLETIONS_AT + RING_BYTES <= LINK_BYTES


class Tensor(msgspec.Struct, frozen=True):
    """One declared array of a slab: the shape is that of one row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    row_bytes: int


class LaneShape(msgspec.Struct, frozen=True):
    """Everything that decides where a byte lies. Travels with the lane's descriptor and is checked on attach."""

    slab_count: int
    rows: int
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    bytes_in: int = 0
    bytes_out: int = 0

    def fingerprint(self) -> int:
        """A 63-bit hash of the shape, written into the lane's header."""
        digest = hashlib.blake2b(msgspec.msgpack.encode(self), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1


class SlabPlan(NamedTuple):
    """Offsets within one slab, in bytes."""

    inputs_at: tuple[int, ...]
    outputs_at: tuple[int, ...]
    bytes_in_at: int
    bytes_out_at: int
    slab_bytes: int


def align(offset: int, to: int = CACHE_LINE) -> int:
    return -(-offset // to) * to


def plan_slab(shape: LaneShape) -> SlabPlan:
    """Where the regions of a slab of this shape lie."""
    assert shape.slab_count > 0
    assert shape.rows > 0
    at = shape.rows * ROW_BYTES
    inputs_at: list[int] = []
    outputs_at: list[int] = []
    for tensors, places in ((shape.inputs, inputs_at), (shape.outputs, outputs_at)):
        for tensor in tensors:
            at = align(at)
            places.append(at)
            at += shape.rows * tensor.row_bytes
    bytes_in_at = align(at)
    bytes_out_at = align(bytes_in_at + shape.bytes_in)
    slab_bytes = align(bytes_out_at + shape.bytes_out)
    return SlabPlan(tuple(inputs_at), tuple(outputs_at), bytes_in_at, bytes_out_at, slab_bytes)


def lane_bytes(shape: LaneShape) -> int:
    return PAGE + shape.slab_count * plan_slab(shape).slab_bytes


def slab_at(shape: LaneShape, plan: SlabPlan, index: int) -> int:
    assert 0 <= index < shape.slab_count
    return PAGE + index * plan.slab_bytes


def write_header(view: memoryview, magic: bytes, fingerprint: int) -> None:
    HEADER.pack_into(view, 0, magic, VERSION, fingerprint)


def check_header(view: memoryview, magic: bytes, fingerprint: int) -> None:
    """Raises `LayoutMismatch` when the segment is not what this process was told it is."""
    if len(view) < HEADER.size:
        raise LayoutMismatch(f"a segment of {len(view)} bytes has no header")
    found = HEADER.unpack_from(view, 0)
    expected = (magic, VERSION, fingerprint)
    if found != expected:
        raise LayoutMismatch(f"expected header (magic, version, shape) {expected}, found {found}")


# Queue page: how many requests of one version wait, for all front ends to see. A line, and so a writer, for each of them.
#
#     0        64           128
#     | header | count of 0 | count of 1 | ...
QUEUE_MAGIC = b"RINGWAIT"
QUEUE_LINE_WORDS = CACHE_LINE // WORD


def queue_page_bytes(front_ends: int) -> int:
    assert front_ends > 0
    return CACHE_LINE * (1 + front_ends)


def queue_front_ends(page_bytes: int) -> int:
    """How many lines a page of this size has."""
    return page_bytes // CACHE_LINE - 1


def queue_count_at(front_end: int) -> int:
    """The index of the word that says how many requests wait in a front end."""
    return QUEUE_LINE_WORDS * (1 + front_end)


# Counter page: what every front end has counted of one thing, for the supervisor to add up. A part, and so a writer, for each of
# them, which it begins on a line of its own. The first word of a part is odd while the part is being changed.
#
#     0        64          64 + part
#     | header | part of 0 | part of 1 | ...
COUNTERS_MAGIC = b"RINGCNTR"


def counter_page_bytes(front_ends: int, part_bytes: int) -> int:
    assert front_ends > 0
    return CACHE_LINE + front_ends * align(part_bytes)


def counter_part_at(front_end: int, part_bytes: int) -> int:
    return CACHE_LINE + front_end * align(part_bytes)

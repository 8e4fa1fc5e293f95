"""Answers in a slab: the worker writes them, the front end reads them. Both halves are here because they must agree.

A typed row needs no bytes: the output arrays are the answer, and the reply line says 200. Everything else is a body in the
slab's byte region, or, when the region is full, in the batch's one overflow parcel.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import orjson

from ringserve.backends.contract import Reply
from ringserve.protocol.errors import Internal, PredictionFailed, RingServeError, error_from
from ringserve.protocol.payload import ErrorRecord, ReplyHead, decode_error, decode_reply_head, encode_head
from ringserve.protocol.request import Answer
from ringserve.protocol.tensor import Signature
from ringserve.shm.lane import Array, Slab
from ringserve.shm.layout import (
    REPLY_BODY_AT,
    REPLY_BODY_BYTES,
    REPLY_FLAGS,
    REPLY_HEAD_AT,
    REPLY_HEAD_BYTES,
    REPLY_ID,
    REPLY_LINE,
    REPLY_LINE_AT,
    REPLY_STATUS,
    ROW_BYTES,
    ROW_ID,
    align,
)
from ringserve.shm.segment import Segment

# Flags of a reply line. The low byte is the content type, when no head says it.
CONTENT_TYPES: tuple[str | None, ...] = (
    None,
    "application/json",
    "text/plain; charset=utf-8",
    "application/octet-stream",
)
CONTENT_MASK = 0xFF
FLAG_ERROR = 0x100
FLAG_OVERFLOW = 0x200

# Completion status: the batch's overflow parcel was sent before the entry.
STATUS_OVERFLOW = 1

# A message longer than this says no more than its beginning.
MESSAGE_CHARS_MAX = 8192


# ---- worker


_SUCCESS = np.array((200, 0), dtype="<u8")


def write_typed_success(slab: Slab, rows: int) -> None:
    """The output arrays are the answer: echo the ids, say 200. Two array operations for the whole batch."""
    table = slab.table
    table[:rows, REPLY_ID] = table[:rows, ROW_ID]
    table[:rows, REPLY_STATUS : REPLY_FLAGS + 1] = _SUCCESS


class _Placed:
    """A body with its head, and what its reply line will say."""

    __slots__ = ("body", "flags", "head", "status")

    def __init__(self, reply: Reply | RingServeError, response_bytes_max: int) -> None:
        if isinstance(reply, Reply) and len(reply.body) > response_bytes_max:
            limit = f"the limit max_response_size is {response_bytes_max} bytes"
            reply = PredictionFailed(f"The answer has {len(reply.body)} bytes; {limit}.", status=507)
        if isinstance(reply, RingServeError):
            self.status, self.flags, self.head = reply.http_status, FLAG_ERROR, b""
            self.body: bytes | bytearray | memoryview = encode_head(
                ErrorRecord(reply.code, reply.message[:MESSAGE_CHARS_MAX])
            )
            return
        self.status, self.body = reply.status, reply.body
        plain = reply.status == 200 and not reply.phrase and not reply.headers
        if plain and reply.content_type in CONTENT_TYPES:
            self.flags, self.head = CONTENT_TYPES.index(reply.content_type), b""
            return
        headers = dict(reply.headers)
        if reply.content_type is not None:
            headers.setdefault("content-type", reply.content_type)
        self.flags, self.head = 0, encode_head(ReplyHead(reply.status, reply.phrase, headers))

    @property
    def size(self) -> int:
        return align(len(self.head)) + align(len(self.body))


def write_replies(slab: Slab, replies: Sequence[Reply | RingServeError], response_bytes_max: int) -> Segment | None:
    """Put the replies of rows 0..n into the slab; what does not fit goes into the returned overflow parcel, if any.
    Raises `OutOfSharedMemory` before anything is written."""
    placed = [_Placed(reply, response_bytes_max) for reply in replies]
    room, overflow_bytes, in_slab = len(slab.bytes_out), 0, []
    for item in placed:
        fits = item.size <= room
        in_slab.append(fits)
        if fits:
            room -= item.size
        else:
            overflow_bytes += item.size
    overflow = Segment.create_parcel(overflow_bytes) if overflow_bytes else None
    cursors = {True: 0, False: 0}
    for row, (item, fits) in enumerate(zip(placed, in_slab, strict=True)):
        memory = slab.bytes_out if fits or overflow is None else overflow.view
        head_at = cursors[fits]
        body_at = head_at + align(len(item.head))
        memory[head_at : head_at + len(item.head)] = item.head
        memory[body_at : body_at + len(item.body)] = item.body
        cursors[fits] += item.size
        flags = item.flags if fits else item.flags | FLAG_OVERFLOW
        line = (int(slab.table[row, ROW_ID]), item.status, flags, head_at, len(item.head), body_at, len(item.body), 0)
        REPLY_LINE.pack_into(slab.memory, row * ROW_BYTES + REPLY_LINE_AT, *line)
    return overflow


# ---- front end


def read_reply(slab: Slab, line: Sequence[int], overflow: Segment | None) -> Answer | RingServeError:
    """One answer of a byte payload, or the error of any row. `line` is the row's reply line."""
    flags = line[REPLY_FLAGS - REPLY_ID]
    memory = slab.bytes_out
    if flags & FLAG_OVERFLOW:
        if overflow is None:
            return Internal("The answer was announced in a parcel that did not come.")
        memory = overflow.view
    body_at, body_bytes = line[REPLY_BODY_AT - REPLY_ID], line[REPLY_BODY_BYTES - REPLY_ID]
    body = bytes(memory[body_at : body_at + body_bytes])
    try:
        if flags & FLAG_ERROR:
            record = decode_error(body)
            return error_from(record.code, record.message, line[REPLY_STATUS - REPLY_ID])
        head_bytes = line[REPLY_HEAD_BYTES - REPLY_ID]
        if not head_bytes:
            return Answer(body, CONTENT_TYPES[flags & CONTENT_MASK])
        head_at = line[REPLY_HEAD_AT - REPLY_ID]
        head = decode_reply_head(memory[head_at : head_at + head_bytes])
    except (msgspec.MsgspecError, UnicodeDecodeError, IndexError) as error:
        return Internal(f"The worker wrote a reply that cannot be read: {error}.")
    return Answer(body, None, head.status, head.phrase, head.headers)


def typed_renderer(signature: Signature) -> Callable[[Slab, int], bytes]:
    """How a typed row reads on TorchServe's routes: one output is its JSON value, several are an object by name. What JSON
    has no number for (NaN, infinities) becomes null."""
    names = [spec.name for spec in signature.outputs]
    # orjson has no float16: widened first.
    widen = [spec.dtype == "float16" for spec in signature.outputs]
    dumps, option = orjson.dumps, orjson.OPT_SERIALIZE_NUMPY

    def value(array: Array, row: int, wide: bool) -> object:
        item = array[row]
        return item.astype(np.float32) if wide else item

    if widen == [False]:
        return lambda slab, row: dumps(slab.outputs[0][row], option=option)
    if len(names) == 1:
        return lambda slab, row: dumps(value(slab.outputs[0], row, True), option=option)

    def render(slab: Slab, row: int) -> bytes:
        rows = (value(array, row, wide) for array, wide in zip(slab.outputs, widen, strict=True))
        return dumps(dict(zip(names, rows, strict=True)), option=option)

    return render

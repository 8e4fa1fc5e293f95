"""Answers in a slab: the worker writes them, the front end reads them. Both halves are here because they must agree.

A typed row needs no bytes: the output arrays are the answer, and the reply line says 200. Everything else is a body in the
batch's part of the slab's byte region, or, when that is full, in the batch's one overflow parcel.
"""

import enum
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import orjson

from ringserve.backends.contract import Reply
from ringserve.protocol.errors import DeadlineExceeded, Internal, PredictionFailed, RingServeError, error_from
from ringserve.protocol.payload import ErrorRecord, ReplyHead, decode_error, decode_reply_head, encode_head
from ringserve.protocol.request import Answer, Source
from ringserve.protocol.tensor import Signature
from ringserve.server.sources import Held, Windowed
from ringserve.server.tensor_calls import FramedReply
from ringserve.shm.lane import Array, Slab
from ringserve.shm.layout import (
    REPLY_FLAGS,
    REPLY_HEAD_AT,
    REPLY_HEAD_BYTES,
    REPLY_ID,
    REPLY_LINE,
    REPLY_LINE_AT,
    REPLY_PARCEL_BYTES,
    REPLY_STATUS,
    ROW_BYTES,
    ROW_ID,
    align,
)
from ringserve.shm.ring import Command
from ringserve.shm.segment import Segment
from ringserve.shm.spool import Windows

# An answer this long is not copied out of shared memory, but sent from there: what a transport takes before it makes its writer
# wait, so that there always is a moment at which all of it has left.
DIRECT_BYTES_MIN = 64 << 10
# One longer than this is not even mapped as a whole.
WINDOWED_BYTES_MIN = 8 << 20

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
FLAG_NOT_COMPUTED = 0x400  # the row was cancelled or expired when the worker came to it

# Completion status: the batch's overflow parcel was sent before the entry; or the entry is about a chunk (chunks.py), and the
# batch goes on.
STATUS_OVERFLOW = 1
STATUS_CHUNK = 2

# A message longer than this says no more than its beginning.
MESSAGE_CHARS_MAX = 8192


# ---- worker


class RowMark(enum.Enum):
    """What a row's line says when there are no bytes to say it."""

    IN_ARRAYS = enum.auto()  # the output arrays are the answer
    NOT_COMPUTED = enum.auto()


RowReply = Reply | FramedReply | RingServeError | RowMark

_SUCCESS = np.array((200, 0), dtype="<u8")
_MARKS = {RowMark.IN_ARRAYS: (200, 0), RowMark.NOT_COMPUTED: (DeadlineExceeded.status, FLAG_NOT_COMPUTED)}


def write_typed_success(slab: Slab, first: int, rows: int) -> None:
    """The output arrays are the answer: echo the ids, say 200. Two array operations for the whole batch."""
    lines = slab.table[first : first + rows]
    lines[:, REPLY_ID] = lines[:, ROW_ID]
    lines[:, REPLY_STATUS : REPLY_FLAGS + 1] = _SUCCESS


def encode_reply_head(reply: Reply) -> bytes:
    """Everything of a reply but its body."""
    headers = dict(reply.headers)
    if reply.content_type is not None:
        headers.setdefault("content-type", reply.content_type)
    return encode_head(ReplyHead(reply.status, reply.phrase, headers))


def too_large(reply: Reply, response_bytes_max: int) -> RingServeError | None:
    """The error that takes the place of an answer, or a part of one, over the limit."""
    return too_long(len(reply.body), response_bytes_max)


def too_long(answer_bytes: int, response_bytes_max: int) -> RingServeError | None:
    """The same of an answer that has so many bytes."""
    if answer_bytes <= response_bytes_max:
        return None
    limit = f"the limit max_response_size is {response_bytes_max} bytes"
    return PredictionFailed(f"The answer has {answer_bytes} bytes; {limit}.", status=507)


class _Placed:
    """A body with its head, and what its reply line will say."""

    __slots__ = ("body", "flags", "framed", "head", "status")

    def __init__(self, reply: RowReply, response_bytes_max: int) -> None:
        self.head = b""
        self.body: bytes | bytearray | memoryview = b""
        self.framed: FramedReply | None = None
        if isinstance(reply, FramedReply):
            error = too_long(reply.nbytes, response_bytes_max)
            if error is None:
                self.status, self.flags, self.framed = 200, 0, reply
                return
            reply = error
        if isinstance(reply, Reply):
            error = too_large(reply, response_bytes_max) if len(reply.body) > response_bytes_max else None
            if error is None:
                self._place(reply)
                return
            reply = error
        if isinstance(reply, RingServeError):
            self.status, self.flags = reply.http_status, FLAG_ERROR
            self.body = encode_head(ErrorRecord(reply.code, reply.message[:MESSAGE_CHARS_MAX]))
        else:
            self.status, self.flags = _MARKS[reply]

    def _place(self, reply: Reply) -> None:
        self.status, self.flags, self.body = reply.status, 0, reply.body
        plain = reply.status == 200 and not reply.phrase and not reply.headers
        if plain and reply.content_type in CONTENT_TYPES:
            self.flags = CONTENT_TYPES.index(reply.content_type)
        else:
            self.head = encode_reply_head(reply)

    @property
    def size(self) -> int:
        body_bytes = len(self.body) if self.framed is None else self.framed.nbytes
        return align(len(self.head)) + align(body_bytes)


def write_replies(slab: Slab, command: Command, replies: Sequence[RowReply], response_bytes_max: int) -> Segment | None:
    """Put the replies of the batch's rows into its part of the slab; what does not fit goes into the returned overflow parcel,
    if any. Raises `OutOfSharedMemory` before anything is written."""
    assert len(replies) == command.rows
    placed = [_Placed(reply, response_bytes_max) for reply in replies]
    room, overflow_bytes, in_slab = command.out_bytes, 0, []
    for item in placed:
        fits = item.size <= room
        in_slab.append(fits)
        if fits:
            room -= item.size
        else:
            overflow_bytes += item.size
    overflow = Segment.create_parcel(overflow_bytes) if overflow_bytes else None
    cursors = {True: command.out_at, False: 0}
    for row, (item, fits) in enumerate(zip(placed, in_slab, strict=True), command.first):
        memory = slab.bytes_out if fits or overflow is None else overflow.view
        head_at = cursors[fits]
        body_at = head_at + align(len(item.head))
        memory[head_at : head_at + len(item.head)] = item.head
        body_bytes = len(item.body)
        if item.framed is None:
            memory[body_at : body_at + body_bytes] = item.body
        else:
            body_bytes = item.framed.nbytes
            item.framed.write_to(memory[body_at : body_at + body_bytes])
        cursors[fits] += item.size
        flags = item.flags if fits else item.flags | FLAG_OVERFLOW
        line = (int(slab.table[row, ROW_ID]), item.status, flags, head_at, len(item.head), body_at, body_bytes, 0)
        REPLY_LINE.pack_into(slab.memory, row * ROW_BYTES + REPLY_LINE_AT, *line)
    return overflow


# ---- front end


MISPLACED = "The worker's answer does not lie where its line says."


class Overflow:
    """The parcel that a batch's answers share, closed when the last of them has left."""

    __slots__ = ("_users", "segment")

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._users = 1  # whoever reads the answers

    def share(self) -> Callable[[], None]:
        """One more user; call what is returned when it is none any more."""
        self._users += 1
        return self.drop

    def drop(self) -> None:
        self._users -= 1
        if not self._users:
            self.segment.close()


def read_reply(
    slab: Slab, line: Sequence[int], overflow: Overflow | None, hold_row: Callable[[], Callable[[], None]] | None
) -> Answer | RingServeError:
    """One answer of a byte payload, or the error of any row. `line` is the row's reply line. A long answer stays where it is
    until it is sent: `hold_row` keeps the row and returns what lets go of it; without, the answer is copied out."""
    flags, status = line[REPLY_FLAGS - REPLY_ID], line[REPLY_STATUS - REPLY_ID]
    head_bytes, body_at, body_bytes = line[REPLY_HEAD_BYTES - REPLY_ID : REPLY_PARCEL_BYTES - REPLY_ID]
    if flags < len(CONTENT_TYPES) and not head_bytes and body_bytes < DIRECT_BYTES_MIN:  # nearly every answer
        body = bytes(slab.bytes_out[body_at : body_at + body_bytes])
        return Answer(body, CONTENT_TYPES[flags]) if len(body) == body_bytes else Internal(MISPLACED)
    memory, keep = slab.bytes_out, hold_row
    if flags & FLAG_OVERFLOW:
        if overflow is None:
            return Internal("The answer was announced in a parcel that did not come.")
        memory = overflow.segment.view
        keep = None if hold_row is None else overflow.share
    view = memory[body_at : body_at + body_bytes]
    if len(view) != body_bytes:
        return Internal(MISPLACED)
    head = None
    try:
        if flags & FLAG_ERROR:
            record = decode_error(view)
            return error_from(record.code, record.message, status if 400 <= status <= 999 else 500)
        if head_bytes:
            head_at = line[REPLY_HEAD_AT - REPLY_ID]
            head = decode_reply_head(memory[head_at : head_at + head_bytes])
        content_type = CONTENT_TYPES[flags & CONTENT_MASK]
    except (msgspec.MsgspecError, UnicodeDecodeError, IndexError, RecursionError) as error:
        return Internal(f"The worker wrote a reply that cannot be read: {error}.")
    copied = b""
    source: Source | None = None
    if keep is None or body_bytes < DIRECT_BYTES_MIN:
        copied = bytes(view)
    elif overflow is not None and flags & FLAG_OVERFLOW and body_bytes > WINDOWED_BYTES_MIN:
        source = Windowed(Windows(overflow.segment.fd, body_at, body_bytes), body_bytes, keep())
    else:
        source = Held(view, keep())
    if head is None:
        return Answer(copied, content_type, source=source)
    return Answer(copied, None, head.status, head.phrase, head.headers, source)


def typed_bytes(slab: Slab, row: int) -> bytes | memoryview:
    """A typed row as the raw little-endian bytes of all outputs in declared order: a view where there is one output."""
    rows = [memoryview(array[row]).cast("B") if array[row].ndim else array[row].tobytes() for array in slab.outputs]
    return rows[0] if len(rows) == 1 else b"".join(rows)


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

"""From a finished batch, or a chunk of one, to those who wait for its rows.

Every row is checked to carry the id it was given: an answer that belongs to another request is dropped and counted, never
delivered.
"""

from collections.abc import Callable
from functools import partial

import msgspec

from ringserve.protocol.errors import DeadlineExceeded, Internal, PredictionFailed, RingServeError
from ringserve.protocol.payload import decode_reply_head
from ringserve.protocol.request import Answer
from ringserve.protocol.tensor import Signature
from ringserve.server.chunks import read_frame
from ringserve.server.inflight import OVER, Batch, Fill, Pending
from ringserve.server.replies import (
    DIRECT_BYTES_MIN,
    FLAG_NOT_COMPUTED,
    Overflow,
    read_reply,
    typed_bytes,
    typed_renderer,
)
from ringserve.server.sources import Frame, Held, ReplyStream
from ringserve.server.tensor_replies import (
    FrameReplies,
    RenderedReplies,
    TypedTensors,
    handler_tensors,
    plain_answer,
    read_framed,
)
from ringserve.server.tensor_rows import RowPending
from ringserve.shm.faults import reach
from ringserve.shm.lane import Slab
from ringserve.shm.layout import REPLY_BODY_BYTES, REPLY_FLAGS, REPLY_ID
from ringserve.shm.shm_errors import RingCorrupt

_FLAGS, _BODY_BYTES = REPLY_FLAGS - REPLY_ID, REPLY_BODY_BYTES - REPLY_ID
EXPIRED = "The request's time was over before a worker took it up."


class Delivery:
    """How the rows of one version are answered. `on_row_over(fill)` follows every row that needs its memory no longer;
    `may_hold` says whether the network may keep rows of a slab for as long as a client reads."""

    def __init__(self, signature: Signature, on_row_over: Callable[[Fill], None], may_hold: Callable[[], bool]) -> None:
        self._signature = signature
        self._render = typed_renderer(signature) if signature.typed else None
        self._tensors = TypedTensors(signature) if signature.typed else None
        self._on_row_over = on_row_over
        self._may_hold = may_hold

    def deliver(self, batch: Batch, overflow: Overflow | None) -> int:
        """Give every row its own answer; returns how many reply lines did not carry their row's id."""
        fill, mismatched = batch.fill, 0
        lines = fill.slab.table[batch.first : batch.first + len(batch.rows), REPLY_ID:].tolist()
        render, times, framed = self._render, batch.times, self._signature.framed
        for pending, line in zip(batch.rows, lines, strict=True):
            if pending is None:
                continue
            if line[0] != pending.row_id:
                mismatched += 1
                pending.fail(Internal("The worker's answer does not belong to this request; it was dropped."))
            elif pending.done():  # its client is gone, or its answer has begun
                if pending.stream is not None:
                    pending.times = times
                    self._finish(pending.stream, fill, line, overflow)
            elif render is not None and not line[_FLAGS]:
                pending.times = times
                if pending.binary:
                    pending.set_result(self._binary(fill, pending))
                else:
                    pending.set_result(Answer(render(fill.slab, pending.row), "application/json"))
            elif line[_FLAGS] & FLAG_NOT_COMPUTED:
                pending.set_exception(DeadlineExceeded(EXPIRED))
            else:
                pending.times = times
                hold = self._holder(fill) if line[_BODY_BYTES] >= DIRECT_BYTES_MIN else None
                if framed or pending.wanted is not None:
                    reply = self._read_tensors(pending, fill.slab, line, overflow, hold)
                else:
                    reply = read_reply(fill.slab, line, overflow, hold)
                if isinstance(reply, RingServeError):
                    pending.set_exception(reply)
                else:
                    pending.set_result(reply)
        return mismatched

    def _holder(self, fill: Fill) -> Callable[[], Callable[[], None]] | None:
        return partial(self._hold, fill) if self._may_hold() else None

    def _hold(self, fill: Fill) -> Callable[[], None]:
        """One row more that keeps its slab; the caller's `end` gives back its own."""
        fill.live += 1

        def let_go() -> None:
            fill.live -= 1
            self._on_row_over(fill)

        return let_go

    def _read_tensors(
        self,
        pending: Pending,
        slab: Slab,
        line: list[int],
        overflow: Overflow | None,
        hold: Callable[[], Callable[[], None]] | None,
    ) -> Answer | RingServeError:
        """The answer of a framed model, or of any other to a request in tensors."""
        if not self._signature.framed:
            reply = read_reply(slab, line, overflow, None)
            declared = self._signature.declared  # a typed row that failed
            return reply if declared or isinstance(reply, RingServeError) else handler_tensors(reply)
        if pending.wanted is not None:
            return read_framed(slab, line, overflow, hold)
        answer = read_framed(slab, line, overflow, None)
        if isinstance(answer, RingServeError):
            return answer
        assert answer.tensors is not None
        return plain_answer(self._signature, answer.tensors, binary=pending.binary)

    def _binary(self, fill: Fill, pending: Pending) -> Answer:
        if pending.wanted is not None:
            assert self._tensors is not None
            if isinstance(pending, RowPending):
                return pending.whole.take(pending, fill.slab, pending.row, self._tensors)
            return self._tensors.answer(fill.slab, pending.row, pending.wanted, self._holder(fill))
        body = typed_bytes(fill.slab, pending.row)
        hold = None if isinstance(body, bytes) or len(body) < DIRECT_BYTES_MIN else self._holder(fill)
        if hold is None:
            return Answer(bytes(body), "application/octet-stream")
        return Answer(b"", "application/octet-stream", source=Held(body, hold()))

    def end(self, batch: Batch) -> None:
        """The worker has nothing to do with this batch any more."""
        fill, rows = batch.fill, batch.rows
        parcels = fill.parcels
        for pending in rows:
            if pending is not None:
                pending.state = OVER
                if parcels:
                    pending.close_parcel()
        # No cycle may be left: whoever forgets an answer forgets the lane's memory with it, without the collector.
        fill.rows[batch.first : batch.first + len(rows)] = [None] * len(rows)
        batch.rows = []
        fill.live -= batch.count
        self._on_row_over(fill)

    # ---- streamed answers

    def pass_on(self, batch: Batch, chunk: memoryview, frame: Frame) -> None:
        """Give the pieces of a chunk to their rows; `frame` counts them, and knows of one already: this look at them. Raises
        `RingCorrupt`."""
        pieces = read_frame(chunk)
        reach("chunk-taken")
        frame.left += len(pieces)
        for row, head, body in pieces:
            if row >= len(batch.rows):
                raise RingCorrupt(f"a chunk is about row {row} of a batch of {len(batch.rows)}")
            pending = batch.rows[row]
            if pending is None:
                frame.taken()
                continue
            if pending.stream is None:
                self._begin(pending, head, self._signature)
            if pending.stream is None:
                frame.taken()  # nobody waits for it
            else:
                pending.stream.feed(body, frame)
        frame.taken()

    @staticmethod
    def _begin(pending: Pending, encoded_head: bytes, signature: Signature) -> None:
        """The first piece of a row: its answer begins now."""
        if pending.done():
            return
        if pending.wanted is not None and not signature.declared:
            pending.mark_cancelled()
            pending.fail(PredictionFailed("The handler answers in parts, which are no tensors."))
            return
        try:
            head = decode_reply_head(encoded_head)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RingCorrupt(f"a chunk begins an answer with a head that cannot be read: {error}") from None
        pending.stream = ReplyStream(pending.mark_cancelled)
        pending.lift_deadline()
        if not signature.framed:
            pending.set_result(Answer(b"", None, head.status, head.phrase, head.headers, pending.stream))
            return
        replies = FrameReplies(pending.stream)
        if pending.wanted is not None:
            pending.set_result(Answer(b"", replies=replies))
        else:
            source = RenderedReplies(replies, pending.stream, signature)
            pending.set_result(Answer(b"", "application/json", source=source))

    @staticmethod
    def _finish(stream: ReplyStream, fill: Fill, line: list[int], overflow: Overflow | None) -> None:
        reply = Internal("") if line[_FLAGS] & FLAG_NOT_COMPUTED else read_reply(fill.slab, line, overflow, None)
        if isinstance(reply, RingServeError):
            stream.break_off()
        else:
            stream.finish(reply.body)

"""A request in tensors that takes several rows of a typed model: one future for its client, one `Pending` for each row.

Rows are let in together or not at all. The first that fails fails the whole, and the others are given up; an answered one leaves its
outputs in the buffers that the answer is made of.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from ringserve.protocol.errors import RingServeError
from ringserve.protocol.request import Answer, TensorReply
from ringserve.server.inflight import Pending
from ringserve.server.tensor_replies import TypedTensors
from ringserve.shm.lane import Slab


def _nobody(pending: Pending) -> None:
    """The whole has no place of its own in any queue."""


class RowPending(Pending):
    """Row `number` of a request."""

    whole: "JoinedPending"
    number: int

    def set_result(self, answer: Answer) -> None:
        super().set_result(answer)
        self.whole.row_answered(self)

    def set_exception(self, error: Any) -> None:
        super().set_exception(error)
        self.exception()  # the whole tells it
        self.whole.row_failed(error)


class JoinedPending(Pending):
    """The whole. `rows` are its parts, in order."""

    rows: list[RowPending]
    _left: int
    _buffers: dict[int, bytearray]
    _tensors: TypedTensors

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop, wanted: Sequence[str]) -> "JoinedPending":
        """`wanted` are the outputs that are asked for, () for all."""
        whole = cls.begin(loop, _nobody)
        whole.wanted, whole.binary = wanted, True
        whole.rows, whole._left, whole._buffers = [], 0, {}
        return whole

    def add(self, row: RowPending) -> None:
        """One more row, the next in order."""
        row.whole, row.number = self, len(self.rows)
        row.wanted, row.binary = self.wanted, True
        self.rows.append(row)
        self._left += 1

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._give_up_rows()
        return cancelled

    def take(self, row: RowPending, slab: Slab, at: int, tensors: TypedTensors) -> Answer:
        """Row `at` of the slab has this row's outputs; the answer of the row itself, which nobody reads."""
        for number, view in tensors.views(slab, at, self.wanted or ()):
            length = len(view)
            buffer = self._buffers.get(number)
            if buffer is None:
                buffer = self._buffers[number] = bytearray(length * len(self.rows))
            buffer[row.number * length : (row.number + 1) * length] = view
        self._tensors = tensors
        return Answer(b"")

    def row_answered(self, row: RowPending) -> None:
        self._left -= 1
        self.times = row.times
        if not self._left and not self.done():
            count = len(self.rows)
            outputs = tuple(self._tensors.tensor(number, count, buffer) for number, buffer in self._buffers.items())
            self.set_result(Answer(b"", tensors=TensorReply(outputs)))
            self.rows, self._buffers = [], {}  # no cycle may be left (delivery.py)

    def row_failed(self, error: RingServeError) -> None:
        if not self.done():
            self.set_exception(error)
            self._give_up_rows()

    def _give_up_rows(self) -> None:
        rows, self.rows, self._buffers = self.rows, [], {}
        for row in rows:
            row.cancel()

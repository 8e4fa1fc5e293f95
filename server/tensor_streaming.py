"""The answers of a decoupled model, as the worker sends them: each is a frame (protocol/tensor_frame.py) of its row's stream, which is
streamed as any other (streaming.py). The model may go on sending from threads of its own after `execute` has returned.
"""

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from ringserve.backends.contract import ContractBroken, Reply, TensorCall
from ringserve.protocol.errors import RingServeError
from ringserve.protocol.request import Scalar
from ringserve.server.replies import too_long
from ringserve.server.streaming import Chunks, RunningBatch
from ringserve.server.tensor_calls import END, FramedReply, Framing, error_reply
from ringserve.shm.lane import Slab
from ringserve.shm.ring import Command

# How often the worker looks whether the rows that the model's threads have not ended yet are still wanted.
LOOK_S = 0.1
_NOTHING_MORE = Reply(b"")


class RunningReplies(RunningBatch):
    """The rows of one command of a framed model. `calls[row]` is None for one that nobody wants."""

    def __init__(self, slab: Slab, command: Command, chunks: Chunks, response_bytes_max: int, framing: Framing) -> None:
        super().__init__(slab, command, chunks, response_bytes_max, typed=False)
        self._framing = framing
        self.calls: Sequence[TensorCall | None] = ()
        self._finals: set[int] = set()
        self._failures: dict[int, RingServeError] = {}  # of rows to which nothing was sent before
        self._one_more = threading.Condition()

    def stream(self, parts: Sequence[Reply | RingServeError | None]) -> bool:
        raise ContractBroken(
            "A model that declares its inputs and outputs answers in tensors: it sends them, and streams no bytes."
        )

    def send(
        self,
        row: int,
        answer: Mapping[str, np.ndarray] | RingServeError | None,
        parameters: Mapping[str, Scalar] | None = None,
        *,
        final: bool = False,
    ) -> bool:
        call = self.calls[row] if row < len(self.calls) else None
        if call is None or self._closed:
            return False
        if row in self._finals:
            raise ContractBroken("The last answer to this request has been sent before.")
        is_last = final or isinstance(answer, RingServeError)
        try:
            frame = self._frame(call, answer, parameters, is_last)
        except RingServeError as failure:
            self.send(row, failure)
            raise
        if isinstance(answer, RingServeError) and row not in (self._begun or ()):
            self._failures[row] = answer
        elif frame is not None:
            self._stream([(row, Reply(frame.to_bytes()))])
        if is_last:
            self._note_end(row)
        return not self.cancelled(row)

    def _frame(
        self,
        call: TensorCall,
        answer: Mapping[str, np.ndarray] | RingServeError | None,
        parameters: Mapping[str, Scalar] | None,
        is_last: bool,
    ) -> FramedReply | None:
        """Raises `ContractBroken`, or what takes the place of an answer over the limit."""
        if isinstance(answer, RingServeError):
            return error_reply(answer)
        if answer is None and not parameters:
            return END if is_last else None
        frame = self._framing.reply(call, answer or {}, parameters, final=is_last)
        error = too_long(frame.nbytes, self._response_bytes_max)
        if error is not None:
            raise error
        return frame

    def _note_end(self, row: int) -> None:
        with self._one_more:
            self._finals.add(row)
            self._one_more.notify_all()

    def end_all(self, rows: Sequence[int], error: RingServeError) -> None:
        """The model raised: what has not ended ends with that."""
        for row in rows:
            if row not in self._finals:
                self.send(row, error)

    def endings(self, rows: Sequence[int]) -> dict[int, RingServeError | Reply]:
        """Block until every row has had its last answer, or nobody waits for it any more. What the rows' last parts are."""
        with self._one_more:
            while any(row not in self._finals and not self.cancelled(row) for row in rows):
                self._one_more.wait(LOOK_S)
        return {row: self._failures.get(row) or self.ended.get(row) or _NOTHING_MORE for row in rows}

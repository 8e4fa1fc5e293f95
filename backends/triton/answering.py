"""What becomes of the requests of one batch, whichever thread of the model answers them.

A request is over with its FINAL flag, or when the model has let go of the request and of its sender: nobody could send anything
then. The collector notices the latter, at any time and in any thread, so it only leaves a note, and the thread that runs the batch
acts on it.
"""

import threading
from collections.abc import Callable, Sequence

from ringserve.backends.contract import Batch, TensorResult
from ringserve.backends.triton.errors import TritonModelException
from ringserve.protocol.errors import RingServeError

ONE_RESPONSE = "Unable to send response. Non-decoupled model cannot send more than one response."
CLOSED = "Unable to send response. Response sender has been closed."

Result = TensorResult | RingServeError


class Answering:
    """Of one request. `over`: the model can say nothing more to it."""

    __slots__ = (
        "_abandoned",
        "_batch",
        "_changed",
        "_closed",
        "_decoupled",
        "_failed",
        "_finish",
        "_passed",
        "_row",
        "result",
    )

    def __init__(
        self,
        batch: Batch,
        row: int,
        changed: threading.Condition,
        finish: Callable[[Result], Result],
        *,
        decoupled: bool,
    ) -> None:
        self._batch = batch
        self._finish = finish  # from what the model says to what the client wants
        self._row = row
        self._changed = changed  # re-entrant: the collector may run while it is held
        self._decoupled = decoupled
        self._closed = False  # its last answer was given
        self._passed = False  # and is on its way to the client
        self._failed = False  # the client has read an error
        self._abandoned = False
        self.result: Result | None = None  # of a model that is not decoupled

    @property
    def over(self) -> bool:
        return self._passed or (self._abandoned and not self._closed)

    def cancelled(self) -> bool:
        return self._batch.control.cancelled(self._row)

    @property
    def closed(self) -> bool:
        """Whether it has had its last answer."""
        return self._closed

    def send(self, render: Callable[[], Result] | None, *, final: bool) -> None:
        """Give one answer, or none with `final`. Raises `TritonModelException` after the last one, and for one that cannot be sent."""
        with self._changed:
            if render is not None and self.result is not None:
                raise TritonModelException(ONE_RESPONSE)
            if self._closed:
                raise TritonModelException(CLOSED)
            if not self._decoupled and render is not None:
                self.result = self._finish(render())
            self._closed = final
        try:
            if self._decoupled:
                self._stream(None if render is None else self._finish(render()), final=final)
        finally:
            if final:
                self._over()

    def fail(self, error: RingServeError) -> None:
        """This is the answer, unless there has been a last one, whatever the model does next."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self.result = error
        if self._decoupled:
            self._stream(error, final=True)
        self._over()

    def abandon(self) -> None:
        """The model can send nothing any more. Called by the collector: takes no other lock."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def end(self) -> None:
        """After the batch: one that was abandoned has had its last answer."""
        if self._decoupled and not self._closed:
            self._closed = True
            self._stream(None, final=True)

    def _over(self) -> None:
        with self._changed:
            self._passed = True
            self._changed.notify_all()

    def _stream(self, answer: Result | None, *, final: bool) -> None:
        """Blocks while the client reads slower than the model writes. After an error the client reads nothing more."""
        if self._failed or (answer is None and not final):
            return
        control = self._batch.control
        try:
            if isinstance(answer, TensorResult):
                control.send(self._row, answer.outputs, answer.parameters, final=final)
            else:
                self._failed = answer is not None
                control.send(self._row, answer, final=final)
            return
        except RingServeError as error:
            # The worker keeps it for the client, but not with the model's frames: these hold the sender, which is to be let go of.
            refused = error.with_traceback(None).message
        self._failed = True
        raise TritonModelException(refused)


class Claim:
    """What a request and its sender have in common. When the model has let go of both, nobody is left who could answer."""

    __slots__ = ("answering",)

    def __init__(self, answering: Answering) -> None:
        self.answering = answering

    def __del__(self) -> None:
        self.answering.abandon()


def wait_until_over(answerings: Sequence[Answering], changed: threading.Condition) -> None:
    """Until the model can say nothing more to any of them. A model that never does is ended by the server's own clock."""
    with changed:
        changed.wait_for(lambda: all(each.over for each in answerings))

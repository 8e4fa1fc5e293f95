"""The answers of a decoupled model to one request, counted one by one as they are taken (contract section 3.8, `response_stats`)."""

from time import monotonic_ns

from ringserve.protocol.errors import RingServeError
from ringserve.protocol.request import TensorReplies, TensorReply
from ringserve.server.metrics.meter import Meter


class CountedReplies:
    """`TensorReplies` that tell a meter of each: how it came out, and how long after the one before it came."""

    __slots__ = ("_last_ns", "_meter", "_number", "_over", "_replies")

    def __init__(self, replies: TensorReplies, meter: Meter) -> None:
        self._replies = replies
        self._meter = meter
        self._number = 0
        self._over = False
        self._last_ns = monotonic_ns()

    async def next(self) -> TensorReply | None:
        """As of the replies themselves."""
        try:
            reply = await self._replies.next()
        except RingServeError:
            self._over = True
            self._count("fail")
            raise
        if reply is None:
            self._over = True
        else:
            self._over = reply.final
            self._count("success" if reply.outputs else "empty_response")
        return reply

    def close(self) -> None:
        """Nobody waits for more, which is a cancellation where there would have been more."""
        if not self._over:
            self._over = True
            self._count("cancel")
        self._replies.close()

    def _count(self, outcome: str) -> None:
        now_ns = monotonic_ns()
        self._meter.responded(self._number, outcome, now_ns - self._last_ns)
        self._number, self._last_ns = self._number + 1, now_ns


def counted(replies: TensorReplies, meter: Meter | None) -> TensorReplies:
    """As they are where nothing is measured."""
    return replies if meter is None else CountedReplies(replies, meter)

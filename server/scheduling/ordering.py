"""Answers in the order in which the requests came, whichever worker is the first to answer."""

import asyncio
from collections import deque

from ringserve.server.inflight import Pending


class InOrder:
    """Of one version in this front end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._line: deque[tuple[Pending, Pending]] = deque()  # the request, and for whom it waits

    def behind(self, inner: Pending) -> Pending:
        """What the client of `inner` is given instead: it is answered when all before it are. Cancelling it cancels `inner`."""
        outer = Pending.begin(self._loop, lambda pending: self._give_up(inner))
        self._line.append((inner, outer))
        inner.add_done_callback(lambda future: self._pass_on())
        return outer

    def _give_up(self, inner: Pending) -> None:
        inner.cancel()

    def _pass_on(self) -> None:
        line = self._line
        while line and line[0][0].done():
            _hand_over(*line.popleft())


def _hand_over(inner: Pending, outer: Pending) -> None:
    outer.times = inner.times
    if inner.cancelled():
        outer.cancel()
        return
    error = inner.exception()
    if outer.done():  # its client is gone
        if error is None and (source := inner.result().source) is not None:
            source.close()
    elif error is not None:
        outer.set_exception(error)
    else:
        outer.set_result(inner.result())

"""The meters of one front end, and when they are folded into the counters: some time after something was measured, and when the
supervisor asks. An idle front end has no clock running for it."""

import asyncio
import os
from collections.abc import Callable

from ringserve.server.dispatch import Dispatcher
from ringserve.server.metrics.counts import HTTP_COUNTS, VERSION_COUNTS, Counts, attach_counts
from ringserve.server.metrics.meter import Meter, Responses

# How old the counters of a front end that dies may be: what it had not folded is lost with its connections.
FOLD_S = 0.25


class Metering:
    """`dispatchers` are those that serve at the moment, by the keys of their versions; `connections` says how many clients there
    are."""

    def __init__(self, dispatchers: dict[int, Dispatcher], connections: Callable[[], int]) -> None:
        self.responses = Responses()
        self.responses.on_news = self._soon
        self._dispatchers = dispatchers
        self._connections = connections
        self._http: Counts | None = None
        self._parts: dict[int, Counts] = {}  # of versions that the next routes bring
        self._fresh: set[Meter] = set()  # with something to fold; also of versions that are gone
        self._timer: asyncio.TimerHandle | None = None

    def share(self, key: int, own: int, fds: list[int]) -> None:
        """Count in this page, as front end number `own`; key 0 is that of HTTP."""
        if not fds:  # there was no room for the descriptor; the version goes without
            return
        for fd in fds[1:]:
            os.close(fd)
        if key:
            self._parts[key] = attach_counts(fds[0], own, VERSION_COUNTS)
        else:
            self._http = attach_counts(fds[0], own, HTTP_COUNTS)

    def begin(self, key: int, dispatcher: Dispatcher) -> None:
        """A version is new to this front end."""
        part = self._parts.pop(key, None)
        if part is not None:
            # No cycle: the page of a version that is gone goes with its last request, without the collector.
            dispatcher.meter = Meter(part, self.responses, self._heard)

    def fold(self) -> None:
        """Everything measured so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for dispatcher in self._dispatchers.values():
            if dispatcher.meter is not None:
                dispatcher.meter.moment(dispatcher.waiting, dispatcher.slab_use)
        fresh, self._fresh = self._fresh, set()
        for meter in fresh:
            meter.fold()
        if self._http is not None:
            self._http["connections"] = self._connections()
            self.responses.fold(self._http)

    def _heard(self, meter: Meter) -> None:
        self._fresh.add(meter)
        self._soon()

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FOLD_S, self.fold)

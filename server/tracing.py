"""Traces in a front end: it stamps one of so many requests, and tells the supervisor when they are over (contract section 3.9).

A dispatcher that is to be traced gets another `submit` in front of its own; one that is not has nothing of this on its way.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic_ns

from ringserve.protocol.request import InferRequest
from ringserve.server.control import Routes
from ringserve.server.dispatch import Dispatcher
from ringserve.server.inflight import Pending
from ringserve.server.messages import Message
from ringserve.server.trace_messages import SetTraces, Trace, Traced
from ringserve.shm.spool import Spool

# Traces are told together, after so long or when there are so many; more than the most are not kept.
TELL_S, TELL_MAX, KEPT_MAX = 0.05, 100, 5000
REQUEST_ID_CHARACTERS_MAX = 256  # of what clients call their requests, in a trace


class FrontEndTracing:
    """`dispatchers` are those that serve at the moment, by the keys of their versions; `tell` reaches the supervisor."""

    def __init__(self, dispatchers: dict[int, Dispatcher], tell: Callable[[Message], None]) -> None:
        self._dispatchers = dispatchers
        self._tell = tell
        self._names: dict[int, tuple[str, str]] = {}  # of every version: its model, and what it is called
        self._rules: SetTraces | None = None  # None: nothing has ever been traced
        self._sampled: dict[int, _Sampler] = {}
        self._over: list[Trace] = []
        self._missed = 0
        self._timer: asyncio.TimerHandle | None = None

    def routed(self, routes: Routes) -> None:
        """These can be asked for now."""
        versions = [each for model in routes.models.values() for each in model.versions.values()]
        self._names = {each.key: (each.model, each.version) for each in (*versions, *routes.beside)}
        if self._rules is not None:
            self._apply(self._rules)

    def set(self, rules: SetTraces) -> None:
        """Trace by these rules from now on."""
        self._rules = rules
        self._apply(rules)

    def _apply(self, rules: SetTraces) -> None:
        for key, (model, version) in self._names.items():
            dispatcher, rate = self._dispatchers.get(key), rules.models.get(model, rules.others)
            sampler = self._sampled.get(key)
            if dispatcher is None or (rate == 0 and sampler is None):
                continue
            if rate == 0:
                self._sampled.pop(key).remove()
            elif sampler is None:
                self._sampled[key] = _Sampler(dispatcher, rate, partial(self._ended, model, version))
            else:
                sampler.rate = rate
        for key in self._sampled.keys() - self._names.keys():
            self._sampled.pop(key).remove()

    def _ended(self, model: str, version: str, request_id: str, times_ns: "tuple[int, ...]") -> None:
        if len(self._over) >= KEPT_MAX:
            self._missed += 1
            return
        came, queued, taken, began, ended, heard, over = times_ns
        self._over.append(Trace(model, version, request_id, (came, queued, taken, began, ended, heard, over)))
        if len(self._over) >= TELL_MAX:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_S, self.flush)

    def flush(self) -> None:
        """Tell of what is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        over, missed, self._over, self._missed = self._over, self._missed, [], 0
        for at in range(0, len(over), TELL_MAX):
            self._tell(Traced(tuple(over[at : at + TELL_MAX]), missed if not at else 0))


class _Sampler:
    """In front of one dispatcher: every `rate`-th request is stamped."""

    def __init__(self, dispatcher: Dispatcher, rate: int, on_ended: Callable[[str, tuple[int, ...]], None]) -> None:
        self.rate = rate
        self._submit = dispatcher.submit
        self._seen = 0
        self._on_ended = on_ended
        self._place = dispatcher.__dict__
        self._place["submit"] = self.submit

    def remove(self) -> None:
        """Be in front of it no more, and keep nothing of it."""
        self._place.pop("submit", None)
        self._place = {}

    def submit(self, request: InferRequest, spool: Spool | None = None) -> Pending:
        """As the dispatcher's own, which it calls."""
        self._seen += 1
        if self._seen % self.rate:
            return self._submit(request, spool)
        came_ns = monotonic_ns()
        pending = self._submit(request, spool)
        pending.add_done_callback(
            partial(self._ended, request.request_id[:REQUEST_ID_CHARACTERS_MAX], came_ns, monotonic_ns())
        )
        return pending

    def _ended(self, request_id: str, came_ns: int, queued_ns: int, pending: "asyncio.Future[object]") -> None:
        times = pending.times if isinstance(pending, Pending) else None
        stamps = (0, 0, 0, 0) if times is None else times[3:]
        self._on_ended(request_id, (came_ns, queued_ns, *stamps, monotonic_ns()))

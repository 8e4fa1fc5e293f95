"""One of so many requests is stamped, and nothing of that is left where nothing is traced."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from ringserve.protocol.request import InferRequest
from ringserve.server import tracing as module
from ringserve.server.control import ModelRoute, Routes, VersionRoute
from ringserve.server.dispatch import Dispatcher
from ringserve.server.inflight import Pending
from ringserve.server.messages import Message
from ringserve.server.trace_messages import SetTraces, Traced
from ringserve.server.tracing import FrontEndTracing


class FakeDispatcher:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.pendings: list[Pending] = []

    def submit(self, request: InferRequest, spool: Any = None) -> Pending:
        pending = Pending.begin(asyncio.get_running_loop(), lambda pending: None)
        self.pendings.append(pending)
        return pending

    def answer(self, *, executed: bool = True) -> None:
        for pending in self.pendings:
            if executed:
                pending.times = (bytearray(), 1, 1.0, 30, 40, 50, 60)
            pending.cancel()
        self.pendings.clear()


class Play:
    """Versions 1 and 2 of model m, and one of model n, by their keys."""

    def __init__(self) -> None:
        self.dispatchers = {key: FakeDispatcher() for key in (1, 2, 3)}
        self.said: list[Traced] = []
        self.tracing = FrontEndTracing(cast(dict[int, Dispatcher], self.dispatchers), self._tell)
        self.route(1, 2, 3)

    def _tell(self, message: Message) -> None:
        assert isinstance(message, Traced)
        self.said.append(message)

    def route(self, *keys: int) -> None:
        models: dict[str, ModelRoute] = {}
        for key, (model, version) in {1: ("m", "1"), 2: ("m", "2"), 3: ("n", "1")}.items():
            if key in keys:
                known = models.setdefault(model, ModelRoute(version, {}))
                known.versions[version] = VersionRoute(key, model, version, True, 1, 0, False, 10, 0)
        self.tracing.routed(Routes(1, True, models))

    def ask(self, key: int, count: int = 1) -> None:
        for number in range(count):
            self.dispatchers[key].submit(InferRequest(f"r{number}", "", {}, b""))

    @property
    def traced(self) -> list[tuple[str, str, str]]:
        return [(each.model, each.version, each.request_id) for told in self.said for each in told.traces]


def play(scenario: Callable[[Play], Any]) -> None:
    async def run() -> None:
        await scenario(Play())

    asyncio.run(run())


def test_one_of_so_many_requests_is_told_when_it_is_over() -> None:
    async def scenario(play: Play) -> None:
        play.tracing.set(SetTraces(1, 0, {"m": 3}))
        play.ask(1, 7)
        play.ask(2, 3)
        play.ask(3, 5)
        await asyncio.sleep(0)
        play.tracing.flush()
        assert play.said == []
        for each in play.dispatchers.values():
            each.answer()
        await asyncio.sleep(0)
        play.tracing.flush()
        assert play.traced == [("m", "1", "r2"), ("m", "1", "r5"), ("m", "2", "r2")]
        stamps = play.said[0].traces[0].times_ns
        assert stamps[2:6] == (30, 40, 50, 60)
        assert 0 < stamps[0] <= stamps[1] <= stamps[6]

    play(scenario)


def test_what_no_worker_executed_has_no_stamps_of_one() -> None:
    async def scenario(play: Play) -> None:
        play.tracing.set(SetTraces(1, 1, {}))
        play.ask(3)
        play.dispatchers[3].answer(executed=False)
        await asyncio.sleep(0)
        play.tracing.flush()
        assert play.said[0].traces[0].times_ns[2:6] == (0, 0, 0, 0)

    play(scenario)


def test_nothing_stands_in_the_way_of_what_is_not_traced() -> None:
    async def scenario(play: Play) -> None:
        first, second, third = play.dispatchers.values()
        play.tracing.set(SetTraces(1, 0, {"m": 1}))
        assert ["submit" in each.__dict__ for each in (first, second, third)] == [True, True, False]
        play.tracing.set(SetTraces(2, 0, {"m": 0}))
        assert ["submit" in each.__dict__ for each in (first, second, third)] == [False, False, False]
        play.tracing.set(SetTraces(3, 5, {}))
        play.route(2, 3)  # the first is not served any more
        assert ["submit" in each.__dict__ for each in (first, second, third)] == [False, True, True]
        play.route(1, 2, 3)  # what comes is traced by what was said before
        assert "submit" in first.__dict__

    play(scenario)


def test_of_too_many_at_a_time_the_rest_is_missed_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_MAX", 4)
    monkeypatch.setattr(module, "KEPT_MAX", 2)

    async def scenario(play: Play) -> None:
        play.tracing.set(SetTraces(1, 1, {}))
        play.ask(1, 5)
        play.dispatchers[1].answer()
        await asyncio.sleep(0)
        play.tracing.flush()
        assert (len(play.traced), play.said[0].missed) == (2, 3)

    play(scenario)

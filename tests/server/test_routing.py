"""The table a front end answers by: swapped whole, while dispatchers live on."""

import asyncio

import msgspec
import pytest

from ringserve.protocol.errors import NoWorker
from ringserve.protocol.request import InferRequest
from ringserve.server.batching import BatchPolicy
from ringserve.server.control import ModelRoute, Routes, VersionRoute
from ringserve.server.dispatch import Dispatcher
from ringserve.server.limits import Limits
from ringserve.server.routing import RouteTable

REQUEST = InferRequest("id", "", {}, b"")


def version(key: int, model: str = "m", name: str = "1.0", *, serviceable: bool = True) -> VersionRoute:
    return VersionRoute(key, model, name, serviceable, 4, 25, True, 7, 120, 5000, 9000)


def routes(*versions: VersionRoute, default: str = "1.0", healthy: bool = True) -> Routes:
    models: dict[str, ModelRoute] = {}
    for each in versions:
        models.setdefault(each.model, ModelRoute(default, {})).versions[each.version] = each
    return Routes(1, healthy, models)


class Applied:
    """A table and the keys it called new."""

    def __init__(self) -> None:
        self.table = RouteTable()
        self.new: list[int] = []

    def apply(self, table: Routes) -> dict[str, tuple[Dispatcher, str, bool]]:
        """On a loop, because dispatchers are made on one."""

        async def on_loop() -> None:
            self.table.apply(table, lambda key, dispatcher: self.new.append(key))

        asyncio.run(on_loop())
        return self.table.paths


def test_a_model_has_a_path_of_its_own_and_one_for_each_version() -> None:
    applied = Applied()
    paths = applied.apply(routes(version(1), version(2, name="2.0"), default="2.0"))
    one, two = applied.table.dispatchers[1], applied.table.dispatchers[2]
    assert paths == {
        "/predictions/m/1.0": (one, "", True),
        "/predictions/m/2.0": (two, "", True),
        "/predictions/m": (two, "", False),
    }
    assert applied.new == [1, 2]


def test_a_dispatcher_is_what_its_route_says() -> None:
    applied = Applied()
    applied.apply(routes(version(1)))
    dispatcher = applied.table.dispatchers[1]
    assert dispatcher.label == 'Model "m" version 1.0'
    assert dispatcher.limits == Limits(7, 5000, 9000, 120)
    assert dispatcher._queue._policy == BatchPolicy(4, 25_000_000, True)


def test_the_same_dispatcher_serves_over_updates() -> None:
    applied = Applied()
    applied.apply(routes(version(1)))
    before = applied.table.dispatchers[1]
    paths = applied.apply(routes(version(1), version(2, name="2.0"), default="2.0"))
    assert paths["/predictions/m/1.0"][0] is before
    assert paths["/predictions/m"][0] is not before
    assert applied.new == [1, 2]


def test_a_removed_version_loses_its_paths_and_keeps_its_dispatcher() -> None:
    """It still answers what it has; the front end takes it out when its lane is closed."""
    applied = Applied()
    applied.apply(routes(version(1), version(2, model="other")))
    leaving = applied.table.dispatchers[1]
    assert set(applied.apply(routes(version(2, model="other")))) == {"/predictions/other", "/predictions/other/1.0"}
    assert applied.table.models.keys() == {"other"}
    assert applied.table.dispatchers[1] is leaving


def test_a_version_registered_again_is_a_new_one() -> None:
    """Its key is new, so nothing of the one that left is mistaken for it."""
    applied = Applied()
    applied.apply(routes(version(1)))
    leaving = applied.table.dispatchers[1]
    assert applied.apply(routes(version(2)))["/predictions/m"][0] is not leaving


def test_health_follows_the_routes() -> None:
    applied = Applied()
    assert applied.table.healthy
    applied.apply(routes(healthy=False))
    assert not applied.table.healthy
    applied.apply(routes())
    assert applied.table.healthy


def test_probes_are_told_what_the_routes_say() -> None:
    applied = Applied()
    loading = msgspec.structs.replace(version(1), min_workers=2, settled=False)
    applied.apply(msgspec.structs.replace(routes(loading), started=False))
    health = applied.table.health
    assert (health.live().status, health.start().status, health.ready().status) == (200, 503, 503)
    applied.apply(routes(msgspec.structs.replace(loading, ready_workers=1)))
    health = applied.table.health
    assert (health.start().status, health.ready().status) == (200, 200)
    applied.table.draining = True
    assert applied.table.health.ready().status == 503


def test_a_version_without_workers_refuses_until_it_has_some() -> None:
    async def on_loop() -> None:
        table = RouteTable()
        table.apply(routes(version(1, serviceable=False)), lambda key, dispatcher: None)
        dispatcher = table.dispatchers[1]
        with pytest.raises(NoWorker, match=r'^Model "m" version 1.0 has no worker$'):
            dispatcher.submit(REQUEST)
        table.apply(routes(version(1)), lambda key, dispatcher: None)
        assert table.dispatchers[1] is dispatcher
        assert not dispatcher.submit(REQUEST).done()

    asyncio.run(on_loop())

"""The table a front end answers by: swapped whole, while dispatchers live on."""

import asyncio

import msgspec
import pytest

from ringserve.protocol.errors import NoWorker
from ringserve.protocol.request import InferRequest
from ringserve.server.batching import BatchPolicy
from ringserve.server.control import ModelRoute, Routes, SequenceRules, VersionRoute
from ringserve.server.dispatch import Dispatcher
from ringserve.server.limits import Limits
from ringserve.server.routes.targets import asked_for, find
from ringserve.server.routing import RouteTable, Target
from ringserve.server.scheduling.dispatcher import ScheduledDispatcher
from ringserve.server.scheduling.rules import Scheduling, SequenceScheduling
from ringserve.server.sequences.dispatcher import SequenceDispatcher
from ringserve.server.sequences.tensor_dispatcher import TensorSequenceDispatcher
from ringserve.server.tickets import TicketDispatcher

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

    def apply(self, table: Routes) -> dict[str, Target]:
        """On a loop, because dispatchers are made on one."""

        async def on_loop() -> None:
            self.table.apply(table, lambda key, dispatcher: self.new.append(key))

        asyncio.run(on_loop())
        return self.table.paths


PREDICTS, EXPLAINS = {"explain": "False"}, {"explain": "True"}


def test_a_model_has_a_path_of_its_own_and_one_for_each_version() -> None:
    applied = Applied()
    paths = applied.apply(routes(version(1), version(2, name="2.0"), default="2.0"))
    one, two = applied.table.dispatchers[1], applied.table.dispatchers[2]
    seen, explained = {**PREDICTS, "url_path": ""}, {**EXPLAINS, "url_path": ""}
    assert paths == {
        "/predictions/m/1.0": Target(one, "m", "1.0", True, seen),
        "/predictions/m/2.0": Target(two, "m", "2.0", True, seen),
        "/predictions/m": Target(two, "m", "2.0", False, seen),
        "/explanations/m/1.0": Target(one, "m", "1.0", True, explained, True),
        "/explanations/m/2.0": Target(two, "m", "2.0", True, explained, True),
        "/explanations/m": Target(two, "m", "2.0", False, explained, True),
        "/v1/models/m:predict": Target(two, "m", "2.0", False, PREDICTS),
        "/v1/models/m:explain": Target(two, "m", "2.0", False, EXPLAINS, True),
        "/v2/models/m/infer": Target(two, "m", "2.0", False, PREDICTS, tensors=True),
        "/v2/models/m/versions/1.0/infer": Target(one, "m", "1.0", True, PREDICTS, tensors=True),
        "/v2/models/m/versions/2.0/infer": Target(two, "m", "2.0", True, PREDICTS, tensors=True),
    }
    assert applied.new == [1, 2]


def test_literal_paths_mean_what_reading_them_says() -> None:
    applied = Applied()
    for path, target in applied.apply(routes(version(1), version(2, name="2.0"), version(3, "m:predict"))).items():
        asked = asked_for(path)
        assert asked is not None
        assert find(applied.table, asked, asked.model) == target._replace(tensors=False)


@pytest.mark.parametrize(("at_startup", "expected"), [([], ""), (["a"], "a"), (["a", "b"], ""), (["c"], "c")])
def test_the_model_that_was_loaded_at_startup_is_known_when_it_is_the_only_one(
    at_startup: list[str], expected: str
) -> None:
    applied = Applied()
    told = routes(*(version(key, name) for key, name in enumerate("abc")))
    for name in at_startup:
        told.models[name] = msgspec.structs.replace(told.models[name], at_startup=True)
    applied.apply(told)
    assert applied.table.at_startup == expected


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
    paths = set(applied.apply(routes(version(2, model="other"))))
    assert {"/predictions/other", "/predictions/other/1.0"} <= paths
    assert not {"/predictions/m", "/predictions/m/1.0"} & paths
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


def test_how_a_version_wants_to_be_asked_says_which_dispatcher_it_has() -> None:
    applied = Applied()
    stateful = msgspec.structs.replace(version(2, "stateful"), sequences=SequenceRules(500, 3))
    ticketed = msgspec.structs.replace(version(3, "ticketed"), tickets=True)
    usual = msgspec.structs.replace(version(4, "usual"), scheduling=Scheduling(8, batches=True))
    alone = msgspec.structs.replace(version(5, "alone"), scheduling=Scheduling(8))
    rules = Scheduling(8, batches=True, sequences=SequenceScheduling(oldest=True, places=4))
    told = msgspec.structs.replace(stateful, key=6, model="told", scheduling=rules)
    applied.apply(routes(version(1), stateful, ticketed, usual, alone, told))
    kinds = [type(dispatcher) for _, dispatcher in sorted(applied.table.dispatchers.items())]
    expected = [Dispatcher, SequenceDispatcher, TicketDispatcher, Dispatcher, ScheduledDispatcher]
    assert kinds == [*expected, TensorSequenceDispatcher]


def test_a_configuration_that_its_model_completes_holds_from_then_on() -> None:
    applied = Applied()
    alone = msgspec.structs.replace(version(1), scheduling=Scheduling(8))
    applied.apply(routes(alone))
    before = applied.table.dispatchers[1]
    applied.apply(routes(msgspec.structs.replace(alone, scheduling=Scheduling(8, batches=True))))
    assert applied.table.dispatchers[1] is before
    assert isinstance(before, ScheduledDispatcher)
    assert before.rules == Scheduling(8, batches=True)

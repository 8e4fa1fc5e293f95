"""What can be asked for right now, as a front end sees it: swapped whole when the supervisor says so."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ringserve.protocol.request import EXPLANATION_HEADERS, HANDLER_HEADERS, FormPart
from ringserve.server.batching import BatchPolicy
from ringserve.server.control import ModelRoute, Routes, VersionRoute
from ringserve.server.dispatch import Dispatcher
from ringserve.server.health import Health
from ringserve.server.limits import Limits
from ringserve.server.scheduling.dispatcher import ScheduledDispatcher
from ringserve.server.sequences.dispatcher import SequenceDispatcher
from ringserve.server.sequences.tensor_dispatcher import TensorSequenceDispatcher
from ringserve.server.tickets import TicketDispatcher

# KServe's verbs in a path, and what handlers see of them. Nobody changes these: requests share them.
KSERVE = {"predict": {"explain": "False"}, "explain": {"explain": "True"}}


class Target(NamedTuple):
    """Whom a request is for, and what its address adds to it: `headers` for a handler, `query` as inputs beside its body. `named`:
    the path names the version, as errors and metrics then do. `tensors`: it is the Open Inference Protocol's."""

    dispatcher: Dispatcher
    model: str
    version: str
    named: bool = False
    headers: Mapping[str, str] = HANDLER_HEADERS
    explains: bool = False
    query: Sequence[FormPart] = ()
    tensors: bool = False


@dataclass(frozen=True, slots=True)
class ModelTargets:
    """The versions of one model."""

    default_version: str
    versions: dict[str, Dispatcher]


@dataclass(slots=True)
class RouteTable:
    """`paths` holds the literal paths of predictions and explanations, so that the usual request costs one look-up.
    `dispatchers` also holds versions that are leaving and still answer. `at_startup` is the one model that was loaded when the
    server started, "" where there is not exactly one."""

    front_ends: int = 1
    healthy: bool = True
    started: bool = False
    draining: bool = False
    succeeded: bool = False  # drains because another instance serves
    at_startup: str = ""
    paths: dict[str, Target] = field(default_factory=dict)
    models: dict[str, ModelTargets] = field(default_factory=dict)
    dispatchers: dict[int, Dispatcher] = field(default_factory=dict)
    routes: dict[str, ModelRoute] = field(default_factory=dict)
    not_loaded: tuple[str, ...] = ()

    def apply(self, routes: Routes, on_new: Callable[[int, Dispatcher], None]) -> None:
        """Make the table say what `routes` says; `on_new` is told of every version seen for the first time."""
        models = {name: self._targets(route, on_new) for name, route in routes.models.items()}
        paths = {path: target for name, model in models.items() for path, target in _paths(name, model)}
        for route in routes.beside:
            self._dispatcher(route, on_new)
        first = [name for name, model in routes.models.items() if model.at_startup]
        self.at_startup = first[0] if len(first) == 1 else ""
        self.healthy, self.started = routes.healthy, routes.started
        self.draining = self.draining or routes.draining
        self.models, self.paths, self.routes = models, paths, routes.models
        self.not_loaded = routes.not_loaded

    @property
    def health(self) -> Health:
        """What probes of this front end are told."""
        return Health(self.routes, self.started, self.draining and not self.succeeded)

    def _targets(self, route: ModelRoute, on_new: Callable[[int, Dispatcher], None]) -> ModelTargets:
        versions = {version: self._dispatcher(each, on_new) for version, each in route.versions.items()}
        return ModelTargets(route.default_version, versions)

    def _dispatcher(self, route: VersionRoute, on_new: Callable[[int, Dispatcher], None]) -> Dispatcher:
        dispatcher = self.dispatchers.get(route.key)
        if dispatcher is None:
            dispatcher = self.dispatchers[route.key] = _dispatcher(route, self.front_ends)
            on_new(route.key, dispatcher)
        elif isinstance(dispatcher, ScheduledDispatcher) and route.scheduling is not None:
            dispatcher.reschedule(route.scheduling, route.batch_size)
        dispatcher.set_serviceable(route.serviceable, route.probe_at_ns)
        return dispatcher


def _paths(name: str, model: ModelTargets) -> Iterator[tuple[str, Target]]:
    """The literal paths of one model. Where a name needs escapes, nobody asks by these."""
    default = model.default_version
    usual = Target(model.versions[default], name, default)
    for verb, headers in (("predictions", HANDLER_HEADERS), ("explanations", EXPLANATION_HEADERS)):
        explains = headers is EXPLANATION_HEADERS
        for version, dispatcher in model.versions.items():
            yield f"/{verb}/{name}/{version}", Target(dispatcher, name, version, True, headers, explains)
        yield f"/{verb}/{name}", usual._replace(headers=headers, explains=explains)
    for verb, headers in KSERVE.items():
        yield f"/v1/models/{name}:{verb}", usual._replace(headers=headers, explains=verb == "explain")
    yield f"/v2/models/{name}/infer", usual._replace(headers=KSERVE["predict"], tensors=True)
    for version, dispatcher in model.versions.items():
        target = Target(dispatcher, name, version, True, KSERVE["predict"], tensors=True)
        yield f"/v2/models/{name}/versions/{version}/infer", target


def _dispatcher(route: VersionRoute, front_ends: int) -> Dispatcher:
    policy = BatchPolicy(route.batch_size, route.batch_wait_ms * 1_000_000, route.fill)
    limits = Limits(
        route.queue_size, route.queue_timeout_ms, route.request_timeout_ms, route.response_timeout_s, front_ends
    )
    label = f'Model "{route.model}" version {route.version}'
    rules, scheduling = route.sequences, route.scheduling
    if rules is not None and scheduling is not None and (wanted := scheduling.sequences) is not None:
        return TensorSequenceDispatcher(route.key, label, route.model, policy, limits, rules, wanted)
    if scheduling is not None and not scheduling.ordinary:
        return ScheduledDispatcher(label, policy, limits, scheduling)
    if rules is not None:
        return SequenceDispatcher(route.key, label, policy, limits, rules)
    return (TicketDispatcher if route.tickets else Dispatcher)(label, policy, limits)

"""What can be asked for right now, as a front end sees it: swapped whole when the supervisor says so."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ringserve.server.batching import BatchPolicy
from ringserve.server.control import ModelRoute, Routes, VersionRoute
from ringserve.server.dispatch import Dispatcher
from ringserve.server.health import Health
from ringserve.server.limits import Limits


@dataclass(frozen=True, slots=True)
class ModelTargets:
    """The versions of one model."""

    default_version: str
    versions: dict[str, Dispatcher]


@dataclass(slots=True)
class RouteTable:
    """`paths` holds the literal paths of predictions, so that the usual request costs one look-up: the version, the rest of the
    path, which is empty, and whether the path names the version.
    `dispatchers` also holds versions that are leaving and still answer."""

    front_ends: int = 1
    healthy: bool = True
    started: bool = False
    draining: bool = False
    succeeded: bool = False  # drains because another instance serves
    paths: dict[str, tuple[Dispatcher, str, bool]] = field(default_factory=dict)
    models: dict[str, ModelTargets] = field(default_factory=dict)
    dispatchers: dict[int, Dispatcher] = field(default_factory=dict)
    routes: dict[str, ModelRoute] = field(default_factory=dict)

    def apply(self, routes: Routes, on_new: Callable[[int, Dispatcher], None]) -> None:
        """Make the table say what `routes` says; `on_new` is told of every version seen for the first time."""
        models = {name: self._targets(route, on_new) for name, route in routes.models.items()}
        paths: dict[str, tuple[Dispatcher, str, bool]] = {}
        for name, model in models.items():
            for version, dispatcher in model.versions.items():
                paths[f"/predictions/{name}/{version}"] = (dispatcher, "", True)
            paths[f"/predictions/{name}"] = (model.versions[model.default_version], "", False)
        for route in routes.beside:
            self._dispatcher(route, on_new)
        self.healthy, self.started = routes.healthy, routes.started
        self.draining = self.draining or routes.draining
        self.models, self.paths, self.routes = models, paths, routes.models

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
        dispatcher.set_serviceable(route.serviceable, route.probe_at_ns)
        return dispatcher


def _dispatcher(route: VersionRoute, front_ends: int) -> Dispatcher:
    policy = BatchPolicy(route.batch_size, route.batch_wait_ms * 1_000_000, route.fill)
    limits = Limits(
        route.queue_size, route.queue_timeout_ms, route.request_timeout_ms, route.response_timeout_s, front_ends
    )
    return Dispatcher(f'Model "{route.model}" version {route.version}', policy, limits)

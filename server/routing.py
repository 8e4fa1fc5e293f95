"""What can be asked for right now, as a front end sees it: swapped whole when the supervisor says so."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ringserve.server.batching import BatchPolicy
from ringserve.server.control import ModelRoute, Routes, VersionRoute
from ringserve.server.dispatch import Dispatcher
from ringserve.server.limits import Limits


@dataclass(frozen=True, slots=True)
class ModelTargets:
    """The versions of one model."""

    default_version: str
    versions: dict[str, Dispatcher]


@dataclass(slots=True)
class RouteTable:
    """`paths` holds the literal paths of predictions, so that the usual request costs one look-up; `rest` of those is empty.
    `dispatchers` also holds versions that are leaving and still answer."""

    front_ends: int = 1
    healthy: bool = True
    paths: dict[str, tuple[Dispatcher, str]] = field(default_factory=dict)
    models: dict[str, ModelTargets] = field(default_factory=dict)
    dispatchers: dict[int, Dispatcher] = field(default_factory=dict)

    def apply(self, routes: Routes, on_new: Callable[[int, Dispatcher], None]) -> None:
        """Make the table say what `routes` says; `on_new` is told of every version seen for the first time."""
        models = {name: self._targets(route, on_new) for name, route in routes.models.items()}
        paths: dict[str, tuple[Dispatcher, str]] = {}
        for name, model in models.items():
            for version, dispatcher in model.versions.items():
                paths[f"/predictions/{name}/{version}"] = (dispatcher, "")
            paths[f"/predictions/{name}"] = (model.versions[model.default_version], "")
        self.healthy, self.models, self.paths = routes.healthy, models, paths

    def _targets(self, route: ModelRoute, on_new: Callable[[int, Dispatcher], None]) -> ModelTargets:
        versions = {}
        for version, described in route.versions.items():
            dispatcher = self.dispatchers.get(described.key)
            if dispatcher is None:
                dispatcher = self.dispatchers[described.key] = _dispatcher(described, self.front_ends)
                on_new(described.key, dispatcher)
            dispatcher.set_serviceable(described.serviceable)
            versions[version] = dispatcher
        return ModelTargets(route.default_version, versions)


def _dispatcher(route: VersionRoute, front_ends: int) -> Dispatcher:
    policy = BatchPolicy(route.batch_size, route.batch_wait_ms * 1_000_000, route.fill)
    limits = Limits(
        route.queue_size, route.queue_timeout_ms, route.request_timeout_ms, route.response_timeout_s, front_ends
    )
    return Dispatcher(f'Model "{route.model}" version {route.version}', policy, limits)

"""What probes are told. Pure: everything is read off the routes, which front ends and the supervisor both have.

live     the process answers.
started  all that was asked for at start-up has been loaded or refused once; from then on for ever.
ready    the server is not going down, and every version that shall have workers has one that has loaded and is warm.

A model that is asked for by name must be able to answer: it is ready when its default version has a worker and no other
version of it lacks one. So the one with no workers wanted does not hold up the server, and is not called ready itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ringserve.protocol.errors import ModelNotFound, VersionNotFound
from ringserve.server.control import ModelRoute, VersionRoute

RETRY_AFTER_S = 1  # how soon a probe that was told no may come again

Lacking = dict[str, dict[str, str]]  # by model and version: what is missing


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a probe: 200, or 503 with what is missing."""

    ok: bool
    body: dict[str, object]

    @property
    def status(self) -> int:
        return 200 if self.ok else 503


@dataclass(frozen=True, slots=True)
class Health:
    """The state of the server at one moment."""

    models: Mapping[str, ModelRoute]
    started: bool
    draining: bool = False

    def live(self, model: str | None = None, version: str | None = None) -> Verdict:
        """Raises, as the other two, `ModelNotFound` and `VersionNotFound`."""
        self._chosen(model, version)
        return Verdict(True, {"status": "live"})

    def start(self, model: str | None = None, version: str | None = None) -> Verdict:
        """Whether it has started, as a whole or the one that is named."""
        chosen = self._chosen(model, version)
        lacking = {} if model is None and self.started else _lacking(chosen, lambda each: not each.settled)
        return _verdict("started", lacking, ok=self.started if model is None else not lacking)

    def ready(self, model: str | None = None, version: str | None = None) -> Verdict:
        """Whether requests can be answered, all of them or those to the one that is named."""
        if self.draining:
            self._chosen(model, version)
            return Verdict(False, {"status": "not ready", "reason": "The server is shutting down."})
        named = None if model is None else self._find(model, version)
        lacking = _lacking(
            self._chosen(model, version),
            lambda each: each.ready_workers == 0 and (each.min_workers > 0 or each is named),
        )
        return _verdict("ready", lacking, ok=not lacking)

    def kserve(self, model: str) -> dict[str, object]:
        """KServe's question about a model; versions are not part of it."""
        return {"name": model, "ready": not self.draining and self._find(model, None).ready_workers > 0}

    def _chosen(self, model: str | None, version: str | None) -> list[VersionRoute]:
        if model is None:
            return [each for route in self.models.values() for each in route.versions.values()]
        found = self._find(model, version)
        return [found] if version is not None else list(self.models[model].versions.values())

    def _find(self, model: str, version: str | None) -> VersionRoute:
        route = self.models.get(model)
        if route is None:
            raise ModelNotFound(f"Model not found: {model}")
        found = route.versions.get(route.default_version if version is None else version)
        if found is None:
            raise VersionNotFound(f"Model version: {version} does not exist for model: {model}")
        return found


def _lacking(chosen: list[VersionRoute], lacks: Callable[[VersionRoute], bool]) -> Lacking:
    lacking: Lacking = {}
    for each in filter(lacks, chosen):
        said = f"{each.ready_workers} of {each.min_workers} workers"
        lacking.setdefault(each.model, {})[each.version] = said
    return lacking


def _verdict(word: str, lacking: Lacking, *, ok: bool) -> Verdict:
    if ok:
        return Verdict(True, {"status": word})
    return Verdict(False, {"status": f"not {word}", "models": lacking})

"""What the supervisor knows of the Open Inference Protocol, in one place, without HTTP."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ringserve.protocol.errors import BadRequest, Unsupported
from ringserve.server.control_plane.log_settings import LogSettings
from ringserve.server.control_plane.model_control import ModelControl
from ringserve.server.control_plane.statistics import NO_MODEL, NO_VERSION, cpu_memory, model_statistics
from ringserve.server.control_plane.trace_settings import Start
from ringserve.server.control_plane.tracing import Tracing
from ringserve.server.management import Management
from ringserve.server.metrics.counts import VERSION_COUNTS, no_counts
from ringserve.server.metrics.pages import CounterPages
from ringserve.server.process import rss_bytes
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.version_policy import version_key

NOT_MEASURED = "statistics are not measured: enable_metrics_api=false switches that off"


class ControlPlane:
    """`pages` holds what front ends count, None where nothing is measured."""

    def __init__(
        self, management: Management, models: ModelControl, tracing: Tracing, pages: CounterPages | None
    ) -> None:
        self.models = models
        self.tracing = tracing
        self.logs = LogSettings()
        self._management = management
        self._versions = management.versions
        self._pages = pages

    async def statistics(self, model: str, version: str) -> dict[str, Any]:
        """Of one model or version, or with "" of all that are ready. Raises `BadRequest` with Triton's sentences, and `Unsupported`."""
        if self._pages is None:
            raise Unsupported(NOT_MEASURED)
        chosen = list(self._chosen(model, version))
        fleet = self._versions.fleet
        if fleet is not None:
            await fleet.count()
        return {"model_stats": [self._statistics_of(each, self._pages) for each in chosen]}

    def _chosen(self, model: str, version: str) -> Iterable[ModelVersion]:
        registry = self._management.registry
        if not model:
            return sorted(
                filter(self._versions.ready_count, registry), key=lambda each: (each.name, version_key(each.version))
            )
        known = registry.models.get(model)
        if known is None:
            raise BadRequest(NO_MODEL.format(model=model[:256]))
        ready = {each.version: each for each in known.versions.values() if self._versions.ready_count(each)}
        if version and version not in ready:
            raise BadRequest(NO_VERSION.format(model=model[:256]))
        if not ready:
            raise BadRequest(NO_MODEL.format(model=model[:256]))
        return [ready[version]] if version else [ready[label] for label in sorted(ready, key=version_key)]

    def _statistics_of(self, version: ModelVersion, pages: CounterPages) -> dict[str, Any]:
        counts = pages.of(version.key)
        memory = sum(rss_bytes(slot.child.pid) for slot in self._versions.slots(version) if slot.child is not None)
        signature = version.signature
        return model_statistics(
            version.name,
            version.version,
            no_counts(VERSION_COUNTS) if counts is None else counts,
            [cpu_memory(memory)],
            decoupled=signature is not None and signature.decoupled,
        )


def open_control_plane(management: Management, uploads: Path, pages: CounterPages | None) -> ControlPlane:
    """By the settings of the server."""
    settings = management.settings
    assert settings.model_store is not None
    start = Start(
        settings.trace_level,
        settings.trace_rate,
        settings.trace_count,
        settings.trace_log_frequency,
        settings.trace_file,
    )
    tracing = Tracing(start, lambda model: model in management.registry.models)
    plane = ControlPlane(management, ModelControl(management, settings.model_store, uploads), tracing, pages)
    plane.logs.install()
    return plane

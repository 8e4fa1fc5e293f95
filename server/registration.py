"""From what somebody asked for, what the archive says and the defaults to a model version (contract sections 2.2, 7.6, 9.4)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from ringserve.protocol.errors import BadRequest, InvalidModel
from ringserve.server.budget import cpu_count
from ringserve.server.model_configuration.configuration import check_name
from ringserve.server.registry import ModelVersion, ServingOptions
from ringserve.server.repository.manifest import DEFAULT_HANDLER, check_handled, check_inside, usable_name
from ringserve.server.repository.model_config import HANDLER, ModelConfig, parse_model_config
from ringserve.server.repository.modes import check_modes
from ringserve.server.repository.sections import NO_ENVELOPE
from ringserve.server.repository.store import UnpackedModel, with_labels
from ringserve.server.repository.triton_config import CONFIG_FILE, queue_size_min
from ringserve.server.settings import BATCH_SIZE_MAX, WORKERS_MAX, Settings

QUEUE_WAIT_MS_DEFAULT = 100


@dataclass(frozen=True, slots=True)
class Registration:
    """The parameters of a registration; None where nothing was said."""

    url: str | None
    model_name: str | None = None
    handler: str | None = None
    runtime: str | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    initial_workers: int | None = None
    synchronous: bool = True
    response_timeout_s: int | None = None
    startup_timeout_s: int | None = None
    queue_timeout_s: int | None = None
    s3_sse_kms: bool = False
    at_startup: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """A deployment in the model repository: an archive or a folder. `url` is how describe shows it. The names of the folders
    around it, where there are any, win over the manifest's; `overrides` are keys of model-config.yaml. `said` is what config.pbtxt
    says, for a version in Triton's layout."""

    path: Path
    url: str
    name_if_absent: str
    model_name: str | None = None
    version: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    at_startup: bool = False
    said: Mapping[str, Any] | None = None


def overridden(unpacked: UnpackedModel, overrides: Mapping[str, Any]) -> UnpackedModel:
    """The model with keys of its configuration replaced. Reads label files: for a thread. Raises `InvalidModel`."""
    if not overrides:
        return unpacked
    config = parse_model_config({**unpacked.config.raw, **overrides}, "config.yaml")
    return with_labels(replace(unpacked, config=config))


def make_version(
    key: int, wanted: Registration, unpacked: UnpackedModel, settings: Settings, version: str | None = None
) -> ModelVersion:
    """Raises `BadRequest` or `InvalidModel`, naming what cannot be so."""
    if wanted.runtime:
        unpacked = replace(unpacked, manifest=msgspec.structs.replace(unpacked.manifest, runtime=wanted.runtime))
    manifest, config = unpacked.manifest, unpacked.config
    if manifest.runtime == "LSP":
        raise InvalidModel(
            "runtime: expected python or python3, got LSP, which is served by TorchServe's C++ backend only"
        )
    name = usable_name("model_name", wanted.model_name or manifest.model_name)
    label = manifest.model_version if version is None else usable_name("version", version)
    if wanted.handler:
        check_inside("handler", wanted.handler.partition(":")[0])
    check_handled(manifest, wanted.handler or settings.default_service_handler)
    check_modes(config.raw)
    if config.triton is not None:
        check_name(config.triton, name, CONFIG_FILE)
    defaults = _Defaults(settings.model_defaults, name, label)
    low, high = config.worker_range or _workers(wanted, settings, defaults)
    if config.per_gpu:
        low, high = (count * max(1, settings.number_of_gpu or 0) for count in (low, high))
    if high > WORKERS_MAX:
        said_by = "initial_workers" if config.worker_range is None else "maxWorkers"
        raise BadRequest(f"{said_by}: expected at most {WORKERS_MAX}, got {high}")
    options = _options(wanted, unpacked, settings, defaults)
    return ModelVersion(
        key, name, label, wanted.url or "", unpacked, options, low, high, handler_given=wanted.handler or None
    )


def _options(
    wanted: Registration, unpacked: UnpackedModel, settings: Settings, defaults: "_Defaults"
) -> ServingOptions:
    """Each from the first of those who say anything, in TorchServe's order."""
    config = unpacked.config
    for parameter, value in (
        ("max_batch_delay", wanted.max_batch_delay_ms),
        ("response_timeout", wanted.response_timeout_s),
        ("startup_timeout", wanted.startup_timeout_s),
        ("queue_timeout", wanted.queue_timeout_s),
    ):
        if value is not None and value < 0:
            raise BadRequest(f"{parameter}: expected 0 or more, got {value}")
    asked = wanted.batch_size if config.triton is None else None  # max_batch_size is what clients are told
    batch_size = asked or config.batch_size or defaults.above_zero("batchSize") or 1
    if not 0 < batch_size <= BATCH_SIZE_MAX:
        raise BadRequest(f"batch_size: expected 1 to {BATCH_SIZE_MAX}, got {batch_size}")
    return ServingOptions(
        batch_size=batch_size,
        batch_wait_ms=_first(
            wanted.max_batch_delay_ms,
            config.max_batch_delay_ms,
            defaults.above_zero("maxBatchDelay"),
            QUEUE_WAIT_MS_DEFAULT,
        ),
        queue_size=max(config.job_queue_size or settings.job_queue_size, queue_size_min(config.scheduling)),
        response_timeout_s=_first(
            config.response_timeout_s,
            defaults.above_zero("responseTimeout"),
            wanted.response_timeout_s,
            settings.default_response_timeout_s,
        ),
        startup_timeout_s=_first(
            config.startup_timeout_s,
            defaults.above_zero("startupTimeout"),
            wanted.startup_timeout_s,
            settings.default_startup_timeout_s,
        ),
        handler=wanted.handler or _handler(unpacked.manifest.handler, settings),
        loaded_at_startup=wanted.at_startup,
        queue_timeout_s=_first(config.queue_timeout_s, wanted.queue_timeout_s, settings.default_queue_timeout_s),
        envelope=_envelope(config, settings),
    )


def _envelope(config: ModelConfig, settings: Settings) -> str:
    """The model's own, or else the server's. As in TorchServe, `model.envelope` of a manifest has no effect."""
    name = settings.service_envelope if config.envelope is None else config.envelope
    return "" if name == NO_ENVELOPE or config.backend != HANDLER else name


def _handler(said_by_manifest: str, settings: Settings) -> str:
    """Where the archive names none, the server's (default_service_handler)."""
    if said_by_manifest == DEFAULT_HANDLER and settings.default_service_handler:
        return settings.default_service_handler
    return said_by_manifest


def _workers(wanted: Registration, settings: Settings, defaults: "_Defaults") -> tuple[int, int]:
    """Fewest and most, where model-config.yaml does not say."""
    count = settings.default_workers_per_model
    if wanted.at_startup:
        low, high = defaults.above_zero("minWorkers"), defaults.above_zero("maxWorkers")
        if low is not None and high is not None and high >= low:
            return low, high
        count = count or settings.number_of_gpu or cpu_count()
    count = max(0, _first(wanted.initial_workers, count))
    return count, count


class _Defaults:
    """`models` of config.properties for one version; what is no positive whole number there counts as not given."""

    def __init__(self, models: Mapping[str, Any], name: str, version: str) -> None:
        self._values: Mapping[str, Any] = models.get(name, {}).get(version, {})

    def above_zero(self, key: str) -> int | None:
        value = self._values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)

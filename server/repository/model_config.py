"""model-config.yaml: how a model wants to be served.

TorchServe's keys keep its leniency: a value of the wrong type is logged and counts as unset. Our own keys (`backend`,
`batching`, `inputs`, `outputs`, and those of sections.py) are refused when wrong, since a typo in them would change what clients receive.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.tensor import Signature
from ringserve.server.model_configuration.completion import complete_by
from ringserve.server.model_configuration.configuration import Configuration
from ringserve.server.model_configuration.fields import NESTED, with_text_levels
from ringserve.server.repository.config_yaml import read_mapping
from ringserve.server.repository.files import check_carried
from ringserve.server.repository.modes import SequenceBatching
from ringserve.server.repository.sections import Sections, parse_envelope, parse_sections
from ringserve.server.repository.signature import parse_signature
from ringserve.server.repository.triton_config import served_so, triton_configuration
from ringserve.server.scheduling.rules import Scheduling

HANDLER = "handler"
BACKENDS = (HANDLER, "torchscript", "python", "triton")
BATCHINGS = ("adaptive", "fill")
DEVICE_TYPES = ("cpu", "gpu")
DEFAULT_RETRY_TIMEOUT_S = 300
INT_MAX = 2**31 - 1  # TorchServe reads these keys into Java ints

log = logging.getLogger(__name__)


class ModelConfig(msgspec.Struct, frozen=True):
    """The keys the server reads; None means unset, so that a request's parameter or a server default decides.

    `max_retry_timeout_s` is the recovery window of a dying worker, 0 forbids restarts. `raw` is the whole file as
    handlers see it. `triton` is what it says in Triton's words, where it does; `per_gpu`: so many workers are wanted on each GPU.
    """

    min_workers: int | None = None
    max_workers: int | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    response_timeout_s: int | None = None
    startup_timeout_s: int | None = None
    queue_timeout_s: int | None = None
    device_type: str | None = None
    device_ids: tuple[int, ...] | None = None
    job_queue_size: int | None = None
    max_retry_timeout_s: int = DEFAULT_RETRY_TIMEOUT_S
    client_timeout_ms: int = 0
    backend: str = HANDLER
    envelope: str | None = None
    batching: str = "adaptive"
    use_venv: bool = False
    use_job_ticket: bool = False
    sequences: SequenceBatching | None = None
    scheduling: Scheduling | None = None
    triton: Configuration | None = None
    per_gpu: bool = False
    signature: Signature = Signature()
    sections: Sections = Sections()
    raw: dict[str, Any] = {}

    @property
    def stateful(self) -> bool:
        """Whether its requests belong together."""
        return self.sequences is not None or (self.scheduling is not None and self.scheduling.sequences is not None)

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """(minimum, maximum) workers, when the file gives both and they make sense together."""
        if self.min_workers is None or self.max_workers is None:
            return None
        return (self.min_workers, self.max_workers) if self.max_workers >= self.min_workers > 0 else None


def read_model_config(path: Path | None) -> ModelConfig:
    """The configuration in a file, or the defaults without one. Raises `InvalidModel`."""
    return ModelConfig() if path is None or not path.exists() else parse_model_config(read_mapping(path), path.name)


def parse_model_config(raw: dict[str, Any], file_name: str = "model-config.yaml") -> ModelConfig:
    """The configuration in an already parsed mapping. `file_name` is for the error's sentence. Raises `InvalidModel`."""
    raw = with_text_levels(raw)
    check_carried(raw, file_name)
    keys = _LenientKeys(raw, file_name)
    config = ModelConfig(
        min_workers=keys.at_least("minWorkers", 1),
        max_workers=keys.at_least("maxWorkers", 0),
        batch_size=keys.at_least("batchSize", 1),
        max_batch_delay_ms=keys.above_zero("maxBatchDelay"),
        response_timeout_s=keys.above_zero("responseTimeout"),
        startup_timeout_s=keys.above_zero("startupTimeout"),
        queue_timeout_s=keys.above_zero("queueTimeout"),
        device_type=keys.device_type(),
        device_ids=keys.device_ids(),
        job_queue_size=keys.above_zero("jobQueueSize"),
        max_retry_timeout_s=keys.from_zero("maxRetryTimeoutInSec", DEFAULT_RETRY_TIMEOUT_S),
        client_timeout_ms=keys.from_zero("clientTimeoutInMills", 0),
        backend=_choice(raw, "backend", BACKENDS, file_name),
        envelope=parse_envelope(raw, file_name),
        batching=_choice(raw, "batching", BATCHINGS, file_name),
        use_venv=keys.flag("useVenv"),
        use_job_ticket=keys.flag("useJobTicket"),
        sequences=keys.sequences(),
        signature=parse_signature(raw, file_name),
        sections=parse_sections(raw, file_name),
        raw=raw,
    )
    return _in_tritons_words(config, file_name)


def _in_tritons_words(config: ModelConfig, file_name: str) -> ModelConfig:
    """The same with what it says in Triton's words, if anything. Raises `InvalidModel`."""
    found = triton_configuration(config.raw, config.backend if "backend" in config.raw else None, file_name)
    if found is None:
        return config
    triton, backend = complete_by(found[0], config.signature), found[1]
    sections = config.sections
    if triton.devices:
        placement = msgspec.structs.replace(sections.placement, devices=triton.devices)
        sections = msgspec.structs.replace(sections, placement=placement)
    # A config.pbtxt that says nothing of instances means one, as it does in Triton; model-config.yaml leaves it to the server.
    workers = triton.workers or (1 if NESTED in config.raw and config.min_workers is None else 0)
    decided = served_so(triton, backend, workers, file_name)
    return msgspec.structs.replace(config, backend=backend, sections=sections, **decided)


def _choice(raw: Mapping[str, Any], key: str, accepted: tuple[str, ...], file_name: str) -> str:
    """A word of ours; the first accepted one is the default."""
    if key not in raw:
        return accepted[0]
    value = raw[key]
    if not isinstance(value, str) or value not in accepted:
        raise InvalidModel(f"{file_name}: {key}: expected one of {', '.join(accepted)}, got {value!r}")
    return value


class _LenientKeys:
    """TorchServe's keys: what cannot be used is logged and counts as unset."""

    def __init__(self, raw: Mapping[str, Any], file_name: str) -> None:
        self._raw = raw
        self._file_name = file_name

    def at_least(self, key: str, minimum: int) -> int | None:
        """A smaller number is raised to `minimum`, as TorchServe does."""
        value = self._integer(key)
        return None if value is None else max(value, minimum)

    def above_zero(self, key: str) -> int | None:
        value = self._integer(key)
        return value if value is not None and value > 0 else None

    def from_zero(self, key: str, default: int) -> int:
        value = self._integer(key)
        return value if value is not None and value >= 0 else default

    def device_type(self) -> str | None:
        value = self._raw.get("deviceType")
        if value is None:
            return None
        if isinstance(value, str) and value.lower() in DEVICE_TYPES:
            return value.lower()
        self._warn("deviceType", " or ".join(DEVICE_TYPES), value)
        return None

    def device_ids(self) -> tuple[int, ...] | None:
        """One wrong id makes the whole list unset: half a list would place workers where nobody asked for them."""
        value = self._raw.get("deviceIds")
        if value is None:
            return None
        if isinstance(value, list) and value and all(_is_int(entry) and entry >= 0 for entry in value):
            return tuple(value)
        self._warn("deviceIds", "a list of device numbers", value)
        return None

    def flag(self, key: str) -> bool:
        value = self._raw.get(key)
        if value is not None and not isinstance(value, bool):
            self._warn(key, "true or false", value)
        return value is True

    def sequences(self) -> SequenceBatching | None:
        """None where requests do not belong together. What its keys must be together is for modes.py to check."""
        found = SequenceBatching(
            idle_ms_max=self.from_zero("sequenceMaxIdleMSec", 0),
            life_ms_max=self.from_zero("sequenceTimeoutMSec", 0),
            waiting_max=self.at_least("maxSequenceJobQueueSize", 1) or 1,
            sequences_max=self.at_least("maxNumSequence", 1) or 1,
        )
        return found if self.flag("sequenceBatching") else None

    def _integer(self, key: str) -> int | None:
        value = self._raw.get(key)
        if value is None:
            return None
        if _is_int(value) and abs(value) <= INT_MAX:
            return int(value)
        self._warn(key, "an integer of 32 bits", value)
        return None

    def _warn(self, key: str, expected: str, value: object) -> None:
        log.warning("%s: %s: expected %s, got %.200r; ignored", self._file_name, key, expected, value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

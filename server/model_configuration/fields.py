"""Which keys of a configuration are Triton's, and which of ours or TorchServe's say the same thing. Nothing of protobuf is needed here.

A model-config.yaml is anybody's: handlers keep keys of their own in it. So its keys are Triton's only where one of them is that nobody
else uses. In `triton:`, which is where config.pbtxt and the configuration of a repository load are put, all are.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ringserve.protocol.errors import InvalidModel

NESTED = "triton"  # and the word for the backend that runs models of Triton's Python backend

# All fields of inference.ModelConfig.
FIELDS = frozenset(
    {
        "name",
        "platform",
        "backend",
        "runtime",
        "version_policy",
        "max_batch_size",
        "input",
        "output",
        "batch_input",
        "batch_output",
        "optimization",
        "dynamic_batching",
        "sequence_batching",
        "ensemble_scheduling",
        "instance_group",
        "default_model_filename",
        "cc_model_filenames",
        "metric_tags",
        "parameters",
        "model_warmup",
        "model_operations",
        "model_transaction_policy",
        "model_repository_agents",
        "response_cache",
        "model_metrics",
    }
)
# Of the backends that are served: Triton's word for the platform of a classic one, and the file that each loads.
PLATFORMS = {"pytorch": "pytorch_libtorch"}
BACKEND_OF_PLATFORM = {platform: backend for backend, platform in PLATFORMS.items()}
FILE_NAMES = {"python": "model.py", "pytorch": "model.pt"}
# Each of these alone makes a model-config.yaml one in Triton's words.
DECISIVE = frozenset(
    {
        "max_batch_size",
        "batch_input",
        "batch_output",
        "dynamic_batching",
        "sequence_batching",
        "ensemble_scheduling",
        "instance_group",
        "model_warmup",
        "model_transaction_policy",
        "model_repository_agents",
        "response_cache",
    }
)
# `dynamic_batching:` with nothing behind it switches it on, as `{}` does: YAML's null would count as not said.
PRESENT_IS_ENOUGH = ("dynamic_batching", "sequence_batching", "model_transaction_policy", "response_cache")

# What says the same in TorchServe's words or ours; the paths are of mappings only.
SAME_THING = (
    ("max_batch_size", ("batchSize",)),
    ("dynamic_batching", ("batching", "sequenceBatching")),
    ("dynamic_batching.max_queue_delay_microseconds", ("maxBatchDelay",)),
    ("dynamic_batching.default_queue_policy.max_queue_size", ("jobQueueSize",)),
    ("dynamic_batching.default_queue_policy.default_timeout_microseconds", ("queueTimeout",)),
    ("sequence_batching", ("batching", "sequenceBatching", "maxBatchDelay", "useJobTicket")),
    ("sequence_batching.max_sequence_idle_microseconds", ("sequenceMaxIdleMSec",)),
    ("instance_group", ("minWorkers", "maxWorkers", "devices", "deviceType", "deviceIds")),
    ("input", ("inputs",)),
    ("output", ("outputs",)),
    ("model_warmup", ("warmup",)),
)
# Keys that TorchServe, the handlers it brings, or this server read; the tests compare ours with what the readers take.
OTHERS = frozenset(
    {
        "minWorkers",
        "maxWorkers",
        "batchSize",
        "maxBatchDelay",
        "responseTimeout",
        "startupTimeout",
        "queueTimeout",
        "deviceType",
        "deviceIds",
        "jobQueueSize",
        "maxRetryTimeoutInSec",
        "clientTimeoutInMills",
        "parallelType",
        "parallelLevel",
        "useVenv",
        "useJobTicket",
        "sequenceBatching",
        "sequenceMaxIdleMSec",
        "sequenceTimeoutMSec",
        "maxSequenceJobQueueSize",
        "maxNumSequence",
        "continuousBatching",
        "asyncCommunication",
        "torchrun",
        "backend",
        "batching",
        "envelope",
        "inputs",
        "outputs",
        "devices",
        "placement",
        "recycle",
        "autoscaling",
        "warmup",
        "handler",
        NESTED,
    }
)


def with_text_levels(raw: dict[str, Any]) -> dict[str, Any]:
    """The same with the levels of `priority_queue_policy` as text: they are numbers, and people write them so, where a message to a
    worker carries keys of text only."""
    batching = raw.get("dynamic_batching")
    if not isinstance(batching, dict):
        return raw
    policies = batching.get("priority_queue_policy")
    if not isinstance(policies, dict) or not any(isinstance(level, int) for level in policies):
        return raw
    levels = {str(level) if isinstance(level, int) else level: policy for level, policy in policies.items()}
    return {**raw, "dynamic_batching": {**batching, "priority_queue_policy": levels}}


def fields_of(raw: Mapping[str, Any], file_name: str) -> dict[str, Any] | None:
    """What `raw`, a model-config.yaml, says in Triton's words; None where it says nothing so. Raises `InvalidModel` for a thing
    that is said twice, and for keys that mean nothing."""
    nested = raw.get(NESTED)
    if nested is not None and not isinstance(nested, dict):
        raise InvalidModel(f"{file_name}: {NESTED}: expected a mapping of Triton's fields, got {nested!r:.100}")
    if nested is None and not _in_tritons_words(raw):
        return None
    top = {key: raw[key] for key in FIELDS & raw.keys() if key != "backend" and _in_tritons_words(raw)}
    for key in top.keys() & (nested or {}).keys():
        raise InvalidModel(f"{file_name}: {key}: expected it once, got it here and in config.pbtxt")
    said = {**(nested or {}), **top}
    said |= {key: {} for key in PRESENT_IS_ENOUGH if key in said and said[key] is None}
    _check_once(raw, said, file_name)
    if top:
        _check_known(raw, file_name)
    return said


def without(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What remains of a configuration when all that it says in Triton's words is left out."""
    triton = _in_tritons_words(raw)
    return {key: value for key, value in raw.items() if key != NESTED and not (triton and key in FIELDS - {"backend"})}


def _in_tritons_words(raw: Mapping[str, Any]) -> bool:
    if not DECISIVE.isdisjoint(raw) or any(_are_tensors(raw.get(key)) for key in ("input", "output")):
        return True
    return raw.get("platform") in (*BACKEND_OF_PLATFORM, "ensemble") or raw.get("backend") == NESTED


def _are_tensors(value: object) -> bool:
    entries = value if isinstance(value, list) else [value]
    return any(isinstance(entry, dict) and "data_type" in entry for entry in entries)


def _check_once(raw: Mapping[str, Any], said: Mapping[str, Any], file_name: str) -> None:
    for path, others in SAME_THING:
        other = next((key for key in others if raw.get(key) is not None), None)
        if other is not None and _says(said, path):
            raise InvalidModel(f"{file_name}: {path}: expected it or {other}, which says the same, got both")


def _says(said: Mapping[str, Any], path: str) -> bool:
    value: object = said
    for key in path.split("."):
        if not isinstance(value, dict) or value.get(key) is None:
            return False
        value = value[key]
    return True


def _check_known(raw: Mapping[str, Any], file_name: str) -> None:
    """A key that only nearly is one of Triton's is a mistake, and so is any that nobody reads; a handler may read whatever it likes."""
    may_have_own = raw.get("backend", "handler") == "handler"
    for key in raw.keys() - FIELDS - OTHERS:
        meant = difflib.get_close_matches(str(key), sorted(FIELDS), 1, 0.85 if may_have_own else 0.6)
        if meant or not may_have_own:
            raise unknown_field(file_name, str(key), FIELDS)


def unknown_field(where: str, path: str, known: Iterable[str]) -> InvalidModel:
    """For a field that no message has, with what may be meant."""
    meant = difflib.get_close_matches(path.rpartition(".")[2], sorted(known), 1)
    hint = f"; did you mean {meant[0]}?" if meant else ""
    return InvalidModel(
        f"{where}: {path:.200}: expected a field of Triton's model configuration, got one that it has not{hint}"
    )

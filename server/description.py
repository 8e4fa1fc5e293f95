"""A model version as the management API describes it (contract section 2.5)."""

import time
from collections.abc import Sequence

import psutil

from ringserve.server.pool import WorkerSlot
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.model_config import ModelConfig

# TorchServe's keys for what this version does not do: describe says so, and registration warns.
_UNSUPPORTED = (
    "asyncCommunication",
    "continuousBatching",
    "parallelLevel",
    "parallelType",
    "sequenceBatching",
    "torchrun",
    "useJobTicket",
    "useVenv",
)


def unsupported_keys(config: ModelConfig) -> list[str]:
    """The keys of a model-config.yaml that ask for something and are not honoured."""
    gpu = ["deviceType"] if config.device_type == "gpu" else []
    return [key for key in _UNSUPPORTED if config.raw.get(key)] + gpu


def describe_version(version: ModelVersion, slots: Sequence[WorkerSlot], waiting: int) -> dict[str, object]:
    """TorchServe's fields in TorchServe's order; `waiting` requests have no worker yet."""
    options, config, manifest = version.options, version.unpacked.config, version.unpacked.manifest
    return {
        "modelName": version.name,
        "modelVersion": version.version,
        "modelUrl": version.url,
        "runtime": manifest.runtime,
        "minWorkers": version.min_workers,
        "maxWorkers": version.max_workers,
        "batchSize": options.batch_size,
        "maxBatchDelay": options.batch_wait_ms,
        "responseTimeout": options.response_timeout_s,
        "startupTimeout": options.startup_timeout_s,
        **(
            {"queueTimeout": options.queue_timeout_s} if options.queue_timeout_s > 0 else {}
        ),  # ours: only where it is set
        "maxRetryTimeoutInSec": config.max_retry_timeout_s,
        "clientTimeoutInMills": config.client_timeout_ms,
        "parallelType": "",
        "parallelLevel": 0,
        "deviceType": "cpu",
        "continuousBatching": False,
        "useJobTicket": False,
        "useVenv": False,
        "stateful": False,
        "sequenceMaxIdleMSec": 0,
        "sequenceTimeoutMSec": 0,
        "maxNumSequence": 0,
        "maxSequenceJobQueueSize": 0,
        "loadedAtStartup": options.loaded_at_startup,
        "workers": [_describe_worker(slot) for slot in slots],
        "jobQueueStatus": {"remainingCapacity": options.queue_size - waiting, "pendingRequests": waiting},
    }


def _describe_worker(slot: WorkerSlot) -> dict[str, object]:
    pid = slot.child.pid if slot.child is not None else -1
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(slot.started_s))
    return {
        "id": slot.worker_id,
        "startTime": f"{moment}.{int(slot.started_s * 1000) % 1000:03d}Z",  # local time with a Z, as TorchServe writes it
        "status": "READY" if slot.ready else "UNLOADING",
        "memoryUsage": _rss_bytes(pid),
        "pid": pid,
        "gpu": False,
        "gpuUsage": "N/A",
    }


def _rss_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid > 0 else 0
    except psutil.Error:
        return 0

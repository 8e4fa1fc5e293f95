"""A model version as the management API describes it (contract section 2.5)."""

import time
from collections.abc import Sequence

from ringserve.server.devices import Device, Usage
from ringserve.server.placement import CPU, Placer
from ringserve.server.process import rss_bytes
from ringserve.server.registry import ModelVersion
from ringserve.server.worker_slot import WorkerSlot

MIB = 1 << 20


def describe_version(
    version: ModelVersion, slots: Sequence[WorkerSlot], waiting: int, placer: Placer
) -> dict[str, object]:
    """TorchServe's fields in TorchServe's order; `waiting` requests have no worker yet."""
    options, config, manifest = version.options, version.unpacked.config, version.unpacked.manifest
    wish, sequences = config.sections.placement, config.sequences
    device_ids = None if wish.devices else placer.device_ids(config.device_ids)
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
        "deviceType": placer.device_type(wish, config.device_type),
        **({} if device_ids is None else {"deviceIds": device_ids}),
        "continuousBatching": False,
        "useJobTicket": config.use_job_ticket,
        "useVenv": config.use_venv,
        "stateful": config.stateful,
        "sequenceMaxIdleMSec": 0 if sequences is None else sequences.idle_ms_max,
        "sequenceTimeoutMSec": 0 if sequences is None else sequences.life_ms_max,
        "maxNumSequence": 0 if sequences is None else sequences.sequences_max,
        "maxSequenceJobQueueSize": 0 if sequences is None else sequences.waiting_max,
        "loadedAtStartup": options.loaded_at_startup,
        "workers": [_describe_worker(slot, placer) for slot in slots],
        "jobQueueStatus": {"remainingCapacity": options.queue_size - waiting, "pendingRequests": waiting},
    }


def _describe_worker(slot: WorkerSlot, placer: Placer) -> dict[str, object]:
    pid = slot.child.pid if slot.child is not None else -1
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(slot.started_s))
    device = placer.device_of(slot.place or CPU)
    usage = None if device is None else placer.usage_of(device)
    return {
        "id": slot.worker_id,
        "startTime": f"{moment}.{int(slot.started_s * 1000) % 1000:03d}Z",  # local time with a Z, as TorchServe writes it
        "status": "READY" if slot.ready else "UNLOADING",
        "memoryUsage": rss_bytes(pid) if pid > 0 else 0,
        "pid": pid,
        "gpu": device is not None,
        "gpuUsage": "N/A" if device is None else gpu_usage(device, usage),
        **({} if device is None else _describe_device(device, usage)),
    }


def gpu_usage(device: Device, usage: Usage | None) -> str:
    """TorchServe 0.12's text, which is nvidia-smi's."""
    if usage is None:
        return "failed to obtained gpu usage"  # sic
    percent = ["[N/A]" if each is None else f"{each} %" for each in (usage.utilization_gpu, usage.utilization_memory)]
    return (
        f"gpuId::{device.index} utilization.gpu [%]::{percent[0]} utilization.memory [%]::{percent[1]} "
        f"memory.used [MiB]::{usage.memory_bytes_used // MIB} MiB"
    )


def _describe_device(device: Device, usage: Usage | None) -> dict[str, object]:
    """What is ours: which device it is, and its memory as far as that is known."""
    memory: dict[str, object] = {}
    if device.memory_bytes_total and usage is not None:
        memory = {"deviceMemoryTotal": device.memory_bytes_total, "deviceMemoryUsed": usage.memory_bytes_used}
    return {"device": device.label, **memory}

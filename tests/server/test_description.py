"""What describe says of a version, and of the devices of its workers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ringserve.server.description import describe_version, gpu_usage
from ringserve.server.devices import Device, Usage
from ringserve.server.placement import Place, Placer
from ringserve.server.registry import ModelVersion, ServingOptions
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import parse_model_config
from ringserve.server.repository.store import UnpackedModel
from ringserve.server.worker_slot import WorkerSlot

MIB = 1 << 20
DEVICES = (
    Device(0, "GPU-0", "A100", "gpu", 40960 * MIB),
    Device(1, "GPU-1", "A100", "gpu", 40960 * MIB),
    Device(2, "MIG-2", "A100 MIG 1g", "mig", 4864 * MIB, "GPU-cut"),
)


def described(raw: dict[str, Any], *places: Place | None, devices: tuple[Device, ...] = DEVICES) -> dict[str, Any]:
    """A version with this configuration and a worker at each place; of the last device nothing is known."""
    placer = Placer(devices)
    usage = {"GPU-0": Usage(678 * MIB, 0, 3), "MIG-2": Usage(5 * MIB, None, None)}
    placer.look_ends(placer.look_begins(), usage)
    manifest = Manifest("m")
    options = ServingOptions(1, 100, 100, 120, 120, "h.py:handle", False)
    unpacked = UnpackedModel(manifest, parse_model_config(raw), Path(), False)
    version = ModelVersion(1, "m", "1.0", "m.mar", unpacked, options)

    async def describe() -> dict[str, Any]:  # a slot has a future
        slots = [WorkerSlot(str(9000 + number), "W") for number in range(len(places))]
        for slot, place in zip(slots, places, strict=True):
            slot.place = place
        return describe_version(version, slots, 0, placer)

    return asyncio.run(describe())


@pytest.mark.parametrize(
    ("raw", "devices", "device_type", "device_ids"),
    [
        ({}, DEVICES, "gpu", None),
        ({}, (), "cpu", None),
        ({"deviceType": "cpu"}, DEVICES, "cpu", None),
        ({"deviceType": "gpu"}, (), "cpu", None),
        ({"deviceIds": [1, 0]}, DEVICES, "gpu", [1, 0]),
        ({"deviceIds": [3]}, DEVICES, "gpu", None),
        ({"deviceIds": [0], "devices": ["cpu"]}, DEVICES, "cpu", None),
        ({"devices": ["MIG-2"]}, DEVICES, "gpu", None),
    ],
)
def test_device_type_and_ids_are_what_the_workers_get(
    raw: dict[str, Any], devices: tuple[Device, ...], device_type: str, device_ids: list[int] | None
) -> None:
    told = described(raw, devices=devices)
    assert told["deviceType"] == device_type
    assert told.get("deviceIds") == device_ids
    order = list(told)
    assert order[order.index("parallelLevel") + 1] == "deviceType"
    assert "deviceIds" not in told or order[order.index("deviceType") + 1] == "deviceIds"


@pytest.mark.parametrize("use_venv", [True, False])
def test_use_venv_is_told_as_configured(use_venv: bool) -> None:
    assert described({"useVenv": use_venv})["useVenv"] is use_venv


def test_a_worker_on_the_cpu_has_torchserves_fields_and_no_others() -> None:
    workers = described({}, Place(), None)["workers"]
    assert len(workers) == 2
    for worker in workers:
        assert list(worker) == ["id", "startTime", "status", "memoryUsage", "pid", "gpu", "gpuUsage"]
        assert (worker["gpu"], worker["gpuUsage"]) == (False, "N/A")


def test_a_worker_on_a_device_tells_which_and_how_full_it_is() -> None:
    gpu, silent, part = described(
        {},
        Place("cuda:0", 0, None, "GPU-0"),
        Place("cuda:0", 0, "GPU-1", "GPU-1"),
        Place("cuda:0", 0, "MIG-2", "MIG-2"),
    )["workers"]
    extra = ["device", "deviceMemoryTotal", "deviceMemoryUsed"]
    assert list(gpu)[-5:] == ["gpu", "gpuUsage", *extra]
    assert [each["gpu"] for each in (gpu, silent, part)] == [True] * 3
    assert [gpu[key] for key in extra] == ["cuda:0", 40960 * MIB, 678 * MIB]
    assert [part[key] for key in extra] == ["MIG-2", 4864 * MIB, 5 * MIB]
    assert (silent["device"], silent["gpuUsage"]) == ("cuda:1", "failed to obtained gpu usage")
    assert "deviceMemoryUsed" not in silent


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        (
            Usage(678 * MIB + 1, 0, 0),
            "gpuId::0 utilization.gpu [%]::0 % utilization.memory [%]::0 % memory.used [MiB]::678 MiB",
        ),
        (
            Usage(0, None, None),
            "gpuId::0 utilization.gpu [%]::[N/A] utilization.memory [%]::[N/A] memory.used [MiB]::0 MiB",
        ),
    ],
)
def test_gpu_usage_is_torchserves_text(usage: Usage, text: str) -> None:
    assert gpu_usage(DEVICES[0], usage) == text


def test_sequences_and_tickets_are_described_as_torchserve_does() -> None:
    fields = ("stateful", "sequenceMaxIdleMSec", "sequenceTimeoutMSec", "maxNumSequence", "maxSequenceJobQueueSize")
    limits = {"sequenceMaxIdleMSec": 500, "maxNumSequence": 4, "maxSequenceJobQueueSize": 10}
    plain, stateful = described(limits), described({"sequenceBatching": True, "sequenceTimeoutMSec": 9000, **limits})
    assert [plain[field] for field in fields] == [False, 0, 0, 0, 0]
    assert [stateful[field] for field in fields] == [True, 500, 9000, 4, 10]
    assert [described({"useJobTicket": wanted})["useJobTicket"] for wanted in (False, True)] == [False, True]

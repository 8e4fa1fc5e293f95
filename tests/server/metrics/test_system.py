"""What the machine is doing."""

import asyncio
import threading

import pytest

from ringserve.server.device_watch import DeviceWatch
from ringserve.server.devices import Inventory, no_devices
from ringserve.server.metrics import system
from ringserve.server.metrics.system import Machine, Measured, SystemMetrics
from ringserve.server.nvml import Found

HOST_NAMES = {
    *("CPUUtilization", "MemoryUsed", "MemoryAvailable", "MemoryUtilization"),
    *("DiskUsage", "DiskAvailable", "DiskUtilization"),
}
NOTHING = no_devices("a test")


def test_a_machine_is_measured() -> None:
    """TorchServe's names; shares are percentages."""
    measured = Machine().measure()
    assert measured.keys() == HOST_NAMES
    assert all(0 <= value <= 100 for unit, value in measured.values() if unit == "Percent")
    assert all(value > 0 for name, (_, value) in measured.items() if name.startswith(("Memory", "Disk")))


def test_measurements_are_told_and_announced() -> None:
    """Before the first there is nothing."""

    async def run() -> None:
        metrics = SystemMetrics(DeviceWatch(NOTHING), "h", 60, lambda: {"CPUUtilization": ("Percent", 12.5)})
        announced = []
        metrics.on_measured = lambda: announced.append(True)
        assert list(metrics.families()) == []
        await metrics.look()
        (family,) = metrics.families()
        assert family.name == "CPUUtilization"
        assert family.samples[0].labels == (("Level", "Host"), ("Hostname", "h"))
        assert family.samples[0].value == 12.5
        assert announced == [True]

    asyncio.run(run())


def test_one_that_hangs_is_neither_waited_for_nor_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk that does not answer costs one thread."""
    monkeypatch.setattr(system, "MEASURE_S_MAX", 0.001)
    released, begun = threading.Event(), []

    def measure() -> Measured:
        begun.append(True)
        released.wait(10)
        return {"CPUUtilization": ("Percent", 1.0)}

    async def run() -> None:
        metrics = SystemMetrics(DeviceWatch(NOTHING), "h", 60, measure)
        await metrics.look()
        await metrics.look()
        assert len(begun) == 1
        released.set()
        monkeypatch.setattr(system, "MEASURE_S_MAX", 10.0)
        await metrics.look()
        assert len(begun) == 1
        assert [family.name for family in metrics.families()] == ["CPUUtilization"]

    asyncio.run(run())


def test_a_machine_that_cannot_be_measured_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    """And measured again."""

    def measure() -> Measured:
        raise OSError("no /proc")

    asyncio.run(SystemMetrics(DeviceWatch(NOTHING), "h", 60, measure).look())
    assert "no /proc" in caplog.text


def test_devices_are_told_by_their_number() -> None:
    """What one does not say is left out."""
    gib = 1 << 30
    first = Found("GPU-1", "A", 4 * gib, gib, utilization_gpu=30)
    second = Found("GPU-2", "B", 0, gib)
    metrics = SystemMetrics(DeviceWatch(Inventory(lambda: {0: first, 1: second})), "h", 60, dict)
    told = {
        (family.name, sample.labels[1][1]): sample.value for family in metrics.families() for sample in family.samples
    }
    assert told == {
        ("GPUMemoryUtilization", "0"): 25.0,
        ("GPUMemoryUsed", "0"): 1024,
        ("GPUMemoryUsed", "1"): 1024,
        ("GPUUtilization", "0"): 30,
    }

"""What the machine is doing: processors, memory, disk and devices, under TorchServe's names.

The supervisor measures it itself, in a thread, once at the start and then at every interval. (TorchServe starts a Python process
that imports torch for it, once a minute.) It is the machine that is measured, as TorchServe does, also in a container: what a
container may use is in the limits of its control group.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

import psutil

from ringserve.server.device_watch import DeviceWatch
from ringserve.server.metrics.family import Family, Kind, Labels, torchserve_family
from ringserve.server.repository.threads import in_daemon_thread

logger = logging.getLogger("ringserve.metrics")

MIB, GIB = 1 << 20, 1 << 30
# A disk that does not answer, as one behind a network may, is measured when it does.
MEASURE_S_MAX = 5.0

Measured = dict[str, tuple[str, float]]


class Machine:
    """The one that this process runs on. How busy its processors were, is since it was last measured."""

    def __init__(self) -> None:
        self._busy_s, self._total_s = processor_time()

    def measure(self) -> Measured:
        """Unit and value by name. In any thread, one at a time."""
        # Not psutil.cpu_percent, which remembers the last time of each thread.
        busy_s, total_s = processor_time()
        passed_s = total_s - self._total_s
        percent = 100 * (busy_s - self._busy_s) / passed_s if passed_s > 0 else 0.0
        self._busy_s, self._total_s = busy_s, total_s
        return {"CPUUtilization": ("Percent", round(min(max(percent, 0.0), 100.0), 1)), **_memory_and_disk()}


def processor_time() -> tuple[float, float]:
    """Of all processors since the machine started: busy, and altogether."""
    times = psutil.cpu_times()
    # What virtual machines are given is counted twice, as user's time and as guests'.
    total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total_s - times.idle - getattr(times, "iowait", 0.0), total_s


def _memory_and_disk() -> Measured:
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    return {
        "MemoryUsed": ("Megabytes", memory.used / MIB),
        "MemoryAvailable": ("Megabytes", memory.available / MIB),
        "MemoryUtilization": ("Percent", memory.percent),
        "DiskUsage": ("Gigabytes", disk.used / GIB),
        "DiskAvailable": ("Gigabytes", disk.free / GIB),
        "DiskUtilization": ("Percent", disk.percent),
    }


class SystemMetrics:
    """`on_measured` follows every measurement."""

    def __init__(
        self, devices: DeviceWatch, hostname: str, interval_s: float, measure: Callable[[], Measured] | None = None
    ) -> None:
        self.on_measured: Callable[[], None] = lambda: None
        self._devices = devices
        self._hostname = hostname
        self._interval_s = max(interval_s, 1.0)
        self._measure = measure or Machine().measure
        self._measured: Measured = {}
        self._under_way: asyncio.Task[Measured] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Measure once. One that hangs is not waited for, and no second one is begun beside it."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.ensure_future(in_daemon_thread(self._measure))
        done, _ = await asyncio.wait({self._under_way}, timeout=MEASURE_S_MAX)
        if done:
            try:
                self._measured = self._under_way.result()
            except (OSError, psutil.Error) as error:
                logger.warning("the machine cannot be measured: %s", error)
                return
        self.on_measured()

    def families(self) -> Iterable[Family]:
        host: Labels = (("Level", "Host"), ("Hostname", self._hostname))
        for name, (unit, value) in self._measured.items():
            yield torchserve_family(name, Kind.GAUGE, unit, [(host, value)])
        yield from self._device_families()

    def _device_families(self) -> Iterable[Family]:
        """As they were when they were last looked at, which is every few seconds."""
        placer = self._devices.placer
        memory: list[tuple[Labels, float]] = []
        share: list[tuple[Labels, float]] = []
        busy: list[tuple[Labels, float]] = []
        for device in placer.devices:
            usage = placer.usage_of(device)
            if usage is None:
                continue
            labels: Labels = (("Level", "Host"), ("DeviceId", str(device.index)), ("Hostname", self._hostname))
            memory.append((labels, usage.memory_bytes_used // MIB))
            if device.memory_bytes_total:
                share.append((labels, 100 * usage.memory_bytes_used / device.memory_bytes_total))
            if usage.utilization_gpu is not None:
                busy.append((labels, usage.utilization_gpu))
        if placer.devices:
            yield torchserve_family("GPUMemoryUtilization", Kind.GAUGE, "Percent", share)
            yield torchserve_family("GPUMemoryUsed", Kind.GAUGE, "Megabytes", memory)
            yield torchserve_family("GPUUtilization", Kind.GAUGE, "Percent", busy)

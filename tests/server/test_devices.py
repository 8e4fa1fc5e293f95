"""Which devices the server finds, in which order, and how it keeps knowing how full they are."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pynvml
import pytest

from ringserve.server.device_watch import DeviceWatch, open_devices
from ringserve.server.devices import DEVICES_FILE, Inventory, Usage, file_reader, find_devices
from ringserve.server.nvml import Found, NvmlReader, Unreadable
from ringserve.server.settings import ConfigError

GIB = 1 << 30
A, B, C = (Found(f"GPU-{letter * 4}-1", "A100", 40 * GIB) for letter in "abc")
SLICES = tuple(Found(f"MIG-{number}", "A100 MIG 1g.5gb", 5 * GIB) for number in "12")
CUT = Found("GPU-dddd-1", "A100", 40 * GIB, mig=SLICES)


def inventory(
    found: Mapping[int, Found] | None = None, visible: str | None = None, limit: int | None = None
) -> Inventory:
    gpus = {0: A, 1: CUT, 2: B, 3: C} if found is None else found
    return Inventory(lambda: gpus, visible, limit)


def uuids(inventory: Inventory) -> list[str]:
    return [device.uuid for device in inventory.devices]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [A, B, C, *SLICES]),
        ("0,2,3", [A, B, C]),
        ("3, 0", [C, A]),
        ("1", list(SLICES)),
        ("1,3", [C, *SLICES]),  # whole GPUs first
        ("MIG-2,2", [B, SLICES[1]]),
        ("GPU-bbbb-1,GPU-a", [B, A]),  # the beginning of a UUID is enough
        ("GPU-dddd", list(SLICES)),
        ("GPU-,0", []),  # as long as it is one device's only
        ("0,7,2", [A]),  # what names nothing ends the list
        ("0,-1,2", [A]),
        ("0,2,0", []),  # and what comes twice hides everything
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_the_list_of_visible_devices_is_read_as_cuda_reads_it(visible: str | None, expected: list[Found]) -> None:
    found = inventory(visible=visible)
    assert uuids(found) == [each.uuid for each in expected]
    assert [device.index for device in found.devices] == list(range(len(expected)))
    assert bool(found.absent) == (not expected)


def test_a_slice_knows_what_it_is_cut_from() -> None:
    slices = inventory(visible="1").devices
    assert [(each.kind, each.parent, each.label) for each in slices] == [
        ("mig", CUT.uuid, "MIG-1"),
        ("mig", CUT.uuid, "MIG-2"),
    ]
    whole = inventory(visible="2").devices[0]
    assert (whole.kind, whole.parent, whole.label, whole.name) == ("gpu", None, "cuda:0", "A100")


@pytest.mark.parametrize(("limit", "count"), [(None, 5), (0, 0), (1, 1), (5, 5), (9, 5)])
def test_number_of_gpu_is_an_upper_limit(limit: int | None, count: int) -> None:
    assert len(inventory(limit=limit).devices) == count


@pytest.mark.parametrize(
    ("found", "visible", "limit", "reason"),
    [
        ({}, None, None, "the machine has none"),
        ({0: A}, "", None, "CUDA_VISIBLE_DEVICES= leaves none of 1"),
        ({0: A}, None, 0, "number_of_gpu is 0"),
        ({0: Found("GPU-x", "A100", 1, mig=())}, None, None, "all are in MIG mode, and none has slices"),
    ],
)
def test_without_devices_it_is_known_why(
    found: dict[int, Found], visible: str | None, limit: int | None, reason: str
) -> None:
    assert inventory(found, visible, limit).absent == reason


def test_usage_is_that_of_the_servers_devices_now() -> None:
    found = {0: Found("GPU-0", "A100", 10, 3, 50, 40), 1: Found("GPU-1", "A100", 10, 4)}
    looks = Inventory(lambda: found, "1,0", 1)
    assert looks.first_usage == {"GPU-1": Usage(4, None, None)}
    found[1] = Found("GPU-1", "A100", 10, 6, 1, 2)
    assert looks.usage() == {"GPU-1": Usage(6, 1, 2)}
    del found[1]  # fallen off the bus
    assert looks.usage() == {}


# ---- the file


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "devices.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


GPU = {"uuid": "GPU-0", "name": "A100", "memory_bytes_total": 40 * GIB}


def test_a_file_can_stand_in_for_the_driver(write: Callable[[Any], Path]) -> None:
    cut = {**GPU, "uuid": "GPU-1", "mig": [{"uuid": "MIG-0", "name": "slice", "memory_bytes_total": GIB}]}
    path = write([GPU, cut])
    found = find_devices({DEVICES_FILE: str(path)}, None)
    assert uuids(found) == ["GPU-0", "MIG-0"]
    write([{**GPU, "memory_bytes_used": 5, "utilization_gpu": 7}])
    assert found.usage() == {"GPU-0": Usage(5, 7, None)}
    assert uuids(find_devices({DEVICES_FILE: str(path), "CUDA_VISIBLE_DEVICES": ""}, None)) == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "expected a JSON array of GPUs"),
        ("{}", "Expected `array`, got `object`"),
        ([1], "Expected `object`, got `int` - at `$[0]`"),
        ([{"name": "x"}], "missing required field `uuid`"),
        ([{**GPU, "memory_bytes_total": "40GiB"}], "got `str` - at `$[0].memory_bytes_total`"),
        ([{**GPU, "memory_bytes_used": -1}], "`$[0].memory_bytes_used`"),
        ([{**GPU, "utilization_gpu": 101}], "`$[0].utilization_gpu`"),
        ([{**GPU, "uuid": "cuda:0"}], "`$[0].uuid`"),
        ([{**GPU, "memory": 1}], "unknown field `memory`"),
        ([GPU, GPU], "expected every uuid once, got GPU-0 twice"),
        ([{**GPU, "mig": [GPU]}], "expected every uuid once, got GPU-0 twice"),
        ('["\\ud800"]', "expected a JSON array"),
    ],
)
def test_a_file_that_is_wrong_is_refused_and_what_is_wrong_named(
    write: Callable[[Any], Path], content: Any, named: str
) -> None:
    path = write(content)
    with pytest.raises(ConfigError) as refused:
        find_devices({DEVICES_FILE: str(path)}, None)
    assert str(refused.value).startswith(f"RINGSERVE_DEVICES: {path}: ")
    assert named in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json: cannot be read: No such file"):
        find_devices({DEVICES_FILE: str(tmp_path / "absent.json")}, None)


# ---- the driver


class Driver:
    """What a driver answers, by the functions of the library: two GPUs, one in MIG mode with a gap among its slices."""

    def __init__(self, **changes: Any) -> None:
        self.lost: set[str] = set()
        self.memory_v2 = True
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)  # errors and constants

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> str:
        if f"GPU-{number}" in self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return f"GPU-{number}"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:
        return f"NVIDIA {handle}"

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        if handle == "GPU-0":  # not a GPU that can be cut
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        return 3

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, place: int) -> str:
        if place == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return f"MIG-{place}"

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int | None = None) -> Any:
        memory = pynvml.c_nvmlMemory_v2_t()
        if version is not None and not self.memory_v2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        memory.total, memory.used, memory.reserved = 1000, 300, 50
        return memory

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        if handle.startswith("MIG"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        rates = pynvml.c_nvmlUtilization_t()
        rates.gpu, rates.memory = 12, 34
        return rates

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._of_whole_gpus(handle, 70_000)

    def nvmlDeviceGetPowerManagementLimit(self, handle: str) -> int:
        return self._of_whole_gpus(handle, 700_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self._of_whole_gpus(handle, 123_456)

    def _of_whole_gpus(self, handle: str, value: int) -> int:
        if handle.startswith("MIG"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value


def test_the_driver_is_asked_for_gpus_and_their_slices() -> None:
    found = NvmlReader(Driver())()
    slices = [Found(f"MIG-{place}", f"NVIDIA MIG-{place}", 950, 300) for place in (0, 2)]
    assert found[0] == Found("GPU-0", "NVIDIA GPU-0", 950, 300, 12, 34, 70_000, 700_000, 123_456)
    assert found[1].mig == tuple(slices)


def test_an_old_driver_is_asked_for_what_it_knows() -> None:
    found = NvmlReader(Driver(memory_v2=False))()
    assert (found[0].memory_bytes_total, found[0].memory_bytes_used) == (1000, 300)


def test_a_gpu_that_does_not_answer_keeps_no_other_from_its_number(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(lost={"GPU-0"})
    read = NvmlReader(driver)
    assert list(read()) == [1]
    read()
    assert [record.getMessage() for record in caplog.records] == ["GPU 0 does not answer: GPU is lost"]
    driver.lost.clear()
    assert list(read()) == [0, 1]


def test_a_driver_that_answers_nothing_is_unreadable() -> None:
    class Dead(Driver):
        def nvmlDeviceGetCount(self) -> int:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    with pytest.raises(Unreadable, match="NVML: Driver Not Loaded"):
        NvmlReader(Dead())()


@pytest.mark.parametrize(
    ("init_error", "reason"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "NVML: NVML Shared Library Not Found"),
        (None, "the package nvidia-ml-py is not installed"),
    ],
)
def test_without_library_or_driver_there_are_no_gpus_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, init_error: int | None, reason: str
) -> None:
    def nvmlInit() -> None:
        raise pynvml.NVMLError(init_error)

    if init_error is None:
        monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
        monkeypatch.setattr("ringserve.server.nvml.DRIVER", Path("/nowhere"))
    else:
        monkeypatch.setattr(pynvml, "nvmlInit", nvmlInit)
    with caplog.at_level(logging.INFO):
        found = find_devices({}, None)
    assert (found.devices, found.absent) == ((), reason)
    assert [record.getMessage() for record in caplog.records] == [f"no GPUs: {reason}"]


# ---- keeping an eye on them


class Gauge:
    """A reader whose looks end when they are told to."""

    def __init__(self) -> None:
        self.used = 0
        self.looks = 0
        self.go = threading.Semaphore(1)  # for the look at the start
        self.error = ""

    def __call__(self) -> dict[int, Found]:
        self.looks += 1
        used = self.used
        self.go.acquire()
        if self.error:
            raise Unreadable(self.error)
        return {0: Found("GPU-0", "A100", 100, used)}


def used(watch: DeviceWatch) -> int:
    usage = watch.placer.usage_of(watch.placer.devices[0])
    assert usage is not None
    return usage.memory_bytes_used


def test_who_asks_gets_a_look_that_began_afterwards() -> None:
    async def play() -> None:
        gauge = Gauge()
        watch = DeviceWatch(Inventory(gauge))
        early = asyncio.ensure_future(watch.refresh())
        while gauge.looks < 2:
            await asyncio.sleep(0)
        gauge.used = 5
        late = [asyncio.ensure_future(watch.refresh()) for _ in range(10)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in late)
        gauge.go.release()
        await early
        gauge.go.release()
        await asyncio.gather(*late)
        assert used(watch) == 5
        assert gauge.looks == 3  # one for all who came late
        await watch.refresh(age_s_max=3600)
        assert gauge.looks == 3

    asyncio.run(play())


def test_a_driver_that_hangs_holds_nobody_up_and_no_second_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringserve.server.device_watch.LOOK_S_MAX", 0.01)

    async def play() -> None:
        gauge = Gauge()
        watch = DeviceWatch(Inventory(gauge))
        for _ in range(5):
            await watch.refresh()
        while gauge.looks < 2:
            await asyncio.sleep(0)
        await watch.refresh()
        assert gauge.looks == 2
        assert used(watch) == 0
        gauge.used = 7
        gauge.go.release(2)
        while used(watch) != 7:
            await asyncio.sleep(0)
            await watch.refresh()

    asyncio.run(play())


def test_what_cannot_be_read_is_taken_to_be_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        gauge = Gauge()
        gauge.used = 3
        watch = DeviceWatch(Inventory(gauge))
        gauge.error = "no more"
        gauge.go.release(2)
        await watch.refresh()
        await watch.refresh()
        assert used(watch) == 3

    asyncio.run(play())
    assert [record.getMessage() for record in caplog.records] == [
        "the devices cannot be read, and are taken to be as they were: no more"
    ]


def test_a_driver_that_hangs_at_the_start_means_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringserve.server.device_watch.FIND_S_MAX", 0.01)
    hang = threading.Event()
    monkeypatch.setattr("ringserve.server.device_watch.find_devices", lambda environ, limit: hang.wait())

    async def play() -> DeviceWatch:
        return await open_devices({}, None)

    watch = asyncio.run(play())
    hang.set()
    assert watch.placer.devices == ()


def test_opened_devices_are_watched_until_closed(monkeypatch: pytest.MonkeyPatch, write: Callable[[Any], Path]) -> None:
    monkeypatch.setattr("ringserve.server.device_watch.WATCH_S", 0.001)
    path = write([GPU])

    async def play() -> None:
        watch = await open_devices({DEVICES_FILE: str(path)}, None)
        write([{**GPU, "memory_bytes_used": 9}])
        while used(watch) != 9:
            await asyncio.sleep(0.001)
        watch.close()
        watch.close()

    asyncio.run(play())
    assert file_reader(path)()[0].memory_bytes_used == 9

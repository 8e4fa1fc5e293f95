"""GPUs and MIG slices as NVIDIA's driver reports them, by nvidia-ml-py. No framework and no CUDA context is needed for that."""

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import msgspec

logger = logging.getLogger("ringserve.devices")

DRIVER = Path("/dev/nvidiactl")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Unreadable(Exception):
    """The devices cannot be read; the message says why."""


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU or MIG slice. `mig` is None unless MIG mode is on: then it holds the slices, and only they can be used."""

    uuid: Annotated[str, msgspec.Meta(pattern=r"^(GPU|MIG)-[0-9A-Za-z/-]{1,100}$")]
    name: Word
    memory_bytes_total: Count
    memory_bytes_used: Count = 0
    utilization_gpu: Percent | None = None
    utilization_memory: Percent | None = None
    power_mw: Count | None = None
    power_limit_mw: Count | None = None
    energy_mj: Count | None = None
    mig: "tuple[Found, ...] | None" = None


def nvml_reader() -> Callable[[], dict[int, Found]]:
    """A look at every GPU, by its number, each time it is called. Raises `Unreadable` without the library or the driver."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        reason = "the package nvidia-ml-py is not installed"
        if DRIVER.exists():
            logger.warning("%s, so the GPUs of this machine are not used: pip install 'ringserve[gpu]'", reason)
        raise Unreadable(reason) from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise Unreadable(f"NVML: {error}") from None
    return NvmlReader(nvml)


class NvmlReader:
    """`nvml` is the module pynvml."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._silent: set[int] = set()  # those that did not answer the last time; said once

    def __call__(self) -> dict[int, Found]:
        nvml, found = self._nvml, {}
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            raise Unreadable(f"NVML: {error}") from None
        for number in range(count):
            try:
                found[number] = self._gpu(nvml.nvmlDeviceGetHandleByIndex(number))
                self._silent.discard(number)
            except nvml.NVMLError as error:
                if number not in self._silent:
                    logger.warning("GPU %d does not answer: %s", number, error)
                self._silent.add(number)
        return found

    def _gpu(self, handle: Any) -> Found:
        gpu = self._found(handle)
        return gpu if not self._in_mig_mode(handle) else msgspec.structs.replace(gpu, mig=self._slices(handle))

    def _in_mig_mode(self, handle: Any) -> bool:
        mode = self._or_none(self._nvml.nvmlDeviceGetMigMode, handle)
        return mode is not None and mode[0] == 1

    def _slices(self, handle: Any) -> tuple[Found, ...]:
        """Their places may have gaps."""
        places = range(self._nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
        handles = [self._or_none(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place) for place in places]
        return tuple(self._found(each) for each in handles if each is not None)

    def _found(self, handle: Any) -> Found:
        nvml = self._nvml
        total, used = self._memory(handle)
        rates = self._or_none(nvml.nvmlDeviceGetUtilizationRates, handle)  # a slice does not tell
        return Found(
            uuid=nvml.nvmlDeviceGetUUID(handle),
            name=nvml.nvmlDeviceGetName(handle),
            memory_bytes_total=total,
            memory_bytes_used=used,
            utilization_gpu=None if rates is None else int(rates.gpu),
            utilization_memory=None if rates is None else int(rates.memory),
            power_mw=self._or_none(nvml.nvmlDeviceGetPowerUsage, handle),
            power_limit_mw=self._or_none(nvml.nvmlDeviceGetPowerManagementLimit, handle),
            energy_mj=self._or_none(nvml.nvmlDeviceGetTotalEnergyConsumption, handle),
        )

    def _memory(self, handle: Any) -> tuple[int, int]:
        """What processes can have, and what they have of it, as nvidia-smi counts it: without what the driver keeps for itself.
        0, 0 where a device has no memory of its own."""
        nvml = self._nvml
        memory = self._or_none(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        if memory is not None:
            return int(memory.total - memory.reserved), int(memory.used)
        memory = self._or_none(nvml.nvmlDeviceGetMemoryInfo, handle)  # a driver older than 510
        return (0, 0) if memory is None else (int(memory.total), int(memory.used))

    def _or_none(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """None where the device does not know the question, or the place is empty."""
        nvml = self._nvml
        try:
            return ask(*arguments)
        except (
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_NotFound,
            nvml.NVMLError_FunctionNotFound,
            nvml.NVMLError_InvalidArgument,
            nvml.NVMLError_ArgumentVersionMismatch,
        ):
            return None

"""Which GPUs and MIG slices the server may use, in which order, and how busy they are. Reading them can take seconds: never on
the event loop (device_watch.py).

The order is CUDA's: CUDA_VISIBLE_DEVICES says which and in what order, without it all by their PCI numbers. A GPU in MIG mode
cannot be used itself; its slices stand in its place, after all whole GPUs, so that `cuda:<n>` means the same here and in a worker.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from ringserve.server.nvml import Found, Unreadable, nvml_reader
from ringserve.server.settings import ConfigError

logger = logging.getLogger("ringserve.devices")

DEVICES_FILE = "RINGSERVE_DEVICES"
VISIBLE = "CUDA_VISIBLE_DEVICES"
GIB = 1 << 30

Read = Callable[[], Mapping[int, Found]]


@dataclass(frozen=True, slots=True)
class Device:
    """`index` is its place among the server's devices. `parent` is the UUID of the GPU that a slice is cut from."""

    index: int
    uuid: str
    name: str
    kind: Literal["gpu", "mig"]
    memory_bytes_total: int  # 0: not known
    parent: str | None = None

    @property
    def label(self) -> str:
        """What CUDA calls it, where CUDA has a name for it."""
        return f"cuda:{self.index}" if self.kind == "gpu" else self.uuid


class Usage(NamedTuple):
    """How busy a device is, in bytes and percent, and what power it takes; None where it does not say."""

    memory_bytes_used: int
    utilization_gpu: int | None
    utilization_memory: int | None
    power_mw: int | None = None
    power_limit_mw: int | None = None
    energy_mj: int | None = None  # since the driver was loaded


class Inventory:
    """The devices as they were found at the start, and a way to look at them again. `absent` says why there are none."""

    def __init__(self, read: Read, visible: str | None = None, limit: int | None = None) -> None:
        """`limit` is number_of_gpu: no more devices than that. Raises `Unreadable`."""
        self._read = read
        found = read()
        chosen = _visible(found, visible)
        self.devices = tuple(_device(index, *each) for index, each in enumerate(chosen[:limit]))
        self.absent = "" if self.devices else _why_none(found, visible, chosen)
        self.first_usage = self._usage(found)

    def usage(self) -> dict[str, Usage]:
        """By UUID, without those that do not answer. Raises `Unreadable`."""
        return self._usage(self._read())

    def _usage(self, found: Mapping[int, Found]) -> dict[str, Usage]:
        wanted = {device.uuid for device in self.devices}
        everything = [each for gpu in found.values() for each in (gpu, *(gpu.mig or ()))]
        return {
            each.uuid: Usage(
                each.memory_bytes_used,
                each.utilization_gpu,
                each.utilization_memory,
                each.power_mw,
                each.power_limit_mw,
                each.energy_mj,
            )
            for each in everything
            if each.uuid in wanted
        }


def no_devices(reason: str) -> Inventory:
    inventory = Inventory(dict)
    inventory.absent = reason
    return inventory


def find_devices(environ: Mapping[str, str], limit: int | None) -> Inventory:
    """From the file that RINGSERVE_DEVICES names, else from NVML. Raises `ConfigError` for a file that cannot be used; without
    NVML there are no devices."""
    path = environ.get(DEVICES_FILE)
    try:
        read = file_reader(Path(path)) if path else nvml_reader()
        inventory = Inventory(read, environ.get(VISIBLE), limit)
    except Unreadable as error:
        if path:
            raise ConfigError(f"{DEVICES_FILE}: {error}") from None
        inventory = no_devices(str(error))
    for device in inventory.devices:
        size = f"{device.memory_bytes_total / GIB:.1f} GiB"
        logger.info("device %d: %s, %s, %s", device.index, device.uuid, device.name, size)
    if not inventory.devices:
        logger.info("no GPUs: %s", inventory.absent)
    return inventory


# ---- a file in place of NVML, for tests and rehearsals


def file_reader(path: Path) -> Read:
    """GPUs from a JSON array of `Found`. The file is read again at every look."""

    def read() -> dict[int, Found]:
        try:
            gpus = msgspec.json.decode(path.read_bytes(), type=Annotated[list[Found], msgspec.Meta(max_length=256)])
        except OSError as error:
            raise Unreadable(f"{path}: cannot be read: {error.strerror or error}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unreadable(
                f"{path}: expected a JSON array of GPUs (uuid, name, memory_bytes_total): {error}"
            ) from None
        uuids = [each.uuid for gpu in gpus for each in (gpu, *(gpu.mig or ()))]
        for uuid in uuids:
            if uuids.count(uuid) > 1:
                raise Unreadable(f"{path}: expected every uuid once, got {uuid} twice")
        return dict(enumerate(gpus))

    return read


# ---- what CUDA_VISIBLE_DEVICES leaves of them

_Chosen = tuple[Found, Found | None]  # a device, and the GPU that it is a slice of


def _visible(found: Mapping[int, Found], visible: str | None) -> list[_Chosen]:
    """Whole GPUs before slices, else in the order of the list. What CUDA does with a list, we do: the first entry that names
    nothing ends it, and an entry that comes twice hides everything."""
    chosen: list[_Chosen] = []
    words = list(map(str, found)) if visible is None else visible.split(",")
    for word in words:
        named = _named(found, word.strip())
        if named is None:
            if visible:
                logger.warning("%s: %r names no device here; it and what follows is not used", VISIBLE, word)
            break
        if any(each in chosen for each in named):
            logger.warning("%s: %r names a device for the second time; CUDA then uses none", VISIBLE, word)
            return []
        chosen += named
    return [each for each in chosen if each[1] is None] + [each for each in chosen if each[1] is not None]


def _named(found: Mapping[int, Found], word: str) -> list[_Chosen] | None:
    """A number, or a UUID or the beginning of one. None when no device, or more than one, goes by that name."""
    if word.isdecimal():
        gpu = found.get(int(word))
        return None if gpu is None else _usable(gpu)
    slices: list[_Chosen] = [(each, gpu) for gpu in found.values() for each in gpu.mig or ()]
    gpus = [gpu for gpu in found.values() if gpu.uuid.startswith(word)]
    cut = [each for each in slices if each[0].uuid.startswith(word)]
    if not word or len(gpus) + len(cut) != 1:
        return None
    return cut or _usable(gpus[0])


def _usable(gpu: Found) -> list[_Chosen]:
    return [(gpu, None)] if gpu.mig is None else [(each, gpu) for each in gpu.mig]


def _device(index: int, found: Found, parent: Found | None) -> Device:
    kind: Literal["gpu", "mig"] = "gpu" if parent is None else "mig"
    return Device(index, found.uuid, found.name, kind, found.memory_bytes_total, parent.uuid if parent else None)


def _why_none(found: Mapping[int, Found], visible: str | None, chosen: Sequence[_Chosen]) -> str:
    if chosen:
        return "number_of_gpu is 0"
    if not found:
        return "the machine has none"
    if visible is not None:
        return f"{VISIBLE}={visible} leaves none of {len(found)}"
    return "all are in MIG mode, and none has slices"

"""Which device a worker runs on. Decisions only: what the devices are and how full they are is told to the placer.

A version asks by our key `devices:`, which is strict, or by TorchServe's `deviceType` and `deviceIds`, which give way; without any of
them every device is good, and the processors where there is none. Among the devices that have room the one with the fewest workers
is next (round robin, first device first), or the one with the least memory in use.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ringserve.protocol.errors import InvalidModel, OutOfResources
from ringserve.server.devices import GIB, Device, Usage
from ringserve.server.repository.sections import PlacementWish


@dataclass(frozen=True, slots=True)
class Place:
    """One worker's device. `device` is "cpu" or "cuda:<n>" as the worker's frameworks number it, `gpu_id` that n, None on the CPU.
    `visible` is what CUDA_VISIBLE_DEVICES is set to where the worker must not see the other devices (a MIG slice, a device
    named by UUID); `uuid` names the device. `lease` is the placer's own."""

    device: str = "cpu"
    gpu_id: int | None = None
    visible: str | None = None
    uuid: str | None = None
    lease: int = field(default=0, compare=False)


CPU = Place()


class _Target(NamedTuple):
    """Where a worker may run: a device or, None, the processors."""

    device: Device | None
    by_uuid: bool = False


@dataclass(slots=True)
class _Lease:
    key: int
    device: Device | None
    memory_bytes: int
    loaded_during: int | None = None  # the look at the devices that was the latest when the model had loaded
    seen: bool = False  # whether what the devices say includes its memory


class Placer:
    """Keeps who is where. `absent` says why there are no devices."""

    def __init__(self, devices: Sequence[Device] = (), absent: str = "") -> None:
        self.devices = tuple(devices)
        self._absent = absent
        self._whole = ",".join(each.uuid for each in self.devices if each.kind == "gpu")
        self._cut = any(each.kind == "mig" for each in self.devices)
        self._usage: Mapping[str, Usage] = {}
        self._leases: dict[int, _Lease] = {}
        self._numbers = itertools.count(1)
        self._looks = 0

    # ---- who goes where

    def check(self, wish: PlacementWish, device_type: str | None, device_ids: Sequence[int] | None) -> list[str]:
        """What is asked for and will not be done, one sentence each. Raises `InvalidModel` when `devices:` names what is not
        there."""
        strangers = [word for word in wish.devices if self._named(word) is None]
        if strangers:
            raise InvalidModel(self._unknown(wish.devices, strangers))
        if wish.devices:
            return []
        ignored = []
        if device_type == "gpu" and not self.devices:
            ignored.append(
                f"deviceType: gpu was asked for, but there is none ({self._absent}): its workers run on the CPU"
            )
        if device_ids and self.device_ids(device_ids) is None:
            there = f"0 to {len(self.devices) - 1}" if self.devices else f"none, as there are no GPUs ({self._absent})"
            ignored.append(f"deviceIds: expected {there}, got {list(device_ids)}; the list is ignored")
        return ignored

    def device_type(self, wish: PlacementWish, device_type: str | None) -> str:
        """`gpu` or `cpu`, as describe says it."""
        if wish.devices:
            return "cpu" if set(wish.devices) == {"cpu"} else "gpu"
        return "gpu" if self.devices and device_type != "cpu" else "cpu"

    def device_ids(self, device_ids: Sequence[int] | None) -> list[int] | None:
        """TorchServe's list as it counts: None when one of it is not there."""
        if not device_ids or not all(0 <= each < len(self.devices) for each in device_ids):
            return None
        return list(device_ids)

    def place(
        self,
        key: int,
        wish: PlacementWish,
        device_type: str | None = None,
        device_ids: Sequence[int] | None = None,
        instead_of: Place = CPU,
    ) -> Place:
        """A device for a worker of the version `key`. A worker that follows another one, `instead_of`, is placed as if that one
        were gone already, but its memory is still in use. Raises `InvalidModel`, or `OutOfResources` when none has room."""
        self.check(wish, device_type, device_ids)
        targets, listed = self._targets(wish, device_type, device_ids)
        need = wish.memory_bytes
        fitting = [target for target in targets if self._shortage(target, need) is None]
        if not fitting:
            raise OutOfResources(self._no_room(targets, need))
        order = self._by_memory if wish.policy == "least_memory" else self._by_count
        chosen = min(fitting, key=lambda target: order(target, key if listed else None, instead_of.lease))
        lease = next(self._numbers)
        self._leases[lease] = _Lease(key, chosen.device, need)
        return self._place(chosen, lease)

    def leave(self, place: Place) -> None:
        """The worker is gone for good."""
        self._leases.pop(place.lease, None)

    def workers_on(self, device: Device | None, key: int | None = None) -> int:
        """How many were placed there and have not left, of all versions or of one."""
        return self._count(device, key, 0)

    def _targets(
        self, wish: PlacementWish, device_type: str | None, device_ids: Sequence[int] | None
    ) -> tuple[list[_Target], bool]:
        """In the order of preference, each once, and whether the version listed them itself."""
        if wish.devices:
            named: dict[Device | None, _Target] = {}
            for word in wish.devices:
                target = self._named(word)
                assert target is not None, "check comes first"
                named.setdefault(target.device, target)
            return list(named.values()), True
        if device_type == "cpu" or not self.devices:
            return [_Target(None)], False
        numbers = self.device_ids(device_ids)
        if numbers is not None:
            return [_Target(self.devices[number]) for number in dict.fromkeys(numbers)], True
        return [_Target(device) for device in self.devices], False

    def _named(self, word: str) -> _Target | None:
        if word == "cpu":
            return _Target(None)
        for device in self.devices:
            if word == f"cuda:{device.index}":
                return _Target(device)
            if word == device.uuid:
                return _Target(device, by_uuid=True)
        return None

    def _by_count(self, target: _Target, key: int | None, left_out: int) -> tuple[int, ...]:
        return (self._count(target.device, key, left_out),)

    def _by_memory(self, target: _Target, key: int | None, left_out: int) -> tuple[int, ...]:
        """The processors come last: their memory is not the devices'. Of workers that are still loading and did not say what they
        need, none shares a device as long as there is another: the devices look as empty as before until such a worker has loaded."""
        device = target.device
        if device is None:
            return (1,)
        unknown = sum(not each.seen and not each.memory_bytes for each in self._leases_on(device))
        return (0, unknown, self._expected(device), *self._by_count(target, key, left_out))

    def _count(self, device: Device | None, key: int | None, left_out: int) -> int:
        leases = self._leases.items()
        return sum(each.device == device and key in (None, each.key) for number, each in leases if number != left_out)

    def _place(self, target: _Target, lease: int) -> Place:
        device = target.device
        if device is None:
            return Place(lease=lease)
        if target.by_uuid or device.kind == "mig":
            return Place("cuda:0", 0, device.uuid, device.uuid, lease)
        # A process that can see a slice sees no whole GPU.
        visible = self._whole if self._cut else None
        return Place(device.label, device.index, visible, device.uuid, lease)

    # ---- memory

    def look_begins(self) -> int:
        """Before the devices are asked how full they are: the number for `look_ends`."""
        self._looks += 1
        return self._looks

    def look_ends(self, look: int, usage: Mapping[str, Usage]) -> None:
        """The memory of workers that had loaded before the look began is in its figures."""
        self._usage = usage
        for lease in self._leases.values():
            lease.seen = lease.loaded_during is not None and lease.loaded_during < look

    def loaded(self, place: Place | None) -> None:
        """The worker has its model on the device."""
        lease = self._leases.get(0 if place is None else place.lease)
        if lease is not None:
            lease.loaded_during = self._looks

    def lost(self, place: Place | None) -> None:
        """Its process ended; it will load again at the same place."""
        lease = self._leases.get(0 if place is None else place.lease)
        if lease is not None:
            lease.loaded_during, lease.seen = None, False

    def usage_of(self, device: Device) -> Usage | None:
        """As of the last look; None when the device did not answer."""
        return self._usage.get(device.uuid)

    def device_of(self, place: Place) -> Device | None:
        return next((each for each in self.devices if each.uuid == place.uuid), None)

    def _leases_on(self, device: Device) -> list[_Lease]:
        return [each for each in self._leases.values() if each.device == device]

    def _reserved(self, device: Device) -> int:
        """What our workers will take beyond what is in use: all of it while they load, afterwards what they do not use yet and no
        other process does either."""
        leases = self._leases_on(device)
        declared = sum(each.memory_bytes for each in leases)
        coming = sum(each.memory_bytes for each in leases if not each.seen)
        return max(coming, declared - self._used(device))

    def _used(self, device: Device) -> int:
        usage = self._usage.get(device.uuid)
        return 0 if usage is None else usage.memory_bytes_used

    def _expected(self, device: Device) -> int:
        return self._used(device) + self._reserved(device)

    def _shortage(self, target: _Target, need: int) -> str | None:
        """Why `need` bytes are not to be had there; None when they are. Nobody counts on the memory of the processors here."""
        device = target.device
        if device is None or need == 0:
            return None
        if device.uuid not in self._usage:
            return "does not answer"
        if device.memory_bytes_total == 0:
            return "has no memory of its own"
        short = self._expected(device) + need - device.memory_bytes_total
        return f"{_gib(short)} short" if short > 0 else None

    # ---- refusals

    def _unknown(self, listed: Sequence[str], strangers: Sequence[str]) -> str:
        said = f"devices: expected devices of this server, got {', '.join(strangers)}"
        if not self.devices:
            return f"{said}. It has no GPUs: {self._absent}."
        rows = [("device", "uuid", "name", "total", "verdict")]
        for each in self.devices:
            verdict = "not in the list"
            if f"cuda:{each.index}" in listed or each.uuid in listed:
                verdict = "in the list"
            elif each.parent in strangers:
                verdict = f"a slice of {each.parent}, which is in MIG mode: name the slice"
            rows.append((f"cuda:{each.index}", each.uuid, each.name, _gib(each.memory_bytes_total), verdict))
        return f"{said}. Its devices are:\n{_table(rows)}"

    def _no_room(self, targets: Sequence[_Target], need: int) -> str:
        rows: list[tuple[str, ...]] = [("device", "name", "total", "used", "reserved", "needed", "verdict")]
        for each in self.devices:
            target = next((target for target in targets if target.device == each), None)
            verdict = "not asked for" if target is None else self._shortage(target, need)
            sizes = (each.memory_bytes_total, self._used(each), self._reserved(each), need)
            rows.append((each.label, each.name, *map(_gib, sizes), verdict or "has room"))
        return f"No device has room for a worker that needs {_gib(need)} (placement.memory):\n{_table(rows)}"


def _gib(size_bytes: int) -> str:
    """With three digits where they matter, so that no shortage reads as 0."""
    return (
        f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB // 10 or size_bytes == 0 else f"{size_bytes / 2**20:.3g} MiB"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

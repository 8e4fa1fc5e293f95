"""Versions with workers that do what the test says, and a front end that confirms when it is let."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ringserve.server.device_watch import DeviceWatch
from ringserve.server.devices import no_devices
from ringserve.server.fleet import Fleet
from ringserve.server.registry import ModelVersion, ServingOptions
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import parse_model_config
from ringserve.server.repository.remote import Fetched
from ringserve.server.repository.store import ModelStore, UnpackedModel
from ringserve.server.settings import Settings
from ringserve.server.versions import Versions
from ringserve.server.worker_slot import WorkerSlot
from tests.server.pool_rig import Process


class FrontEnd:
    """All of them, as far as versions know. `may_apply` holds up publications, `waiting` is what waits for each version."""

    def __init__(self) -> None:
        self.may_apply = asyncio.Event()
        self.may_apply.set()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.waiting: dict[int, int] = {}
        self.linked: list[str] = []
        self.failed: list[int] = []  # versions whose waiting requests found no worker

    async def publish(self) -> None:
        await asyncio.sleep(0)
        await self.may_apply.wait()

    def announce(self) -> None:
        pass

    def link(self, version: ModelVersion, slot: WorkerSlot) -> None:
        self.linked.append(slot.worker_id)
        self.waiting.pop(version.key, None)  # they are answered at once

    def worker_gone(self, version: ModelVersion, worker_id: str, status: int, cause: str) -> None:
        if worker_id in self.linked:
            self.linked.remove(worker_id)

    async def detach(self, version: ModelVersion, worker_id: str, timeout_s: float) -> bool:
        return True

    async def queue_depth(self, key: int) -> int:
        await asyncio.sleep(0)
        return self.waiting.get(key, 0)

    async def close_lanes(self, version: ModelVersion, timeout_s: float) -> bool:
        if self.waiting.pop(version.key, 0):
            self.failed.append(version.key)
        await self.may_close.wait()
        return True


class Store:
    def __init__(self) -> None:
        self.discarded: list[UnpackedModel] = []

    def discard(self, unpacked: UnpackedModel) -> None:
        self.discarded.append(unpacked)

    def forget(self, fetched: Fetched) -> None:
        pass


class Site:
    """What is served, and by whom."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Process.all.clear()
        Process.plan.clear()
        Process.refused = 0
        monkeypatch.setattr("ringserve.server.pool.Child", Process)
        monkeypatch.setattr("ringserve.server.pool.random", SimpleNamespace(random=lambda: 0.5))
        self.front_end = FrontEnd()
        self.store = Store()
        self.versions = Versions(Settings(), cast(ModelStore, self.store), DeviceWatch(no_devices("for this test")))
        self.versions.fleet = cast(Fleet, self.front_end)

    def version(self, label: str = "1.0", workers: int = 1, workers_max: int = 0, **config: Any) -> ModelVersion:
        unpacked = UnpackedModel(Manifest("m", label), parse_model_config(config), Path("/"), temporary=True)
        options = ServingOptions(1, 0, 100, 120, 60, "h", loaded_at_startup=False)
        key = self.versions.registry.next_key()
        made = ModelVersion(key, "m", label, f"{label}.mar", unpacked, options, workers, workers_max or workers)
        made.dropped = True
        return made

    async def served(self, label: str = "1.0", workers: int = 1, workers_max: int = 0) -> ModelVersion:
        """A version whose workers have loaded."""
        version = self.version(label, workers, workers_max)
        self.versions.add(version)
        await self.versions.start(version)
        self.load()
        await self.versions.settle(version)
        return version

    def load(self) -> None:
        """Every process that is starting."""
        for process in self.starting:
            process.load()

    @property
    def running(self) -> list[Process]:
        return [each for each in Process.all if each.exit_code is None]

    @property
    def starting(self) -> list[Process]:
        return [each for each in self.running if each.state.value == "starting"]


async def ticks(count: int = 20) -> None:
    """Let everything happen that can."""
    for _ in range(count):
        await asyncio.sleep(0)

"""A model repository in a real folder, somebody in memory who deploys what lies there, and a clock that passes when told."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from ringserve.protocol.errors import RingServeError, VersionNotFound, WorkerStartFailed
from ringserve.server.dropin import DropIn
from ringserve.server.registration import Dropped
from ringserve.server.registry import ModelVersion, Registry, ServingOptions
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import ModelConfig
from ringserve.server.repository.settling import GONE_S
from ringserve.server.repository.store import UnpackedModel
from ringserve.server.repository.watch import Watcher

OPTIONS = ServingOptions(1, 100, 100, 120, 120, "handler.py", loaded_at_startup=False)


class Deployer:
    """Deploys at once. `holds` names files whose loading waits for `let`, `fails` those that fail, and how."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.did: list[str] = []
        self.fails: dict[str, RingServeError] = {}
        self.holds: dict[str, asyncio.Event] = {}
        self.abandoned: set[str] = set()
        self.asked: list[Dropped] = []

    async def deploy(
        self, dropped: Dropped, replaces: ModelVersion | None, *, beside: bool = True, make_default: bool = True
    ) -> ModelVersion:
        self.asked.append(dropped)
        content = (dropped.path / "MAR-INF/x").read_text() if dropped.path.is_dir() else read_mar(dropped.path)
        name, _, label = content.partition(" ")
        self.did.append(f"load {dropped.url}: {content}")
        self.abandoned.discard(dropped.url)
        while dropped.url in self.holds and not self.holds[dropped.url].is_set():
            await asyncio.sleep(0)
            if dropped.url in self.abandoned:
                raise WorkerStartFailed("The worker was stopped before it had loaded.")
        if dropped.url in self.fails:
            raise self.fails[dropped.url]
        manifest = Manifest(model_name=name, model_version=label or "1.0")
        if replaces is not None and not self.registry.holds(replaces):
            raise VersionNotFound("It was unregistered meanwhile.")
        unpacked = UnpackedModel(manifest, ModelConfig(), dropped.path, temporary=True)
        name, label = dropped.model_name or name, dropped.version or label or "1.0"
        version = ModelVersion(self.registry.next_key(), name, label, dropped.url, unpacked, OPTIONS)
        self.registry.replace(replaces, version)
        if beside and make_default and not self.registry.models[name].pinned:
            self.registry.models[name].default_version = label
        return version

    async def abandon(self, url: str) -> None:
        self.abandoned.add(url)

    async def retire(self, version: ModelVersion) -> None:
        self.registry.remove(version)
        self.did.append(f"unload {version.name} {version.version}")

    async def make_default(self, name: str, version: str) -> None:
        self.registry.set_default(name, version, pin=False)

    def served(self) -> dict[str, list[str]]:
        """Versions by model, the default one first."""
        models = self.registry.models
        return {
            name: sorted(models[name].versions, key=lambda each: (each != models[name].default_version, each))
            for name in sorted(models)
        }


def read_mar(path: Path) -> str:
    with ZipFile(path) as bundle:
        return bundle.read("content").decode()


class Place:
    """A repository, what is served from it, and the time."""

    def __init__(self, root: Path, away: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.deployer = Deployer()
        self.now_s = 100.0
        self.by_url: set[str] = set()
        self.not_ready: dict[str, str] = {}
        self.dropin = DropIn(
            root,
            self.deployer,
            Watcher(root, poll_s=1000),
            came_by_url=lambda name: name in self.by_url,
            why_not_ready=lambda version: self.not_ready.get(version.name),
            away=away,
            clock=lambda: self.now_s,
        )

    def mar(self, name: str, content: str) -> None:
        """As by a rename of a file that was written long ago."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(".made")
        with ZipFile(made, "w") as bundle:
            bundle.writestr("content", content)
        os.utime(made, (1, 1))
        os.replace(made, path)

    def text(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1, 1))

    async def look(self, passed_s: float = 10.0) -> float | None:
        """Time passes; two looks, so that what is gone is gone, and one when everything started has come to its end."""
        self.now_s += passed_s
        await self.dropin.look()
        self.now_s += GONE_S
        for _ in range(2):
            due_s = await self.dropin.look()
            await self.dropin.done()
        return due_s

    def rows(self) -> list[tuple[Any, ...]]:
        return [
            (row["file"], row["model"], row["version"], row["state"], row["reason"]) for row in self.dropin.report()
        ]

    def state(self, file: str) -> str:
        [row] = [row for row in self.dropin.report() if row["file"] == file]
        return str(row["state"])


Scene = Callable[[Place], Awaitable[None]]
Play = Callable[[Scene], None]


def run(root: Path, scene: Scene) -> None:
    """Play a scene in an empty repository."""
    root.mkdir()

    async def act() -> None:
        place = Place(root)
        try:
            await scene(place)
        finally:
            await place.dropin.stop()

    asyncio.run(act())

"""What the management API and the model repository do, without HTTP or files: register, deploy, scale, describe, list,
unregister (contract sections 2.2-2.8).

Registration is a transaction: a synchronous one that fails leaves nothing behind, and its name is free at once.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import orjson

from ringserve.protocol.errors import (
    METHOD_NOT_ALLOWED,
    BadRequest,
    Conflict,
    Internal,
    InvalidModel,
    MethodNotAllowed,
    ModelNotFound,
    NoWorker,
    RequestTimeout,
    RingServeError,
    VersionNotFound,
)
from ringserve.server.description import describe_version
from ringserve.server.device_watch import DeviceWatch
from ringserve.server.registration import Dropped, Registration, make_version, overridden
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.allowed_urls import REMOTE, shown_url
from ringserve.server.repository.environments import Environments
from ringserve.server.repository.store import ModelStore, UnpackedModel, fallback_name
from ringserve.server.settings import WORKERS_MAX, Settings
from ringserve.server.snapshots.document import VersionRecord
from ringserve.server.snapshots.properties import effective_properties
from ringserve.server.snapshots.recorder import Recorder
from ringserve.server.snapshots.remembered import (
    Numbers,
    Promises,
    records,
    registration_of,
    restore_dropped,
    restore_settings,
)
from ringserve.server.snapshots.restoring import Lost
from ringserve.server.snapshots.store import store_for
from ringserve.server.versions import Versions

logger = logging.getLogger("ringserve.management")

ChangeModel = Callable[[UnpackedModel], UnpackedModel]
IN_BACKGROUND = "Processing worker updates..."
SCALING = "Workers scaling in progress..."


class Repository(Protocol):
    """The watched folder, as far as describe and metrics want to know of it: how many files were taken, and refused by cause."""

    accepted: int
    refused: Counter[str]

    def report(self) -> list[dict[str, Any]]:
        """Of every file: its model and version as far as they are known, state, reason and since when."""

    def unregistered(self) -> Mapping[str, str]:
        """What the API has sent away, with the content that it did so to."""


class Management:
    """Edits desired state and waits, where asked to, until it is so."""

    def __init__(self, settings: Settings, store: ModelStore, devices: DeviceWatch, environments: Environments) -> None:
        self.versions = Versions(settings, store, devices)
        self.registry = self.versions.registry
        self.environments = environments
        self.repository: Repository | None = None  # where one is watched
        self.settings = settings
        self.remembered: dict[tuple[str, str], VersionRecord] = {}  # of dropped versions; at start-up only
        self.lost = Lost(self.registry)
        # Files that load_models names and that the API has unregistered, where no folder is watched.
        self.away: dict[str, str] = {}
        self.not_loaded: list[str] = []  # what was named at the start, each with the reason
        self.recorder = Recorder(store_for(settings), effective_properties(settings), self._records, self._unregistered)
        self.versions.changed = self.recorder.note
        self._store = store
        self._promises = Promises()
        self._restored: set[ModelVersion] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- register

    async def register(self, wanted: Registration) -> str:
        """Returns the sentence of the answer. Raises what section 2.2 lists."""
        if not (self.settings.enable_model_api or wanted.at_startup):
            raise MethodNotAllowed(METHOD_NOT_ALLOWED)
        fetched = await self._store.fetch(wanted.url, s3_sse_kms=wanted.s3_sse_kms, at_startup=wanted.at_startup)
        name_if_absent = wanted.model_name or (fallback_name(fetched.path) if wanted.at_startup else None)
        try:
            unpacked = await asyncio.to_thread(self._store.unpack, fetched.path, name_if_absent)
            version, replaces = await self._admitted(replace(wanted, url=fetched.shown_url), unpacked)
        except BaseException:
            await asyncio.to_thread(self._store.take_back, fetched)
            raise
        version.fetched = fetched
        wait = wanted.synchronous or version.min_workers == 0
        if replaces is None:
            await self._begin(version, wait=wait)
        elif wait:
            await self._take_over(version, replaces)
        else:
            self._promises.coming.add(version)
            self._in_background(self._take_over(version, replaces))
        self.away.pop(fetched.path.name, None)
        await self.recorder.record()
        if not wait:
            return IN_BACKGROUND
        if version.min_workers == 0:
            return (
                f'Model "{version.name}" Version: {version.version} registered with 0 initial workers. '
                "Use scale workers API to add workers for the model."
            )
        return (
            f'Model "{version.name}" Version: {version.version} registered with {version.min_workers} initial workers'
        )

    async def _admitted(
        self, wanted: Registration, unpacked: UnpackedModel
    ) -> tuple[ModelVersion, ModelVersion | None]:
        """In the registry, and without workers; or to take over from the second, which the repository serves from the very same
        file. When it cannot be, nothing is left."""
        try:
            version = make_version(self.registry.next_key(), wanted, unpacked, self.settings)
            other = self.registry.namesake(version)
            # `/any/folder/x.mar` is the store's `x.mar`.
            same_file = other is not None and other.dropped and other.url == version.url.rstrip("/").rpartition("/")[2]
            replaces = other if same_file else None
            await self._prepare(version, replaces)
            if replaces is None:
                self.versions.add(version)
        except BaseException:
            await asyncio.to_thread(self._store.discard, unpacked)
            raise
        return version, replaces

    async def _begin(self, version: ModelVersion, *, wait: bool) -> None:
        if not wait:
            await self.versions.start(version)
            return
        self._promises.unanswered.add(version)
        try:
            await self.versions.start(version)
            await self.versions.settle(version)
        finally:
            self._promises.unanswered.discard(version)

    async def _take_over(self, version: ModelVersion, replaces: ModelVersion) -> None:
        """Who registers a file that has been dropped in already means what is registered now."""
        try:
            await self.versions.load_beside(version)
            await self.versions.switch(version, replaces, make_default=False)
        finally:
            self._promises.coming.discard(version)
        await self.retire(replaces)

    async def _prepare(self, version: ModelVersion, replaces: ModelVersion | None) -> None:
        """All that can be known and done before a worker starts. Raises `RingServeError`."""
        self.versions.check_devices(version)
        await self.versions.look_at_devices(version)
        self._check_free(version, replaces)
        version.python = await self.environments.python_for(version.unpacked, version.name)
        triton = version.unpacked.config.triton
        if triton is not None and triton.without_effect:
            fields = ", ".join(triton.without_effect)
            logger.warning("%s %s: without effect in this version: %s", version.name, version.version, fields)

    def _check_free(self, version: ModelVersion, replaces: ModelVersion | None) -> None:
        """Raises `Conflict` before a long preparation would be for nothing."""
        other = self.registry.namesake(version)
        if other is not None and other is not replaces:
            raise Conflict(f"Model version {version.version} is already registered for model {version.name}")

    async def load_at_startup(self, entries: Iterable[str]) -> None:
        """`all`, `name=location` or `location`; one that fails is logged and skipped."""
        wanted = list(entries)
        if [entry.lower() for entry in wanted] == ["all"]:
            wanted = self._store.entries()
        for entry in wanted:
            name, separator, location = ("", "", "") if REMOTE.match(entry) else entry.partition("=")
            url = location if separator else entry
            known = self._restored_from(url, name if separator else None)
            if known is not None:
                known.options = replace(known.options, loaded_at_startup=True)
                logger.info("%s is served with the settings of the snapshot", shown_url(url))
                continue
            if _file_of(url) in self.away:
                logger.info(
                    "%s stays away: the API has unregistered it. --models, or the API, brings it back", shown_url(url)
                )
                continue
            shown = f"{name}{separator}{shown_url(url)}" if separator else shown_url(url)
            try:
                said = await self.register(
                    Registration(url, name if separator else None, synchronous=False, at_startup=True)
                )
                logger.info("%s: %s", shown_url(url), said)
                if self._restored:
                    logger.info("%s was not in the snapshot: it is served because it is named now", shown)
            except RingServeError as error:
                self.not_loaded.append(f"{shown}: {error.message}")
                logger.error("Failed to load model: %s", self.not_loaded[-1])
        for version in self._restored if wanted else ():
            if not version.options.loaded_at_startup:
                logger.info("%s %s is served because of the snapshot: it is not named", version.name, version.version)

    # ---- snapshots

    def _records(self) -> list[VersionRecord]:
        versions = self.versions
        devices = {
            each.key: {slot.place.device for slot in versions.slots(each) if slot.place is not None}
            for each in self.registry
        }
        return records(self.registry, self._promises, self.lost.records(), devices)

    def _unregistered(self) -> Mapping[str, str]:
        return self.away if self.repository is None else self.repository.unregistered()

    async def reinstate(self, record: VersionRecord) -> ModelVersion:
        """Register again what a snapshot remembers; its workers begin to load. Raises `RingServeError`; then nothing has changed."""
        fetched = self._store.fetched_before(record.mar_name, record.url or record.mar_name, remote=record.remote)
        unpacked = await asyncio.to_thread(self._store.unpack, fetched.path, record.model)
        try:
            unpacked = await asyncio.to_thread(overridden, unpacked, record.placement)
            version = make_version(self.registry.next_key(), registration_of(record), unpacked, self.settings)
            if version.version != record.version:
                raise InvalidModel(f"{record.mar_name}: expected version {record.version}, got {version.version}")
            restore_settings(version, record)
            version.options = replace(version.options, loaded_at_startup=False)
            version.fetched = fetched
            await self._prepare(version, None)
            self.versions.add(version)
        except BaseException:
            await asyncio.to_thread(self._store.discard, unpacked)
            raise
        self._restored.add(version)
        await self.versions.start(version, restored=True)
        return version

    def _restored_from(self, url: str, name: str | None) -> ModelVersion | None:
        """What a snapshot has brought already of a model that is named to be loaded."""
        file = _file_of(url)
        for version in self._restored:
            wanted = name or version.unpacked.manifest.model_name
            if version.fetched is not None and version.fetched.path.name == file and version.name == wanted:
                return version
        return None

    # ---- the model repository

    async def deploy(
        self,
        dropped: Dropped,
        replaces: ModelVersion | None,
        *,
        beside: bool = True,
        make_default: bool = True,
    ) -> ModelVersion:
        """Serve what lies in the repository. Beside: loaded and warmed up first, then in one publication it is there and
        `replaces` is not, which then answers what it has and goes. Raises `RingServeError`; then nothing has changed. Not
        beside: there at once, and its requests wait while it loads."""
        version = await self.stage(dropped, replaces, known=not beside)
        if not beside:
            await self.versions.start(version)
            return version
        await self.versions.load_beside(version, replaces)
        await self.versions.switch(version, replaces, make_default=make_default)
        if replaces is not None:
            await self.retire(replaces)
        return version

    async def stage(
        self, dropped: Dropped, replaces: ModelVersion | None, change: ChangeModel | None = None, *, known: bool = False
    ) -> ModelVersion:
        """All of a deployment that comes before its workers; `known`: it can be asked for from now on. `change` makes another model of what
        was unpacked, in a thread. Raises `RingServeError`; then nothing is left."""
        unpack, said = self._store.unpack, dropped.said
        unpacked = await asyncio.to_thread(unpack, dropped.path, dropped.name_if_absent, aside=True, said=said)
        # What comes this way needs no permission, and has as many workers as what is named at start-up.
        wanted = Registration(dropped.url, dropped.model_name, at_startup=True)
        try:
            unpacked = await asyncio.to_thread(overridden, unpacked, dropped.overrides)
            if change is not None:
                unpacked = await asyncio.to_thread(change, unpacked)
            version = make_version(self.registry.next_key(), wanted, unpacked, self.settings, dropped.version)
            if not dropped.at_startup:
                version.options = replace(version.options, loaded_at_startup=False)
            elif (version.name, version.version) in self.remembered:
                restore_dropped(version, self.remembered[version.name, version.version])
            version.dropped = True
            await self._prepare(version, replaces)
            if known:
                self.versions.add(version)
        except BaseException:
            await asyncio.to_thread(self._store.discard, unpacked)
            raise
        return version

    async def unstage(self, version: ModelVersion) -> None:
        """It is not deployed after all."""
        await asyncio.to_thread(self._store.discard, version.unpacked)

    async def abandon(self, url: str) -> None:
        """Make the `deploy` of a file that still loads beside end with an error; nothing happens where none does."""
        await self.versions.abandon(url)

    async def retire(self, version: ModelVersion) -> None:
        """Its requests are answered, then it is unloaded. Nothing happens when it is not there any more."""
        await self.versions.take_out(version)

    async def make_default(self, name: str, version: str) -> None:
        """As the repository says, which gives way to what somebody chose by the API. Raises as `Registry.set_default`."""
        self.registry.set_default(name, version, pin=False)
        await self.versions.publish()

    # ---- scale

    async def scale(self, name: str, version: str | None, low: int, high: int | None, *, synchronous: bool) -> str:
        """Change how many workers are wanted. Raises `BadRequest`, or what `find` raises."""
        maximum = low if high is None else high
        if maximum < low:
            raise BadRequest("max_worker cannot be less than min_worker.")
        found = self.registry.find(name, version)
        if low < 0:
            raise BadRequest(f"min_worker: expected 0 or more, got {low}")
        if maximum > WORKERS_MAX:
            raise BadRequest(f"max_worker: expected at most {WORKERS_MAX}, got {maximum}")
        if not synchronous:
            numbers = self._promises.scale(found, low, maximum, firm=True)
            self._in_background(self._resize_promised(found, numbers, low, maximum))
            await self.recorder.record()
            return IN_BACKGROUND
        numbers = self._promises.scale(found, low, maximum, firm=False)
        found = await self._resize_promised(found, numbers, low, maximum)
        await self.recorder.record()
        if self.versions.ready_count(found) < low:
            return SCALING
        suffix = f", version: {version}" if version is not None else ""
        return f"Workers scaled to {low} for model: {name}{suffix}"

    async def _resize_promised(self, version: ModelVersion, numbers: Numbers, low: int, high: int) -> ModelVersion:
        try:
            return await self._resize(version, low, high)
        finally:
            self._promises.scaled(version, numbers, low, high)

    async def _resize(self, version: ModelVersion, low: int, high: int) -> ModelVersion:
        """Returns the version that has so many workers now: the one that took its place, when it was replaced meanwhile. Raises what
        `Versions.resize` does."""
        while True:
            try:
                await self.versions.resize(version, low, high)
                return version
            except RingServeError:
                successor = self.versions.successor(version)
                if successor is None:
                    raise
                version = successor

    async def settled(self) -> None:
        """What was answered before it was done is done, or has failed."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _in_background(self, work: Coroutine[Any, Any, object]) -> None:
        async def logged() -> None:
            try:
                await work
            except RingServeError as error:
                logger.error("%s", error.message)
            finally:
                self.recorder.note()

        task = asyncio.ensure_future(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- set default, unregister

    async def set_default(self, name: str, version: str) -> str:
        """Raises `ModelNotFound`, `VersionNotFound`."""
        self.registry.set_default(name, version)
        await self.versions.publish()
        await self.recorder.record()
        return f'Default version successfully updated for model "{name}" to "{version}"'

    async def unregister(self, name: str, version: str | None) -> str:
        """Raises `InvalidVersionUse`, `RequestTimeout`, or what `find` raises."""
        if not self.settings.enable_model_api:
            raise MethodNotAllowed(METHOD_NOT_ALLOWED)
        try:
            found = self.registry.find(name, version)
        except (ModelNotFound, VersionNotFound):
            if not self.lost.forget(name, version):
                raise
            await self.recorder.record()
            return f'Model "{name}" unregistered'
        self.registry.check_removable(found)
        in_time = await self.versions.take_out(found)
        if found.options.loaded_at_startup and found.fetched is not None:
            self.away[found.fetched.path.name] = ""
        self.lost.forget(found.name, found.version)  # it was lost once, and has been registered since
        await self.recorder.record()
        if not in_time:
            raise RequestTimeout(f"Timed out while cleaning resources: {name}")
        return f'Model "{name}" unregistered'

    # ---- describe and list

    async def describe(self, name: str, version: str | None, *, customized: bool = False) -> list[dict[str, object]]:
        """TorchServe's array: one version, the default one, or `all`; `customized` asks the model's handler as well."""
        if version == "all":
            return [await self._describe(each) for each in self.registry.all_of(name)]
        try:
            found = self.registry.find(name, version)
        except ModelNotFound as error:
            reasons = [f"{each['file']}: {each['reason']}" for each in self._files_of(name) if each.get("reason")]
            lost = self.lost.report(name)
            reasons += [f"Version {each['version']} was not restored: {each['reason']}" for each in lost]
            raise ModelNotFound(". ".join([error.message, *reasons])) from None
        described = await self._describe(found)
        if customized:
            text = await self._asked_description(found)
            if text is not None:
                described["customizedMetadata"] = orjson.loads(text)
        return [described]

    async def _describe(self, version: ModelVersion) -> dict[str, object]:
        fleet = self.versions.fleet
        waiting = await fleet.queue_depth(version.key) if fleet is not None else 0
        await self.versions.devices.refresh(age_s_max=1.0)
        described = describe_version(version, self.versions.slots(version), waiting, self.versions.devices.placer)
        files = [each for each in self._files_of(version.name) if each.get("version") in (None, version.version)]
        if files:
            described["repository"] = files
        lost = self.lost.report(version.name)
        if lost:
            described["notRestored"] = lost
        return described

    def _files_of(self, name: str) -> list[dict[str, Any]]:
        return [] if self.repository is None else [each for each in self.repository.report() if each["model"] == name]

    async def _asked_description(self, version: ModelVersion) -> bytes | None:
        """What the handler says of its model. Raises `NoWorker`, `Internal`."""
        if not self.versions.ready_count(version):
            raise NoWorker(
                f'Model "{version.name}" has no worker to serve describe request. '
                "Please use scale workers API to add workers."
            )
        try:
            return await self.versions.pool(version).ask_description(version.options.response_timeout_s)
        except TimeoutError:
            raise Internal("Failed to get customized model matadata.") from None  # TorchServe's spelling

    def list_models(self, limit: int, offset: int) -> dict[str, object]:
        """Default versions sorted by name; `nextPageToken` by TorchServe's rule."""
        defaults = self.registry.defaults()
        limit = limit if 0 <= limit <= 100 else 100
        offset = max(0, offset)
        page = [{"modelName": each.name, "modelUrl": each.url} for each in defaults[offset : offset + limit]]
        listed: dict[str, object] = {"models": page}
        if offset + limit <= len(defaults):
            listed = {"nextPageToken": str(offset + limit), **listed}
        return listed


def _file_of(url: str) -> str:
    return url.partition("?")[0].rstrip("/").rpartition("/")[2]

"""What the management API does, without HTTP: register, scale, describe, list, unregister (contract sections 2.2-2.8).

Registration is a transaction: a synchronous one that fails leaves nothing behind, and its name is free at once.
"""

import asyncio
import itertools
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from importlib.metadata import version as package_version

from ringserve.protocol.errors import (
    BadRequest,
    Internal,
    InvalidModel,
    MethodNotAllowed,
    RequestTimeout,
    RingServeError,
    VersionNotFound,
)
from ringserve.protocol.tensor import Signature
from ringserve.server.app import METHOD_NOT_ALLOWED
from ringserve.server.budget import cpu_count
from ringserve.server.control import LoadModel, ModelRoute, VersionRoute
from ringserve.server.description import describe_version, unsupported_keys
from ringserve.server.fleet import Fleet
from ringserve.server.placement import CPU
from ringserve.server.pool import PoolHooks, WorkerPool, WorkerSlot
from ringserve.server.registry import ModelVersion, Registry, ServingOptions
from ringserve.server.repository.manifest import check_inside, usable_name
from ringserve.server.repository.store import ModelStore, UnpackedModel, fallback_name
from ringserve.server.settings import Settings

logger = logging.getLogger("ringserve.management")

WORKERS_MAX = 1024
BATCH_SIZE_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Registration:
    """The parameters of a registration; None where nothing was said."""

    url: str | None
    model_name: str | None = None
    handler: str | None = None
    runtime: str | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    initial_workers: int | None = None
    synchronous: bool = True
    response_timeout_s: int | None = None
    startup_timeout_s: int | None = None
    queue_timeout_s: int | None = None
    at_startup: bool = False


class Management:
    """Edits desired state and waits, where asked to, until it is so."""

    def __init__(self, settings: Settings, store: ModelStore) -> None:
        self.registry = Registry()
        self.fleet: Fleet | None = None  # set once it exists; until then there is nobody to tell
        self._settings = settings
        self._store = store
        self._pools: dict[int, WorkerPool] = {}
        self._worker_ids = itertools.count(settings.initial_worker_port)
        self._server_version = package_version("ringserve")
        self._tasks: set[asyncio.Task[None]] = set()
        self._removals: dict[int, asyncio.Task[bool]] = {}

    # ---- register

    async def register(self, wanted: Registration) -> str:
        """Returns the sentence of the answer. Raises what section 2.2 lists."""
        if not (self._settings.enable_model_api or wanted.at_startup):
            raise MethodNotAllowed(METHOD_NOT_ALLOWED)
        path = self._store.locate(wanted.url)
        name_if_absent = fallback_name(path) if wanted.at_startup else None
        unpacked = await asyncio.to_thread(self._store.unpack, path, wanted.model_name or name_if_absent)
        try:
            version = self._described(wanted, unpacked)
            self.registry.add(version)
        except RingServeError:
            self._store.discard(unpacked)
            raise
        self._pools[version.key] = WorkerPool(version, self._load_message(version), self._pool_hooks(version))
        count = version.min_workers
        if count == 0:
            await self._publish()
            return (
                f'Model "{version.name}" Version: {version.version} registered with 0 initial workers. '
                "Use scale workers API to add workers for the model."
            )
        self._pools[version.key].grow(count)
        await self._publish()
        if not wanted.synchronous:
            return "Processing worker updates..."
        try:
            await self._pools[version.key].settle()
            await self._publish()
        except BaseException:
            await asyncio.shield(self._remove(version))
            raise
        return f'Model "{version.name}" Version: {version.version} registered with {count} initial workers'

    def _described(self, wanted: Registration, unpacked: UnpackedModel) -> ModelVersion:
        """The version that the parameters, the archive and the defaults make together."""
        manifest, config, settings = unpacked.manifest, unpacked.config, self._settings
        if (wanted.runtime or manifest.runtime) == "LSP":
            raise InvalidModel(
                "runtime: expected python or python3, got LSP, which is served by TorchServe's C++ backend only"
            )
        name = usable_name("model_name", wanted.model_name or manifest.model_name)
        if wanted.handler:
            check_inside("handler", wanted.handler.partition(":")[0])
        batch_size = wanted.batch_size or config.batch_size or 1
        if not 0 < batch_size <= BATCH_SIZE_MAX:
            raise BadRequest(f"batch_size: expected 1 to {BATCH_SIZE_MAX}, got {batch_size}")
        low, high = config.worker_range or self._workers_asked(wanted)
        if high > WORKERS_MAX:
            raise BadRequest(f"workers: expected at most {WORKERS_MAX}, got {high}")
        ignored = unsupported_keys(config)
        if ignored:
            logger.warning(
                "%s: this version does not do what model-config.yaml asks for by: %s", name, ", ".join(ignored)
            )
        options = ServingOptions(
            batch_size=batch_size,
            batch_wait_ms=_first(wanted.max_batch_delay_ms, config.max_batch_delay_ms, 100),
            queue_size=config.job_queue_size or settings.job_queue_size,
            response_timeout_s=_first(
                config.response_timeout_s, wanted.response_timeout_s, settings.default_response_timeout_s
            ),
            startup_timeout_s=_first(
                config.startup_timeout_s, wanted.startup_timeout_s, settings.default_startup_timeout_s
            ),
            handler=wanted.handler or manifest.handler,
            loaded_at_startup=wanted.at_startup,
            queue_timeout_s=_first(config.queue_timeout_s, wanted.queue_timeout_s, settings.default_queue_timeout_s),
        )
        key = self.registry.next_key()
        url = wanted.url or ""
        return ModelVersion(key, name, manifest.model_version, url, unpacked, options, low, high)

    def _workers_asked(self, wanted: Registration) -> tuple[int, int]:
        default = self._settings.default_workers_per_model
        if wanted.at_startup and default == 0:
            default = cpu_count()
        count = max(0, _first(wanted.initial_workers, None, default))
        return count, count

    def _load_message(self, version: ModelVersion) -> LoadModel:
        manifest, config = version.unpacked.manifest, version.unpacked.config
        return LoadModel(
            model=version.name,
            version=version.version,
            model_dir=str(version.unpacked.model_dir),
            backend=config.backend,
            handler=version.options.handler,
            manifest=manifest.raw,
            config=config.raw,
            signature=config.signature,
            batch_size=version.options.batch_size,
            response_bytes_max=self._settings.max_response_size,
            decode_input_request=self._settings.decode_input_request,
            limit_max_image_pixels=self._settings.limit_max_image_pixels,
            server_version=self._server_version,
            warmup=config.sections.warmup,
            max_requests=config.sections.recycle.max_requests,
        )

    def _pool_hooks(self, version: ModelVersion) -> PoolHooks:
        def on_ready(slot: WorkerSlot, signature: Signature) -> None:
            self._check_registered(version)
            if version.signature is None:
                version.signature = signature
            elif version.signature != signature:
                raise Internal(f"Worker {slot.worker_id} declares other inputs and outputs than the workers before it.")
            if self.fleet is not None:
                self.fleet.link(version, slot)

        def on_lost(slot: WorkerSlot, status: int, cause: str) -> None:
            if self.fleet is not None:
                self.fleet.worker_gone(version, slot.worker_id, status, cause)

        async def detach(slot: WorkerSlot) -> None:
            if self.fleet is not None:
                await self.fleet.detach(version, slot.worker_id, self._settings.unregister_model_timeout_s)

        return PoolHooks(
            on_ready,
            on_lost,
            detach,
            lambda: CPU,
            lambda place: None,
            self._announce,
            lambda: str(next(self._worker_ids)),
        )

    async def load_at_startup(self, entries: Iterable[str]) -> None:
        """`all`, `name=location` or `location`; one that fails is logged and skipped."""
        wanted = list(entries)
        if [entry.lower() for entry in wanted] == ["all"]:
            wanted = self._store.entries()
        for entry in wanted:
            name, separator, location = entry.partition("=")
            url = location if separator else entry
            try:
                said = await self.register(
                    Registration(url, name if separator else None, synchronous=False, at_startup=True)
                )
                logger.info("%s: %s", url, said)
            except RingServeError as error:
                logger.error("Failed to load model: %s: %s", entry, error.message)

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
        found.min_workers, found.max_workers = low, maximum
        work = self._resize(found)
        if not synchronous:
            self._in_background(work)
            return "Processing worker updates..."
        await work
        suffix = f", version: {version}" if version is not None else ""
        return f"Workers scaled to {low} for model: {name}{suffix}"

    async def _resize(self, version: ModelVersion) -> None:
        """Raises `VersionNotFound` when the version is unregistered meanwhile, or what `settle` raises."""
        self._check_registered(version)
        pool = self._pools[version.key]
        if len(pool.slots) > version.max_workers:
            await pool.shrink(version.max_workers)
            self._check_registered(version)
        if len(pool.slots) < version.min_workers:
            pool.grow(version.min_workers)
            await self._publish()
            await pool.settle()
        await self._publish()

    def _check_registered(self, version: ModelVersion) -> None:
        if not self.registry.holds(version):
            raise VersionNotFound(f"Model version: {version.version} does not exist for model: {version.name}")

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        async def logged() -> None:
            try:
                await work
            except RingServeError as error:
                logger.error("%s", error.message)

        task = asyncio.ensure_future(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- unregister

    async def unregister(self, name: str, version: str | None) -> str:
        """Raises `InvalidVersionUse`, `RequestTimeout`, or what `find` raises."""
        if not self._settings.enable_model_api:
            raise MethodNotAllowed(METHOD_NOT_ALLOWED)
        found = self.registry.find(name, version)
        self.registry.check_removable(found)
        if not await self._remove(found):
            raise RequestTimeout(f"Timed out while cleaning resources: {name}")
        return f'Model "{name}" unregistered'

    async def _remove(self, version: ModelVersion) -> bool:
        """Out of the routes, requests answered, workers stopped, files gone; whether all that ended in time. It happens once,
        also when an unregistration meets a registration that is being taken back."""
        removal = self._removals.get(version.key)
        if removal is None:
            removal = self._removals[version.key] = asyncio.ensure_future(self._take_out(version))
            removal.add_done_callback(lambda _: self._removals.pop(version.key))
        return await asyncio.shield(removal)

    async def _take_out(self, version: ModelVersion) -> bool:
        self.registry.remove(version)
        await self._publish()
        answered = True
        pool = self._pools.get(version.key)
        if pool is None:  # it was taken out before
            return answered
        if self.fleet is not None:
            pool.give_up_starting()
            patience_s = self._settings.unregister_model_timeout_s
            answered = await self.fleet.close_lanes(version, patience_s)
            if not answered:
                logger.warning("%s: requests were not answered within %d s; its workers end", version.name, patience_s)
        await pool.shrink(0)
        self._pools.pop(version.key, None)
        self._store.discard(version.unpacked)
        return answered

    async def stop_workers(self) -> None:
        """The end of the server: every worker of every version."""
        await asyncio.gather(*(pool.shrink(0) for pool in self._pools.values()))
        for version in self.registry:
            self._store.discard(version.unpacked)

    # ---- what the front ends route by

    def routes(self) -> tuple[bool, dict[str, ModelRoute]]:
        models = {}
        for name, model in self.registry.models.items():
            versions = {each.version: self._route(each) for each in model.versions.values()}
            models[name] = ModelRoute(model.default_version, versions)
        return self.healthy, models

    def _route(self, version: ModelVersion) -> VersionRoute:
        options = version.options
        pool = self._pools.get(version.key)
        return VersionRoute(
            key=version.key,
            model=version.name,
            version=version.version,
            serviceable=pool is not None and pool.serviceable,
            batch_size=options.batch_size,
            batch_wait_ms=options.batch_wait_ms,
            fill=version.unpacked.config.batching == "fill",
            queue_size=options.queue_size,
            response_timeout_s=options.response_timeout_s,
            queue_timeout_ms=max(0, options.queue_timeout_s) * 1000,
            request_timeout_ms=version.unpacked.config.client_timeout_ms,
        )

    @property
    def healthy(self) -> bool:
        """Whether every model's default version has the workers it was promised (contract 11.7, told truthfully)."""
        return all(self.ready_workers_of(each) >= each.min_workers for each in self.registry.defaults())

    def ready_workers_of(self, version: ModelVersion) -> int:
        pool = self._pools.get(version.key)
        return pool.ready_count if pool is not None else 0

    def ready_workers(self) -> Iterable[tuple[ModelVersion, WorkerSlot]]:
        for pool in self._pools.values():
            for slot in pool.slots if self.registry.holds(pool.version) else ():
                if slot.ready:
                    yield pool.version, slot

    def kill_stuck(self, key: int, worker_id: str) -> None:
        pool = self._pools.get(key)
        if pool is not None:
            pool.kill(worker_id, "Backend worker did not respond in given time")

    def _announce(self) -> None:
        if self.fleet is not None:
            self.fleet.announce()

    async def _publish(self) -> None:
        if self.fleet is not None:
            await self.fleet.publish()

    # ---- describe and list

    async def describe(self, name: str, version: str | None) -> list[dict[str, object]]:
        """TorchServe's array: one version, the default one, or `all`."""
        if version == "all":
            return [await self._describe(each) for each in self.registry.all_of(name)]
        return [await self._describe(self.registry.find(name, version))]

    async def _describe(self, version: ModelVersion) -> dict[str, object]:
        waiting = await self.fleet.queue_depth(version.key) if self.fleet is not None else 0
        slots = self._pools[version.key].slots if version.key in self._pools else []
        return describe_version(version, slots, waiting)

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


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)

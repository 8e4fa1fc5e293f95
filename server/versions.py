"""The model versions that live, with their workers: started, switched, resized, taken out. What asks for that is management.py.

A version is in the registry once it can be asked for. One that takes over from another is loaded beside it first: the front
ends know of it, its workers are linked, and then one publication puts it in the other's place.
"""

import asyncio
import contextlib
import itertools
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from importlib.metadata import version as package_version

from ringserve.protocol.errors import (
    InvalidModel,
    OutOfResources,
    RingServeError,
    ShuttingDown,
    VersionNotFound,
    WorkerStartFailed,
)
from ringserve.server.control import Loaded, LoadModel, ModelRoute, Routes, VersionRoute
from ringserve.server.device_watch import DeviceWatch
from ringserve.server.fleet import Fleet
from ringserve.server.health import Health
from ringserve.server.metrics.custom import CustomMetrics
from ringserve.server.model_configuration.served import config_for_worker, take_loaded
from ringserve.server.placement import CPU, Place
from ringserve.server.pool import PoolHooks, WorkerPool
from ringserve.server.registry import ModelVersion, Registry
from ringserve.server.repository.model_config import HANDLER
from ringserve.server.repository.store import ModelStore
from ringserve.server.sequences.owner import Sequences, context_variables, sequence_rules
from ringserve.server.settings import Settings
from ringserve.server.worker_slot import WorkerSlot, environment

logger = logging.getLogger("ringserve.management")

RESTARTED_LOOK_S = 0.05
# What a worker has to end in order when the server does, and all requests are answered.
WORKERS_END_S = 5.0


class Versions:
    """Edits what is served and waits, where asked to, until it is so."""

    def __init__(self, settings: Settings, store: ModelStore, devices: DeviceWatch) -> None:
        self.registry = Registry()
        self.devices = devices
        self.fleet: Fleet | None = None  # set once it exists; until then there is nobody to tell
        self.changed: Callable[[], None] = lambda: None  # told that what is wanted may be something else now
        self.worker_deaths: Counter[tuple[str, str]] = Counter()  # by model and version, unasked for
        self.handler_metrics = CustomMetrics({}, "")  # replaced before anything is loaded
        self._settings = settings
        self._store = store
        self._pools: dict[int, WorkerPool] = {}
        self._beside: dict[int, ModelVersion] = {}
        self._starting: set[int] = set()  # asked for at start-up, and neither loaded nor failed yet
        self._settled: set[int] = set()
        self._worker_ids = itertools.count(settings.initial_worker_port)
        self._server_version = package_version("ringserve")
        self._removals: dict[int, asyncio.Task[bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._draining = False
        self.sequences = Sequences(lambda: self.fleet)
        self.not_loaded: set[str] = set()  # models that were asked for by name, and could not be loaded the last time
        self.leaving: Callable[[ModelVersion, str], None] = lambda version, why: (
            None
        )  # told of versions as they are taken out

    # ---- in

    def add(self, version: ModelVersion) -> None:
        """It can be asked for from the next publication on; no worker is started yet. Raises `Conflict`, `ShuttingDown`."""
        self._check_running()
        self.registry.add(version)
        self._make_pool(version)

    async def start(self, version: ModelVersion, *, restored: bool = False) -> None:
        """Start its workers and let it be known, without waiting for any."""
        self._pools[version.key].grow(version.min_workers)
        if version.options.loaded_at_startup or restored:
            self._starting.add(version.key)
            self._in_background(self._started(version))
        await self.publish()

    async def _started(self, version: ModelVersion) -> None:
        try:
            await self._pools[version.key].settle()
        except RingServeError:
            pass  # the pool has said why
        finally:
            self._starting.discard(version.key)
            self.announce()

    async def settle(self, version: ModelVersion) -> None:
        """Wait until its workers have loaded. When one does not, nothing is left of the version, and the error is raised."""
        try:
            await self._pools[version.key].settle()
            await self.publish()
        except BaseException as error:
            await asyncio.shield(self.take_out(version))
            if isinstance(error, RingServeError):
                self._check_running()  # that its workers were stopped is not their failure
            raise

    async def load_beside(self, version: ModelVersion, replaces: ModelVersion | None = None) -> None:
        """Load a version that nobody can ask for yet, with as many workers as the one has whose place it will take. Raises what its
        workers' failure was, or `VersionNotFound` when it is abandoned; then nothing is left of it."""
        self._check_running()
        self._make_pool(version)
        self._beside[version.key] = version
        pool = self._pools[version.key]
        try:
            await self.publish()  # front ends refuse the workers of versions that they have never heard of
            _take_numbers(version, replaces)
            pool.grow(version.min_workers)
            if replaces is not None:  # which the autoscaler may have given more than the fewest
                with contextlib.suppress(RingServeError):
                    pool.try_grow(min(version.max_workers, len(self.slots(replaces))))
            await pool.settle()
            await self.publish()
            while _take_numbers(version, replaces):  # somebody has scaled the other one meanwhile
                await self.resize(version, version.min_workers, version.max_workers)
            self.check_known(version)
        except BaseException:
            await asyncio.shield(self.take_out(version))
            raise

    async def switch(self, version: ModelVersion, replaces: ModelVersion | None, *, make_default: bool) -> None:
        """A version that was loaded beside takes its place in the routes, and that of another. Raises `Conflict`, or `VersionNotFound`
        when one of the two has been taken out meanwhile; then nothing is left of it."""
        try:
            self.check_known(version)
            if replaces is not None and self.successor(replaces) is None:
                self.check_known(replaces)
            self.registry.replace(replaces, version)
        except RingServeError:
            await asyncio.shield(self.take_out(version))
            raise
        model = self.registry.models[version.name]
        if make_default and not model.pinned:
            model.default_version = version.version
        del self._beside[version.key]
        if replaces is not None:
            self.sequences.follows(version, replaces)
        await self.publish()

    def _make_pool(self, version: ModelVersion) -> None:
        self.sequences.add(version)
        hidden = re.compile(self._settings.blacklist_env_vars) if self._settings.blacklist_env_vars else None
        environ = partial(environment, hidden=hidden, more=context_variables(self._settings))
        self._pools[version.key] = WorkerPool(version, self._load_message(version), self._hooks(version), environ)

    def _load_message(self, version: ModelVersion) -> LoadModel:
        manifest, config = version.unpacked.manifest, version.unpacked.config
        return LoadModel(
            model=version.name,
            version=version.version,
            model_dir=str(version.unpacked.model_dir),
            backend=config.backend,
            handler=version.options.handler,
            manifest=manifest.raw,
            config=config_for_worker(
                version, on_gpus=self._on_gpus(version), strict=self._settings.disable_auto_complete_config
            ),
            signature=config.signature,
            batch_size=version.options.batch_size,
            response_bytes_max=self._settings.max_response_size,
            decode_input_request=self._settings.decode_input_request,
            limit_max_image_pixels=self._settings.limit_max_image_pixels,
            server_version=self._server_version,
            warmup=config.sections.warmup,
            max_requests=config.sections.recycle.max_requests,
            stateful=config.stateful,
            metrics=self.handler_metrics.plan,
            envelope=version.options.envelope,
        )

    def _on_gpus(self, version: ModelVersion) -> bool:
        config = version.unpacked.config
        return self.devices.placer.device_type(config.sections.placement, config.device_type) == "gpu"

    def _hooks(self, version: ModelVersion) -> PoolHooks:
        placer = self.devices.placer

        def on_ready(slot: WorkerSlot, loaded: Loaded) -> None:
            if version.key not in self._removals:  # then requests wait for this worker
                self.check_known(version)
            take_loaded(version, loaded, slot.worker_id, on_gpus=self._on_gpus(version))
            if self.fleet is not None:
                self.fleet.link(version, slot)
            self.sequences.worker_ready(version, slot.worker_id)
            placer.loaded(slot.place)

        def on_lost(slot: WorkerSlot, status: int, cause: str) -> None:
            placer.lost(slot.place)
            if slot.wanted:
                self.worker_deaths[version.name, version.version] += 1
            if self.fleet is not None:
                self.fleet.worker_gone(version, slot.worker_id, status, cause)
            self.sequences.worker_gone(version, slot.worker_id)

        async def detach(slot: WorkerSlot) -> None:
            if self.fleet is not None:
                patience_s = self._settings.unregister_model_timeout_s
                await self.sequences.vacated(version, slot.worker_id, patience_s)
                await self.fleet.detach(version, slot.worker_id, patience_s)

        def place(instead_of: Place = CPU) -> Place:
            config = version.unpacked.config
            wish = config.sections.placement
            return placer.place(version.key, wish, config.device_type, config.device_ids, instead_of)

        return PoolHooks(
            on_ready,
            on_lost,
            detach,
            place,
            placer.leave,
            on_change=self.announce,
            next_worker_id=lambda: str(next(self._worker_ids)),
            on_emitted=partial(self.handler_metrics.emitted, version.name),
            takes_line=partial(self.handler_metrics.printed, version.name),
        )

    # ---- as many workers as wanted

    def check_devices(self, version: ModelVersion) -> None:
        """Raises `InvalidModel` when the version asks for devices that there are not; what gives way is logged."""
        config = version.unpacked.config
        for sentence in self.devices.placer.check(config.sections.placement, config.device_type, config.device_ids):
            logger.warning("%s: %s", version.name, sentence)

    async def look_at_devices(self, version: ModelVersion) -> None:
        """Before workers are placed: know how full the devices are, where that decides."""
        wish = version.unpacked.config.sections.placement
        if wish.memory_bytes or wish.policy == "least_memory":
            await self.devices.refresh()

    async def resize(self, version: ModelVersion, low: int, high: int) -> None:
        """Change how many workers are wanted, and wait until there are. Raises `VersionNotFound` when the version is
        unregistered meanwhile, or what the workers' failure was. Workers for which there is no place are taken back."""
        await self.look_at_devices(version)
        self.check_known(version)
        before = version.min_workers, version.max_workers, version.scaled
        version.min_workers, version.max_workers, version.scaled = low, high, True
        pool = self._pools[version.key]
        count = len(pool.slots)
        if count > high:
            await pool.shrink(high)
            self.check_known(version)
        # By what is wanted now: somebody else may have changed it meanwhile.
        unsettled = any(slot.given_up or not slot.settled.done() for slot in pool.slots)
        if unsettled or len(pool.slots) < version.min_workers:
            pool.grow(version.min_workers)
            await self.publish()
            try:
                await pool.settle()
            except (InvalidModel, OutOfResources):
                unchanged = (version.min_workers, version.max_workers) == (low, high)
                if unchanged and any(slot.place is None for slot in pool.slots):
                    version.min_workers, version.max_workers, version.scaled = before
                    await pool.shrink(min(count, len(pool.slots)))
                raise
            except WorkerStartFailed:
                self.check_known(version)
                if (version.min_workers, version.max_workers) == (low, high):
                    raise
                # Otherwise somebody has asked for another number since: theirs counts, and the workers were stopped for it.
        await self.publish()

    def check_known(self, version: ModelVersion) -> None:
        """Raises `VersionNotFound` for one that is unregistered, or that another one of its name has replaced, `ShuttingDown` when
        nothing may change any more."""
        self._check_running()
        if version.key not in self._beside and not self.registry.holds(version):
            raise VersionNotFound(f"Model version: {version.version} does not exist for model: {version.name}")

    def successor(self, version: ModelVersion) -> ModelVersion | None:
        """What has taken the place of a version; None: nothing, or it is still there."""
        found = self.registry.namesake(version)
        return None if found is version else found

    def _check_running(self) -> None:
        if self._stopped:
            raise ShuttingDown("The server is shutting down.")

    # ---- out

    async def abandon(self, url: str) -> None:
        """Take out what the repository is loading beside from there."""
        for version in [each for each in self._beside.values() if each.dropped and each.url == url]:
            await self.take_out(version)

    async def take_out(self, version: ModelVersion) -> bool:
        """Out of the routes, requests answered, workers stopped, files gone; whether all that ended in time. It happens once,
        also when an unregistration meets a registration that is being taken back."""
        removal = self._removals.get(version.key)
        if removal is None:
            removal = self._removals[version.key] = asyncio.ensure_future(self._take_out(version))
            removal.add_done_callback(lambda _: self._removals.pop(version.key))
        return await asyncio.shield(removal)

    async def _take_out(self, version: ModelVersion) -> bool:
        self.leaving(version, self.why_not_ready(version) or "")
        self.registry.remove(version)
        self._beside.pop(version.key, None)
        await self.publish()
        answered = True
        pool = self._pools.get(version.key)
        if pool is None:  # it was taken out before
            return answered
        if self.fleet is not None:
            patience_s = self._settings.unregister_model_timeout_s
            await self.sequences.run_out(version, patience_s)
            await self._restarted(self.fleet, pool, patience_s)
            pool.give_up_starting()
            answered = await self.fleet.close_lanes(version, patience_s)
            if not answered:
                logger.warning("%s: requests were not answered within %d s; its workers end", version.name, patience_s)
        await pool.shrink(0)
        self._pools.pop(version.key, None)
        self.sequences.remove(version)
        self._settled.discard(version.key)
        await asyncio.to_thread(self._store.discard, version.unpacked)
        if version.fetched is not None:
            await asyncio.to_thread(self._store.forget, version.fetched)
        return answered

    @staticmethod
    async def _restarted(fleet: Fleet, pool: WorkerPool, patience_s: float) -> None:
        """Requests that wait for a worker which is just being started again are not lost because their version goes."""
        end_s = time.monotonic() + patience_s
        while pool.restarting and time.monotonic() < end_s and await fleet.queue_depth(pool.version.key):
            await asyncio.sleep(RESTARTED_LOOK_S)

    def loading_at_start(self, under_way: bool) -> None:
        """Whether what was named to be loaded at the start still is, beside those versions of which somebody knows."""
        (self._starting.add if under_way else self._starting.discard)(0)
        self.announce()

    def drain(self) -> None:
        """The server has been told to stop: probes learn it, and answers are the last ones of their connections."""
        self._draining = True
        self.announce()

    async def stop(self) -> None:
        """The end of the server: every worker of every version. Whoever is changing something is refused from here on."""
        self._stopped = True
        self.sequences.stop()
        for pool in self._pools.values():
            pool.give_up_starting()
        ends = asyncio.gather(*(pool.shrink(0) for pool in self._pools.values()))
        if not (await asyncio.wait({ends}, timeout=WORKERS_END_S))[0]:
            logger.warning(
                "workers that do not end within %.0f s are killed: nobody waits for what they do", WORKERS_END_S
            )
            for pool in self._pools.values():
                pool.kill_leaving()
        await ends
        for pool in self._pools.values():
            self._store.discard(pool.version.unpacked)

    # ---- what the front ends are told

    def routes(self) -> Routes:
        """What can be asked for now, of no epoch yet."""
        models = {}
        for name, model in self.registry.models.items():
            versions = {each.version: self._route(each) for each in model.versions.values()}
            at_startup = any(each.options.loaded_at_startup for each in model.versions.values())
            models[name] = ModelRoute(model.default_version, versions, at_startup)
        beside = tuple(self._route(each) for each in self._beside.values())
        failed = tuple(sorted(self.not_loaded - self.registry.models.keys()))
        return Routes(0, self.healthy, models, not self._starting, beside, self._draining, failed)

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
            min_workers=version.min_workers,
            ready_workers=pool.ready_count if pool is not None else 0,
            settled=self._has_settled(version),
            probe_at_ns=pool.probe_at_ns if pool is not None else 0,
            tickets=version.unpacked.config.use_job_ticket,
            sequences=sequence_rules(version, self._settings),
            scheduling=version.unpacked.config.scheduling,
            tensors=version.unpacked.config.backend != HANDLER,
        )

    def _has_settled(self, version: ModelVersion) -> bool:
        """Whether its first workers have all loaded, or one has failed to; then for ever."""
        slots = self.slots(version)
        if all(slot.settled.done() for slot in slots) or any(_failed(slot) for slot in slots):
            self._settled.add(version.key)
        return version.key in self._settled

    @property
    def health(self) -> Health:
        """What probes of the management listener are told."""
        routes = self.routes()
        return Health(routes.models, routes.started, routes.draining)

    @property
    def healthy(self) -> bool:
        """Whether every version has the workers it was promised (contract 11.7, told truthfully)."""
        return all(self.ready_count(each) >= each.min_workers for each in self.registry)

    @property
    def started(self) -> bool:
        """Whether everything that was asked for at start-up has been loaded, or has failed to."""
        return not self._starting

    def ready_count(self, version: ModelVersion) -> int:
        pool = self._pools.get(version.key)
        return pool.ready_count if pool is not None else 0

    def why_not_ready(self, version: ModelVersion) -> str | None:
        """None: it has a worker. Otherwise why its workers could not load; empty while nothing is known of that."""
        slots = self.slots(version)
        if version.min_workers == 0 or any(slot.ready for slot in slots):
            return None
        failures = [slot.settled.exception() for slot in slots if slot.settled.done()]
        return next((str(failure) for failure in failures if failure is not None), "")

    @property
    def beside(self) -> list[ModelVersion]:
        """What is loaded to take over, or to be there when it has loaded."""
        return list(self._beside.values())

    def slots(self, version: ModelVersion) -> Sequence[WorkerSlot]:
        pool = self._pools.get(version.key)
        return () if pool is None else pool.slots

    def pool(self, version: ModelVersion) -> WorkerPool:
        """Of a version that is known."""
        return self._pools[version.key]

    def serving(self) -> list[WorkerPool]:
        """Of the versions that can be asked for."""
        return [pool for pool in self._pools.values() if self.registry.holds(pool.version)]

    def ready_workers(self) -> Iterable[tuple[ModelVersion, WorkerSlot]]:
        """Whom a fresh front end is to be linked with."""
        for pool in self._pools.values():
            version = pool.version
            if version.key in self._beside or self.registry.holds(version):
                yield from ((version, slot) for slot in pool.slots if slot.ready)

    def kill_stuck(self, key: int, worker_id: str) -> None:
        pool = self._pools.get(key)
        if pool is not None:
            pool.kill(worker_id, "Backend worker did not respond in given time")

    def announce(self) -> None:
        if self.fleet is not None:
            self.fleet.announce()

    async def publish(self) -> None:
        self.changed()
        if self.fleet is not None:
            await self.fleet.publish()

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _take_numbers(version: ModelVersion, replaces: ModelVersion | None) -> bool:
    """What the API has said of the other one's workers holds for its replacement; whether that changes anything."""
    if replaces is None or not replaces.scaled:
        return False
    before = version.min_workers, version.max_workers
    version.min_workers, version.max_workers, version.scaled = replaces.min_workers, replaces.max_workers, True
    return before != (version.min_workers, version.max_workers)


def _failed(slot: WorkerSlot) -> bool:
    return slot.settled.done() and not slot.has_loaded

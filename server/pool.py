"""The workers of one model version: as many as wanted, each restarted when it dies, for as long as it is wanted."""

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from ringserve.protocol.errors import OutOfResources, RingServeError, WorkerStartFailed
from ringserve.protocol.tensor import Signature
from ringserve.server.budget import worker_threads
from ringserve.server.control import AtWork, Loaded, LoadFailed, LoadModel, StopWorker, WorkerMessage
from ringserve.server.lifecycle import FAILURES_TOLERATED, Event, State, retry_delay_s
from ringserve.server.placement import Place
from ringserve.server.process import ALLOCATOR, Child, oom_kills
from ringserve.server.registry import ModelVersion

logger = logging.getLogger("ringserve.pool")

# A worker told to stop finishes its batches first; then it is killed.
STOP_S_MAX = 30.0
CAUSE_LINES = 12
# A process that took a batch or lived this long is replaced at once when it dies; any other death is a failed start.
PROVEN_S = 30.0
KILLED_S = 0.25
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerSlot:
    """One wanted worker: the same id and start time over all the processes that fill it."""

    def __init__(self, worker_id: str, label: str) -> None:
        self.worker_id = worker_id
        self.place: Place | None = None  # decided before its first process starts, and kept
        self.label = label
        self.started_s = time.time()
        self.wanted = True
        self.failures = 0  # failed starts in a row
        self.child: Child | None = None
        self.loaded = False  # whether the present process came as far as serving
        self.at_work = False  # and took a batch
        self.load_error: RingServeError | None = None  # why it did not, when it said so
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.clock: asyncio.TimerHandle | None = None  # the next start, or the end of patience with this one

    @property
    def ready(self) -> bool:
        return self.child is not None and self.child.state is State.READY

    @property
    def hopeful(self) -> bool:
        """Whether requests may wait for it."""
        return self.wanted and (self.ready or self.failures < FAILURES_TOLERATED)

    @property
    def has_loaded(self) -> bool:
        """Whether the first process of this worker came as far as serving."""
        return self.settled.done() and self.settled.exception() is None

    def settle(self, error: RingServeError | None) -> None:
        """Tell who waits for the first outcome of this worker."""
        if self.settled.done():
            return
        if error is None:
            self.settled.set_result(None)
        else:
            self.settled.set_exception(error)
            self.settled.exception()  # an asynchronous caller never asks; that is not an unhandled error

    def cancel_clock(self) -> None:
        if self.clock is not None:
            self.clock.cancel()
            self.clock = None


@dataclass(frozen=True, slots=True)
class PoolHooks:
    """What the pool tells the rest of the supervisor. `on_ready` makes the links and may raise `RingServeError`;
    `on_lost(slot, status, cause)` follows the end of a worker that was linked; `detach` resolves when no front end will send
    it anything more; `place` gives a new worker its device and may raise `RingServeError`, `leave` gives it back; `on_change` follows every change of what is ready."""

    on_ready: Callable[[WorkerSlot, Signature], None]
    on_lost: Callable[[WorkerSlot, int, str], None]
    detach: Callable[[WorkerSlot], Awaitable[None]]
    place: Callable[[], Place]
    leave: Callable[[Place], None]
    on_change: Callable[[], None]
    next_worker_id: Callable[[], str]


class WorkerPool:
    """Starts, watches, restarts and stops."""

    def __init__(self, version: ModelVersion, load: LoadModel, hooks: PoolHooks) -> None:
        self.version = version
        self.slots: list[WorkerSlot] = []
        self._leaving: list[WorkerSlot] = []  # stopping, after their last batches
        self._load = load
        self._hooks = hooks
        self._oom_kills = oom_kills()

    @property
    def ready_count(self) -> int:
        return sum(slot.ready for slot in self.slots)

    @property
    def serviceable(self) -> bool:
        return any(slot.hopeful for slot in self.slots)

    def grow(self, count: int) -> None:
        """Add workers until `count` are wanted; returns at once."""
        ids = [self._hooks.next_worker_id() for _ in range(count - len(self.slots))]
        new = [WorkerSlot(each, f"W-{each}-{self.version.name}_{self.version.version}") for each in ids]
        self.slots += new  # all of them first: each one's threads are its share among all
        for slot in new:
            self._start(slot)

    async def shrink(self, count: int) -> None:
        """Stop the youngest workers, each after its batches, until `count` are left."""
        leaving, self.slots = self.slots[count:], self.slots[:count]
        for slot in leaving:
            slot.wanted = False
        self._leaving += leaving
        self._hooks.on_change()
        try:
            await asyncio.gather(*(self._stop(slot) for slot in leaving))
        finally:
            self._leaving = [slot for slot in self._leaving if slot not in leaving]

    def give_up_starting(self) -> None:
        """End the workers that have not loaded yet; nobody waits for them any more."""
        for slot in self.slots:
            if not slot.ready:
                slot.wanted = False
                slot.cancel_clock()
                if slot.child is not None:
                    slot.child.kill()

    async def settle(self) -> None:
        """Wait until every wanted worker has loaded once. Raises the first `WorkerStartFailed` or `OutOfResources`."""
        await asyncio.gather(*(asyncio.shield(slot.settled) for slot in self.slots))

    def kill(self, worker_id: str, why: str) -> None:
        """End a worker that cannot be trusted any more; it is restarted like any that dies."""
        for slot in (*self.slots, *self._leaving):
            if slot.worker_id == worker_id and slot.child is not None and slot.child.exit_code is None:
                logger.error("%s is killed: %s", slot.label, why)
                slot.child.kill()

    # ---- one worker

    def _start(self, slot: WorkerSlot) -> None:
        slot.cancel_clock()
        if not slot.wanted:
            return
        slot.loaded, slot.at_work, slot.load_error = False, False, None
        try:
            place = slot.place = slot.place or self._hooks.place()
        except RingServeError as error:
            self._failed(slot, error)
            return
        child = slot.child = Child(slot.label, WorkerMessage)
        try:
            child.start(
                "ringserve.server.worker",
                self._environment(place),
                lambda message, fds: self._heard(slot, message),
                lambda: self._exited(slot, child),
                self.version.python,
            )
        except OSError as error:
            slot.child = None
            self._failed(slot, OutOfResources(f"No process could be started: {error}."))
            return
        child.send(msgspec.structs.replace(self._load, device=place.device, gpu_id=place.gpu_id))
        patience_s = self.version.options.startup_timeout_s
        slot.clock = asyncio.get_running_loop().call_later(patience_s, self._too_slow, slot, child)

    def _environment(self, place: Place) -> dict[str, str]:
        """The server's own, with this worker's share of the processors for the libraries that ask when imported."""
        threads = os.environ.get("OMP_NUM_THREADS") or str(worker_threads(len(self.slots)))
        visible = {} if place.visible is None else {"CUDA_VISIBLE_DEVICES": place.visible}
        return {
            **dict.fromkeys(THREAD_VARIABLES, threads),
            **ALLOCATOR,
            **os.environ,
            **visible,
            "PYTHONUNBUFFERED": "1",
        }

    def _too_slow(self, slot: WorkerSlot, child: Child) -> None:
        if child.state is State.STARTING:
            slot.load_error = self._start_failed(
                f"The model did not load within {self.version.options.startup_timeout_s} s (startup_timeout)."
            )
            child.kill()

    def _heard(self, slot: WorkerSlot, message: object) -> None:
        match message:
            case Loaded():
                self._loaded(slot, message.signature)
            case AtWork():
                slot.at_work, slot.failures = True, 0
            case LoadFailed(cause=cause, out_of_memory=out_of_memory):
                slot.load_error = self._start_failed(cause, status=507 if out_of_memory else 500)

    def _loaded(self, slot: WorkerSlot, signature: Signature) -> None:
        child = slot.child
        assert child is not None
        slot.cancel_clock()
        if child.state is not State.STARTING or not slot.wanted:
            return
        try:
            self._hooks.on_ready(slot, signature)
        except RingServeError as error:
            slot.load_error = error
            child.kill()
            return
        child.saw(Event.LOADED)
        slot.loaded = True
        slot.settle(None)
        logger.info("%s is ready after %.1f s, pid %d", slot.label, time.time() - child.started_s, child.pid)
        self._hooks.on_change()

    def _exited(self, slot: WorkerSlot, child: Child) -> None:
        slot.cancel_clock()
        ended = child.how_it_ended()
        status, cause = 500, f"Worker {slot.worker_id} (pid {child.pid}) {ended}."
        if self._killed_for_memory(child):
            status, cause = 507, f"{cause} The system had run out of memory."
        self._hooks.on_lost(slot, status, cause)
        if not slot.wanted:
            return
        logger.error("%s %s", slot.label, ended)
        if slot.at_work or (slot.loaded and time.time() - child.started_s > PROVEN_S):
            slot.failures = 0
            self._hooks.on_change()
            self._start(slot)
            return
        if child.exit_code == -signal.SIGKILL and status != 507 and slot.load_error is None and slot.has_loaded:
            # Somebody killed it, neither we nor the kernel: that says nothing about a model that has loaded before.
            self._hooks.on_change()
            slot.clock = asyncio.get_running_loop().call_later(KILLED_S, self._start, slot)
            return
        when = "before it had anything to do" if slot.loaded else "while loading"
        error = slot.load_error or self._start_failed(f"The worker {ended} {when}.", status=status)
        tail = "\n".join(list(child.tail)[-CAUSE_LINES:])
        self._failed(slot, type(error)(f"{error.message}\n{tail}".rstrip(), status=error.http_status))

    def _killed_for_memory(self, child: Child) -> bool:
        kills = oom_kills()
        grew, self._oom_kills = kills > self._oom_kills, kills
        return grew and child.exit_code == -signal.SIGKILL

    def _failed(self, slot: WorkerSlot, error: RingServeError) -> None:
        slot.failures += 1
        delay_s = retry_delay_s(slot.failures, random.random())
        logger.error("%s: %s", slot.label, error.message)
        logger.info("Retry worker: %s in %.1f seconds.", slot.worker_id, delay_s)
        slot.settle(error)
        slot.clock = asyncio.get_running_loop().call_later(delay_s, self._start, slot)
        self._hooks.on_change()

    def _start_failed(self, cause: str, *, status: int = 500) -> RingServeError:
        version = self.version
        message = f"Failed to start workers for model {version.name} version: {version.version}. {cause}"
        return WorkerStartFailed(message, status=status)

    async def _stop(self, slot: WorkerSlot) -> None:
        try:
            await self._end(slot)
        finally:
            if slot.place is not None:
                self._hooks.leave(slot.place)
                slot.place = None

    async def _end(self, slot: WorkerSlot) -> None:
        slot.cancel_clock()
        slot.settle(WorkerStartFailed("The worker was stopped before it had loaded."))
        child = slot.child
        if child is None or child.state is State.GONE:
            return
        if child.state is not State.READY:
            child.kill()
        else:
            await self._hooks.detach(slot)
            if child.exit_code is not None:
                return
            child.saw(Event.STOP_ASKED)
            child.send(StopWorker())
        await child.stopped(STOP_S_MAX)

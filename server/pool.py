"""The workers of one model version: as many as wanted, each restarted when it dies, for as long as it is wanted.

When they may be started is the breaker's to say (server/breaker.py). A worker that is worn is replaced by a fresh one that
loads beside it and takes its place once it is ready; until then, and for as long as none can be, the old one goes on.
"""

import asyncio
import logging
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from ringserve.protocol.errors import OutOfResources, RingServeError, WorkerStartFailed
from ringserve.server.asking import Descriptions
from ringserve.server.breaker import PROVEN_S, Breaker
from ringserve.server.control import (
    Answered,
    AtWork,
    Description,
    Loaded,
    LoadFailed,
    LoadModel,
    StopWorker,
    WorkerMessage,
    Worn,
)
from ringserve.server.lifecycle import Event, State, retry_delay_s
from ringserve.server.metrics.listing import Emitted
from ringserve.server.placement import Place
from ringserve.server.process import Child, model_logger, oom_kills, rss_bytes
from ringserve.server.registry import ModelVersion
from ringserve.server.worker_slot import MakeEnvironment, WorkerSlot, environment

logger = logging.getLogger("ringserve.pool")

# A worker told to stop finishes its batches first; then it is killed.
STOP_S_MAX = 30.0
CAUSE_LINES = 12
KILLED_S = 0.25


@dataclass(frozen=True, slots=True)
class PoolHooks:
    """What the pool tells the rest of the supervisor. `on_ready` makes the links and may raise `RingServeError`;
    `on_lost(slot, status, cause)` follows the end of a worker that was linked; `detach` resolves when no front end will send
    it anything more; `place` gives a new worker its device, that of a worker it follows being free where it is given, and may raise
    `RingServeError`; `leave` gives it back; `on_change` follows what is ready; `on_emitted` gets metrics, `takes_line` printed lines."""

    on_ready: Callable[[WorkerSlot, Loaded], None]
    on_lost: Callable[[WorkerSlot, int, str], None]
    detach: Callable[[WorkerSlot], Awaitable[None]]
    place: Callable[..., Place]
    leave: Callable[[Place], None]
    on_change: Callable[[], None]
    next_worker_id: Callable[[], str]
    on_emitted: Callable[[Emitted], None] = lambda said: None
    takes_line: Callable[[str], bool] = lambda line: False


class WorkerPool:
    """Starts, watches, restarts, replaces and stops."""

    def __init__(
        self, version: ModelVersion, load: LoadModel, hooks: PoolHooks, environ: MakeEnvironment = environment
    ) -> None:
        self.version = version
        self.slots: list[WorkerSlot] = []
        self._leaving: dict[WorkerSlot, asyncio.Task[None]] = {}  # stopping, after their last batches
        self._fresh: WorkerSlot | None = None  # loads beside the worker that it replaces
        self._ending = False  # the version leaves: nothing is started any more
        self._fresh_failures = 0
        self._fresh_not_before_s = 0.0
        self._load = load
        self._hooks = hooks
        self._environ = environ
        self._breaker = Breaker()
        self._last_error: RingServeError | None = None
        self._clock: asyncio.TimerHandle | None = None  # when the breaker lets the next worker start
        self._oom_kills = oom_kills()
        self._descriptions = Descriptions()

    @property
    def ready_count(self) -> int:
        return sum(slot.ready for slot in self.slots)

    @property
    def serviceable(self) -> bool:
        """Whether requests may wait for a worker."""
        if any(slot.wanted and slot.ready for slot in self.slots):
            return True
        return not self._breaker.is_open and any(slot.hopeful for slot in self.slots)

    @property
    def probe_at_ns(self) -> int:
        """When the next worker is tried while none may be waited for (CLOCK_MONOTONIC); 0 where nobody knows."""
        return int(max(self._breaker.next_start_s(), 0.0) * 1e9) if self._breaker.is_open else 0

    @property
    def restarting(self) -> bool:
        """Whether no worker is ready, and one that was may soon be again."""
        return not self.ready_count and self.serviceable and any(slot.has_loaded for slot in self.slots)

    @property
    def draining(self) -> bool:
        """Whether workers are on their way out."""
        return bool(self._leaving)

    def grow(self, count: int) -> None:
        """Add workers until `count` are wanted, and let those try again that had been given up; returns at once."""
        if self._ending:
            return
        for slot in self.slots:
            if slot.given_up:
                slot.revive()
        new = [self._new_slot() for _ in range(count - len(self.slots))]
        self.slots += new  # all of them first: each one's threads are its share among all
        for slot in new:
            self._place(slot)
            if self._breaker.is_open and self._last_error is not None:
                slot.settle(self._last_error)
        self._start_waiting()

    def try_grow(self, count: int) -> None:
        """Add workers until `count` are wanted, as long as there are places. Raises what `place` raises; those that found theirs
        are added all the same."""
        if self._ending:
            return
        new: list[WorkerSlot] = []
        try:
            for _ in range(count - len(self.slots)):
                place = self._hooks.place()
                slot = self._new_slot()
                slot.place = place
                new.append(slot)
        finally:
            self.slots += new
            self._start_waiting()

    async def shrink(self, count: int) -> None:
        """Stop workers, each after its batches, until `count` are left: those that do not run, then those that are loading, then the
        youngest."""
        leaving = sorted(self.slots, key=lambda slot: (not slot.ready, not slot.under_way))[count:]
        self.slots = [slot for slot in self.slots if slot not in leaving]
        if self._fresh is not None and self._fresh.replaces in leaving:
            leaving.append(self._fresh)
            self._fresh = None
        ends = self._retire(leaving)
        self._start_waiting()  # the one that was tried may be leaving
        self._hooks.on_change()
        # Whoever asked may go away; those that leave are stopped all the same.
        await asyncio.gather(*(asyncio.shield(each) for each in (ends if count else list(self._leaving.values()))))

    def kill_leaving(self) -> None:
        """Those that are still at something for which nobody waits."""
        for slot in self._leaving:
            if slot.child is not None:
                slot.child.kill()

    def give_up_starting(self) -> None:
        """The version leaves: end the workers that have not loaded yet, for nobody waits for them any more, and start none."""
        self._cancel_clock()
        self._ending = True
        for slot in (*self.slots, *([self._fresh] if self._fresh is not None else [])):
            if not slot.ready:
                slot.wanted = False
                slot.cancel_clock()
                if slot.child is not None:
                    slot.child.kill()

    async def settle(self) -> None:
        """Wait until every wanted worker has loaded once. Raises the first `WorkerStartFailed` or `OutOfResources`."""
        await asyncio.gather(*(asyncio.shield(slot.settled) for slot in self.slots))

    async def ask_description(self, timeout_s: float) -> bytes | None:
        """What the model says of itself, as the text of a JSON object; None when it says nothing. Raises `TimeoutError` when no
        worker answers in time, `WorkerLost`, or what the model's failure was."""
        slot = next((each for each in self.slots if each.ready), None)
        if slot is None or slot.child is None:
            raise TimeoutError("no worker is ready to be asked")
        return await self._descriptions.ask(slot.worker_id, slot.child.send, timeout_s)

    def kill(self, worker_id: str, why: str) -> None:
        """End a worker that cannot be trusted any more; it is restarted like any that dies."""
        for slot in (*self.slots, *self._leaving):
            if slot.worker_id == worker_id and slot.child is not None and slot.child.exit_code is None:
                logger.error("%s is killed: %s", slot.label, why)
                slot.child.kill()

    # ---- when one starts

    def _new_slot(self, replaces: WorkerSlot | None = None) -> WorkerSlot:
        worker_id = self._hooks.next_worker_id()
        return WorkerSlot(worker_id, f"W-{worker_id}-{self.version.name}_{self.version.version}", replaces)

    def _place(self, slot: WorkerSlot) -> None:
        """Find a device for it; where there is none now, there may be one later."""
        slot.cancel_clock()
        try:
            slot.place = self._hooks.place()
        except RingServeError as error:
            slot.failures += 1
            delay_s = retry_delay_s(slot.failures, random.random())
            self._say_failed(slot, error, delay_s)
            slot.settle(error)
            slot.clock = asyncio.get_running_loop().call_later(delay_s, self._place_again, slot)
            self._hooks.on_change()

    def _place_again(self, slot: WorkerSlot) -> None:
        if slot.wanted:
            self._place(slot)
            self._start_waiting()

    def _start_waiting(self) -> None:
        """Start as many of the workers that wait for it as may be started now, those first that have loaded before."""
        self._cancel_clock()
        now_s = time.monotonic()
        waiting = sorted((slot for slot in self.slots if slot.waits), key=lambda slot: not slot.has_loaded)
        under_way = sum(slot.under_way for slot in self.slots)
        for slot in waiting:
            if not self._breaker.starts_allowed(now_s, under_way):
                break
            self._start(slot)
            under_way += slot.under_way
        later_s = self._breaker.next_start_s() - now_s
        if later_s > 0 and any(slot.waits for slot in self.slots):
            self._clock = asyncio.get_running_loop().call_later(later_s, self._start_waiting)

    def _cancel_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _start(self, slot: WorkerSlot) -> None:
        slot.forget_process()
        if not slot.wanted or self._ending:
            return
        place = slot.place
        assert place is not None
        child = slot.child = Child(slot.label, WorkerMessage, model_logger, self._hooks.takes_line)
        try:
            child.start(
                "ringserve.server.worker",
                self._environ(place, max(len(self.slots), self.version.max_workers)),
                lambda message, fds: self._heard(slot, message),
                lambda: self._exited(slot, child),
                self.version.python,
            )
        except OSError as error:
            slot.child = None
            failure = OutOfResources(f"No process could be started: {error}.")
            if slot is self._fresh:
                self._fresh_failed(slot, failure)
            else:
                self._start_failed(slot, failure)
            return
        child.send(msgspec.structs.replace(self._load, device=place.device, gpu_id=place.gpu_id))
        patience_s = self.version.options.startup_timeout_s
        slot.clock = asyncio.get_running_loop().call_later(patience_s, self._too_slow, slot, child)

    # ---- what comes of it

    def _too_slow(self, slot: WorkerSlot, child: Child) -> None:
        if child.state is State.STARTING:
            slot.load_error = self._error(
                f"The model did not load within {self.version.options.startup_timeout_s} s (startup_timeout)."
            )
            child.kill()

    def _heard(self, slot: WorkerSlot, message: object) -> None:
        match message:
            case Loaded():
                self._loaded(slot, message)
            case AtWork():
                slot.at_work = True
            case Emitted():
                self._hooks.on_emitted(message)
            case Answered():
                slot.answered = True
                self._proved()
            case Worn():
                slot.worn = f"it has executed {self._load.max_requests} requests (recycle.max_requests)"
                self.replace_worn()
            case Description():
                self._descriptions.heard(slot.worker_id, message)
            case LoadFailed(cause=cause, out_of_memory=out_of_memory):
                slot.load_error = self._error(cause, status=507 if out_of_memory else 500)

    def _loaded(self, slot: WorkerSlot, loaded: Loaded) -> None:
        child = slot.child
        assert child is not None
        slot.cancel_clock()
        if child.state is not State.STARTING or not slot.wanted:
            return
        try:
            self._hooks.on_ready(slot, loaded)
        except RingServeError as error:
            slot.load_error = error
            child.kill()
            return
        child.saw(Event.LOADED)
        slot.loaded = slot.has_loaded = True
        slot.failures = 0
        slot.ready_s, slot.rss_ready_bytes = time.monotonic(), rss_bytes(child.pid)
        slot.clock = asyncio.get_running_loop().call_later(PROVEN_S, self._proved)
        slot.settle(None)
        logger.info("%s is ready after %.1f s, pid %d", slot.label, time.time() - child.started_s, child.pid)
        if slot is self._fresh:
            self._take_place(slot)
        self._breaker.loaded(slot.ready_s)
        self._hooks.on_change()
        self._start_waiting()

    def _proved(self) -> None:
        was_open = self._breaker.is_open
        self._breaker.proved()
        if was_open and not self._breaker.is_open:
            self._hooks.on_change()
            self._start_waiting()

    def _exited(self, slot: WorkerSlot, child: Child) -> None:
        slot.cancel_clock()
        ended = child.how_it_ended()
        status, cause = 500, f"Worker {slot.worker_id} (pid {child.pid}) {ended}."
        if self._killed_for_memory(child):
            status, cause = 507, f"{cause} The system had run out of memory."
        self._hooks.on_lost(slot, status, cause)
        self._descriptions.lost(slot.worker_id, cause)
        if not slot.wanted:
            return
        logger.error("%s %s", slot.label, ended)
        killed = child.exit_code == -signal.SIGKILL and status != 507 and slot.load_error is None
        lived_s = time.monotonic() - slot.ready_s if slot.loaded else 0.0
        if slot is self._fresh:
            self._fresh_failed(slot, self._why_not_started(slot, child, status))
        elif slot.answered or lived_s > PROVEN_S or (killed and slot.at_work):
            self._restart(slot, 0.0)
        elif killed and slot.has_loaded:
            # Somebody killed it, neither we nor the kernel: that says nothing about a model that has loaded before.
            self._restart(slot, KILLED_S)
        elif slot.at_work:
            self._died_young(slot, cause)
        else:
            self._start_failed(slot, self._why_not_started(slot, child, status))

    def _killed_for_memory(self, child: Child) -> bool:
        kills = oom_kills()
        grew, self._oom_kills = kills > self._oom_kills, kills
        return grew and child.exit_code == -signal.SIGKILL

    def _restart(self, slot: WorkerSlot, delay_s: float) -> None:
        """One that had done well starts again, whatever keeps others from it."""
        if not self._may_restart(slot):
            return
        self._hooks.on_change()
        if delay_s:
            slot.clock = asyncio.get_running_loop().call_later(delay_s, self._start, slot)
        else:
            self._start(slot)

    def _may_restart(self, slot: WorkerSlot) -> bool:
        if self.version.unpacked.config.max_retry_timeout_s:
            return True
        logger.error("%s is not restarted: maxRetryTimeoutInSec is 0", slot.label)
        slot.given_up, slot.failures = True, slot.failures + 1
        self._hooks.on_change()
        return False

    def _died_young(self, slot: WorkerSlot, cause: str) -> None:
        if not self._may_restart(slot):
            return
        self._breaker.died_young(time.monotonic(), slot.began_s, random.random())
        self._last_error = self._error(f"{cause} It had answered nothing.")
        self._try_again(slot, self._last_error)

    def _start_failed(self, slot: WorkerSlot, error: RingServeError) -> None:
        now_s, jitter = time.monotonic(), random.random()
        if slot.loaded:
            self._breaker.died_idle(now_s, slot.began_s, jitter)
        else:
            self._breaker.start_failed(now_s, slot.began_s, jitter)
        self._last_error = error
        slot.settle(error)
        if self._may_restart(slot):
            self._try_again(slot, error)
        else:
            asyncio.get_running_loop().call_soon(self._start_waiting)

    def _try_again(self, slot: WorkerSlot, error: RingServeError) -> None:
        """When the breaker lets it."""
        slot.failures += 1
        delay_s = self._breaker.next_start_s() - time.monotonic()
        if delay_s > 0:
            self._say_failed(slot, error, delay_s)
        if self._breaker.is_open:
            for each in self.slots:
                if each.waits:
                    each.settle(error)  # it would fare no better
        self._hooks.on_change()
        asyncio.get_running_loop().call_soon(self._start_waiting)

    def _why_not_started(self, slot: WorkerSlot, child: Child, status: int) -> RingServeError:
        when = "before it had anything to do" if slot.loaded else "while loading"
        error = slot.load_error or self._error(f"The worker {child.how_it_ended()} {when}.", status=status)
        tail = "\n".join(list(child.tail)[-CAUSE_LINES:])
        return type(error)(f"{error.message}\n{tail}".rstrip(), status=error.http_status)

    def _error(self, cause: str, *, status: int = 500) -> RingServeError:
        version = self.version
        message = f"Failed to start workers for model {version.name} version: {version.version}. {cause}"
        return WorkerStartFailed(message, status=status)

    @staticmethod
    def _say_failed(slot: WorkerSlot, error: RingServeError, delay_s: float) -> None:
        logger.error("%s: %s", slot.label, error.message)
        logger.info("Retry worker: %s in %.1f seconds.", slot.worker_id, delay_s)

    # ---- replacing

    def replace_worn(self) -> None:
        """Start a fresh worker beside one that is worn; one at a time, and while no worker fails to start."""
        now_s = time.monotonic()
        worn = next((slot for slot in self.slots if slot.worn and slot.ready), None)
        if worn is None or self._ending or self._fresh is not None or self._leaving or self._breaker.is_open:
            return
        if now_s < self._fresh_not_before_s:
            return
        fresh = self._new_slot(worn)
        try:
            fresh.place = self._hooks.place(worn.place)
        except RingServeError as error:
            self._fresh_put_off(fresh, error)
            return
        logger.info("%s is replaced by %s: %s", worn.label, fresh.label, worn.worn)
        self._fresh = fresh
        self._start(fresh)

    def _take_place(self, fresh: WorkerSlot) -> None:
        worn, fresh.replaces, self._fresh = fresh.replaces, None, None
        assert worn is not None
        self._fresh_failures = 0
        self.slots[self.slots.index(worn)] = fresh
        self._retire([worn])

    def _fresh_failed(self, fresh: WorkerSlot, error: RingServeError) -> None:
        self._fresh = None
        self._fresh_put_off(fresh, error)
        self._retire([fresh])

    def _fresh_put_off(self, fresh: WorkerSlot, error: RingServeError) -> None:
        self._fresh_failures += 1
        delay_s = retry_delay_s(self._fresh_failures, random.random())
        self._fresh_not_before_s = time.monotonic() + delay_s
        old = fresh.replaces
        assert old is not None
        logger.error(
            "%s could not be replaced and goes on; tried again in %.1f s: %s", old.label, delay_s, error.message
        )

    # ---- the end of one

    def _retire(self, slots: Sequence[WorkerSlot]) -> list[asyncio.Task[None]]:
        """Stop these workers, which are no longer among the wanted ones, each after its batches."""
        ends = []
        for slot in slots:
            slot.wanted = False
            end = self._leaving[slot] = asyncio.ensure_future(self._stop(slot))
            ends.append(end)
        return ends

    async def _stop(self, slot: WorkerSlot) -> None:
        try:
            await self._end(slot)
        finally:
            del self._leaving[slot]
            if slot.place is not None:
                self._hooks.leave(slot.place)
                slot.place = None
            self.replace_worn()  # that of another may have waited for this

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

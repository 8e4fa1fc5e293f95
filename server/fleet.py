"""The front ends, and the shared memory between them and the workers.

Every front end has one lane per model version and one link per worker of it. A front end that dies is started again with the
same listening socket and is given everything anew; meanwhile the others take its share of the new connections, or the socket's
queue keeps them. One that does not answer (stopped, or lost in a loop) is killed, so that neither its clients nor a change of
what is registered wait for it for ever: whoever waits for a word of it goes on when it is gone.

Several front ends count what waits for a version together, in a page of its own (server/admission.py).
"""

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from ringserve.protocol.errors import OutOfResources
from ringserve.server.acceptor import NOT_THERE, turn_away
from ringserve.server.admission import QueuePage
from ringserve.server.app import UNUSED_S_MIN
from ringserve.server.budget import describe_lane, lane_budget, lane_shape
from ringserve.server.confirmations import Confirmations
from ringserve.server.control import (
    Applied,
    AskCounters,
    AskQueues,
    AttachWorker,
    CloseLane,
    Counted,
    Detached,
    DetachWorker,
    Drain,
    FrontEndReady,
    Keys,
    LaneClosed,
    LinkLane,
    Load,
    OpenLane,
    Queues,
    SequencesSaid,
    SequencesTold,
    ServeHttp,
    ShareQueue,
    WorkerGone,
    WorkerStuck,
)
from ringserve.server.front_end_slot import FleetHooks, FrontEndSlot
from ringserve.server.front_end_start import FrontEndStarter
from ringserve.server.lifecycle import Event, State
from ringserve.server.messages import Message
from ringserve.server.metrics.pages import CounterPages
from ringserve.server.process import Child
from ringserve.server.region_messages import RegionRefused
from ringserve.server.registry import ModelVersion
from ringserve.server.rpc.starting import GrpcFrontEnds
from ringserve.server.trace_messages import Traced
from ringserve.server.worker_slot import WorkerSlot
from ringserve.shm.lane import create_lane
from ringserve.shm.link import create_link
from ringserve.shm.shm_errors import OutOfSharedMemory

logger = logging.getLogger("ringserve.fleet")

RESTART_S = 0.5
STARTUP_S_MAX = 60.0
ASK_S_MAX = 2.0
# Every so often each front end is asked for a sign of life; so many are missed in a row by one that is hung. Two, because all of
# us may have been frozen together, and then only the clock has moved on.
PULSE_S = 5.0
PULSES_MISSED_MAX = 2
# Longer than it takes to find out that a front end is hung.
APPLY_S_MAX = (PULSES_MISSED_MAX + 1) * PULSE_S + 3.0
RELINK_S = 5.0
# What a front end takes to end, after the time it has for its requests.
STOPPED_S_MAX = 7.0


class Fleet:
    """Starts front ends, tells them everything, waits for what they must confirm."""

    def __init__(
        self,
        sock: socket.socket,
        first: ServeHttp,
        response_bytes_max: int,
        hooks: FleetHooks,
        counters: CounterPages | None = None,
        grpc: GrpcFrontEnds | None = None,
    ) -> None:
        self._socket = sock
        self._counters = counters  # None: nothing is counted
        self._first = first
        self._response_bytes_max = response_bytes_max
        self._hooks = hooks
        self._slots: list[FrontEndSlot] = []
        self._pages: dict[int, QueuePage] = {}  # of every version, when there are several front ends
        self._connections: QueuePage | None = None  # how many each front end has, when there are several
        self._count = first.front_ends
        self._starter = FrontEndStarter(sock, first, grpc)
        self._watching: asyncio.Task[None] | None = None
        self._confirmations = Confirmations()
        self._keys: Keys | None = None  # that they let in, where there are tokens
        self._epochs = itertools.count(1)
        self._tokens = itertools.count(1)
        self._stopping = False

    # ---- processes

    async def start(self) -> None:
        """Start those of HTTP and wait until they listen. Raises `OutOfResources` when one does not."""
        count = self._starter.http_count
        assert count > 0
        logger.info("front ends: %d", count)
        try:
            if count > 1:
                self._connections = QueuePage(count)
                for index in range(count):
                    self._connections.say(index, NOT_THERE)
            for index in range(count):
                self._slots.append(FrontEndSlot(index, self._spawn(index)))
        except (OSError, OutOfSharedMemory) as error:
            raise OutOfResources(f"A front end could not be started: {error}.") from None
        self._watching = asyncio.ensure_future(self._watch())
        waiting = [self._confirmations.expect((FrontEndReady, slot.index), STARTUP_S_MAX) for slot in self._slots]
        if None in await asyncio.gather(*waiting):
            raise OutOfResources(f"A front end did not start within {STARTUP_S_MAX:.0f} s.")

    async def start_grpc(self) -> None:
        """Start those of gRPC, if there are any, and wait until they listen. One that does not is started again and again."""
        if self._stopping:
            return
        waiting = []
        for index in range(self._starter.http_count, self._count):
            try:
                self._slots.append(FrontEndSlot(index, self._spawn(index)))
            except OSError as error:
                logger.error("gRPC cannot be served: front end %d cannot be started: %s", index, error)
                break
            waiting.append(self._confirmations.expect((FrontEndReady, index), STARTUP_S_MAX))
        await asyncio.gather(*waiting)

    def _spawn(self, index: int) -> Child:
        page = None if self._connections is None else self._connections.fd
        return self._starter.start(
            index, page, lambda message, fds: self._heard(index, message), lambda: self._exited(index)
        )

    def _exited(self, index: int) -> None:
        slot = self._slots[index]
        self._forget(slot)
        if self._stopping:
            return
        logger.error("front end %d %s; starting it again", index, slot.child.how_it_ended())
        asyncio.get_running_loop().call_later(RESTART_S, self._restart, slot)

    def _restart(self, slot: FrontEndSlot) -> None:
        if self._stopping:
            return
        try:
            slot.child = self._spawn(slot.index)
            slot.started_s = time.monotonic()
        except OSError as error:
            logger.error("front end %d cannot be started: %s", slot.index, error)
            asyncio.get_running_loop().call_later(RESTART_S, self._restart, slot)

    def _forget(self, slot: FrontEndSlot) -> None:
        for segment, _ in slot.lanes.values():
            segment.close()
        slot.lanes.clear()
        slot.attached.clear()
        slot.shared.clear()
        slot.counted.clear()
        if self._counters is not None:
            self._counters.front_end_gone(slot.index)
        slot.pulses_missed = 0
        for page in self._pages.values():
            page.clear(slot.index)
        if self._connections is not None and self._starter.is_http(slot.index):
            self._connections.say(slot.index, NOT_THERE)
        self._confirmations.front_end_gone(slot.index)
        self._hooks.on_gone(slot.index)

    async def stop(self, drain_s: float, unused_s: float = UNUSED_S_MIN, *, handed_over: bool = False) -> None:
        """Drain and end all front ends. Who connects from now on is refused: in the socket's queue nobody would answer. Or is
        answered by whom the socket has been handed over to."""
        self._stopping = True
        if self._watching is not None:
            self._watching.cancel()
        turned_away = not handed_over and self._socket.fileno() >= 0 and turn_away(self._socket)
        self._socket.close()
        running = [slot.child for slot in self._slots if slot.child.state is not State.GONE]
        for child in running:
            child.saw(Event.STOP_ASKED)
            child.send(Drain(drain_s, unused_s, turned_away, handed_over))
        await asyncio.gather(*(child.stopped(drain_s + STOPPED_S_MAX) for child in running))
        for page in self._pages.values():
            page.close()
        self._pages.clear()
        if self._connections is not None:
            self._connections.close()
            self._connections = None

    async def _watch(self) -> None:
        """Find the front ends that live and do nothing. A killed one is started again like any that dies."""
        while True:
            await asyncio.gather(asyncio.sleep(PULSE_S), *(self._feel_pulse(slot) for slot in self._slots))

    async def _feel_pulse(self, slot: FrontEndSlot) -> None:
        child = slot.child
        if child.state is State.STARTING and time.monotonic() - slot.started_s > STARTUP_S_MAX:
            logger.error("front end %d does not start; killed", slot.index)
            child.kill()
        if not slot.ready:
            return
        token = next(self._tokens)
        answer = self._confirmations.expect((Queues, slot.index, token), PULSE_S)
        child.send(AskQueues(token))
        if await answer is not None:
            slot.pulses_missed = 0
            return
        slot.pulses_missed += 1
        if slot.pulses_missed >= PULSES_MISSED_MAX:
            logger.error("front end %d (pid %d) does not answer; killed", slot.index, child.pid)
            child.kill()

    # ---- what they say

    def _heard(self, index: int, message: object) -> None:
        slot = self._slots[index]
        match message:
            case FrontEndReady():
                slot.child.saw(Event.LOADED)
                logger.info("front end %d is ready, pid %d", index, slot.child.pid)
                self._equip(slot)
                self._confirmations.came((FrontEndReady, index))
            case Applied(epoch=epoch):
                self._confirmations.came((Applied, index, epoch))
            case RegionRefused(epoch=epoch):
                self._confirmations.came((Applied, index, epoch), message)
            case Detached(key=key, worker_id=worker_id):
                slot.attached.discard((key, worker_id))
                word = (Detached, index, key, worker_id)
                if word not in self._confirmations:  # nobody asked: it could not take the descriptors
                    asyncio.get_running_loop().call_later(RELINK_S, self._link_missing, slot, slot.child)
                self._confirmations.came(word)
            case LaneClosed(key=key):
                self._confirmations.came((LaneClosed, index, key))
            case SequencesSaid(words=words):
                self._hooks.on_sequences(index, words)
            case Queues(token=token):
                self._confirmations.came((Queues, index, token), message)
            case Traced(traces=traces, missed=missed):
                self._hooks.on_traces(traces, missed)
            case Counted(token=token):
                self._confirmations.came((Counted, index, token))
            case WorkerStuck(key=key, worker_id=worker_id) if (key, worker_id) in slot.attached:
                # Several may say so of one process; its successor, which has the same id, is not meant.
                self._hooks.on_stuck(key, worker_id)

    # ---- what they are told

    def _equip(self, slot: FrontEndSlot) -> None:
        """Give a fresh front end the routes and every ready worker."""
        if self._stopping:
            return
        if self._keys is not None:
            slot.child.send(self._keys)
        self._starter.hand_certificate(slot.index, slot.child)
        self._hooks.equip(slot.child.send, next(self._epochs))
        self._send_routes([slot], next(self._epochs))
        self._link_missing(slot, slot.child)

    def _link_missing(self, slot: FrontEndSlot, child: Child) -> None:
        """Link a fresh front end with the workers that are ready. For what there is no memory now there may be some later."""
        if slot.child is not child or not slot.ready:
            return
        try:
            for version, worker in self._hooks.ready_workers():
                if (version.key, worker.worker_id) not in slot.attached:
                    self._link(slot, version, worker)
        except OutOfResources as error:
            logger.error("front end %d cannot reach a worker, trying again soon: %s", slot.index, error.message)
            asyncio.get_running_loop().call_later(RELINK_S, self._link_missing, slot, child)

    async def publish(self) -> None:
        """Make every front end route by what is registered now, and wait until they do, or are gone."""
        epoch = next(self._epochs)
        ready = [slot for slot in self._slots if slot.ready]
        waiting = [self._confirmations.expect((Applied, slot.index, epoch), APPLY_S_MAX) for slot in ready]
        self._send_routes(ready, epoch)
        await asyncio.gather(*waiting)

    async def let_in(self, keys: Keys) -> None:
        """Make every front end let in by these keys, of no epoch yet, and by none else, and wait until they do, or are gone."""

        def told(epoch: int) -> Keys:
            self._keys = msgspec.structs.replace(keys, epoch=epoch)
            return self._keys

        await self.tell_all(told)

    async def tell_all(self, make: Callable[[int], Message], fds: Sequence[int] = ()) -> list[object]:
        """Tell every front end the message of an epoch, and wait until they have obeyed, or are gone; returns what they said besides. One
        that says nothing in time is made to go: it may still do as before."""
        epoch = next(self._epochs)
        message = make(epoch)
        ready = [slot for slot in self._slots if slot.ready]
        waiting = [self._confirmations.expect((Applied, slot.index, epoch), APPLY_S_MAX) for slot in ready]
        for slot in ready:
            slot.child.send(message, fds)
        answers = await asyncio.gather(*waiting)
        for slot, answer in zip(ready, answers, strict=True):
            if answer is None:
                logger.error("front end %d does not obey %s; killed", slot.index, type(message).__name__)
                slot.child.kill()
        return answers

    def use_certificate(self, pem: bytes, *, http: bool) -> None:
        """Make the front ends speak TLS, those of HTTP only where `http` is true; again: with another certificate, on new
        connections."""
        self._starter.use_certificate(pem, http=http)
        for slot in self._slots:
            if slot.ready:
                self._starter.hand_certificate(slot.index, slot.child)

    def announce(self) -> None:
        """`publish` without waiting."""
        self._send_routes([slot for slot in self._slots if slot.ready], next(self._epochs))

    def _send_routes(self, slots: Sequence[FrontEndSlot], epoch: int) -> None:
        """What can be asked for; before it, the queue pages of versions that are new to a front end."""
        routes = msgspec.structs.replace(self._hooks.routes(), epoch=epoch)
        known = [*(each for model in routes.models.values() for each in model.versions.values()), *routes.beside]
        for slot in slots:
            for route in known if self._count > 1 else ():
                if route.key not in slot.shared:
                    self._share_queue(slot, route.key)
            if self._counters is not None:
                self._counters.share(slot.index, slot.counted, known, slot.child.send)
            slot.child.send(routes)

    def _share_queue(self, slot: FrontEndSlot, key: int) -> None:
        slot.shared.add(key)
        try:
            page = self._pages.get(key)
            if page is None:
                page = self._pages[key] = QueuePage(self._count)
        except OutOfSharedMemory as error:
            logger.error("front end %d counts what waits for it alone: %s", slot.index, error)
            return
        slot.child.send(ShareQueue(key, slot.index), [page.fd])

    def tell(self, front_end: int, message: SequencesTold) -> None:
        """One that has ended meanwhile is not told."""
        self._slots[front_end].child.send(message)

    def reachable(self, front_end: int, key: int) -> Collection[str]:
        """The workers of version `key` that it is linked with."""
        return {worker_id for each, worker_id in self._slots[front_end].attached if each == key}

    async def count(self) -> None:
        """Have everything that front ends have measured put into the counters, as far as they do so in time."""
        token = next(self._tokens)
        ready = [slot for slot in self._slots if slot.ready]
        answers = [self._confirmations.expect((Counted, slot.index, token), ASK_S_MAX / 2) for slot in ready]
        for slot in ready:
            slot.child.send(AskCounters(token))
        await asyncio.gather(*answers)

    def link(self, version: ModelVersion, worker: WorkerSlot) -> None:
        """Connect a worker that has loaded with every front end. Raises `OutOfResources`."""
        for slot in self._slots:
            if slot.ready:
                self._link(slot, version, worker)

    def _link(self, slot: FrontEndSlot, version: ModelVersion, worker: WorkerSlot) -> None:
        assert version.signature is not None
        assert worker.child is not None
        try:
            if version.key not in slot.lanes:
                self._open_lane(slot, version)
            segment, shape = slot.lanes[version.key]
            fds = create_link()
        except (OutOfSharedMemory, OSError) as error:
            raise OutOfResources(f"No lane for model {version.name} version {version.version}: {error}.") from None
        worker.child.send(LinkLane(shape, version.signature), [segment.fd, *fds.worker])
        slot.child.send(AttachWorker(version.key, worker.worker_id), fds.front)
        slot.attached.add((version.key, worker.worker_id))
        fds.close()

    def _open_lane(self, slot: FrontEndSlot, version: ModelVersion) -> None:
        assert version.signature is not None
        budget = lane_budget(self._count)
        shape = lane_shape(
            version.signature,
            version.options.batch_size,
            version.max_workers,
            request_bytes_max=self._first.request_bytes_max,
            response_bytes_max=self._response_bytes_max,
            budget=budget,
        )
        segment = create_lane(shape)
        said = describe_lane(shape, segment, budget)
        logger.info("lane of %s %s to front end %d: %s", version.name, version.version, slot.index, said)
        slot.lanes[version.key] = (segment, shape)
        slot.child.send(OpenLane(version.key, shape, version.signature, version.served), [segment.fd])

    def worker_gone(self, version: ModelVersion, worker_id: str, status: int, cause: str) -> None:
        for slot in self._slots:
            if (version.key, worker_id) in slot.attached:
                slot.attached.discard((version.key, worker_id))
                slot.child.send(WorkerGone(version.key, worker_id, status, cause))
                self._confirmations.came((Detached, slot.index, version.key, worker_id))

    async def detach(self, version: ModelVersion, worker_id: str, timeout_s: float) -> bool:
        """Nobody gives the worker anything more, and what it had is answered; false when that took too long."""
        holders = [slot for slot in self._slots if (version.key, worker_id) in slot.attached]
        waiting = [
            self._confirmations.expect((Detached, slot.index, version.key, worker_id), timeout_s) for slot in holders
        ]
        for slot in holders:
            slot.child.send(DetachWorker(version.key, worker_id))
        return None not in await asyncio.gather(*waiting)

    async def close_lanes(self, version: ModelVersion, timeout_s: float) -> bool:
        """The version has left the routes: wait until its requests are answered; false when that took too long."""
        holders = [slot for slot in self._slots if slot.child.state is State.READY]
        waiting = [self._confirmations.expect((LaneClosed, slot.index, version.key), timeout_s) for slot in holders]
        for slot in holders:
            slot.child.send(CloseLane(version.key))
        answered = None not in await asyncio.gather(*waiting)
        for slot in self._slots:
            if answered:  # otherwise a front end still waits for its workers, and must hear of their end
                slot.attached = {pair for pair in slot.attached if pair[0] != version.key}
            lane = slot.lanes.pop(version.key, None)
            if lane is not None:
                lane[0].close()
            slot.shared.discard(version.key)
            slot.counted.discard(version.key)
        page = self._pages.pop(version.key, None)
        if page is not None:
            page.close()
        if self._counters is not None:
            self._counters.retire(version.key)
        return answered

    async def queue_depth(self, key: int) -> int:
        """How many requests of a version wait in all front ends; one alone that does not answer in time counts as 0."""
        if key in self._pages:
            return self._pages[key].total
        return sum(told.waiting.get(key, 0) for told in await self._queues())

    async def loads(self, keys: tuple[int, ...]) -> list[dict[int, Load]] | None:
        """What these versions have to do in each front end; None when one of them does not say."""
        told = [each.loads for each in await self._queues(keys)]
        return told if len(told) == len(self._slots) else None

    async def _queues(self, keys: tuple[int, ...] = ()) -> list[Queues]:
        """What those front ends say that do so in time."""
        token = next(self._tokens)
        ready = [slot for slot in self._slots if slot.ready]
        answers = [self._confirmations.expect((Queues, slot.index, token), ASK_S_MAX) for slot in ready]
        for slot in ready:
            slot.child.send(AskQueues(token, keys))
        return [answer for answer in await asyncio.gather(*answers) if isinstance(answer, Queues)]

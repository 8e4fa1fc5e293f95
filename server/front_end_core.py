"""What every front end does, whatever protocol its clients speak: it obeys the supervisor, keeps the routes, the lanes and the links
with the workers, counts, and drains.

The `Transport` of HTTP is in frontend.py, that of gRPC in rpc/listener.py. A front end owns nothing but its
connections. When the supervisor dies it answers what is in flight and exits.
"""

import asyncio
import gc
import logging
import os
import signal
from typing import Protocol

from ringserve.protocol.errors import ShuttingDown, WorkerLost
from ringserve.server.channel import Channel, ControlClosed, ControlFull
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
    OpenLane,
    Queues,
    Routes,
    SequencesTold,
    ShareCounters,
    ShareQueue,
    UseCertificate,
    WorkerGone,
    WorkerStuck,
)
from ringserve.server.dispatch import Dispatcher
from ringserve.server.health import RETRY_AFTER_S
from ringserve.server.messages import Message
from ringserve.server.metrics.meter import Responses
from ringserve.server.metrics.metering import Metering
from ringserve.server.open_inference.regions import Regions
from ringserve.server.region_messages import DropRegions, RegionRefused, ShareCudaRegion, ShareRegion
from ringserve.server.routing import RouteTable
from ringserve.server.security.tls import from_memory
from ringserve.server.sequences.dispatcher import SequenceDispatcher, pass_on
from ringserve.server.trace_messages import SetTraces
from ringserve.server.tracing import FrontEndTracing
from ringserve.shm.lane import Lane
from ringserve.shm.link import END_FDS, FrontLink
from ringserve.shm.region import Region, RegionError
from ringserve.shm.segment import Segment

logger = logging.getLogger("ringserve.frontend")

# For how long a front end without supervisor answers what it has.
ORPHAN_DRAIN_S = 10.0
ORPHAN_UNUSED_S = 0.5


class Transport(Protocol):
    """The protocol that the clients of a front end speak."""

    @property
    def connections(self) -> int:
        """How many clients there are."""

    async def start(self) -> None:
        """Accept connections from now on: everything that can be asked for is known."""

    def routed(self) -> None:
        """What can be asked for has changed; also said before `start`."""

    def let_in(self, keys: Keys) -> None:
        """Whoever shows one of these from now on, and nobody else."""

    def count(self, responses: Responses) -> None:
        """Count there what is answered; may be said more than once, and is not where nothing is measured."""

    def use_certificate(self, pem: bytes) -> None:
        """Speak TLS with it on connections that begin from now on; the first one comes before `start`. Raises `OSError`, and then
        nothing is served rather than without TLS."""

    def answer_last(self) -> None:
        """The server has been told to stop: clients learn it with their next answers."""

    async def wind_down(self, deadline_s: float, unused_s: float, *, emptied: bool) -> None:
        """Stop accepting, and wait until what is in flight is answered, or the deadline over (control.py: `Drain`)."""

    async def cut_off(self, error: ShuttingDown) -> None:
        """All requests have their answers: write what is not written, refuse what is still coming with the error, and end."""


class FrontEndCore:
    """Obeys the supervisor; the requests themselves pass through the `transport` and the dispatchers of `table`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.table = RouteTable()
        self.metering = Metering(self.table.dispatchers, self._count_connections)
        self.regions = Regions()  # that clients share with the server
        self.tracing = FrontEndTracing(self.table.dispatchers, self._tell)
        self._pages: dict[int, tuple[Segment, int]] = {}  # queue pages whose versions the next routes bring
        self._transport: Transport | None = None
        self._has_certificate = self._started = False
        self._draining: asyncio.Task[None] | None = None
        self._routed = asyncio.Event()
        self._done = asyncio.Event()
        # First of all: whoever sends the signal to a process that does not expect it ends it.
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._describe_memory)

    async def run(self, transport: Transport) -> None:
        """Serve until drained. Until the supervisor has said what is served, connections wait in the socket's queue."""
        self._transport = transport
        # What exists now stays for good: the collector need not look at it again for every few thousand requests.
        gc.collect()
        gc.freeze()
        self._channel.watch(self._heard, self._orphaned)
        self._tell(FrontEndReady())
        await self._routed.wait()
        if self._draining is None:
            await transport.start()
            self._started = True
            if self.table.draining:
                transport.answer_last()
        await self._done.wait()

    def _tell(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except ControlClosed:
            pass  # its end is noticed by the watcher
        except ControlFull:
            logger.error("the supervisor reads nothing; not told: %s", type(message).__name__)

    def _heard(self, message: object, fds: list[int]) -> None:
        """Obey, or end: a front end that missed a message would be wrong from here on, a new one is told everything."""
        try:
            self._obey(message, fds)
        except Exception:
            logger.exception("%s cannot be obeyed", type(message).__name__)
            os._exit(1)

    def _obey(self, message: object, fds: list[int]) -> None:
        dispatchers = self.table.dispatchers
        if isinstance(message, AttachWorker) and len(fds) < END_FDS:
            # The kernel drops descriptors for which this process has no room. The supervisor tries again later.
            logger.error("worker %s cannot be reached: too many files are open", message.worker_id)
            for fd in fds:
                os.close(fd)
            self._tell(Detached(message.key, message.worker_id))
            return
        if isinstance(message, OpenLane | AttachWorker) and message.key not in dispatchers:
            for fd in fds:  # the version has left meanwhile, and its workers with it
                os.close(fd)
            return
        match message:
            case Routes():
                self._route(message)
            case Keys():
                assert self._transport is not None
                self._transport.let_in(message)
                self._tell(Applied(message.epoch))
            case UseCertificate():
                self._use_certificate(fds)
            case ShareQueue():
                self._pages[message.key] = Segment.attach(fds[0]), message.own
            case ShareCounters():
                assert self._transport is not None
                self.metering.share(message.key, message.own, fds)
                self._transport.count(self.metering.responses)
            case OpenLane():
                dispatchers[message.key].open_lane(Lane.attach(fds[0], message.shape), message.signature)
                dispatchers[message.key].served = message.served
            case AttachWorker():
                dispatchers[message.key].attach(message.worker_id, FrontLink(tuple(fds)))
            case DetachWorker():
                reply = Detached(message.key, message.worker_id)
                if message.key in dispatchers:
                    dispatchers[message.key].detach(message.worker_id, lambda: self._tell(reply))
                else:  # the version has left, and all its workers with it
                    self._tell(reply)
            case WorkerGone():
                if message.key in dispatchers:
                    error = WorkerLost(f"Worker died. {message.cause}", status=message.status)
                    dispatchers[message.key].worker_gone(message.worker_id, error)
            case CloseLane():
                self._close_lane(message.key)
            case SequencesTold():
                pass_on(message, dispatchers, self._tell)
            case ShareRegion():
                self._share_region(message, fds)
            case ShareCudaRegion():
                self._share_cuda(message)
            case DropRegions():
                self.regions.drop(message.names)
                self._tell(Applied(message.epoch))
            case SetTraces():
                self.tracing.set(message)
                self._tell(Applied(message.epoch))
            case AskQueues():
                waiting = {key: each.waiting for key, each in dispatchers.items()}
                loads = {key: dispatchers[key].load for key in message.keys if key in dispatchers}
                self._tell(Queues(message.token, waiting, loads))
            case AskCounters():
                self.metering.fold()
                self._tell(Counted(message.token))
            case Drain():
                self.table.succeeded = message.succeeded
                self._drain(message.deadline_s, message.unused_s, emptied=message.emptied)
            case _:
                raise AssertionError(f"not a message to a front end: {message!r}")

    def _route(self, routes: Routes) -> None:
        self.table.apply(routes, self._watch_version)
        self.tracing.routed(routes)
        if self._transport is not None:
            self._transport.routed()
        if self.table.draining:
            self._answer_last()
        self._routed.set()
        self._tell(Applied(routes.epoch))

    def _share_region(self, message: ShareRegion, fds: list[int]) -> None:
        if not fds:  # the kernel dropped it
            logger.error("shared memory region %s is not here: too many files are open", message.name)
            self._tell(RegionRefused(message.epoch, "too many files are open"))
            return
        self.regions.share(message.name, Region(message.name, fds[0], message.offset, message.size_bytes))
        self._tell(Applied(message.epoch))

    def _share_cuda(self, message: ShareCudaRegion) -> None:
        from ringserve.server.open_inference.cuda_memory import CudaRegion  # ctypes is for those who need it

        try:
            region = CudaRegion(message.name, message.handle, message.device, message.size_bytes)
        except RegionError as error:
            self._tell(RegionRefused(message.epoch, str(error)))
            return
        self.regions.share(message.name, region)
        self._tell(Applied(message.epoch))

    def _watch_version(self, key: int, dispatcher: Dispatcher) -> None:
        dispatcher.on_stuck = lambda worker_id: self._tell(WorkerStuck(key, worker_id))
        if isinstance(dispatcher, SequenceDispatcher):
            dispatcher.tell = self._tell
        if key in self._pages:
            page, own = self._pages.pop(key)
            dispatcher.admission.share(page.view, own)
            page.close()
        self.metering.begin(key, dispatcher)

    def _count_connections(self) -> int:
        return self._transport.connections if self._transport is not None and self._started else 0

    def _close_lane(self, key: int) -> None:
        dispatcher = self.table.dispatchers.get(key)
        if dispatcher is None:
            self._tell(LaneClosed(key))
            return

        def closed() -> None:
            # After those have had their say who have just got the last answers.
            asyncio.get_running_loop().call_soon(self._lane_closed, key, dispatcher)

        dispatcher.close(closed)

    def _lane_closed(self, key: int, dispatcher: Dispatcher) -> None:
        """What was measured of the version is counted before the supervisor hears that nothing more will come."""
        self.metering.fold()
        if dispatcher.meter is not None:
            dispatcher.meter.let_go()
        dispatcher.admission.unshare()
        self.table.dispatchers.pop(key, None)
        self._tell(LaneClosed(key))

    def _describe_memory(self) -> None:
        """On SIGUSR1: where the slabs of every version are, into the log."""
        for dispatcher in self.table.dispatchers.values():
            use, waiting = dispatcher.slab_use, dispatcher.waiting
            said = f"free slabs {use.free} of {sum(use)}, waiting {waiting}, held {use.held}"
            logger.info("dispatcher %s: %s", dispatcher.label, said)

    def _use_certificate(self, fds: list[int]) -> None:
        assert self._transport is not None
        if not fds and self._has_certificate:
            logger.error("the TLS certificate stays as it is: too many files are open")
            return
        pem = from_memory(fds[0])
        os.close(fds[0])
        self._transport.use_certificate(pem)
        self._has_certificate = True

    # ---- the end

    def _orphaned(self) -> None:
        logger.error("the supervisor is gone; answering what is in flight, then exiting")
        self._drain(ORPHAN_DRAIN_S, ORPHAN_UNUSED_S, emptied=False)

    def _answer_last(self) -> None:
        if self._transport is not None and self._started:
            self._transport.answer_last()

    def _drain(self, deadline_s: float, unused_s: float, *, emptied: bool) -> None:
        if self._draining is None:
            self.table.draining = True
            self._answer_last()
            self._draining = asyncio.ensure_future(self._drained(deadline_s, unused_s, emptied=emptied))
            self._routed.set()

    async def _drained(self, deadline_s: float, unused_s: float, *, emptied: bool) -> None:
        transport = self._transport
        if transport is None or not self._started:  # it has accepted nobody yet
            self._done.set()
            return
        await transport.wind_down(deadline_s, unused_s, emptied=emptied)
        self.tracing.flush()
        stopping = ShuttingDown("The server is shutting down.", retry_after_s=RETRY_AFTER_S)
        for dispatcher in self.table.dispatchers.values():
            dispatcher.abandon(stopping)
        await transport.cut_off(stopping)
        self._done.set()

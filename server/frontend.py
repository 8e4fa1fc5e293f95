"""A front end: one process that turns HTTP requests into rows and answers into HTTP.

Run as `python -P -m ringserve.server.frontend CONTROL_FD`. The supervisor gives it the listening socket, the routes, the lanes
and the workers; it owns nothing but its connections. When the supervisor dies it answers what is in flight and exits.
"""

import asyncio
import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Collection
from pathlib import Path

import uvloop
from sanic.server.async_server import AsyncioServer

from ringserve.protocol.errors import ShuttingDown, WorkerLost
from ringserve.server.acceptor import Acceptor
from ringserve.server.app import (
    ACCEPT_LAST_S,
    LAST_WORDS_S,
    UNUSED_S_MIN,
    answer_last,
    connector,
    cut_off,
    start_serving,
    stop_accepting,
    wind_down,
)
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
    Message,
    OpenLane,
    Queues,
    Routes,
    SequencesTold,
    ServeHttp,
    ShareCounters,
    ShareQueue,
    ToFrontEnd,
    UseCertificate,
    WorkerGone,
    WorkerStuck,
)
from ringserve.server.dispatch import Dispatcher
from ringserve.server.health import RETRY_AFTER_S
from ringserve.server.logs.access import open_access_log
from ringserve.server.metrics.metering import Metering
from ringserve.server.routes.connection import PredictionConnection
from ringserve.server.routes.forwarding import Forwarding
from ringserve.server.routes.guard import Guard
from ringserve.server.routes.inference import Inference, Timeouts
from ringserve.server.routing import RouteTable
from ringserve.server.security.cors import answers_preflights
from ringserve.server.security.tls import Tls, from_memory, server_context
from ringserve.server.security.tokens import Plane
from ringserve.server.sequences.dispatcher import SequenceDispatcher, pass_on
from ringserve.server.wire import add_fixed_headers
from ringserve.shm.lane import Lane
from ringserve.shm.link import END_FDS, FrontLink
from ringserve.shm.segment import Segment

logger = logging.getLogger("ringserve.frontend")

# For how long a front end without supervisor answers what it has.
ORPHAN_DRAIN_S = 10.0
# Who has connected is accepted within this time.
ACCEPT_LAST_S_MAX = 2.0


class FrontEnd:
    """Obeys the supervisor; the requests themselves pass through `Inference` and the dispatchers."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._table = RouteTable()
        self._pages: dict[int, tuple[Segment, int]] = {}  # queue pages whose versions the next routes bring
        self._metering = Metering(self._table.dispatchers, self._count_connections)
        self._server: AsyncioServer | None = None
        self._inference: Inference | None = None
        self._socket: socket.socket | None = None
        self._acceptor: Acceptor | None = None
        self._forwarding: Forwarding | None = None
        self._tls: Tls | None = None
        self._draining: asyncio.Task[None] | None = None
        self._routed = asyncio.Event()
        self._done = asyncio.Event()

    async def run(self, first: ServeHttp, sock: socket.socket, page: Segment | None) -> None:
        """Serve until drained. Until the supervisor has said what is served, connections wait in the socket's queue."""
        # First of all: whoever sends the signal to a process that does not expect it ends it.
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._describe_memory)
        self._table.front_ends = first.front_ends
        timeouts = Timeouts(first.header_timeout_s, first.body_timeout_s, first.write_timeout_s)
        inference = self._inference = Inference(self._table, first.request_bytes_max, timeouts)
        if first.admin_socket:
            inference.forwarding = self._forwarding = Forwarding(Path(first.admin_socket), first.passed_on)
        inference.access = access = open_access_log(first.access_log, first.log_format)
        add_fixed_headers(first.cors)
        both = "management" in first.passed_on
        metrics, cors = "metrics" in first.passed_on, answers_preflights(first.cors)
        inference.protect(Guard(Plane.INFERENCE, tokens=first.tokens, cors=cors, both=both, metrics=metrics))
        # What exists now stays for good: the collector need not look at it again for every few thousand requests.
        gc.collect()
        gc.freeze()
        self._channel.watch(self._heard, self._orphaned)
        self._tell(FrontEndReady())
        await self._routed.wait()
        if self._draining is None:
            await self._start_serving(inference, sock, page, first.index)
        await self._done.wait()
        if access is not None:
            access.close()

    async def _start_serving(self, inference: Inference, sock: socket.socket, page: Segment | None, own: int) -> None:
        """`page` counts the connections of all front ends; None when this is the only one."""
        alone = page is None
        tls = self._tls
        protocol = PredictionConnection if tls is None else tls.protocol(PredictionConnection)
        server = self._server = await start_serving(inference.app, sock, protocol, accepting=alone)
        if page is not None:
            connect = connector(server, inference.app, protocol)
            acceptor = self._acceptor = Acceptor(sock, page.view, own, connect)
            shaking: Collection[object] = () if tls is None else tls.handshakes
            inference.on_connections = lambda: acceptor.count(len(server.connections) + len(shaking))
            if tls is not None:
                tls.on_failed = inference.on_connections
            acceptor.start()
        self._socket = sock
        if self._table.draining:
            answer_last(server, inference.app)

    def _tell(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except ControlClosed:
            pass  # its end is noticed by the watcher
        except ControlFull:
            logger.error("the supervisor reads nothing; not told: %r", message)

    def _heard(self, message: object, fds: list[int]) -> None:
        """Obey, or end: a front end that missed a message would be wrong from here on, a new one is told everything."""
        try:
            self._obey(message, fds)
        except Exception:
            logger.exception("%s cannot be obeyed", type(message).__name__)
            os._exit(1)

    def _obey(self, message: object, fds: list[int]) -> None:
        dispatchers = self._table.dispatchers
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
                self._table.apply(message, self._watch_version)
                if self._table.draining:
                    self._answer_last()
                self._routed.set()
                self._tell(Applied(message.epoch))
            case Keys():
                assert self._inference is not None
                self._inference.let_in(message)
                self._tell(Applied(message.epoch))
            case UseCertificate():
                self._use_certificate(fds)
            case ShareQueue():
                self._pages[message.key] = Segment.attach(fds[0]), message.own
            case ShareCounters():
                self._share_counters(message, fds)
            case OpenLane():
                dispatchers[message.key].open_lane(Lane.attach(fds[0], message.shape), message.signature)
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
            case AskQueues():
                waiting = {key: each.waiting for key, each in dispatchers.items()}
                loads = {key: dispatchers[key].load for key in message.keys if key in dispatchers}
                self._tell(Queues(message.token, waiting, loads))
            case AskCounters():
                self._metering.fold()
                self._tell(Counted(message.token))
            case Drain():
                self._table.succeeded = message.succeeded
                self._drain(message.deadline_s, message.unused_s, emptied=message.emptied)
            case _:
                raise AssertionError(f"not a message to a front end: {message!r}")

    def _watch_version(self, key: int, dispatcher: Dispatcher) -> None:
        dispatcher.on_stuck = lambda worker_id: self._tell(WorkerStuck(key, worker_id))
        if isinstance(dispatcher, SequenceDispatcher):
            dispatcher.tell = self._tell
        if key in self._pages:
            page, own = self._pages.pop(key)
            dispatcher.admission.share(page.view, own)
            page.close()
        self._metering.begin(key, dispatcher)

    def _share_counters(self, message: ShareCounters, fds: list[int]) -> None:
        self._metering.share(message.key, message.own, fds)
        if self._inference is not None:
            self._inference.app.ctx.responses = self._metering.responses

    def _count_connections(self) -> int:
        return 0 if self._server is None else len(self._server.connections)

    def _close_lane(self, key: int) -> None:
        dispatcher = self._table.dispatchers.get(key)
        if dispatcher is None:
            self._tell(LaneClosed(key))
            return

        def closed() -> None:
            # After those have had their say who have just got the last answers.
            asyncio.get_running_loop().call_soon(self._lane_closed, key, dispatcher)

        dispatcher.close(closed)

    def _lane_closed(self, key: int, dispatcher: Dispatcher) -> None:
        """What was measured of the version is counted before the supervisor hears that nothing more will come."""
        self._metering.fold()
        if dispatcher.meter is not None:
            dispatcher.meter.let_go()
        dispatcher.admission.unshare()
        self._table.dispatchers.pop(key, None)
        self._tell(LaneClosed(key))

    def _describe_memory(self) -> None:
        """On SIGUSR1: where the slabs of every version are, into the log."""
        for dispatcher in self._table.dispatchers.values():
            use, waiting = dispatcher.slab_use, dispatcher.waiting
            said = f"free slabs {use.free} of {sum(use)}, waiting {waiting}, held {use.held}"
            logger.info("dispatcher %s: %s", dispatcher.label, said)

    def _use_certificate(self, fds: list[int]) -> None:
        assert self._inference is not None
        if not fds and self._tls is not None:
            logger.error("the TLS certificate stays as it is: too many files are open")
            return
        context = server_context(from_memory(fds[0]))  # without one, nothing is served rather than without TLS
        os.close(fds[0])
        if self._tls is None:
            self._tls = Tls(context, self._inference.timeouts.header_s)
        else:
            self._tls.context = context

    # ---- the end

    def _orphaned(self) -> None:
        logger.error("the supervisor is gone; answering what is in flight, then exiting")
        self._drain(ORPHAN_DRAIN_S, UNUSED_S_MIN, emptied=False)

    def _answer_last(self) -> None:
        if self._server is not None and self._inference is not None:
            answer_last(self._server, self._inference.app)

    def _drain(self, deadline_s: float, unused_s: float, *, emptied: bool) -> None:
        if self._draining is None:
            self._table.draining = True
            self._answer_last()
            self._draining = asyncio.ensure_future(self._drained(deadline_s, unused_s, emptied=emptied))
            self._routed.set()

    async def _drained(self, deadline_s: float, unused_s: float, *, emptied: bool) -> None:
        if self._server is None:  # it has accepted nobody yet
            self._done.set()
            return
        if emptied:
            await self._accept_the_last()
        if self._acceptor is not None:
            self._acceptor.close()
        stop_accepting(self._server)
        if self._forwarding is not None:
            self._forwarding.stop()
        await asyncio.sleep(ACCEPT_LAST_S)  # what has just been accepted is not among the connections yet
        end = time.monotonic() + deadline_s
        while (wind_down(self._server, unused_s) or self._is_shaking_hands(unused_s)) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        stopping = ShuttingDown("The server is shutting down.", retry_after_s=RETRY_AFTER_S)
        for dispatcher in self._table.dispatchers.values():
            dispatcher.abandon(stopping)
        for connection in list(self._server.connections):
            connection.refuse_body(stopping)
        await cut_off(self._server, LAST_WORDS_S)
        self._done.set()

    def _is_shaking_hands(self, unused_s: float) -> bool:
        """Whether connections that will be of HTTP are not yet."""
        return self._tls is not None and self._tls.wind_down(unused_s) > 0

    async def _accept_the_last(self) -> None:
        """Whoever has connected before they were turned away has been promised an answer."""
        assert self._socket is not None
        await asyncio.sleep(ACCEPT_LAST_S)
        end = time.monotonic() + ACCEPT_LAST_S_MAX
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        while waiting.poll(0) and time.monotonic() < end:
            await asyncio.sleep(0.005)


async def _main(control: socket.socket) -> None:
    channel = Channel(control, ToFrontEnd)
    received = channel.receive(wait=True)
    assert received is not None
    message, fds = received
    assert isinstance(message, ServeHttp)
    page = Segment.attach(fds[1]) if len(fds) > 1 else None
    await FrontEnd(channel).run(message, socket.socket(fileno=fds[0]), page)


def main() -> None:
    """Entry point of a front-end process."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):  # the supervisor drains us, in its order
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ControlClosed):
        uvloop.run(_main(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()

"""The HTTP front end: one process that turns HTTP requests into rows and answers into HTTP.

Run as `python -P -m ringserve.server.frontend CONTROL_FD`. The supervisor gives it the listening socket; what else it is told, it has
in common with the other front ends (front_end_core.py).
"""

import asyncio
import contextlib
import logging
import select
import signal
import socket
import sys
import time
from collections.abc import Collection
from pathlib import Path

import uvloop
from sanic.server.async_server import AsyncioServer

from ringserve.protocol.errors import ShuttingDown
from ringserve.server.acceptor import Acceptor
from ringserve.server.app import (
    ACCEPT_LAST_S,
    LAST_WORDS_S,
    answer_last,
    connector,
    cut_off,
    start_serving,
    stop_accepting,
    wind_down,
)
from ringserve.server.channel import Channel, ControlClosed
from ringserve.server.control import Keys, ServeHttp, ToFrontEnd
from ringserve.server.front_end_core import FrontEndCore
from ringserve.server.logs.access import open_access_log
from ringserve.server.metrics.meter import Responses
from ringserve.server.open_inference.service import OpenInference
from ringserve.server.routes.connection import PredictionConnection
from ringserve.server.routes.forwarding import Forwarding
from ringserve.server.routes.guard import Guard
from ringserve.server.routes.inference import Inference, Timeouts
from ringserve.server.security.cors import answers_preflights
from ringserve.server.security.tls import Tls, server_context
from ringserve.server.security.tokens import Plane
from ringserve.server.wire import add_fixed_headers
from ringserve.shm.segment import Segment

# Who has connected is accepted within this time.
ACCEPT_LAST_S_MAX = 2.0


class HttpTransport:
    """The requests pass through `Inference`. `page` counts the connections of all HTTP front ends; None when this is the only one."""

    def __init__(self, core: FrontEndCore, first: ServeHttp, sock: socket.socket, page: Segment | None) -> None:
        core.table.front_ends = first.front_ends
        self._socket = sock
        self._page = page
        self._own = first.index
        self._server: AsyncioServer | None = None
        self._acceptor: Acceptor | None = None
        self._forwarding: Forwarding | None = None
        self._tls: Tls | None = None
        timeouts = Timeouts(first.header_timeout_s, first.body_timeout_s, first.write_timeout_s)
        inference = self._inference = Inference(core.table, first.request_bytes_max, timeouts)
        inference.v2.service = OpenInference(
            core.table,
            first.server_id,
            first.server_version,
            first.extensions,
            core.regions,
            strict_readiness=first.strict_readiness,
        )
        if first.admin_socket:
            inference.forwarding = self._forwarding = Forwarding(Path(first.admin_socket), first.passed_on)
        inference.access = open_access_log(first.access_log, first.log_format)
        add_fixed_headers(first.cors)
        both = "management" in first.passed_on
        metrics, cors = "metrics" in first.passed_on, answers_preflights(first.cors)
        inference.protect(Guard(Plane.INFERENCE, tokens=first.tokens, cors=cors, both=both, metrics=metrics))

    @property
    def connections(self) -> int:
        return 0 if self._server is None else len(self._server.connections)

    async def start(self) -> None:
        inference, tls, page = self._inference, self._tls, self._page
        protocol = PredictionConnection if tls is None else tls.protocol(PredictionConnection)
        server = self._server = await start_serving(inference.app, self._socket, protocol, accepting=page is None)
        if page is not None:
            connect = connector(server, inference.app, protocol)
            acceptor = self._acceptor = Acceptor(self._socket, page.view, self._own, connect)
            shaking: Collection[object] = () if tls is None else tls.handshakes
            inference.on_connections = lambda: acceptor.count(len(server.connections) + len(shaking))
            if tls is not None:
                tls.on_failed = inference.on_connections
            acceptor.start()

    def routed(self) -> None:
        """Each request looks into the table."""

    def let_in(self, keys: Keys) -> None:
        self._inference.let_in(keys)

    def count(self, responses: Responses) -> None:
        self._inference.app.ctx.responses = responses

    def use_certificate(self, pem: bytes) -> None:
        context = server_context(pem)
        if self._tls is None:
            self._tls = Tls(context, self._inference.timeouts.header_s)
        else:
            self._tls.context = context

    # ---- the end

    def answer_last(self) -> None:
        assert self._server is not None
        answer_last(self._server, self._inference.app)

    async def wind_down(self, deadline_s: float, unused_s: float, *, emptied: bool) -> None:
        assert self._server is not None
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

    def _is_shaking_hands(self, unused_s: float) -> bool:
        """Whether connections that will be of HTTP are not yet."""
        return self._tls is not None and self._tls.wind_down(unused_s) > 0

    async def _accept_the_last(self) -> None:
        """Whoever has connected before they were turned away has been promised an answer."""
        await asyncio.sleep(ACCEPT_LAST_S)
        end = time.monotonic() + ACCEPT_LAST_S_MAX
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        while waiting.poll(0) and time.monotonic() < end:
            await asyncio.sleep(0.005)

    async def cut_off(self, error: ShuttingDown) -> None:
        assert self._server is not None
        for connection in list(self._server.connections):
            connection.refuse_body(error)
        await cut_off(self._server, LAST_WORDS_S)

    def close(self) -> None:
        """Write what is left of the access log."""
        if self._inference.access is not None:
            self._inference.access.close()


async def _main(control: socket.socket) -> None:
    channel = Channel(control, ToFrontEnd)
    received = channel.receive(wait=True)
    assert received is not None
    message, fds = received
    assert isinstance(message, ServeHttp)
    page = Segment.attach(fds[1]) if len(fds) > 1 else None
    core = FrontEndCore(channel)
    transport = HttpTransport(core, message, socket.socket(fileno=fds[0]), page)
    await core.run(transport)
    transport.close()


def main() -> None:
    """Entry point of a front-end process."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):  # the supervisor drains us, in its order
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ControlClosed):
        uvloop.run(_main(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()

"""How bodies move over one connection of the inference listener, whichever way the request came.

Long bodies are read straight into shared memory (receiving.py), long answers are sent straight from there: their memory is kept until
the transport has nothing of them left. And what happens to clients that do not play along: that stall, that send no more, that
go on sending what nobody wants.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from sanic.exceptions import RequestCancelled
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from ringserve.protocol.errors import BadRequest, DeadlineExceeded
from ringserve.protocol.request import Source
from ringserve.server.app import BODY_BYTES_PER_S_MIN
from ringserve.server.landing import Landing
from ringserve.server.routes.receiving import Discarded, Reader, Sink
from ringserve.server.sources import untaken_bytes
from ringserve.shm.shm_errors import ShmError

LAST_CHUNK = b"0\r\n\r\n"
HTTP_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# How long a refused client may go on sending before the connection is closed under it.
LINGER_S_MAX = 2.0
FOREVER_S = 1e9
# When to look whether a client that sends no more is still there, after the probe.
PROBE_LOOKS_S = (0.02, 0.2, 1.0)
_TCP_CLOSE = 7  # the first byte of TCP_INFO, when the other side has answered with a reset


class BodyConnection(HttpProtocol):
    """Sanic's HTTP protocol, with bodies that do not pass through its buffers. `in_flight` is what a way around Sanic's own is at: the
    body it receives, the answer it waits for, or the one it sends."""

    __slots__ = (
        "_body_timer",
        "_eof",
        "_framed",
        "_inference",
        "_landing",
        "_on_received",
        "_on_sent",
        "_reader",
        "_source",
        "_stall_timer",
        "answered_s",
        "in_flight",
        "status",
    )

    def _setup(self) -> None:
        super()._setup()  # type: ignore[no-untyped-call]
        self._inference = self.app.ctx.inference
        self.in_flight: Any = None
        self._eof = False  # the client sends no more
        self._reader: Reader | None = None
        self._landing: Landing | None = None
        self._on_received: Callable[[Exception | None], None] | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._source: Source | None = None
        self._framed = False
        self._on_sent: Callable[[bool], None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self.answered_s = 0.0
        self.status = 0  # of the last answer on Sanic's way, for the access log

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        # Writing is paused as long as anything is left of what was written: memory that is being sent is let go at that moment.
        transport.set_write_buffer_limits(0, 0)
        if len(self.connections) > self._inference.connections_max:
            transport.abort()

    def close(self, timeout: float | None = None) -> None:
        """What is still to leave has as long as any answer: the stall clock cuts off who reads nothing."""
        super().close(timeout=FOREVER_S if timeout is None else timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
        if self._reader is not None:
            self._reader.sink = None
        landing, self._landing = self._landing, None
        if landing is not None:
            landing.abandon()
        self._drop_source()
        super().connection_lost(exc)  # type: ignore[no-untyped-call]
        if self._inference.on_connections is not None:
            self._inference.on_connections()

    # ---- what arrives

    def receive(
        self,
        landing: Landing,
        sink: Sink,
        on_received: Callable[[Exception | None], None],
        *,
        length: int,
        patience_ms: int,
    ) -> None:
        """Read a body of `length` bytes (0: nobody knows) until its sink has it all, for as long as a body may take and the client
        wants to wait (0: for ever). After an error, what else the client sends is thrown away; the connection is not to be
        used for another request."""
        transport = self.transport
        if self._reader is None:
            self._reader = Reader(self)
        self._landing, self._on_received = landing, on_received
        self._reader.begin(sink, self._body_ended)
        body_s_max, patience_s = self._body_s_max(length), patience_ms / 1000
        if 0 < patience_s < body_s_max:
            late = DeadlineExceeded("The request did not arrive completely in its time.")
            self._body_timer = self.loop.call_later(patience_s, self.refuse_body, late)
        else:
            self._body_timer = self.loop.call_later(body_s_max, self._look_at_body, monotonic(), length)
        if transport is not None:
            if transport.get_protocol() is not self._reader:
                transport.set_protocol(self._reader)
            transport.resume_reading()

    def _body_s_max(self, length: int) -> float:
        return float(self._inference.timeouts.body_s + length / BODY_BYTES_PER_S_MIN)

    def _look_at_body(self, began_s: float, length: int) -> None:
        """A body of unknown length has the time that what has come so far needs."""
        landing = self._landing
        received_bytes = 0 if length or landing is None else landing.received_bytes
        left_s = began_s + self._body_s_max(received_bytes) - monotonic()
        if received_bytes and left_s > 0:
            self._body_timer = self.loop.call_later(left_s, self._look_at_body, began_s, length)
        else:
            self.refuse_body(BadRequest("Body: the request did not arrive completely in time.", status=408))

    def refuse_body(self, error: Exception) -> None:
        """Wait no longer for the body that is being received, if there is one."""
        if self._landing is not None:
            assert self._reader is not None
            self._reader.sink = None
            self._body_ended(error)

    def _body_ended(self, error: Exception | None) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        landing, self._landing = self._landing, None
        on_received, self._on_received = self._on_received, None
        if error is not None:
            assert self._reader is not None
            self._reader.begin(Discarded(), _ignore)
            if landing is not None:
                landing.abandon()
        if on_received is not None:
            on_received(error)

    # ---- what leaves

    def put(self, buffers: Sequence[bytes | bytearray | memoryview]) -> bool:
        """Send a response of either way; false when the client is gone."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        transport.writelines(buffers)
        self._time = self.answered_s = monotonic()  # the idle clock of the connection starts now
        return True

    def send_source(self, head: bytes, source: Source, *, framed: bool, on_sent: Callable[[bool], None]) -> None:
        """Send a body from where it lies, as it comes and as the client takes it; `framed` as chunks. `on_sent(complete)` is
        called when nothing of it is left here; not when the client is gone before."""
        self._source, self._framed, self._on_sent = source, framed, on_sent
        source.on_change = self._go_on_sending
        if self.put((head,)):
            self._go_on_sending()
        else:
            self._drop_source()

    def _go_on_sending(self) -> None:
        source, transport = self._source, self.transport
        while source is not None and transport is not None and self._can_write.is_set():
            if transport.is_closing():
                return
            try:
                part = source.next()
            except (ShmError, OSError):
                source.ended = source.broken = True
                part = None
            if part is not None:
                transport.writelines((b"%x\r\n" % len(part), part, b"\r\n") if self._framed else (part,))
                continue
            if not source.ended:
                return  # more will come, and say so
            if self._framed and not source.broken:
                self._framed = False
                transport.write(LAST_CHUNK)
                continue
            if source.broken and not self._framed:
                transport.abort()  # nothing else would say that the body is not complete
                return
            on_sent, complete = self._on_sent, not source.broken
            self._drop_source()
            self._time = self.answered_s = monotonic()
            if on_sent is not None:
                on_sent(complete)
            return

    def _drop_source(self) -> None:
        source, self._source, self._on_sent = self._source, None, None
        if source is not None:
            source.on_change = _nothing
            source.close()

    def linger(self, on_end: Callable[[], None]) -> None:
        """After a refusal: a client that is still sending must be able to read it, which a reset would prevent."""
        transport = self.transport
        if transport is None or transport.is_closing():
            on_end()
            return
        if self._reader is None:
            self._reader = Reader(self)
        if self._reader.sink is None:
            self._reader.begin(Discarded(), _ignore)
        if transport.get_protocol() is not self._reader:
            transport.set_protocol(self._reader)
        transport.write_eof()
        transport.resume_reading()
        self.loop.call_later(LINGER_S_MAX, on_end)

    # ---- clients that stop

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[no-untyped-call]
        self._watch_stall()

    def _watch_stall(self) -> None:
        if self.transport is not None:
            left = untaken_bytes(self.transport)
            self._stall_timer = self.loop.call_later(self._inference.timeouts.write_s, self._stalled, left)

    def _stalled(self, before: int) -> None:
        """The client has not read anything for long: it is cut off, and what was kept for it is let go."""
        self._stall_timer = None
        transport = self.transport
        if transport is None or self._can_write.is_set():
            return
        if untaken_bytes(transport) >= before:
            transport.abort()
        else:
            self._watch_stall()

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[no-untyped-call]
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._source is not None:
            self._go_on_sending()

    def eof_received(self) -> bool:
        """The client sends no more. It may have closed its sending half only, and then waits for its answer; or it is gone. A word
        that HTTP lets a server say at any time tells: a client that is gone resets the connection."""
        self._eof = True
        http = self.http
        woken = self._data_received.is_set()
        unseen = woken and bool(self.recv_buffer)  # Sanic's task is about to look at it
        starved = http is not None and bool(http.request_body) and not woken and self.in_flight is None
        answering = http is not None and http.stage in (Stage.HANDLER, Stage.RESPONSE) and not starved
        waits = self.in_flight is not None or unseen or answering
        receives = self._reader is not None and self._reader.sink is not None
        if not waits or receives or self.transport is None or self.transport.is_closing():
            return False
        request = None if http is None else http.request
        one_one = self.in_flight is not None or request is None or request.version == "1.1"
        if self._source is None and one_one and not unseen:
            self.transport.write(HTTP_CONTINUE)
            for after_s in PROBE_LOOKS_S:
                self.loop.call_later(after_s, self._look_whether_gone, after_s == PROBE_LOOKS_S[-1])
        return True

    def _look_whether_gone(self, again: bool) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        sock = transport.get_extra_info("socket")
        try:
            state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            return  # not TCP: it is not known
        if state == _TCP_CLOSE:
            transport.abort()
        elif again:
            self.loop.call_later(PROBE_LOOKS_S[-1], self._look_whether_gone, True)

    async def receive_more(self) -> None:
        if self._eof:
            raise RequestCancelled
        await super().receive_more()  # type: ignore[no-untyped-call]


def _ignore(error: Exception | None) -> None:
    """What is thrown away ends with the connection."""


def _nothing() -> None:
    """Nobody sends it any more."""

"""One connection of the inference listener: how requests come in, how answers leave, and what happens when the client does not
play along.

Most requests go a short way. One that is a POST to a path the route table holds literally, whose head arrives in one read, and that
needs nothing of HTTP but its headers and a body of known length, is parsed by llhttp and answered from here: no coroutine, no
request object, no router. That costs half of the other way. Whatever is unusual in any respect (a head in pieces, chunks,
pipelining, a form, another method, malformed) is left to Sanic byte for byte, so there is one place for each rule.

Long bodies of either way are read straight into shared memory (receiving.py), long answers are sent straight from there: their
memory is kept until the transport has nothing of them left.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from time import monotonic

import httptools
from sanic.exceptions import RequestCancelled
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Answer, InferRequest, Source
from ringserve.server.app import BODY_BYTES_PER_S_MIN
from ringserve.server.dispatch import Dispatcher
from ringserve.server.forms import is_form
from ringserve.server.landing import SOCKET_TO_SLAB, Landing
from ringserve.server.routes.inference import TIMEOUT_HEADER, handler_headers, is_binary, timeout_ms
from ringserve.server.routes.receiving import Discarded, Reader, Sink, SizedBody
from ringserve.server.wire import answer_buffers, request_id, streamed_head
from ringserve.shm.shm_errors import ShmError

START = b"POST /predictions/"
LAST_CHUNK = b"0\r\n\r\n"
HTTP_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# How long a refused client may go on sending before the connection is closed under it.
LINGER_S_MAX = 2.0
# When to look whether a client that sends no more is still there, after the probe.
PROBE_LOOKS_S = (0.02, 0.2, 1.0)
_TCP_CLOSE = 7  # the first byte of TCP_INFO, when the other side has answered with a reset

# A request with one of these is not plain: its body, its connection or its next bytes mean something else.
_NOT_PLAIN = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
_TIMEOUT = TIMEOUT_HEADER.encode()


class _Parsed:
    """What llhttp found in one read."""

    __slots__ = ("body", "complete", "head", "headers", "more", "url")

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.head = False  # is complete
        self.complete = False
        self.more = False  # something follows the first request

    def on_message_begin(self) -> None:
        self.more = self.complete

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.head = True

    def on_body(self, body: bytes) -> None:
        self.body = self.body + body if self.body else body

    def on_message_complete(self) -> None:
        self.complete = True


class PredictionConnection(HttpProtocol):
    """Sanic's HTTP protocol with a short way in front of it. `in_flight` is what the short way is at: the body it receives, the
    answer it waits for, or the one it sends."""

    __slots__ = (
        "_body_timer",
        "_eof",
        "_framed",
        "_head_began_s",
        "_inference",
        "_keep_alive",
        "_landing",
        "_on_received",
        "_on_sent",
        "_path",
        "_reader",
        "_request_id",
        "_source",
        "_stall_timer",
        "in_flight",
    )

    def _setup(self) -> None:
        super()._setup()  # type: ignore[no-untyped-call]
        self._inference = self.app.ctx.inference
        self.request_handler = self._inference.serve
        self.in_flight: asyncio.Future[Answer] | Landing | Source | None = None
        self._keep_alive = True
        self._path = ""
        self._request_id = ""
        self._head_began_s = 0.0
        self._eof = False  # the client sends no more
        self._reader: Reader | None = None
        self._landing: Landing | None = None
        self._on_received: Callable[[Exception | None], None] | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._source: Source | None = None
        self._framed = False
        self._on_sent: Callable[[bool], None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        # Writing is paused as long as anything is left of what was written: memory that is being sent is let go at that moment.
        transport.set_write_buffer_limits(0, 0)

    # ---- what arrives

    def data_received(self, data: bytes) -> None:
        if self.in_flight is not None:
            # The next request waits for this one's answer, in Sanic's buffer.
            self.recv_buffer += data
            if len(self.recv_buffer) >= self.app.config.REQUEST_BUFFER_SIZE and self.transport is not None:
                self.transport.pause_reading()
        elif not (data.startswith(START) and self._is_free() and self._took(data)):
            if not self.recv_buffer:
                self._head_began_s = monotonic()
            super().data_received(data)

    def _is_free(self) -> bool:
        """Whether nothing is being received or sent on this connection: the next byte begins a request. After a refusal
        Sanic's task is idle and still takes the rest of that request's body, which must never be read as a request."""
        http = self.http
        if http is None or http.stage is not Stage.IDLE or http.request_body or not http.keep_alive:
            return False
        return not self.recv_buffer and self._can_write.is_set()

    def _took(self, data: bytes) -> bool:
        """Answer the request if it is a plain prediction; false leaves it to Sanic."""
        parsed = _Parsed()
        parser = httptools.HttpRequestParser(parsed)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        if not parsed.head or parsed.more or parser.get_http_version() != "1.1":
            return False
        path = parsed.url.decode("latin-1")
        found = self._inference.table.paths.get(path)
        if found is None or len(parsed.body) > self.request_max_size:
            return False
        headers = dict(parsed.headers)
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        if len(headers) != len(parsed.headers) or not _NOT_PLAIN.isdisjoint(headers) or is_form(content_type):
            return False
        length = 0
        if not parsed.complete:
            length = int(headers[b"content-length"])
            if length > self.request_max_size or not SOCKET_TO_SLAB:
                return False
        sent_id = headers.get(b"x-request-id")
        self._path = path
        # By the header, as Sanic does: llhttp has forgotten it when the message is complete.
        self._keep_alive = headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        self._request_id = request_id(None if sent_id is None else sent_id.decode("latin-1"))
        self._submit(found[0], content_type, headers, parsed.body, length)
        return True

    def _submit(
        self, dispatcher: Dispatcher, content_type: str, headers: dict[bytes, bytes], body: bytes, length: int
    ) -> None:
        """With a `length`, `body` is only the beginning of it."""
        seen = {} if dispatcher.typed else handler_headers(map(_text, headers.items()))
        try:
            request = InferRequest(self._request_id, content_type, seen, body, None, is_binary(headers.get(b"accept")))
            if _TIMEOUT in headers:
                request = request._replace(timeout_ms=timeout_ms(headers[_TIMEOUT].decode("latin-1")))
            if length:
                self._begin_body(dispatcher.land(request, length, self.request_max_size), body, length)
            else:
                self._await(dispatcher.submit(request))
        except Exception as error:  # noqa: BLE001 - whatever it was, the client gets an answer
            self._refuse(error, unread=length > 0)

    def _begin_body(self, landing: Landing, began: bytes, length: int) -> None:
        sink = SizedBody(landing, length)
        try:
            sink.feed(began)
        except BaseException:
            landing.abandon()
            raise
        self.in_flight = landing
        self.receive(landing, sink, length, self._received)

    def _received(self, error: Exception | None) -> None:
        landing, self.in_flight = self.in_flight, None
        try:
            if error is not None:
                raise error
            self._await(landing.commit())  # type: ignore[union-attr]
        except Exception as failure:  # noqa: BLE001 - as above
            self._refuse(failure, unread=error is not None)

    def _await(self, future: "asyncio.Future[Answer]") -> None:
        self.in_flight = future
        future.add_done_callback(self._answered)

    def receive(
        self, landing: Landing, sink: Sink, length: int, on_received: Callable[[Exception | None], None]
    ) -> None:
        """Read a body of `length` bytes (0: nobody knows) until its sink has it all. After an error, what else the client sends is
        thrown away; the connection is not to be used for another request."""
        transport = self.transport
        if self._reader is None:
            self._reader = Reader(self)
        self._landing, self._on_received = landing, on_received
        self._reader.begin(sink, self._body_ended)
        self._body_timer = self.loop.call_later(self._body_s_max(length), self._body_late)
        if transport is not None:
            if transport.get_protocol() is not self._reader:
                transport.set_protocol(self._reader)
            transport.resume_reading()

    def _body_s_max(self, length: int) -> float:
        return float(self._inference.timeouts.body_s + length / BODY_BYTES_PER_S_MIN)

    def _body_late(self) -> None:
        error = BadRequest("Body: the request did not arrive completely in time.", status=408)
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

    def _answered(self, future: "asyncio.Future[Answer]") -> None:
        self.in_flight = None
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._refuse(error)
            return
        answer = future.result()
        if answer.source is not None:
            self._begin_source(answer)
            return
        wanted = self._keep_alive and self._http is not None and self._http.keep_alive
        self._send(answer, keep_alive=wanted and answer.status < 400)

    def _refuse(self, error: BaseException, *, unread: bool = False) -> None:
        """`unread`: the client may still be sending the body that nobody wants."""
        self._send(self._inference.refusal(error, self._path), keep_alive=False, linger=unread)

    def _send(self, answer: Answer, *, keep_alive: bool, linger: bool = False) -> None:
        try:
            buffers = answer_buffers(answer, self._request_id, keep_alive=keep_alive, head_only=False)
        except Exception as error:  # noqa: BLE001 - as above
            keep_alive = False
            refusal = self._inference.refusal(error, self._path)
            buffers = answer_buffers(refusal, self._request_id, keep_alive=False, head_only=False)
        if not self.put(buffers):
            return
        if linger:
            self.linger(self.close)
        else:
            self._done(keep_alive)

    def _begin_source(self, answer: Answer) -> None:
        source = self.in_flight = answer.source
        assert source is not None
        keep_alive = self._keep_alive and self._http is not None and self._http.keep_alive and answer.status < 400
        try:
            head = streamed_head(answer, self._request_id, keep_alive=keep_alive, chunked=source.length is None)
        except Exception as error:  # noqa: BLE001 - as above
            self.in_flight = None
            source.close()
            self._refuse(error)
            return

        def sent(complete: bool) -> None:
            self.in_flight = None
            self._done(keep_alive and complete)

        self.send_source(head, source, framed=source.length is None, on_sent=sent)

    def _done(self, keep_alive: bool) -> None:
        """The short way has answered."""
        if not keep_alive or (self._eof and not self.recv_buffer):
            self.close()
        elif self.recv_buffer:
            self._data_received.set()  # wakes Sanic's task
            if self.transport is not None:
                self.transport.resume_reading()

    def put(self, buffers: Sequence[bytes | memoryview]) -> bool:
        """Send a response of either way; false when the client is gone."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        transport.writelines(buffers)
        self._time = monotonic()  # the idle clock of the connection starts now
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
            self._time = monotonic()
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
            left = self.transport.get_write_buffer_size()
            self._stall_timer = self.loop.call_later(self._inference.timeouts.write_s, self._stalled, left)

    def _stalled(self, before: int) -> None:
        """The client has not read anything for long: it is cut off, and what was kept for it is let go."""
        self._stall_timer = None
        transport = self.transport
        if transport is None or self._can_write.is_set():
            return
        if transport.get_write_buffer_size() >= before:
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
        waits = self.in_flight is not None or (http is not None and http.stage in (Stage.HANDLER, Stage.RESPONSE))
        receives = self._reader is not None and self._reader.sink is not None
        if not waits or receives or self.transport is None or self.transport.is_closing():
            return False
        request = None if http is None else http.request
        one_one = self.in_flight is not None or request is None or request.version == "1.1"
        if self._source is None and one_one:
            self.transport.write(HTTP_CONTINUE)
            for after_s in PROBE_LOOKS_S:
                self.loop.call_later(after_s, self._look_whether_gone)
        return True

    def _look_whether_gone(self) -> None:
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

    # ---- what Sanic asks of its connections

    async def receive_more(self) -> None:
        if self._eof:
            raise RequestCancelled
        await super().receive_more()  # type: ignore[no-untyped-call]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
        if self._reader is not None:
            self._reader.sink = None
        landing, self._landing = self._landing, None
        if landing is not None:
            landing.abandon()
        if isinstance(self.in_flight, asyncio.Future):
            self.in_flight.cancel()
        self._drop_source()
        self.in_flight = None
        super().connection_lost(exc)  # type: ignore[no-untyped-call]

    def check_timeouts(self) -> None:
        """A connection that waits for a model is not idle; one that sends its head byte by byte is not alive."""
        if self.in_flight is not None:
            self._time = monotonic()
        elif self._http is not None and self._http.stage is Stage.REQUEST:
            self._time = self._head_began_s
        super().check_timeouts()  # type: ignore[no-untyped-call]

    def close_if_idle(self) -> bool:
        return self.in_flight is None and super().close_if_idle()


def _text(header: tuple[bytes, bytes]) -> tuple[str, str]:
    return header[0].decode("latin-1"), header[1].decode(errors="surrogateescape")


def _ignore(error: Exception | None) -> None:
    """What is thrown away ends with the connection."""


def _nothing() -> None:
    """Nobody sends it any more."""

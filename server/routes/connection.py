"""One connection of the inference listener: the short way for predictions, Sanic's for everything else.

Most requests go the short way. One that is a POST to a path the route table holds literally, whose head arrives in one read, and that
needs nothing of HTTP but its headers and a body of known length, is parsed by llhttp and answered from here: no coroutine, no
request object, no router. That costs half of the other way. Whatever is unusual in any respect (a head in pieces, chunks,
pipelining, a form, another method, malformed) is left to Sanic byte for byte, so there is one place for each rule. How bodies of
either way move is in transfer.py.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from time import monotonic, time

import httptools
from sanic.http import Stage

from ringserve.protocol.request import Answer, InferRequest
from ringserve.server.dispatch import Dispatcher
from ringserve.server.forms import is_form
from ringserve.server.inflight import Pending
from ringserve.server.landing import SOCKET_TO_SLAB, Landing
from ringserve.server.metrics.meter import BatchTimes, Meter, usual_record
from ringserve.server.replies import DIRECT_BYTES_MIN
from ringserve.server.routes.inference import is_binary
from ringserve.server.routes.patience import TIMEOUT_HEADER, timeout_ms
from ringserve.server.routes.plain_call import PlainCall, answer_of, deadline_ns_of
from ringserve.server.routes.receiving import SizedBody
from ringserve.server.routes.transfer import BodyConnection
from ringserve.server.routing import Target
from ringserve.server.wire import answer_buffers, bodiless, error_answer, request_id, streamed_head, tensor_buffers

# What the paths of the table begin with, the most frequent first.
STARTS = (b"POST /predictions/", b"POST /v2/models/", b"POST /explanations/", b"POST /v1/models/")

# A request with one of these is not plain: its body, its connection or its next bytes mean something else.
_NOT_PLAIN = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
_TIMEOUT = TIMEOUT_HEADER.encode()


class _Parsed:
    """What llhttp found in one read."""

    __slots__ = ("body", "complete", "headers", "more", "url")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the request, for the next one."""
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = False
        self.more = False  # something follows the first request

    def on_message_begin(self) -> None:
        self.more = self.complete

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body = self.body + body if self.body else body

    def on_message_complete(self) -> None:
        self.complete = True


def _are_plain(headers: dict[bytes, bytes]) -> bool:
    """Whether nothing is compressed of an inference of the Open Inference Protocol, nor asked to be."""
    return b"content-encoding" not in headers and headers.get(b"accept-encoding", b"identity") == b"identity"


class PredictionConnection(BodyConnection):
    """The short way in front of Sanic's."""

    __slots__ = (
        "_arrived_s",
        "_call",
        "_complete_s",
        "_head_began_s",
        "_keep_alive",
        "_parsed",
        "_parser",
        "_path",
        "_peer",
        "_request_id",
        "_sending",
        "_target",
    )

    def _setup(self) -> None:
        super()._setup()
        self.request_handler = self._inference.serve
        self._keep_alive = True
        self._path = ""
        self._peer: object = None
        self._request_id = ""
        self._head_began_s = self._arrived_s = 0.0
        self._complete_s = 0.0  # when the body was, if that came later than the head
        self._target: Target
        self._call: PlainCall  # where the target is the Open Inference Protocol's
        self._sending: Pending | None = None  # whose answer leaves bit by bit
        self._parsed = _Parsed()
        self._parser: httptools.HttpRequestParser | None = (
            None  # made when needed, and after each that saw something else
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.conn_info is not None:
            self._peer = self.conn_info.peername

    # ---- what arrives

    def data_received(self, data: bytes) -> None:
        if self.in_flight is not None:
            # The next request waits for this one's answer, in Sanic's buffer.
            self.recv_buffer += data
            if len(self.recv_buffer) >= self.app.config.REQUEST_BUFFER_SIZE and self.transport is not None:
                self.transport.pause_reading()
        elif not (data.startswith(STARTS) and self._is_free() and self._took(data)):
            if not self.recv_buffer:
                self._head_began_s = monotonic()
            super().data_received(data)

    def _is_free(self) -> bool:
        """Whether nothing is being received or sent on this connection: the next byte begins a request. After a refusal
        Sanic's task is idle and still takes the rest of that request's body, which must never be read as a request. A server
        that goes down leaves all requests to Sanic, where each is the last of its connection."""
        http = self.http
        if http is None or http.stage is not Stage.IDLE or http.request_body or not http.keep_alive:
            return False
        return not self.recv_buffer and self._can_write.is_set() and not self._inference.table.draining

    def _took(self, data: bytes) -> bool:
        """Answer the request if it is a plain prediction; false leaves it to Sanic."""
        self._arrived_s = monotonic()
        parsed = self._parsed
        parsed.clear()
        parser, self._parser = self._parser or httptools.HttpRequestParser(parsed), None
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        if parsed.more or parser.get_http_version() != "1.1":
            return False
        path = parsed.url.decode("latin-1")
        found = self._inference.table.paths.get(path)
        if found is None or len(parsed.body) > self.request_max_size:
            return False
        headers = dict(parsed.headers)
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        if len(headers) != len(parsed.headers) or not _NOT_PLAIN.isdisjoint(headers):
            return False
        if found.tensors:
            signature = found.dispatcher.signature
            if not signature.declared or signature.decoupled or not _are_plain(headers):
                return False
        elif is_form(content_type):
            return False
        gate = self._inference.gate
        # Taken out: handlers get no keys. Whom this does not let in, Sanic's way refuses.
        if gate is not None and not gate.admits(headers.pop(b"authorization", b""), time()):
            return False
        length = 0
        if not parsed.complete:
            length = int(headers.get(b"content-length", b"0"))
            if b"\r\n\r\n" not in data or length > self.request_max_size or not SOCKET_TO_SLAB:
                return False
        else:
            self._parser = parser  # at the end of a request, it is ready for the next
        sent_id = headers.get(b"x-request-id")
        self._path = path
        # By the header, as Sanic does: llhttp has forgotten it when the message is complete.
        self._keep_alive = headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        self._request_id = request_id(None if sent_id is None else sent_id.decode("latin-1"))
        self._target, self._complete_s = found, 0.0
        if found.tensors:
            self._submit_tensors(found, headers, parsed.body, length)
        else:
            self._submit(found, content_type, headers, parsed.body, length)
        return True

    def _submit_tensors(self, target: Target, headers: dict[bytes, bytes], body: bytes, length: int) -> None:
        """The same of the Open Inference Protocol."""
        v2, dispatcher = self._inference.v2, target.dispatcher
        try:
            patience_ms = timeout_ms(headers[_TIMEOUT].decode("latin-1")) if _TIMEOUT in headers else 0
            call = self._call = v2.plain_call(target, headers, deadline_ns_of(patience_ms))
            if length:
                patience_ms = patience_ms or dispatcher.limits.request_timeout_ms
                self._begin_body(dispatcher, call.land(length), body, length, patience_ms)
            else:
                self._await(call.submit(body))
        except Exception as error:  # noqa: BLE001 - as in _submit
            self._refuse(error, unread=length > 0)

    def _submit(self, target: Target, content_type: str, headers: dict[bytes, bytes], body: bytes, length: int) -> None:
        """With a `length`, `body` is only the beginning of it."""
        dispatcher = target.dispatcher
        seen: dict[str, str] = {}
        if not dispatcher.typed:
            for name, value in headers.items():
                seen[name.decode("latin-1")] = value.decode(errors="surrogateescape")
            seen.update(target.headers)
        elif target.explains:
            seen.update(target.headers)
        try:
            request = InferRequest(self._request_id, content_type, seen, body, None, is_binary(headers.get(b"accept")))
            if _TIMEOUT in headers:
                request = request._replace(timeout_ms=timeout_ms(headers[_TIMEOUT].decode("latin-1")))
            if length:
                landing = dispatcher.land(request, length, self.request_max_size)
                self._begin_body(dispatcher, landing, body, length, dispatcher.limits.patience_ms(request))
            else:
                self._await(dispatcher.submit(request))
        except Exception as error:  # noqa: BLE001 - whatever it was, the client gets an answer
            self._refuse(error, unread=length > 0)

    def _begin_body(
        self, dispatcher: Dispatcher, landing: Landing, began: bytes, length: int, patience_ms: int
    ) -> None:
        sink = SizedBody(landing, length)
        try:
            sink.feed(began)
        except BaseException:
            landing.abandon()
            raise
        self.in_flight = landing
        dispatcher.arrivals.begin()
        received = partial(self._received, dispatcher)
        self.receive(landing, sink, received, length=length, patience_ms=patience_ms)

    def _received(self, dispatcher: Dispatcher, error: Exception | None) -> None:
        landing, self.in_flight = self.in_flight, None
        try:
            if error is not None:
                raise error
            self._complete_s = monotonic()
            self._await(landing.commit())
        except Exception as failure:  # noqa: BLE001 - as above
            self._refuse(failure, unread=error is not None)
        finally:
            dispatcher.arrivals.end()

    def _await(self, pending: Pending) -> None:
        self.in_flight = pending
        pending.add_done_callback(self._answered)

    # ---- what leaves

    def _answered(self, pending: Pending) -> None:
        self.in_flight = None
        if pending.cancelled():
            return
        error = pending.exception()
        if error is not None:
            self._refuse(error, times=pending.times)
            return
        answer = pending.result()
        if self._target.tensors:
            self._answer_call(self._call, answer, pending)
            return
        answer = bodiless(answer)
        if answer.source is not None:
            self._begin_source(answer, pending)
            return
        self._send(answer, pending.times, keep_alive=self._is_kept and answer.status < 400)

    @property
    def _is_kept(self) -> bool:
        """Whether the connection may carry another request."""
        return self._keep_alive and self._http is not None and self._http.keep_alive

    def _answer_call(self, call: PlainCall, answer: Answer, pending: Pending) -> None:
        try:
            result, body = call.finish(answer)
        except Exception as error:  # noqa: BLE001 - as in _submit
            self._refuse(error, times=pending.times)
            return
        parts, json_bytes = body.rendered
        if result.source is None and body.nbytes < DIRECT_BYTES_MIN:
            kept = self._is_kept
            buffers = tensor_buffers(parts, body.nbytes, json_bytes, self._request_id, keep_alive=kept)
            self._leave(buffers, 200, pending.times, keep_alive=kept)
        else:
            self._begin_source(answer_of(result, body), pending)

    def _refuse(self, error: BaseException, *, unread: bool = False, times: BatchTimes | None = None) -> None:
        """`unread`: the client may still be sending the body that nobody wants."""
        refusal = self._inference.refusal(error, self._target)
        if not self._target.tensors:
            self._send(error_answer(refusal), times, keep_alive=False, linger=unread, reason=refusal.code)
        else:
            answer, kept = self._inference.v2.error_answer(refusal), not unread and self._is_kept
            self._send(answer, times, keep_alive=kept, linger=unread, reason=refusal.code)

    def _send(
        self, answer: Answer, times: BatchTimes | None, *, keep_alive: bool, linger: bool = False, reason: str = ""
    ) -> None:
        try:
            buffers = answer_buffers(answer, self._request_id, keep_alive=keep_alive, head_only=False)
        except Exception as error:  # noqa: BLE001 - as above
            keep_alive = False
            refusal = self._inference.refusal(error, self._target)
            answer, reason = error_answer(refusal), refusal.code
            buffers = answer_buffers(answer, self._request_id, keep_alive=False, head_only=False)
        self._leave(buffers, answer.status, times, keep_alive=keep_alive, linger=linger, reason=reason)

    def _leave(
        self,
        buffers: Sequence[bytes | bytearray | memoryview],
        status: int,
        times: BatchTimes | None,
        *,
        keep_alive: bool,
        linger: bool = False,
        reason: str = "",
    ) -> None:
        """Send the response, and count it."""
        if not self.put(buffers):
            self._count_missed(reason or "cancelled")
            return
        if times is not None and not (self._complete_s or self._target.named) and status == 200:
            records = times[0]  # this is the usual request (metrics/meter.py)
            records += usual_record(times[1], self._arrived_s, self.answered_s)
        elif self._target.dispatcher.meter is not None:
            self._count(self._target.dispatcher.meter, status, times, reason)
        access = self._inference.access
        if access is not None:
            took_s = self.answered_s - self._arrived_s
            access.add(self._peer, "POST", self._path, status, took_s, self._request_id)
        if linger:
            self.linger(self.close)
        else:
            self._done(keep_alive)

    def _begin_source(self, answer: Answer, pending: Pending) -> None:
        source = self.in_flight = answer.source
        assert source is not None
        keep_alive = self._keep_alive and self._http is not None and self._http.keep_alive and answer.status < 400
        try:
            head = streamed_head(answer, self._request_id, keep_alive=keep_alive, chunked=source.length is None)
        except Exception as error:  # noqa: BLE001 - as above
            self.in_flight = None
            source.close()
            self._refuse(error, times=pending.times)
            return
        self._sending = pending

        def sent(complete: bool) -> None:
            self.in_flight = self._sending = None
            if not complete:
                self._count_missed("broken_off", answer.status)
            elif self._target.dispatcher.meter is not None:
                self._count(self._target.dispatcher.meter, answer.status, pending.times, "")
            access = self._inference.access
            if access is not None:
                took_s = self.answered_s - self._arrived_s
                access.add(self._peer, "POST", self._path, answer.status, took_s, self._request_id)
            self._done(keep_alive and complete)

        self.send_source(head, source, framed=source.length is None, on_sent=sent)

    def _done(self, keep_alive: bool) -> None:
        """The short way has answered."""
        if not keep_alive or (self._eof and not self.recv_buffer):
            self.close()
        elif self.recv_buffer:
            self._data_received.set()  # wakes Sanic's task
            if self.transport is not None and not self._eof:
                self.transport.resume_reading()

    # ---- what is counted of it

    def _count(self, meter: Meter, status: int, times: BatchTimes | None, reason: str) -> None:
        """Of an answer that is written, when it is not of the usual kind. A refusal has a `reason`."""
        meter.responses.count(status)
        complete_s = self._complete_s or self._arrived_s
        meter.ended(times, self._arrived_s, complete_s, self.answered_s, named=self._target.named, reason=reason)

    def _count_missed(self, reason: str, status: int = 0) -> None:
        """Of one whose answer nobody has, or not all of it: a head with a `status`."""
        meter = self._target.dispatcher.meter
        if meter is None:
            return
        if status:
            meter.responses.count(status)
        meter.failed(reason, named=self._target.named, took_s=monotonic() - self._arrived_s)

    # ---- what Sanic asks of its connections

    def connection_lost(self, exc: Exception | None) -> None:
        in_flight, self.in_flight = self.in_flight, None
        if isinstance(in_flight, asyncio.Future):
            if in_flight.cancel():  # otherwise it is answered, which nobody will hear
                self._count_missed("cancelled")
        elif in_flight is not None:
            sending, self._sending = self._sending, None
            if sending is None:  # its body is still arriving
                self._count_missed("cancelled")
            else:
                self._count_missed("broken_off" if in_flight.broken else "cancelled", sending.result().status)
        super().connection_lost(exc)

    def check_timeouts(self) -> None:
        """A connection that waits for a model is not idle; one that sends its head byte by byte is not alive."""
        if self.in_flight is not None:
            self._time = monotonic()
        elif self._http is not None:
            self._http.upgrade_websocket = False  # no clock of a connection ends for what a header says
            if self._http.stage is Stage.REQUEST:
                self._time = max(self._head_began_s, self.answered_s)
        super().check_timeouts()  # type: ignore[no-untyped-call]

    def close_if_idle(self) -> bool:
        return self.in_flight is None and super().close_if_idle()

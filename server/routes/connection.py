"""One connection of the inference listener: the short way for predictions, Sanic's for everything else.

A request that arrives whole in one read, is a POST to a path the route table holds literally, and needs nothing of HTTP but its
headers and a body of known length, is parsed by llhttp and answered from here: no coroutine, no request object, no router. It
is what nearly every prediction looks like, and costs half of the other way. Whatever is unusual in any respect (in pieces,
chunked, pipelined, a form, another method, malformed) is left to Sanic byte for byte, so there is one place for each rule.
"""

import asyncio
from collections.abc import Sequence
from time import monotonic

import httptools
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from ringserve.protocol.request import Answer, InferRequest
from ringserve.server.dispatch import Dispatcher
from ringserve.server.forms import is_form
from ringserve.server.routes.inference import handler_headers
from ringserve.server.wire import answer_buffers, request_id

START = b"POST /predictions/"


class _Parsed:
    """What llhttp found in one read."""

    __slots__ = ("body", "complete", "headers", "more", "url")

    def __init__(self) -> None:
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


# A request with one of these is not plain: its body, its connection or its next bytes mean something else.
_NOT_PLAIN = frozenset((b"transfer-encoding", b"expect", b"upgrade"))


class PredictionConnection(HttpProtocol):
    """Sanic's HTTP protocol with a short way in front of it. `in_flight` is the prediction being answered that way."""

    __slots__ = ("_inference", "_keep_alive", "_path", "_request_id", "in_flight")

    def _setup(self) -> None:
        super()._setup()  # type: ignore[no-untyped-call]
        self._inference = self.app.ctx.inference
        self.request_handler = self._inference.serve
        self.in_flight: asyncio.Future[Answer] | None = None
        self._keep_alive = True
        self._path = ""
        self._request_id = ""

    # ---- what arrives

    def data_received(self, data: bytes) -> None:
        if self.in_flight is not None:
            # The next request waits for this one's answer, in Sanic's buffer.
            self.recv_buffer += data
            if len(self.recv_buffer) >= self.app.config.REQUEST_BUFFER_SIZE and self.transport is not None:
                self.transport.pause_reading()
        elif not (data.startswith(START) and self._is_free() and self._took(data)):
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
        if not parsed.complete or parsed.more or parser.get_http_version() != "1.1":
            return False
        path = parsed.url.decode("latin-1")
        found = self._inference.table.paths.get(path)
        if found is None or len(parsed.body) > self.request_max_size:
            return False
        headers = dict(parsed.headers)
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        if len(headers) != len(parsed.headers) or not _NOT_PLAIN.isdisjoint(headers) or is_form(content_type):
            return False
        sent_id = headers.get(b"x-request-id")
        self._path = path
        # By the header, as Sanic does: llhttp has forgotten it when the message is complete.
        self._keep_alive = headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        self._request_id = request_id(None if sent_id is None else sent_id.decode("latin-1"))
        self._submit(found[0], content_type, headers, parsed.body)
        return True

    def _submit(self, dispatcher: Dispatcher, content_type: str, headers: dict[bytes, bytes], body: bytes) -> None:
        seen = {} if dispatcher.typed else handler_headers(map(_text, headers.items()))
        try:
            future = dispatcher.submit(InferRequest(self._request_id, content_type, seen, body))
        except Exception as error:  # noqa: BLE001 - whatever it was, the client gets an answer
            self._send(self._inference.refusal(error, self._path), keep_alive=False)
            return
        self.in_flight = future
        future.add_done_callback(self._answered)

    # ---- what leaves

    def _answered(self, future: "asyncio.Future[Answer]") -> None:
        self.in_flight = None
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            answer = future.result()
            wanted = self._keep_alive and self._http is not None and self._http.keep_alive
            self._send(answer, keep_alive=wanted and answer.status < 400)
        else:
            self._send(self._inference.refusal(error, self._path), keep_alive=False)

    def _send(self, answer: Answer, *, keep_alive: bool) -> None:
        try:
            buffers = answer_buffers(answer, self._request_id, keep_alive=keep_alive, head_only=False)
        except Exception as error:  # noqa: BLE001 - as above
            keep_alive = False
            buffers = answer_buffers(
                self._inference.refusal(error, self._path), self._request_id, keep_alive=False, head_only=False
            )
        if not self.put(buffers):
            return
        if not keep_alive:
            self.close()
        elif self.recv_buffer:
            self._data_received.set()  # wakes Sanic's task

    def put(self, buffers: Sequence[bytes]) -> bool:
        """Send a response of either way; false when the client is gone."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        transport.writelines(buffers)
        self._time = monotonic()  # the idle clock of the connection starts now
        return True

    # ---- what Sanic asks of its connections

    def connection_lost(self, exc: Exception | None) -> None:
        if self.in_flight is not None:
            self.in_flight.cancel()
        super().connection_lost(exc)  # type: ignore[no-untyped-call]

    def check_timeouts(self) -> None:
        """A connection that waits for a model is not idle."""
        if self.in_flight is not None:
            self._time = monotonic()
        super().check_timeouts()  # type: ignore[no-untyped-call]

    def close_if_idle(self) -> bool:
        return self.in_flight is None and super().close_if_idle()


def _text(header: tuple[bytes, bytes]) -> tuple[str, str]:
    return header[0].decode("latin-1"), header[1].decode(errors="surrogateescape")

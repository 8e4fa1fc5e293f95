"""Sanic, kept at the rim: an app that answers errors in TorchServe's shape, on a socket somebody else opened."""

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import monotonic
from typing import Any, cast

from sanic import HTTPResponse, Sanic
from sanic.compat import Header
from sanic.exceptions import BadRequest as SanicBadRequest
from sanic.exceptions import MethodNotAllowed as SanicMethodNotAllowed
from sanic.exceptions import NotFound as SanicNotFound
from sanic.exceptions import PayloadTooLarge, RequestCancelled, RequestTimeout, SanicException
from sanic.handlers import ErrorHandler
from sanic.http import Stage
from sanic.request import Request
from sanic.server.async_server import AsyncioServer
from sanic.server.protocols.http_protocol import HttpProtocol

from ringserve.protocol.errors import (
    METHOD_NOT_ALLOWED,
    BadRequest,
    BodyTooLarge,
    Internal,
    MethodNotAllowed,
    NotFound,
    RingServeError,
)
from ringserve.server.acceptor import Connect
from ringserve.server.admin_socket import is_private
from ringserve.server.landing import too_large_text
from ringserve.server.logs.access import AccessLog
from ringserve.server.wire import FIXED_HEADERS, error_body, error_headers, json_text, request_id

logger = logging.getLogger("ringserve.http")

App = Sanic[Any, Any]
# One of Sanic's protocols, or what makes one with a layer below it; by name: loop, app, connections.
MakeProtocol = Callable[..., asyncio.BaseProtocol]
HttpServer = AsyncioServer
PlainHttp = HttpProtocol
Listener = AsyncioServer | asyncio.AbstractServer

logging.getLogger("sanic.root").setLevel(logging.WARNING)  # its banner says nothing about this server

NOT_FOUND = "Requested resource is not found, please refer to API document."
HEAD_NOT_PARSED = "NONE"  # the method of the request that Sanic makes up when it could not read one
# Sanic's own clocks: a head must arrive within the first, an idle connection is kept for the second. How long a model may take
# is the model's to say, so the response clock never strikes first.
REQUEST_S_MAX = 60
IDLE_S_MAX = 120
RESPONSE_S_MAX = 10**9
# A body has the time that its length needs at this rate, on top of what every body has.
BODY_BYTES_PER_S_MIN = 256 << 10
# How much of a body may wait to be taken before reading pauses: what one read of the event loop brings. With Sanic's 64 KiB a
# 602 KB echo on one connection made 720 requests/s instead of 1 040.
BUFFER_BYTES = 256 << 10
# A connection without a request for this long may be closed without breaking one that is on its way: clients that ask time and
# again have been answered by then, and told that this was the last answer.
UNUSED_S_MIN = 0.5
# Handshakes that have begun when a listener turns everybody away may be completed so long.
ACCEPT_LAST_S = 0.05
# Answers that are given at the very end have so long to reach their sockets.
LAST_WORDS_S = 1.0
BACKLOG = 1024


def translate(error: BaseException, request_bytes_max: int) -> RingServeError:
    """Whatever was raised, as the error the client is answered with."""
    if isinstance(error, RingServeError):
        return error
    if isinstance(error, PayloadTooLarge):
        return BodyTooLarge(too_large_text(request_bytes_max))
    if isinstance(error, RequestCancelled):
        return BadRequest("The client closed the connection.")  # nobody reads it
    if isinstance(error, SanicNotFound):
        return NotFound(NOT_FOUND)
    if isinstance(error, SanicMethodNotAllowed):
        return MethodNotAllowed(METHOD_NOT_ALLOWED)
    if isinstance(error, RequestTimeout):
        return BadRequest("The request did not arrive completely in time.", status=408)
    if isinstance(error, SanicException) and error.status_code < 500:
        return BadRequest("Invalid HTTP message.", status=error.status_code)
    logger.error("a request failed inside the server", exc_info=error)
    return Internal(f"{type(error).__name__}: {error}")


class TorchServeErrors(ErrorHandler):
    """Every error as `{"code", "type", "message"}`."""

    def __init__(self, request_bytes_max: int) -> None:
        super().__init__()
        self._request_bytes_max = request_bytes_max

    def response(self, request: Request, exception: Exception) -> HTTPResponse:
        if isinstance(exception, PayloadTooLarge) and request.method == HEAD_NOT_PARSED:
            limit = request.app.config.REQUEST_MAX_HEADER_SIZE
            exception = BadRequest(f"Invalid HTTP message. Head: expected at most {limit} bytes, got more.")
        error = translate(exception, self._request_bytes_max)
        return _response(error_body(error), error.http_status, request, error_headers(error))


# RFC 9112, section 5: no blank before the colon, no folded lines. Who reads a header that others do not see takes one request for two.
_HEADER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00\r\n]*")


def _check_head(head: bytes, headers: Header) -> None:
    """What Sanic's parser lets pass and nobody should. Raises `SanicBadRequest`."""
    if not all(map(_HEADER_LINE.fullmatch, head.split(b"\r\n")[1:])):
        raise SanicBadRequest("Bad header line")
    if not headers.getone("content-length", "0").isascii():
        raise SanicBadRequest("Bad content-length")


class SizedRequest(Request):
    """A request that is not told to continue with a body which is going to be refused, and knows since when it is here."""

    __slots__ = ("arrived_s", "request_id")

    def __init__(self, url_bytes: bytes, *args: Any, **more: Any) -> None:
        self.arrived_s = monotonic()
        self.request_id = ""  # that it is answered with, where it is known before the response
        # The one that Sanic makes up to answer a head it could not read must not fail as the head did.
        made_up = more.get("method") == HEAD_NOT_PARSED
        if not made_up:
            _check_head(more["head"], more["headers"])
        super().__init__(b"*" if made_up else url_bytes, *args, **more)
        if self._parsed_url.path is None:  # `http://host`, which Sanic fails on at every later look
            raise SanicBadRequest("Bad target")

    def take_body(self) -> bool:
        """Make `body` of what has arrived, when all of it has: most bodies come with their head. False when the rest is to
        be waited for, by `receive_body`."""
        stream: Any = self.stream
        length, received = stream.request_bytes_left, stream.recv_buffer
        if stream.request_body is not True or length > len(received) or length > stream.request_max_size:
            return False
        self.body = bytes(memoryview(received)[:length])
        del received[:length]
        stream.request_bytes_left, stream.request_body, stream.expecting_continue = 0, None, False
        return True

    async def receive_body(self) -> None:
        stream: Any = self.stream
        if stream.expecting_continue and stream.request_bytes > stream.request_max_size:
            stream.expecting_continue = False
        await super().receive_body()  # type: ignore[no-untyped-call]


class PlainResponse(HTTPResponse):
    """Without Sanic's `alt-svc`, which is empty where it says nothing."""

    __slots__ = ()

    @property
    def processed_headers(self) -> Iterator[tuple[bytes, bytes]]:
        return (pair for pair in super().processed_headers if pair[0] != b"alt-svc")


def _response(
    body: bytes, status: int, request: Request, more: Mapping[str, str], content_type: str = "application/json"
) -> HTTPResponse:
    if status >= 400 and request.stream is not None:
        stream: Any = request.stream
        stream.keep_alive = False  # TorchServe closes the connection then
        if stream.expecting_continue:  # it is not told to, so no body comes
            stream.expecting_continue, stream.request_body = False, None
    responses, transport = request.app.ctx.responses, request.transport
    if responses is not None and transport is not None and not transport.is_closing():
        responses.count(status)  # otherwise nobody is there to have it
    headers = {"x-request-id": request_id(request.headers.getone("x-request-id", None)), **FIXED_HEADERS, **more}
    return PlainResponse(body, status, headers, content_type)


def json_response(
    value: object, status: int, request: Request, headers: Mapping[str, str] | None = None
) -> HTTPResponse:
    """`headers` come on top of those that every answer has."""
    return _response(json_text(value), status, request, headers or {})


def json_bytes_response(text: bytes, status: int, request: Request) -> HTTPResponse:
    """JSON that is text already, as it is."""
    return _response(text, status, request, {})


def text_response(text: bytes, content_type: str, request: Request) -> HTTPResponse:
    return _response(text, 200, request, {}, content_type)


def empty_response(request: Request) -> HTTPResponse:
    """What is to be said is in the headers."""
    response = _response(b"", 204, request, {})
    response.content_type = None
    return response


def make_app(name: str, request_bytes_max: int, header_timeout_s: int = REQUEST_S_MAX) -> App:
    """An app without routes."""
    errors = TorchServeErrors(request_bytes_max)
    app: App = Sanic(name, configure_logging=False, error_handler=errors, request_class=SizedRequest)
    app.ctx.responses = None  # where its responses are counted (metrics/meter.py), if they are
    app.config.ACCESS_LOG = False
    app.config.REQUEST_BUFFER_SIZE = BUFFER_BYTES
    app.config.REQUEST_MAX_SIZE = request_bytes_max
    app.config.REQUEST_TIMEOUT = header_timeout_s
    app.config.KEEP_ALIVE_TIMEOUT = IDLE_S_MAX
    app.config.RESPONSE_TIMEOUT = RESPONSE_S_MAX
    return app


def log_access(app: App, access: AccessLog) -> None:
    """Have every request that the app answers in the access log, but those of our own that come by the private socket: a front end
    that passes one on logs it, with the address of the client."""

    async def answered(request: Any, response: Any) -> None:
        came = request.conn_info
        if request.method == HEAD_NOT_PARSED or came is None or is_private(came.sockname):
            return
        took_s = monotonic() - request.arrived_s
        rid = response.headers.get("x-request-id", "")
        access.add(came.peername, request.method, request.raw_url.decode("latin-1"), response.status, took_s, rid)

    app.register_middleware(answered, "response")


async def start_serving(
    app: App, sock: socket.socket, protocol: MakeProtocol = HttpProtocol, *, accepting: bool = True
) -> AsyncioServer:
    """Serve on a bound socket, on the running loop; with `accepting` false, somebody else accepts for it (`connector`)."""
    server = await app.create_server(
        sock=sock,
        return_asyncio_server=True,
        asyncio_server_kwargs={"start_serving": accepting},
        access_log=False,
        protocol=cast(type[HttpProtocol], protocol),
        backlog=BACKLOG,
    )
    assert server is not None
    await server.startup()
    await server.before_start()
    await server.after_start()
    if accepting:
        await server.start_serving()
    return server


async def prepare(app: App) -> None:
    """Of an app that is not the first one of its process, before it is served."""
    app.config.TOUCHUP = False  # Sanic rewrites its protocol's methods once, and fails to a second time
    await app._startup()


async def serve_also(
    server: AsyncioServer, app: App, sock: socket.socket, protocol: MakeProtocol = HttpProtocol
) -> asyncio.Server:
    """One more listening socket for a server's app; the connections are the server's."""
    loop = asyncio.get_running_loop()
    make = partial(protocol, loop=loop, app=app, connections=server.connections)
    return await loop.create_server(make, sock=sock, backlog=BACKLOG)


def connector(server: AsyncioServer, app: App, protocol: MakeProtocol) -> Connect:
    """How a socket that was accepted elsewhere becomes a connection of this server."""
    loop = asyncio.get_running_loop()
    make = partial(protocol, loop=loop, app=app, connections=server.connections)

    async def connect(accepted: socket.socket) -> None:
        await loop.connect_accepted_socket(make, accepted)

    return connect


def stop_accepting(server: Listener) -> None:
    """Close the listening socket of this process; connections go on."""
    server.close()


def answer_last(server: AsyncioServer, app: App) -> None:
    """From now on every answer says that it is the last one of its connection, also those that are being made."""
    app.config.KEEP_ALIVE = False
    for connection in list(server.connections):
        if connection.http is not None:
            connection.http.keep_alive = False


def wind_down(server: AsyncioServer, unused_s_min: float = UNUSED_S_MIN) -> int:
    """One look at the connections of a listener that accepts no more, after `answer_last`; returns how many are left. One that
    nobody has used for a while is closed, since a client that has just been answered may already have sent the next request."""
    left, now = 0, monotonic()
    for connection in list(server.connections):
        if not _is_busy(connection) and now - connection._time > unused_s_min:
            connection.close_if_idle()
        else:
            left += 1
    return left


async def cut_off(server: AsyncioServer, grace_s: float) -> None:
    """The end of all connections: answers that were just given have the grace to reach their sockets. One that waits for the rest of
    a request would wait through the end of the loop as well."""
    end = monotonic() + grace_s
    while wind_down(server, 0.0) and monotonic() < end:
        await asyncio.sleep(0.02)
    for connection in list(server.connections):
        if connection.transport is not None:
            connection.transport.abort()
    await asyncio.sleep(0)


def _is_busy(connection: Any) -> bool:
    """Whether a request is on it, on Sanic's way or on the short one of routes/connection.py."""
    if not connection._can_write.is_set():
        return True  # something of an answer has not left
    http = connection.http
    return http is not None and (http.stage is not Stage.IDLE or getattr(connection, "in_flight", None) is not None)

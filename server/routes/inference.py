"""The inference listener: `/ping` and the routes of targets.py (contract sections 1.1-1.4, 1.8).

Predictions and explanations are answered here, in front of Sanic's router and response objects, which would cost as much again as everything
else on the path; any other request goes the ordinary way through Sanic. Plain predictions do not even come here:
connection.py answers them.
"""

import asyncio
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from sanic import HTTPResponse
from sanic.exceptions import SanicException
from sanic.http import Stage
from sanic.request import Request

from ringserve.protocol.errors import BodyTooLarge, NotFound, NoWorker, RingServeError
from ringserve.protocol.request import Answer, InferRequest
from ringserve.server.app import NOT_FOUND, App, SizedRequest, empty_response, json_response, make_app, translate
from ringserve.server.control import Keys
from ringserve.server.dispatch import Dispatcher
from ringserve.server.forms import is_form, is_multipart, parse_form
from ringserve.server.inflight import Pending
from ringserve.server.landing import (
    SOCKET_TO_SLAB,
    BufferLanding,
    FormLanding,
    GrowingLanding,
    Landing,
    NoLanding,
    too_large_text,
)
from ringserve.server.logs.access import AccessLog
from ringserve.server.metrics.meter import Responses
from ringserve.server.metrics.passage import Passage
from ringserve.server.open_inference.service import OpenInference
from ringserve.server.openapi import model_inference_document
from ringserve.server.routes.documents import add_inference
from ringserve.server.routes.forwarding import Forwarding
from ringserve.server.routes.guard import Guard, send
from ringserve.server.routes.health import add_health
from ringserve.server.routes.open_inference import OpenInferenceRoutes
from ringserve.server.routes.patience import asked_timeout_ms
from ringserve.server.routes.receiving import ChunkedBody, SizedBody
from ringserve.server.routes.targets import (
    Asked,
    asked_for,
    find,
    handler_headers,
    name_in,
    no_worker_text,
    query_inputs,
)
from ringserve.server.routes.transfer import HTTP_CONTINUE
from ringserve.server.routing import RouteTable, Target
from ringserve.server.security.tokens import Gate
from ringserve.server.wire import answer_buffers, bodiless, error_answer, request_id, streamed_head


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client may take: for a head, for a body (and what its length adds), without reading of its answer."""

    header_s: int = 60
    body_s: int = 120
    write_s: int = 60


class Inference:
    """Answers requests by the routes that `table` holds at the moment."""

    def __init__(self, table: RouteTable, request_bytes_max: int, timeouts: Timeouts) -> None:
        self.table = table
        self.timeouts = timeouts
        # The rest of the descriptors is for lanes, links and parcels.
        self.connections_max = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4)
        self.on_connections: Callable[[], None] | None = None  # called when one has ended
        self.forwarding: Forwarding | None = None  # where management has the same address
        self.access: AccessLog | None = None  # told of every request that is answered
        self.v2 = OpenInferenceRoutes(OpenInference(table), self, request_bytes_max)
        self.gate: Gate | None = None  # for predictions; None where everybody is let in
        self._guard: Guard | None = None  # None where it has nothing to do
        self._request_bytes_max = request_bytes_max
        self.app: App = make_app("ringserve-inference", request_bytes_max, timeouts.header_s)
        self.app.ctx.inference = self
        methods = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
        self.app.add_route(self._ping, "/ping", methods=methods)
        self.app.add_route(self._ping, "/ping/<rest:path>", methods=methods, name="ping-below")  # as in TorchServe
        add_health(self.app, lambda: table.health)
        add_inference(self.app, self._document)

    async def _ping(self, request: Request, rest: str = "") -> HTTPResponse:
        if self.table.healthy:
            return json_response({"status": "Healthy"}, 200, request)
        return json_response({"status": "Unhealthy"}, 500, request)

    @property
    def responses(self) -> Responses | None:
        """Where answered requests are counted, if they are."""
        found: Responses | None = self.app.ctx.responses
        return found

    def protect(self, guard: Guard) -> None:
        """Let everything pass this first."""
        self._guard, self.gate = guard if guard.needed else None, guard.gate

    def let_in(self, keys: Keys) -> None:
        """Whoever shows one of these, and nobody else."""
        assert self._guard is not None
        self._guard.set(keys)
        self.gate = self._guard.gate

    async def serve(self, request: SizedRequest) -> None:
        """Answer one request on its connection; any HTTP method but OPTIONS is an inference, as in TorchServe."""
        arrived_s = monotonic()
        try:
            if self._guard is not None and await self._stopped_by(self._guard, request):
                pass
            elif (v2 := self.v2.asked(request)) is not None and not self._passes_on(request):
                await self.v2.serve(request, v2, arrived_s)
            elif (asked := self._asked(request)) is None:
                await self._serve_other(request)
            else:
                await self._infer(request, asked, Passage(arrived_s))
        finally:  # a client that has its answer may leave while we wait for the rest of its body
            if self.access is not None:
                self._log_access(self.access, request, arrived_s)

    def _asked(self, request: SizedRequest) -> Target | Asked | None:
        """What an inference is asked of; None for anything else."""
        if request.method == "OPTIONS" or self._passes_on(request):
            return None
        return self.table.paths.get(request.path) or asked_for(request.path)

    def _passes_on(self, request: SizedRequest) -> bool:
        return self.forwarding is not None and self.forwarding.takes(request.path)

    async def _located(self, request: SizedRequest, asked: Asked) -> Target:
        """Raises what `find` raises, and what reading a form for the name of a model raises."""
        query = query_inputs(asked, request.raw_url)
        name = asked.model or name_in(query)
        if not name and asked.with_query:
            name = self.table.at_startup or await self._name_in_form(request)
        return find(self.table, asked, name, query)

    async def _name_in_form(self, request: SizedRequest) -> str:
        """The model that a form asks for, whose body is then here as a whole; "" where it asks for none."""
        content_type = request.headers.getone("content-type", "")
        if not is_form(content_type):
            return ""
        request.body = bytes(await self.whole_body(request, asked_timeout_ms(request)))
        return name_in(parse_form(content_type, request.body))

    async def _infer(self, request: SizedRequest, asked: Target | Asked, passage: Passage) -> None:
        stream: Any = request.stream  # Sanic's Http; declared as its base
        connection = stream.protocol
        headers = request.headers
        rid = request.request_id = request_id(headers.getone("x-request-id", None))
        target = None
        try:
            target = asked if isinstance(asked, Target) else await self._located(request, asked)
            dispatcher = target.dispatcher
            passage.begin(dispatcher.meter, named=target.named)
            if stream.expecting_continue:
                headers.popall("expect")  # that is between the client and us
            unseen = dispatcher.typed and not target.explains
            seen = {} if unseen else handler_headers(headers.items(), target)
            limit_ms = asked_timeout_ms(request)
            binary = is_binary(headers.getone("accept", "").encode("utf-8", "surrogateescape"))
            content_type = headers.getone("content-type", "")
            wanted = InferRequest(rid, content_type, seen, b"", None, binary, limit_ms, query=target.query)
            if request.body:  # a form that was read for the name of the model
                wanted = dispatcher.limits.stamped(wanted, passage.arrived_s)
            answer = bodiless(await self._submitted(request, dispatcher, wanted, passage))
            keep_alive = stream.keep_alive and answer.status < 400
            complete, keep_alive = await self.send_answer(request, answer, rid, keep_alive=keep_alive)
            if complete:
                passage.end(connection.answered_s)
            else:
                keep_alive = False
                passage.miss("cancelled" if answer.source is None else "broken_off")
        except (RingServeError, SanicException) as error:
            keep_alive = False
            await self.refuse(request, error, rid, passage, target)
        except BaseException:
            passage.miss("cancelled")
            raise
        stream.keep_alive = keep_alive
        stream.response_func = None
        stream.stage = Stage.IDLE

    async def send_answer(
        self, request: SizedRequest, answer: Answer, rid: str, *, keep_alive: bool
    ) -> tuple[bool, bool]:
        """Send it. Returns whether that is complete, and whether the connection may carry another request."""
        stream: Any = request.stream
        if answer.source is not None:
            complete = await self._send_source(request, answer, rid, keep_alive=keep_alive)
            framed = answer.source.length is not None or request.version == "1.1"
            return complete, keep_alive and complete and framed
        buffers = answer_buffers(answer, rid, keep_alive=keep_alive, head_only=stream.head_only)
        await _when_writable(stream.protocol)
        return self._put(stream.protocol, buffers, answer.status), keep_alive

    def _put(self, connection: Any, buffers: Sequence[bytes | memoryview], status: int) -> bool:
        """Send a response, or the head of one, and count it; false when the client is gone."""
        connection.status = status
        if not connection.put(buffers):
            return False
        if self.responses is not None:
            self.responses.count(status)
        return True

    def _log_access(self, access: AccessLog, request: SizedRequest, arrived_s: float) -> None:
        """Of one that was answered on this way, by us or by a route."""
        stream: Any = request.stream
        connection = stream.protocol
        status, connection.status = connection.status, 0
        rid, ended_s = request.request_id, connection.answered_s
        if not status and stream.response is not None:
            status, rid = stream.response.status, stream.response.headers.get("x-request-id", "")
        if not status:
            return  # nobody was there to be answered
        took_s = (ended_s if ended_s > arrived_s else monotonic()) - arrived_s
        peer = None if connection.conn_info is None else connection.conn_info.peername
        target = request.raw_url.decode("latin-1")
        access.add(peer, request.method, target, status, took_s, rid)

    async def _stopped_by(self, guard: Guard, request: SizedRequest) -> bool:
        """Answer what does not get past the guard. What it brings besides its head is not read."""
        if guard.answers(request):
            await send(request, empty_response(request))
            return True
        managements = self._passes_on(request)
        error = guard.refusal(request, managements=managements)
        if error is None:
            if self.gate is not None and not managements:
                request.headers.popall("authorization", None)  # it has done its work: handlers get no keys
            return False
        stream: Any = request.stream
        await self.refuse(request, error, request_id(request.headers.getone("x-request-id", None)))
        stream.keep_alive, stream.response_func, stream.stage = False, None, Stage.IDLE
        return True

    async def _serve_other(self, request: SizedRequest) -> None:
        """The other routes look at no body. One that comes is read and thrown away, under the rules for bodies."""
        if self.forwarding is not None and self._passes_on(request):
            await self._forward(request, self.forwarding)
            return
        stream: Any = request.stream
        length: int = stream.request_bytes_left
        if stream.expecting_continue:  # it is not asked for
            stream.expecting_continue, stream.request_body, stream.keep_alive = False, None, False
        if stream.request_body and (stream.request_body == "chunked" or length > len(stream.recv_buffer)):
            try:
                # Raises where there is no such route: nobody need wait for that body.
                self.app.router.get(request.path, request.method, request.headers.getone("host", None))
                if length > self._request_bytes_max:
                    raise BodyTooLarge(too_large_text(self._request_bytes_max))
                await self._receive(stream, NoLanding(), length, 0)
            except (RingServeError, SanicException) as error:
                await self.refuse(request, error, request_id(request.headers.getone("x-request-id", None)))
                stream.keep_alive, stream.response_func, stream.stage = False, None, Stage.IDLE
                return
        await self.app.handle_request(request)

    async def _forward(self, request: SizedRequest, forwarding: Forwarding) -> None:
        """Answer with what the supervisor says."""
        stream: Any = request.stream
        rid = request.request_id = request_id(request.headers.getone("x-request-id", None))
        keep_alive = False
        try:
            body = await self.whole_body(request)
            answer = await forwarding.answer(request.method, request.raw_url, request.headers.items(), rid, body)
            keep_alive = stream.keep_alive and answer.status < 400
            buffers = answer_buffers(answer, rid, keep_alive=keep_alive, head_only=stream.head_only)
            await _when_writable(stream.protocol)
            stream.protocol.status = answer.status
            keep_alive = stream.protocol.put(buffers) and keep_alive  # the supervisor has counted it
        except (RingServeError, SanicException) as error:
            await self.refuse(request, error, rid)
        stream.keep_alive, stream.response_func, stream.stage = keep_alive, None, Stage.IDLE

    async def whole_body(self, request: SizedRequest, patience_ms: int = 0) -> bytes | bytearray | memoryview:
        """Of a request that is no prediction, or not yet, and bounded like one. Raises `BodyTooLarge`, and `DeadlineExceeded` where
        the client's patience (0: without end) is over."""
        stream: Any = request.stream
        if not stream.request_body:
            return b""
        length: int = stream.request_bytes_left
        if length > self._request_bytes_max:
            raise BodyTooLarge(too_large_text(self._request_bytes_max))
        if request.take_body():
            return request.body
        chunked = stream.request_body == "chunked"
        landing = GrowingLanding(self._request_bytes_max) if chunked else BufferLanding(length)
        await self._receive(stream, landing, length, patience_ms)
        return landing.body

    async def refuse(
        self,
        request: SizedRequest,
        error: BaseException,
        rid: str,
        passage: Passage | None = None,
        target: Target | None = None,
        render: Callable[[RingServeError], Answer] = error_answer,
    ) -> None:
        """The last answer of a connection."""
        request.request_id = rid
        stream: Any = request.stream
        connection = stream.protocol
        # A client that still waits to be asked for its body sends none; another may be sending it.
        unread = bool(stream.request_body) and not (stream.expecting_continue and not stream.recv_buffer)
        stream.expecting_continue, stream.request_body = False, None
        await _when_writable(connection)
        refusal = self.refusal(error, target)
        answer = render(refusal)
        buffers = answer_buffers(answer, rid, keep_alive=False, head_only=stream.head_only)
        self._put(connection, buffers, answer.status)
        if passage is not None:
            passage.end(connection.answered_s, refusal.code)
        if unread:
            ended = asyncio.Event()
            connection.linger(ended.set)
            await ended.wait()

    async def _submitted(
        self, request: SizedRequest, dispatcher: Dispatcher, wanted: InferRequest, passage: Passage
    ) -> Answer:
        """Read the body, where there is one, and wait for the answer."""
        stream: Any = request.stream
        form = is_form(wanted.content_type)
        if not stream.request_body:  # there is none, or it is here
            return await passage.enter(self._enter(dispatcher, wanted, request.body, form=form))
        limit = self._request_bytes_max
        if stream.request_bytes_left > limit:
            raise BodyTooLarge(too_large_text(limit))
        if request.take_body():
            return await passage.enter(self._enter(dispatcher, wanted, request.body, form=form))
        if not SOCKET_TO_SLAB:
            await request.receive_body()
            return await passage.enter(self._enter(dispatcher, wanted, request.body, form=form))
        length: int = stream.request_bytes_left
        chunked = stream.request_body == "chunked"
        landing: Landing
        if is_multipart(wanted.content_type):
            dispatcher.refuse()
            landing = FormLanding(
                limit, dispatcher.limits.stamped(wanted), dispatcher.submit, typed=dispatcher.signature.declared
            )
        elif form:
            dispatcher.refuse()
            wanted = dispatcher.limits.stamped(wanted)
            landing = GrowingLanding(limit) if chunked else BufferLanding(length)
        elif chunked:
            landing = dispatcher.land_unknown(wanted, limit)
        else:
            landing = dispatcher.land(wanted, length, limit)
        dispatcher.arrivals.begin()
        try:
            await self._receive(stream, landing, length, dispatcher.limits.patience_ms(wanted))
            if form and not isinstance(landing, FormLanding):
                assert isinstance(landing, BufferLanding | GrowingLanding)
                pending = self._enter(dispatcher, wanted, landing.body, form=True)
            else:
                pending = landing.commit()
        finally:
            dispatcher.arrivals.end()
        return await passage.enter(pending)

    def _enter(
        self, dispatcher: Dispatcher, wanted: InferRequest, body: bytes | bytearray | memoryview, *, form: bool
    ) -> Pending:
        parts = None
        if form:
            parts, body = parse_form(wanted.content_type, bytes(body), typed=dispatcher.signature.declared), b""
        return dispatcher.submit(wanted._replace(body=body, parts=parts))

    async def _receive(self, stream: Any, landing: Landing, length: int, patience_ms: int) -> None:
        """The rest of a body, from Sanic's buffer and then from the socket."""
        connection, received = stream.protocol, stream.recv_buffer
        body: ChunkedBody | SizedBody = SizedBody(landing, length)
        if stream.request_body == "chunked":
            body = ChunkedBody(landing, self._request_bytes_max)
        try:
            if isinstance(body, ChunkedBody):
                body.feed(bytes(received[2:]))  # behind the end of the head's last line
                received.clear()
                complete = body.done
            else:
                del received[: body.feed(bytes(received[:length]))]
                complete = not body.left
        except BaseException:
            landing.abandon()
            raise
        if not complete:
            if stream.expecting_continue:
                stream.expecting_continue = False
                connection.put((HTTP_CONTINUE,))
            done = asyncio.get_running_loop().create_future()

            def ended(error: Exception | None) -> None:
                if done.done():
                    return
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

            connection.receive(landing, body, ended, length=length, patience_ms=patience_ms)
            await done
        if isinstance(body, ChunkedBody):
            received[:0] = body.rest
        stream.request_body, stream.request_bytes_left, stream.expecting_continue = None, 0, False

    async def _send_source(self, request: SizedRequest, answer: Answer, rid: str, *, keep_alive: bool) -> bool:
        """Send what lies in shared memory or is still being made; whether that is complete."""
        stream: Any = request.stream
        source = answer.source
        assert source is not None
        # A client that knows no chunks is told the end of the body by the end of the connection.
        framed = source.length is None and request.version == "1.1"
        keep_alive = keep_alive and (framed or source.length is not None)
        try:
            head = streamed_head(answer, rid, keep_alive=keep_alive, chunked=framed)
            await _when_writable(stream.protocol)
        except BaseException:
            source.close()
            raise
        if stream.head_only:
            source.close()
            return self._put(stream.protocol, (head,), answer.status)
        sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def on_sent(complete: bool) -> None:
            if not sent.done():
                sent.set_result(complete)

        stream.protocol.status = answer.status
        if self.responses is not None:
            self.responses.count(answer.status)
        stream.protocol.send_source(head, source, framed=framed, on_sent=on_sent)
        return await sent

    def refusal(self, error: BaseException, target: Target | None) -> RingServeError:
        """What the client is told whose inference by `target` ended with `error`."""
        translated = translate(error, self._request_bytes_max)
        if isinstance(translated, NoWorker) and target is not None:
            translated = type(translated)(no_worker_text(target), retry_after_s=translated.retry_after_s)
        return translated

    def _document(self, path: str, url: bytes) -> dict[str, Any]:
        """How the model is asked that `path`, or the query of `url`, names. Raises `NotFound`, and as `find`."""
        asked = asked_for(path)
        if asked is None:
            raise NotFound(NOT_FOUND)
        name = asked.model or name_in(query_inputs(asked, url)) or self.table.at_startup
        target = find(self.table, asked, name)
        model = self.table.models[target.model]
        chosen = [target.version] if target.named else list(model.versions)
        signatures = {each: model.versions[each].signature for each in chosen}
        return model_inference_document(target.model, model.default_version, signatures)


async def _when_writable(connection: Any) -> None:
    if not connection._can_write.is_set():
        await connection._can_write.wait()


def is_binary(accept: bytes | None) -> bool:
    """Whether the client wants the bytes of a typed model's arrays instead of JSON."""
    return accept == b"application/octet-stream"

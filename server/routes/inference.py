"""The inference listener: `/ping` and `/predictions/{model}[/{version}[/{rest}]]` (contract sections 1.1-1.4, 1.8).

Predictions are answered here, in front of Sanic's router and response objects, which would cost as much again as everything
else on the path; any other request goes the ordinary way through Sanic. Plain predictions do not even come here:
connection.py answers them.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from sanic import HTTPResponse
from sanic.exceptions import SanicException
from sanic.http import Stage
from sanic.request import Request

from ringserve.protocol.errors import ModelNotFound, NotFound, NoWorker, RingServeError, VersionNotFound
from ringserve.protocol.request import Answer, InferRequest
from ringserve.server.app import NOT_FOUND, App, SizedRequest, json_response, make_app, translate
from ringserve.server.dispatch import Dispatcher
from ringserve.server.forms import is_form, parse_form
from ringserve.server.routing import RouteTable
from ringserve.server.wire import answer_buffers, error_answer, request_id

PREFIX = "/predictions/"
NO_WORKER = (
    "has no worker to serve inference request. Please use scale workers API to add workers. If this is a sequence inference,"
    " please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
)


class Inference:
    """Answers requests by the routes that `table` holds at the moment."""

    def __init__(self, table: RouteTable, request_bytes_max: int) -> None:
        self.table = table
        self._request_bytes_max = request_bytes_max
        self.app: App = make_app("ringserve-inference", request_bytes_max)
        self.app.ctx.inference = self
        methods = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
        self.app.add_route(self._ping, "/ping", methods=methods)

    async def _ping(self, request: Request) -> HTTPResponse:
        if self.table.healthy:
            return json_response({"status": "Healthy"}, 200, request)
        return json_response({"status": "Unhealthy"}, 500, request)

    async def serve(self, request: SizedRequest) -> None:
        """Answer one request on its connection; any HTTP method predicts, as in TorchServe."""
        if not request.path.startswith(PREFIX):
            await self.app.handle_request(request)
            return
        stream: Any = request.stream  # Sanic's Http; declared as its base
        headers = request.headers
        rid = request_id(headers.getone("x-request-id", None))
        try:
            dispatcher, rest = self.table.paths.get(request.path) or self._find(request.path)
            if stream.request_body and not request.take_body():
                await request.receive_body()
            content_type = headers.getone("content-type", "")
            body: bytes = request.body
            parts = None
            if is_form(content_type):
                parts, body = parse_form(content_type, body), b""
            seen = {} if dispatcher.typed else handler_headers(headers.items(), rest)
            answer = await dispatcher.submit(InferRequest(rid, content_type, seen, body, parts))
            keep_alive = stream.keep_alive and answer.status < 400
            buffers = answer_buffers(answer, rid, keep_alive=keep_alive, head_only=stream.head_only)
        except (RingServeError, SanicException) as error:
            keep_alive = False
            if stream.expecting_continue:
                # The client still waits to be asked for its body, and the answer is that nobody wants it.
                stream.expecting_continue, stream.request_body = False, None
            refusal = self.refusal(error, request.path)
            buffers = answer_buffers(refusal, rid, keep_alive=False, head_only=stream.head_only)
        protocol = stream.protocol
        if not protocol._can_write.is_set():
            await protocol._can_write.wait()
        stream.keep_alive = protocol.put(buffers) and keep_alive
        stream.response_func = None
        stream.stage = Stage.IDLE

    def refusal(self, error: BaseException, path: str) -> Answer:
        """How the prediction at `path` is answered that ended with `error`."""
        translated = translate(error, self._request_bytes_max)
        if isinstance(translated, NoWorker):
            translated = NoWorker(_no_worker_text(path))
        return error_answer(translated)

    def _find(self, path: str) -> tuple[Dispatcher, str]:
        """The paths that the table does not hold literally: escapes, trailing slashes, a rest after the version."""
        segments = _segments(path)
        if not segments:
            raise NotFound(NOT_FOUND)
        model = self.table.models.get(segments[0])
        if model is None:
            raise ModelNotFound(f"Model not found: {segments[0]}")
        version = segments[1] if len(segments) > 1 else model.default_version
        dispatcher = model.versions.get(version)
        if dispatcher is None:
            raise VersionNotFound(f"Model version: {version} does not exist for model: {segments[0]}")
        return dispatcher, "/".join(segments[2:])


def _segments(path: str) -> list[str]:
    segments = unquote(path[len(PREFIX) :]).split("/")
    while segments and not segments[-1]:
        segments.pop()
    return segments


def handler_headers(headers: Iterable[tuple[str, str]], rest: str = "") -> dict[str, str]:
    """What a handler may see: the last of a header sent twice, and TorchServe's own two."""
    return {**dict(headers), "explain": "False", "url_path": rest}


def _no_worker_text(path: str) -> str:
    segments = _segments(path)
    if len(segments) > 1:
        return f'Model "{segments[0]}" Version {segments[1]}" {NO_WORKER}'  # the stray quote is TorchServe's
    return f'Model "{segments[0]}" {NO_WORKER}'

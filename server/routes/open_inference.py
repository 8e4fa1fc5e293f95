"""The Open Inference Protocol over HTTP: what `/v2` means, on the inference listener (contract sections 1 and 3).

Inferences by models that declare their tensors usually come by the short way (connection.py), which asks here for what it needs;
everything else comes by `serve`. What is the supervisor's to answer has been passed on before (forwarding.py), and `infer` and `explain`
of models that declare nothing are TorchServe's (targets.py), unless they bring tensors as bytes.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

import orjson
from sanic.exceptions import SanicException
from sanic.http import Stage

from ringserve.protocol.errors import BadRequest, MethodNotAllowed, NotFound, RingServeError
from ringserve.protocol.request import Answer
from ringserve.server.app import SizedRequest, translate
from ringserve.server.health import RETRY_AFTER_S
from ringserve.server.metrics.passage import Passage
from ringserve.server.open_inference.binary import (
    HEADER_LENGTH,
    Buffer,
)
from ringserve.server.open_inference.call import InferCall, InferResult
from ringserve.server.open_inference.compression import COMPRESSED_BYTES_MIN, chosen_coding, compressed, inflated
from ringserve.server.open_inference.errors import v2_status
from ringserve.server.open_inference.events import Events
from ringserve.server.open_inference.generate import event, generate_call, generated, only_one
from ringserve.server.open_inference.metadata import TensorMetadata
from ringserve.server.open_inference.service import Found, OpenInference
from ringserve.server.routes.patience import asked_timeout_ms
from ringserve.server.routes.plain_call import (
    JSON,
    OCTETS,
    PlainCall,
    Sized,
    answer_of,
    read_body,
    rendered_of,
)
from ringserve.server.routing import Target
from ringserve.server.wire import error_headers, request_id

EVENTS = "text/event-stream; charset=utf-8"
METHOD_NOT_ALLOWED = "Method Not Allowed"
# More than this is compressed and inflated beside the event loop.
COMPRESSED_HERE_BYTES_MAX = 64 << 10
_READS = frozenset(("GET", "HEAD"))
_OF_MODEL = {"": "metadata", "ready": "model_ready", "config": "config"}
_POSTS = frozenset(("infer", "generate", "generate_stream"))


class Asked(NamedTuple):
    """What a path and a method ask for: the name of what answers it, and of whom."""

    what: str
    model: str = ""
    version: str = ""


class Way(Protocol):
    """The listener, as far as its answers are sent for it."""

    async def whole_body(self, request: SizedRequest, patience_ms: int = 0) -> Buffer: ...

    async def send_answer(
        self, request: SizedRequest, answer: Answer, rid: str, *, keep_alive: bool
    ) -> tuple[bool, bool]: ...

    async def refuse(
        self,
        request: SizedRequest,
        error: BaseException,
        rid: str,
        passage: Passage | None = None,
        target: Target | None = None,
        render: Callable[[RingServeError], Answer] = ...,
    ) -> None: ...


def asked_by(method: str, path: str) -> Asked | None:
    """None for what is not the protocol's."""
    if not path.startswith("/v2"):
        return None
    match [unquote(word) for word in path.split("/")[1:]]:
        case ["v2"]:
            what, model, version, reads = "server", "", "", True
        case ["v2", "health", "live" | "ready" as word]:
            what, model, version, reads = word, "", "", True
        case ["v2", "models"]:
            what, model, version, reads = "models", "", "", True
        case ["v2", "models", model, *more] if model:
            found = _of_model(more)
            if found is None:
                return Asked("unknown", model)
            what, version, reads = found
        case [first, *_] if first != "v2":
            return None
        case _:
            return Asked("unknown")
    if method not in _READS if reads else method != "POST":
        return Asked("not_allowed", model, version)
    return Asked(what, model, version)


def _of_model(more: list[str]) -> tuple[str, str, bool] | None:
    """What is asked of a model, of which version, and whether by reading."""
    version = ""
    if more and more[0] == "versions":
        if len(more) < 2 or not more[1]:
            return None
        version, more = more[1], more[2:]
    word = more[0] if more else ""
    if len(more) > 1 or (more and not word):
        return None
    if word in _POSTS:
        return word, version, False
    return (_OF_MODEL[word], version, True) if word in _OF_MODEL else None


class OpenInferenceRoutes:
    """`queue_full` is the status that says that a queue is full, 503 or 429. Bodies have at most `request_bytes_max` bytes, also when
    they are inflated."""

    def __init__(self, service: OpenInference, way: Way, request_bytes_max: int, queue_full: int = 503) -> None:
        self.service = service
        self.queue_full = queue_full
        self._way = way
        self._request_bytes_max = request_bytes_max

    # ---- what is asked

    def asked(self, request: SizedRequest) -> Asked | None:
        """None for what somebody else answers."""
        path = request.path
        if not path.startswith("/v2"):
            return None
        asked = asked_by(request.method, path)
        if asked is None or request.method == "OPTIONS":
            return None
        if self._is_torchserves(path) and HEADER_LENGTH not in request.headers:
            return None
        return asked

    def _is_torchserves(self, path: str) -> bool:
        """Whether these are explanations, or inferences by a handler."""
        match unquote(path).rstrip("/").split("/")[2:]:
            case ["models", _, "explain"]:
                return True
            case ["models", model, "infer"]:
                version = ""
            case ["models", model, "versions", version, "infer"]:
                pass
            case _:
                return False
        route = self.service.table.routes.get(model)
        found = None if route is None else route.versions.get(version or route.default_version)
        return found is not None and not found.tensors

    async def serve(self, request: SizedRequest, asked: Asked, arrived_s: float) -> None:
        """Answer one request on its connection, which is kept where its body is read."""
        stream: Any = request.stream
        rid = request.request_id = request_id(request.headers.getone("x-request-id", None))
        passage, keep_alive = Passage(arrived_s), False
        try:
            reason = ""
            try:
                answer = await self._answer(request, asked, passage, rid)
            except RingServeError as error:
                if stream.request_body and not request.take_body():
                    raise
                answer, reason = self.error_answer(error), error.code
            complete, keep_alive = await self._way.send_answer(request, answer, rid, keep_alive=stream.keep_alive)
            if complete:
                passage.end(stream.protocol.answered_s, reason)
            else:
                keep_alive = False
                passage.miss("cancelled" if answer.source is None else "broken_off")
        except (RingServeError, SanicException) as error:
            keep_alive = False
            await self._way.refuse(request, error, rid, passage, render=self.error_answer)
        except BaseException as error:
            passage.miss("cancelled")
            if not isinstance(error, Exception):
                raise
            keep_alive = False
            await self._way.refuse(request, error, rid, render=self.error_answer)
        stream.keep_alive, stream.response_func, stream.stage = keep_alive, None, Stage.IDLE

    async def _answer(self, request: SizedRequest, asked: Asked, passage: Passage, rid: str) -> Answer:
        if asked.what in _POSTS:
            found = self.service.find(asked.model, asked.version)
            passage.begin(found.dispatcher.meter, named=found.named)
            body = await self._body(request, found)
            if asked.what == "infer":
                return await self._infer(request, found, body, passage, rid)
            return await self._generate(request, found, body, passage, rid, streams=asked.what == "generate_stream")
        if asked.what == "unknown":
            raise NotFound("Not Found")
        if asked.what == "not_allowed":
            raise MethodNotAllowed(METHOD_NOT_ALLOWED)
        await self._way.whole_body(request)  # nobody looks at it
        return self._told(asked)

    async def _body(self, request: SizedRequest, found: Found) -> Buffer:
        """As it was before the client compressed it."""
        stream: Any = request.stream
        dispatcher = found.dispatcher
        if stream.request_body:
            dispatcher.refuse()
        dispatcher.arrivals.begin()
        try:
            return await self._way.whole_body(request, asked_timeout_ms(request)) or request.body
        finally:
            dispatcher.arrivals.end()

    # ---- what is told of the server and its models

    def _told(self, asked: Asked) -> Answer:
        service, model, version = self.service, asked.model, asked.version
        match asked.what:
            case "live":
                return _json({"live": service.live()})
            case "ready":
                return self._ready()
            case "models":
                return _json({"models": sorted(service.table.models)})
            case "model_ready":
                return self._model_ready(model, version)
            case "config":
                return Answer(service.config(model, version), JSON)
            case "metadata":
                return self._metadata(model, version)
        server = service.server_metadata()
        return _json({"name": server.name, "version": server.version, "extensions": server.extensions})

    def _ready(self) -> Answer:
        verdict = self.service.server_ready()
        if verdict.ok:
            return _json({"ready": True})
        lacking = {name: value for name, value in verdict.body.items() if name != "status"}
        return _json({"ready": False, "error": "The server is not ready.", **lacking}, 503)

    def _model_ready(self, model: str, version: str) -> Answer:
        if self.service.ready(model, version):
            return _json({"name": model, "ready": True})
        return _json({"name": model, "ready": False, "error": "Model version not ready"}, 503)

    def _metadata(self, model: str, version: str) -> Answer:
        found = self.service.metadata(model, version)
        inputs, outputs = map(_tensor_json, found.inputs), map(_tensor_json, found.outputs)
        return _json(
            {
                "name": found.name,
                "versions": found.versions,
                "platform": found.platform,
                "inputs": list(inputs),
                "outputs": list(outputs),
            }
        )

    # ---- inferences

    async def _infer(self, request: SizedRequest, found: Found, body: Buffer, passage: Passage, rid: str) -> Answer:
        headers = request.headers
        coding = headers.getone("content-encoding", "")
        if coding:
            body = await self._inflated(body, coding)
        call, wanted = read_body(found, body, headers.getone(HEADER_LENGTH, None))
        started = self.service.begin(self._bounded(request, call, passage, rid), found)
        answer = await passage.enter(started.pending)
        result = await self.service.complete(started, answer)
        rendered = rendered_of(result, wanted)
        coding = chosen_coding(headers.getone("accept-encoding", ""))
        if coding and rendered.nbytes >= COMPRESSED_BYTES_MIN:
            return await _compressed_answer(result, rendered, coding)
        return answer_of(result, rendered)

    async def _inflated(self, body: Buffer, coding: str) -> Buffer:
        if len(body) <= COMPRESSED_HERE_BYTES_MAX:
            return inflated(body, coding, self._request_bytes_max)
        return await asyncio.to_thread(inflated, body, coding, self._request_bytes_max)

    @staticmethod
    def _bounded(request: SizedRequest, call: InferCall, passage: Passage, rid: str) -> InferCall:
        """With the client's patience, which runs since its head came."""
        patience_ms = asked_timeout_ms(request)
        deadline_ns = int(passage.arrived_s * 1e9) + patience_ms * 1_000_000 if patience_ms else 0
        return call._replace(deadline_ns=deadline_ns, request_id=rid)

    async def _generate(
        self, request: SizedRequest, found: Found, body: Buffer, passage: Passage, rid: str, *, streams: bool
    ) -> Answer:
        if request.headers.getone("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise BadRequest("Unsupported content-encoding, only 'identity' is supported.")
        if found.declaration is None:
            raise BadRequest(f"model '{found.model}' declares no inputs: generate cannot know which keys are tensors")
        call = generate_call(found.declaration, found.model, found.version, body)
        call = self._bounded(request, call, passage, rid)
        results = self.service.stream(call, passage.enter, found)
        if not streams:
            return Answer(generated(await only_one(results)), JSON)
        events = Events(results, self._error_json)
        try:
            await events.begin()
        except RingServeError as error:
            if not passage.entered:
                raise  # it was not even begun: an ordinary refusal
            return self._broken_event(error)
        return Answer(b"", EVENTS, source=events)

    def _broken_event(self, error: RingServeError) -> Answer:
        refused = self.error_answer(error)
        return refused._replace(body=event(refused.body), content_type=EVENTS)

    # ---- errors

    def error_answer(self, error: RingServeError) -> Answer:
        status, _ = v2_status(error, self.queue_full)
        return Answer(self._error_json(error), JSON, status, headers=error_headers(error) or None)

    def _error_json(self, error: BaseException) -> bytes:
        said = translate(error, self._request_bytes_max)
        return orjson.dumps({"error": said.message.encode("utf-8", "replace").decode()})

    # ---- the short way

    def plain_call(self, target: Target, headers: dict[bytes, bytes], deadline_ns: int) -> PlainCall:
        """A call whose body is still to come. Raises as `OpenInference.find`."""
        length = headers.get(b"inference-header-content-length")
        found = self.service.find_target(target)
        return PlainCall(self.service, found, None if length is None else length.decode("latin-1"), deadline_ns)


async def _compressed_answer(result: InferResult, body: Sized, coding: str) -> Answer:
    (parts, json_bytes), source = body.rendered, result.source
    headers = {"content-encoding": coding}
    if json_bytes >= 0:
        headers[HEADER_LENGTH] = str(json_bytes)
    try:
        if body.nbytes <= COMPRESSED_HERE_BYTES_MAX:
            packed = compressed(parts, coding)
        else:
            packed = await asyncio.to_thread(compressed, parts, coding)
    finally:
        if source is not None:
            source.close()
    return Answer(packed, JSON if json_bytes < 0 else OCTETS, headers=headers)


def _json(value: object, status: int = 200) -> Answer:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return Answer(orjson.dumps(value), JSON, status, headers=headers)


def _tensor_json(tensor: TensorMetadata) -> dict[str, object]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}

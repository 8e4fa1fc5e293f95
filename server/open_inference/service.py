"""The Open Inference Protocol without its transports: what REST and gRPC ask, and how it is answered.

    InferCall ─▶ checks.py ─▶ Dispatcher.submit ─▶ Answer ─▶ InferResult

Of models that declare nothing only the call itself is checked; their handlers get the tensors as JSON (server/tensor_payloads.py).

Everything raises `RingServeError`s, whose sentences are the protocol's; errors.py has their statuses.
"""

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

from ringserve.protocol.errors import Internal, NotFound, NoWorker, Unsupported
from ringserve.protocol.request import Answer, Elsewhere, InferRequest, Source, Tensor, TensorReply, TensorRequest
from ringserve.server.control import VersionRoute
from ringserve.server.dispatch import Dispatcher
from ringserve.server.health import Verdict
from ringserve.server.inflight import Pending
from ringserve.server.metrics.counted_replies import counted
from ringserve.server.open_inference.call import CallInput, InferCall, InferResult, RegionPlace
from ringserve.server.open_inference.checks import Declaration, Reserved, take_reserved
from ringserve.server.open_inference.classification import classified
from ringserve.server.open_inference.errors import (
    DECOUPLED_REST,
    not_ready,
    unknown_model,
    unknown_version,
)
from ringserve.server.open_inference.metadata import ModelMetadata, ServerMetadata, in_order, tensors_of
from ringserve.server.open_inference.regions import OutputPlace, Regions
from ringserve.server.routing import RouteTable, Target


class Found(NamedTuple):
    """A version that can be asked. `named`: the client named it."""

    dispatcher: Dispatcher
    model: str
    version: str
    named: bool
    declaration: Declaration | None  # None: it declares nothing


class Started(NamedTuple):
    """A call whose request waits for its answer in `pending`. `places` are where outputs go that the client wants in its memory."""

    pending: Pending
    call: InferCall
    found: Found
    places: dict[str, OutputPlace]


class OpenInference:
    """By the routes that `table` holds at the moment. `name` and `extensions` are told to clients, as is `version`, the server's own."""

    def __init__(
        self,
        table: RouteTable,
        name: str = "ringserve",
        version: str = "",
        extensions: tuple[str, ...] = (),
        regions: Regions | None = None,
        *,
        strict_readiness: bool = True,
    ) -> None:
        self.table = table
        self.regions = regions
        self._server = ServerMetadata(name, version, extensions)
        self._strict_readiness = strict_readiness
        self._declarations: WeakKeyDictionary[Dispatcher, Declaration] = WeakKeyDictionary()

    # ---- what can be asked for

    def find(self, model: str, version: str = "") -> Found:
        """Raises `ModelNotFound`, `VersionNotFound`, or `NoWorker` for a version whose first worker has not loaded it."""
        targets = self.table.models.get(model)
        if targets is None:
            raise unknown_model(model)
        named = bool(version)
        if not named:
            version = targets.default_version
        dispatcher = targets.versions.get(version)
        if dispatcher is None:
            raise unknown_version(model, version)
        if dispatcher.served is None:
            raise not_ready(model, version)
        return Found(dispatcher, model, version, named, self._declaration(dispatcher, model, version))

    def find_target(self, target: Target) -> Found:
        """The same of a version that its path has found. Raises `NoWorker`."""
        dispatcher = target.dispatcher
        if dispatcher.served is None:
            raise not_ready(target.model, target.version)
        declaration = self._declaration(dispatcher, target.model, target.version)
        return Found(dispatcher, target.model, target.version, target.named, declaration)

    def _declaration(self, dispatcher: Dispatcher, model: str, version: str) -> Declaration | None:
        signature, served = dispatcher.signature, dispatcher.served
        if not signature.declared or served is None:
            return None
        known = self._declarations.get(dispatcher)
        if known is None or known.signature is not signature or known.served is not served:
            hidden = self._controls(model, version)
            known = self._declarations[dispatcher] = Declaration(model, signature, served, hidden)
        return known

    def _controls(self, model: str, version: str) -> frozenset[str]:
        """The inputs of a sequence model that the server itself fills."""
        scheduling = self._route(model, version).scheduling
        if scheduling is None or scheduling.sequences is None:
            return frozenset()
        return frozenset(each.name for each in scheduling.sequences.controls)

    def declares(self, model: str, version: str = "") -> bool:
        """Whether this is a model with declared tensors, whose first worker has loaded it."""
        targets = self.table.models.get(model)
        dispatcher = None if targets is None else targets.versions.get(version or targets.default_version)
        return dispatcher is not None and dispatcher.signature.declared

    def _route(self, model: str, version: str) -> VersionRoute:
        route = self.table.routes.get(model)
        if route is None:
            raise unknown_model(model)
        found = route.versions.get(version or route.default_version)
        if found is None:
            raise unknown_version(model, version)
        return found

    def live(self) -> bool:
        return True

    def server_ready(self) -> Verdict:
        """Whether the server answers requests: with strict readiness, to every version that shall have workers, and what was asked for by
        its name could be loaded."""
        if self._strict_readiness:
            verdict, lacking = self.table.health.ready(), self.table.not_loaded
            if verdict.ok and lacking:
                return Verdict(False, {"status": "not ready", "not_loaded": list(lacking)})
            if verdict.ok and not self.table.started:
                return Verdict(False, {"status": "not ready", "reason": "The server is starting."})
            return verdict
        draining = self.table.draining
        return Verdict(not draining, {"reason": "The server is shutting down."} if draining else {})

    def ready(self, model: str, version: str = "") -> bool:
        """Whether a worker is ready for requests. Raises `ModelNotFound` or `VersionNotFound`."""
        route = self._route(model, version)
        return not self.table.draining and route.ready_workers > 0

    def server_metadata(self) -> ServerMetadata:
        return self._server

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Raises as `find`."""
        found = self.find(model, version)
        signature, served = found.dispatcher.signature, found.dispatcher.served
        assert served is not None
        seen = () if found.declaration is None else found.declaration.inputs
        inputs = [spec for spec in signature.inputs if spec.name in seen]
        versions: tuple[str, ...] = (found.version,)
        if not version:
            ready = [name for name, each in self.table.routes[model].versions.items() if each.ready_workers]
            versions = in_order(ready or versions)
        batches = signature.batches
        outputs = tensors_of(signature.outputs, batches=batches)
        return ModelMetadata(model, versions, served.platform, tensors_of(inputs, batches=batches), outputs)

    def config(self, model: str, version: str = "") -> bytes:
        """The model's configuration as JSON. Raises as `find`, and `NotFound` where a handler has none."""
        found = self.find(model, version)
        assert found.dispatcher.served is not None
        if not found.dispatcher.served.config_json:
            raise NotFound(f"Model '{model}' declares no inputs and outputs: it has no model configuration.")
        return found.dispatcher.served.config_json

    # ---- inference

    def begin(self, call: InferCall, found: Found | None = None) -> Started:
        """Queue the call. Raises as `find` and `prepare`, and as `Dispatcher.submit`. Cancelling `pending` takes it back."""
        if found is None:
            found = self.find(call.model, call.version)
        request, places = self.prepare(call, found)
        try:
            pending = found.dispatcher.submit(request)
        except NoWorker as error:
            if type(error) is NoWorker:
                raise not_ready(found.model, found.version, error.retry_after_s) from None
            raise
        return Started(pending, call, found, places)

    def prepare(self, call: InferCall, found: Found) -> tuple[InferRequest, dict[str, OutputPlace]]:
        """The request that a call makes, and where its outputs go that the client wants in its memory. Raises `BadRequest` for what the
        model does not declare, and `NotFound` for an unknown region."""
        declaration = found.declaration
        reserved = take_reserved(call.parameters)
        if declaration is not None:
            declaration.check(call)
        places: dict[str, OutputPlace] = {}
        for output in call.outputs:
            if output.place is not None:
                places[output.name] = self._known_regions(output.place.region).output(output.place)
        inputs = tuple([self._tensor(each) for each in call.inputs])
        timeout_ms = 0
        if call.deadline_ns:
            timeout_ms = max(1, (call.deadline_ns - time.monotonic_ns()) // 1_000_000)
        tensors = _tensor_request(call, inputs, reserved, declaration)
        if declaration is not None:
            request = InferRequest(call.id, "", {}, b"", tensors=tensors)
        else:
            rid = call.id or call.request_id
            request = InferRequest(rid, "", dict(call.forwarded), b"", tensors=tensors, model=found.model)
        if timeout_ms:
            request = request._replace(timeout_ms=timeout_ms, deadline_ns=call.deadline_ns)
        return request, places

    def _tensor(self, given: CallInput) -> Tensor:
        place = given.place
        if place is None:
            return Tensor(given.name, given.datatype, given.shape, given.data)
        return Tensor(given.name, given.datatype, given.shape, self.lying_at(place))

    def lying_at(self, place: RegionPlace) -> Elsewhere:
        """The bytes of an input that are in a region. Raises `NotFound` or `BadRequest`."""
        return self._known_regions(place.region).input(place)

    def _known_regions(self, region: str) -> Regions:
        if self.regions is None:
            raise NotFound(f"Unable to find shared memory region: '{region[:256]}'")
        return self.regions

    def finish(self, started: Started, answer: Answer) -> InferResult:
        """What the client gets of the answer to a call that is not decoupled."""
        reply = answer.tensors
        if reply is None:
            raise Internal("the answer to a request in tensors has none")
        return self._result(started, reply, answer.source)

    def _result(self, started: Started, reply: TensorReply, source: Source | None = None) -> InferResult:
        call, found = started.call, started.found
        outputs = reply.outputs
        if call.outputs and outputs:
            try:
                outputs = self._chosen(started, outputs)
            except BaseException:
                if source is not None:
                    source.close()
                raise
            if source is not None and not any(type(each.data) is memoryview for each in outputs):
                source.close()
                source = None
        return InferResult(found.model, found.version, call.id, outputs, reply.parameters, reply.final, source)

    @staticmethod
    def _chosen(started: Started, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Those that are asked for, in the model's order: as they are, as classes, or written where the client wants them."""
        declaration = started.found.declaration
        labels = {} if declaration is None else declaration.served.labels
        batches = declaration is not None and declaration.batches
        asked = {each.name: each for each in started.call.outputs}
        chosen = []
        for output in outputs:
            wanted = asked.get(output.name)
            if wanted is None:
                continue
            if wanted.classification:
                output = classified(output, wanted.classification, labels.get(output.name, ()), batches=batches)
            place = started.places.get(output.name)
            if place is not None:
                assert isinstance(output.data, bytes | bytearray | memoryview), "answers are in our memory"
                place.write(output.name, output.data)
                output = output._replace(data=b"")
            chosen.append(output)
        return tuple(chosen)

    async def infer(self, call: InferCall, decoupled: str = DECOUPLED_REST) -> InferResult:
        """One answer to one call. A decoupled model's is given where it is the only one; otherwise `decoupled` is said, as
        `Unsupported`. Raises as `begin` does, and what the model raised."""
        started = self.begin(call)
        return await self.complete(started, await started.pending, decoupled)

    async def complete(self, started: Started, answer: Answer, decoupled: str = DECOUPLED_REST) -> InferResult:
        """As `finish`, of any model: see `infer`."""
        if answer.replies is None:
            return self.finish(started, answer)
        only: TensorReply | None = None
        replies = counted(answer.replies, started.found.dispatcher.meter)
        try:
            while (reply := await replies.next()) is not None:
                if reply.outputs:
                    if only is not None:
                        raise Unsupported(decoupled)
                    only = reply
        finally:
            replies.close()
        if only is None:
            raise Unsupported(decoupled)
        return self._result(started, only._replace(final=True))

    async def stream(
        self, call: InferCall, on_started: Callable[[Pending], object] | None = None, found: Found | None = None
    ) -> AsyncGenerator[InferResult]:
        """All answers to one call, as they come; the last one, and no other, is `final`, and may have no outputs. Closing the
        iterator cancels what is left. `on_started` is told what the call waits for. Raises as `infer`."""
        started = self.begin(call, found)
        if on_started is not None:
            on_started(started.pending)
        answer = await started.pending
        if answer.replies is None:
            yield self.finish(started, answer)
            return
        replies, final = counted(answer.replies, started.found.dispatcher.meter), False
        with contextlib.closing(replies):
            while not final and (reply := await replies.next()) is not None:
                final = reply.final
                yield self._result(started, reply)
        if not final:
            yield InferResult(started.found.model, started.found.version, call.id, ())


def _tensor_request(
    call: InferCall, inputs: tuple[Tensor, ...], reserved: Reserved, declaration: Declaration | None
) -> TensorRequest:
    outputs = tuple([each.name for each in call.outputs])
    if len(outputs) > 1 and declaration is not None:  # answers come in the model's order, as Triton's do
        outputs = tuple([name for name in declaration.outputs if name in outputs])
    parameters = reserved.rest
    if call.forwarded:
        parameters = {**parameters, **call.forwarded}
    return TensorRequest(
        inputs,
        outputs,
        parameters,
        reserved.priority,
        reserved.sequence_id,
        reserved.sequence_start,
        reserved.sequence_end,
        reserved.timeout_us,
    )

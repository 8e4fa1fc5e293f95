"""GRPCInferenceService: the Open Inference Protocol over gRPC, under Triton's and KServe's name for it and under TorchServe's.

What is asked is `OpenInference`'s to answer, as for REST; the supervisor's part is in control_calls.py, streams in streams.py.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import orjson
from google.protobuf import json_format
from google.protobuf.message import Message

from ringserve.protocol.errors import ModelNotFound, Unsupported, VersionNotFound
from ringserve.protocol.grpc import open_inference_pb2 as pb
from ringserve.server.open_inference.errors import DECOUPLED_GRPC
from ringserve.server.open_inference.metadata import TensorMetadata
from ringserve.server.open_inference.service import Found, OpenInference
from ringserve.server.rpc.calls import Services, always
from ringserve.server.rpc.context import RpcContext
from ringserve.server.rpc.control_calls import ControlCalls
from ringserve.server.rpc.streams import InferStream
from ringserve.server.rpc.tensors import InferMessage, call_of, read_message, response_bytes, with_contents
from ringserve.server.rpc.v2_calls import Context, Metered, deadline_ns, not_there, v2_grpc_status

SERVICE = "inference.GRPCInferenceService"
TORCHSERVE_SERVICE = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
# What TorchServe's service has of it.
TORCHSERVE_METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")

# What needs the key of management, as over REST (server/open_inference/control_paths.py).
CHANGES: dict[str, Callable[[Any], bool]] = {
    "RepositoryModelLoad": always,
    "RepositoryModelUnload": always,
    "TraceSetting": lambda request: bool(request.settings),
    "LogSettings": lambda request: bool(request.settings),
}

Behaviour = Callable[[Any, Any], Awaitable[Any]]


def callable_in_one(found: Found) -> None:
    """Raises `Unsupported` for a model whose answers need a stream."""
    if found.declaration is not None and found.declaration.signature.decoupled:
        raise Unsupported(DECOUPLED_GRPC)


class OpenInferenceService:
    """The rpcs, of which those that are not the supervisor's are answered here. They raise `RingServeError`s (`v2_grpc_status`)."""

    def __init__(self, core: OpenInference, control: ControlCalls, write_timeout_s: int = 60) -> None:
        self._core = core
        self._control = control
        self._stream = InferStream(core, write_timeout_s)

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=self._core.live())

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._core.server_ready().ok)

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """A version that a model has not is not ready, nor is a model that the repository has and nobody has loaded; one that it has
        not is an error."""
        ready = False
        try:
            ready = self._core.ready(request.name, request.version)
        except VersionNotFound as error:
            refusal = not_there(error, request.version)
            if refusal is not error:
                raise refusal from None
        except ModelNotFound:
            if not await self._control.lists(request.name):
                raise
        return pb.ModelReadyResponse(ready=ready)

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        known = self._core.server_metadata()
        return pb.ServerMetadataResponse(name=known.name, version=known.version, extensions=known.extensions)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        try:
            known = self._core.metadata(request.name, request.version)
        except VersionNotFound as error:
            raise not_there(error, request.version) from None
        return pb.ModelMetadataResponse(
            name=known.name,
            versions=known.versions,
            platform=known.platform,
            inputs=[_described(each) for each in known.inputs],
            outputs=[_described(each) for each in known.outputs],
        )

    async def model_config(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        try:
            written = orjson.loads(self._core.config(request.name, request.version))
        except VersionNotFound as error:
            raise not_there(error, request.version) from None
        response = pb.ModelConfigResponse()
        json_format.ParseDict(written, response.config, ignore_unknown_fields=True)
        return response

    async def model_infer(self, message: InferMessage, context: Context) -> bytes:
        """Cancelled, by the client or its deadline, it takes the request back."""
        core, fields = self._core, message.fields
        with Metered() as passage:
            try:
                found = core.find(fields.model_name, fields.model_version)
            except VersionNotFound as error:
                raise not_there(error, fields.model_version) from None
            passage.begin(found.dispatcher.meter, named=found.named)
            callable_in_one(found)
            started = core.begin(call_of(message, deadline_ns(context), lying_at=core.lying_at), found)
            result = core.finish(started, await passage.enter(started.pending))
            return response_bytes(result)

    def add_to_server(self, server: Any) -> None:
        """Register the service under both of its names. Not the generated functions: requests with tensors are read by our own code,
        and their responses are written by it."""
        unary: dict[str, tuple[Behaviour, type[Message]]] = {
            "ServerLive": (self.server_live, pb.ServerLiveRequest),
            "ServerReady": (self.server_ready, pb.ServerReadyRequest),
            "ModelReady": (self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, pb.ModelMetadataRequest),
            "ModelConfig": (self.model_config, pb.ModelConfigRequest),
            **self._control.methods(),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(behaviour, request.FromString, _serialized)
            for name, (behaviour, request) in unary.items()
        }
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self.model_infer, read_message)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream.serve, read_message)
        server.add_registered_method_handlers(SERVICE, handlers)
        torchserves = {name: handlers[name] for name in TORCHSERVE_METHODS}
        torchserves["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self.model_infer, read_message, with_contents)
        server.add_registered_method_handlers(TORCHSERVE_SERVICE, torchserves)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _described(tensor: TensorMetadata) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def add_open_inference(services: Services, context: RpcContext) -> None:
    """Both names of the service; `Services` gives errors their statuses."""
    control = ControlCalls(context.forwarding)
    service = OpenInferenceService(context.open_inference, control, context.write_timeout_s)
    services.add(lambda servicer, server: servicer.add_to_server(server), service, v2_grpc_status, changes=CHANGES)

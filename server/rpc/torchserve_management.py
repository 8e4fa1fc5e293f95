"""TorchServe's `ManagementAPIsService` (contract sections 5.2 and 5.3): each method is the request of the REST API that it stands for, and
the supervisor answers that one.

As in TorchServe, a number that is not above 0 and an empty text count as not said. `msg` is the `status` of the REST answer, or its
JSON text where that describes models.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import grpc
import msgspec

from ringserve.protocol.errors import BadRequest, InvalidVersionUse, RingServeError
from ringserve.protocol.grpc import torchserve_management_pb2 as pb
from ringserve.protocol.grpc import torchserve_management_pb2_grpc as pb_grpc
from ringserve.protocol.request import Answer
from ringserve.server.rpc.calls import Services, metadata_of
from ringserve.server.rpc.context import RpcContext
from ringserve.server.rpc.statuses import code_of, torchserve_status, with_class
from ringserve.server.wire import request_id

NO_URL = "Parameter url is required."
NO_MODEL_NAME = "Parameter model_name is required."
API_DISABLED = "Model API disabled"
METHOD_NOT_ALLOWED = 405


class _Refused(msgspec.Struct):
    """An error of the REST API."""

    message: str = ""
    type: str = "InternalServerException"


class _Done(msgspec.Struct):
    status: str


class RestError(RingServeError):
    """What the supervisor has answered; `torchserve_type` is the class that it names."""

    def __init__(self, status: int, refused: _Refused) -> None:
        super().__init__(refused.message, status=status)
        self.torchserve_type = refused.type


def management_status(error: RingServeError) -> tuple[grpc.StatusCode, str]:
    """Of a method: what the supervisor says keeps its class."""
    if isinstance(error, RestError):
        return code_of(error.http_status), with_class(error.message, error.torchserve_type)
    return torchserve_status(error)


def add_torchserve_management(services: Services, context: RpcContext) -> None:
    """To the listener of management."""
    services.add(pb_grpc.add_ManagementAPIsServiceServicer_to_server, ManagementService(context), management_status)


class ManagementService:
    """The six methods. What they raise becomes the status of the call."""

    def __init__(self, context: RpcContext) -> None:
        self._forwarding = context.forwarding

    async def DescribeModel(self, request: pb.DescribeModelRequest, context: Any) -> pb.ManagementResponse:
        path = _path(request.model_name, request.model_version, NO_MODEL_NAME)
        answer = await self._ask(context, "GET", path, {"customized": request.customized})
        return pb.ManagementResponse(msg=answer.body.decode())

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ManagementResponse:
        """Without a limit, as many as the REST API lists (in TorchServe: none)."""
        said = {"limit": request.limit, "next_page_token": request.next_page_token}
        answer = await self._ask(context, "GET", "/models", said)
        return pb.ManagementResponse(msg=answer.body.decode())

    async def RegisterModel(self, request: pb.RegisterModelRequest, context: Any) -> pb.ManagementResponse:
        if not request.url:
            raise BadRequest(NO_URL)
        said = {field.name: getattr(request, field.name) for field in request.DESCRIPTOR.fields}
        return await self._done(context, "POST", "/models", said, synchronous=request.synchronous)

    async def ScaleWorker(self, request: pb.ScaleWorkerRequest, context: Any) -> pb.ManagementResponse:
        names = ("min_worker", "max_worker", "number_gpu", "timeout")
        said = {name: getattr(request, name) for name in names}
        path = _path(request.model_name, request.model_version, NO_MODEL_NAME)
        return await self._done(context, "PUT", path, said, synchronous=request.synchronous)

    async def SetDefault(self, request: pb.SetDefaultRequest, context: Any) -> pb.ManagementResponse:
        if not request.model_version:
            raise BadRequest("Parameter model_version is required.")
        path = _path(request.model_name, request.model_version, NO_MODEL_NAME)
        return await self._done(context, "PUT", f"{path}/set-default", {})

    async def UnregisterModel(self, request: pb.UnregisterModelRequest, context: Any) -> pb.ManagementResponse:
        return await self._done(context, "DELETE", _path(request.model_name, request.model_version, NO_URL), {})

    async def _done(
        self, context: Any, method: str, path: str, said: Mapping[str, Any], **flags: bool
    ) -> pb.ManagementResponse:
        """A change, which is answered by its `status`."""
        told = {name: str(value).lower() for name, value in flags.items()}  # also when it is false
        answer = await self._ask(context, method, path, {**said, **told})
        return pb.ManagementResponse(msg=msgspec.json.decode(answer.body, type=_Done).status)

    async def _ask(self, context: Any, method: str, path: str, said: Mapping[str, Any]) -> Answer:
        """Raises `RingServeError` as the supervisor does."""
        query = urlencode({name: _written(value) for name, value in said.items() if _is_said(value)})
        target = f"{path}?{query}" if query else path
        rid = request_id(metadata_of(context, "x-request-id") or None)
        answer = await self._forwarding.answer(method, target.encode(), (), rid, b"")
        if answer.status < 400:
            return answer
        if answer.status == METHOD_NOT_ALLOWED:
            raise InvalidVersionUse(API_DISABLED)
        try:
            refused = msgspec.json.decode(answer.body, type=_Refused)
        except msgspec.MsgspecError:
            refused = _Refused(answer.body.decode("utf-8", "replace"))
        raise RestError(answer.status, refused)


def _path(model: str, version: str, missing: str) -> str:
    """Raises `BadRequest` where no model is named."""
    if not model:
        raise BadRequest(missing)
    path = f"/models/{quote(model, safe='')}"
    return f"{path}/{quote(version, safe='')}" if version else path


def _is_said(value: Any) -> bool:
    return value > 0 if isinstance(value, int) else bool(value)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

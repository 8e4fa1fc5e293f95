"""The rpcs of GRPCInferenceService that are the supervisor's to answer: statistics, the model repository, shared memory, trace and log
settings.

The supervisor knows one form of each, the protocol's REST (server/open_inference/control_paths.py); here messages become that JSON and
its answers become messages.
"""

import base64
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import quote
from uuid import uuid4

import grpc
import orjson
from google.protobuf import json_format
from google.protobuf.message import Message

from ringserve.protocol.errors import BadRequest, RingServeError, Unsupported
from ringserve.protocol.grpc import open_inference_pb2 as pb
from ringserve.protocol.request import Answer
from ringserve.server.rpc.v2_calls import Context, Refused

# What of the log settings is which type, and how a refusal calls it.
_LOG_TYPES = {
    "log_file": ("string_param", "string"),
    "log_format": ("string_param", "string"),
    "log_info": ("bool_param", "boolean"),
    "log_warning": ("bool_param", "boolean"),
    "log_error": ("bool_param", "boolean"),
    "log_verbose_level": ("uint32_param", "int32"),
}
_NO_REPOSITORIES = "'repository_name' specification is not supported"
_FILE = "file:"

Json = dict[str, Any] | list[Any]


class Supervisor(Protocol):
    """Who answers (`Forwarding`)."""

    async def answer(
        self,
        method: str,
        target: bytes,
        headers: Iterable[tuple[str, str]],
        rid: str,
        body: bytes | bytearray | memoryview,
    ) -> Answer:
        """What it says to a request in REST. Raises `ShuttingDown` when it is not there."""


class ControlCalls:
    """Each method takes a message and returns one. They raise `RingServeError`s, `Refused` where the supervisor has named a status."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def methods(self) -> Mapping[str, tuple[Callable[[Any, Context], Awaitable[Any]], type[Message]]]:
        """By name of the rpc: who answers it, and the type of its request."""
        return {
            "ModelStatistics": (self.model_statistics, pb.ModelStatisticsRequest),
            "RepositoryIndex": (self.repository_index, pb.RepositoryIndexRequest),
            "RepositoryModelLoad": (self.repository_model_load, pb.RepositoryModelLoadRequest),
            "RepositoryModelUnload": (self.repository_model_unload, pb.RepositoryModelUnloadRequest),
            "SystemSharedMemoryStatus": (self.system_status, pb.SystemSharedMemoryStatusRequest),
            "SystemSharedMemoryRegister": (self.system_register, pb.SystemSharedMemoryRegisterRequest),
            "SystemSharedMemoryUnregister": (self.system_unregister, pb.SystemSharedMemoryUnregisterRequest),
            "CudaSharedMemoryStatus": (self.cuda_status, pb.CudaSharedMemoryStatusRequest),
            "CudaSharedMemoryRegister": (self.cuda_register, pb.CudaSharedMemoryRegisterRequest),
            "CudaSharedMemoryUnregister": (self.cuda_unregister, pb.CudaSharedMemoryUnregisterRequest),
            "TraceSetting": (self.trace_setting, pb.TraceSettingRequest),
            "LogSettings": (self.log_settings, pb.LogSettingsRequest),
        }

    # ---- statistics

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        path = "/v2/models/stats"
        if request.name:
            version = f"/versions/{_segment(request.version)}" if request.version else ""
            path = f"/v2/models/{_segment(request.name)}{version}/stats"
        known = dict(await self._ask("GET", path))
        return json_format.ParseDict(known, pb.ModelStatisticsResponse(), ignore_unknown_fields=True)

    # ---- model repository

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        _no_repository(request.repository_name)
        models = await self._ask("POST", "/v2/repository/index", {"ready": request.ready})
        return json_format.ParseDict({"models": models}, pb.RepositoryIndexResponse(), ignore_unknown_fields=True)

    async def lists(self, model: str) -> bool:
        """Whether the repository has a model of this name, loaded or not. False where the supervisor does not say."""
        try:
            models = await self._ask("POST", "/v2/repository/index")
        except RingServeError:
            return False
        return any(isinstance(each, dict) and each.get("name") == model for each in models)

    async def repository_model_load(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        _no_repository(request.repository_name)
        name, parameters = request.model_name, {}
        if not name:
            raise BadRequest(
                "failed to load '', failed to poll from model repository: the name of a model is not empty"
            )
        for key, given in request.parameters.items():
            field = given.WhichOneof("parameter_choice")
            if key == "config":
                _expect(field == "string_param", f"load parameter '{key}'", "string_param")
                parameters[key] = given.string_param
            elif key.startswith(_FILE):
                _expect(field == "bytes_param", f"load parameter '{key:.256}'", "bytes_param")
                parameters[key] = base64.b64encode(given.bytes_param).decode()
            else:
                raise BadRequest(f"unrecognized load parameter '{key:.256}'.")
        await self._ask("POST", f"/v2/repository/models/{_segment(name)}/load", {"parameters": parameters})
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        _no_repository(request.repository_name)
        parameters = {}
        if "unload_dependents" in request.parameters:
            given = request.parameters["unload_dependents"]
            right = given.WhichOneof("parameter_choice") == "bool_param"
            _expect(right, "'unload_dependents' parameter", "bool_param")
            parameters["unload_dependents"] = given.bool_param
        if request.model_name:  # to unload what is not there is no error, nor can there be a model without a name
            path = f"/v2/repository/models/{_segment(request.model_name)}/unload"
            await self._ask("POST", path, {"parameters": parameters})
        return pb.RepositoryModelUnloadResponse()

    # ---- shared memory

    async def system_status(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        regions = await self._ask("GET", _region_path("system", request.name, "status"))
        return json_format.ParseDict(
            _by_name(regions), pb.SystemSharedMemoryStatusResponse(), ignore_unknown_fields=True
        )

    async def system_register(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        body = {"key": request.key, "offset": request.offset, "byte_size": request.byte_size}
        await self._ask("POST", _register_path("system", request.name), body)
        return pb.SystemSharedMemoryRegisterResponse()

    async def system_unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        await self._ask("POST", _region_path("system", request.name, "unregister"))
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        regions = await self._ask("GET", _region_path("cuda", request.name, "status"))
        return json_format.ParseDict(_by_name(regions), pb.CudaSharedMemoryStatusResponse(), ignore_unknown_fields=True)

    async def cuda_register(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        handle = {"b64": base64.b64encode(request.raw_handle).decode()}
        body = {"raw_handle": handle, "device_id": request.device_id, "byte_size": request.byte_size}
        await self._ask("POST", _register_path("cuda", request.name), body)
        return pb.CudaSharedMemoryRegisterResponse()

    async def cuda_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        await self._ask("POST", _region_path("cuda", request.name, "unregister"))
        return pb.CudaSharedMemoryUnregisterResponse()

    # ---- settings

    async def trace_setting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        path = f"/v2/models/{_segment(request.model_name)}/trace/setting" if request.model_name else "/v2/trace/setting"
        wanted = {key: _traced(key, given.value) for key, given in request.settings.items()}
        settings = await (self._ask("POST", path, wanted) if wanted else self._ask("GET", path))
        response = pb.TraceSettingResponse()
        for key, value in dict(settings).items():
            values = value if isinstance(value, list) else [value]
            response.settings[key].value.extend(map(str, values))
        return response

    async def log_settings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        wanted = {}
        for key, given in request.settings.items():
            field = given.WhichOneof("parameter_choice")
            if key in _LOG_TYPES and field != _LOG_TYPES[key][0]:
                raise BadRequest(f"expect {_LOG_TYPES[key][1]} for '{key}'")
            if field is not None:
                wanted[key] = getattr(given, field)
        settings = await (self._ask("POST", "/v2/logging", wanted) if wanted else self._ask("GET", "/v2/logging"))
        response = pb.LogSettingsResponse()
        for key, value in dict(settings).items():
            if isinstance(value, bool):
                response.settings[key].bool_param = value
            elif isinstance(value, int):
                response.settings[key].uint32_param = value
            else:
                response.settings[key].string_param = str(value)
        return response

    # ---- the supervisor

    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Json:
        """The JSON that the supervisor answers, {} for none."""
        written = b"" if body is None else orjson.dumps(body)
        headers = (("content-type", "application/json"),) if written else ()
        answer = await self._supervisor.answer(method, path.encode(), headers, str(uuid4()), written)
        said = orjson.loads(answer.body) if answer.body else {}
        if answer.status < 400:
            assert isinstance(said, dict | list), "the protocol's answers are objects and arrays"
            return said
        raise _refusal(said, answer.status)


def _refusal(said: object, status: int) -> RingServeError:
    told: Mapping[str, object] = said if isinstance(said, dict) else {}
    text = str(told.get("error") or told.get("message") or f"The server answered with status {status}.")
    named = getattr(grpc.StatusCode, str(told.get("code")), None)
    return RingServeError(text, status=status) if named is None else Refused(text, named)


def _segment(name: str) -> str:
    return quote(name, safe="")


def _no_repository(name: str) -> None:
    if name:
        raise Unsupported(_NO_REPOSITORIES)


def _expect(right: bool, what: str, kind: str) -> None:
    if not right:
        raise BadRequest(f"invalid value type for {what}, expected {kind}.")


def _register_path(kind: str, region: str) -> str:
    if not region:
        raise BadRequest(f"'region name' is necessary to register {kind} shared memory region")
    return _region_path(kind, region, "register")


def _region_path(kind: str, region: str, verb: str) -> str:
    """`region` "" is all of them."""
    return f"/v2/{kind}sharedmemory/{f'region/{_segment(region)}/' if region else ''}{verb}"


def _by_name(regions: Json) -> dict[str, dict[str, Any]]:
    return {"regions": {each["name"]: each for each in regions if isinstance(each, dict)}}


def _traced(key: str, values: Iterable[str]) -> list[str] | str | None:
    """A trace setting as REST has it; None takes it back."""
    given = list(values)
    if key == "trace_level" or not given:
        return given or None
    if len(given) > 1:
        raise BadRequest(f"expect only 1 value for '{key:.256}'")
    return given[0]

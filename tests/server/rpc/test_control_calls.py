import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from ringserve.protocol.errors import RingServeError, VersionNotFound
from ringserve.protocol.grpc import open_inference_pb2 as pb
from ringserve.protocol.request import Answer
from ringserve.server.rpc.control_calls import ControlCalls
from ringserve.server.rpc.v2_calls import not_there, v2_grpc_status


class Supervisor:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: object, status: int) -> None:
        self.said = Answer(b"" if answer is None else orjson.dumps(answer), "application/json", status)
        self.asked: tuple[str, str, object] | None = None

    async def answer(
        self,
        method: str,
        target: bytes,
        headers: Iterable[tuple[str, str]],
        rid: str,
        body: bytes | bytearray | memoryview,
    ) -> Answer:
        assert rid
        assert dict(headers) == ({"content-type": "application/json"} if body else {})
        self.asked = (method, target.decode(), orjson.loads(body) if body else None)
        return self.said


def ask(rpc: str, request: Message, answer: object = None, status: int = 200) -> tuple[Any, Any]:
    """What the supervisor was asked, and the response."""
    supervisor = Supervisor(answer, status)
    behaviour, kind = ControlCalls(supervisor).methods()[rpc]
    assert isinstance(request, kind)
    return asyncio.run(_call(behaviour, request)), supervisor.asked


async def _call(behaviour: Any, request: Message) -> Any:
    return await behaviour(request, None)


def refusal(rpc: str, request: Message, answer: object = None, status: int = 200) -> tuple[str, str]:
    with pytest.raises(RingServeError) as caught:
        ask(rpc, request, answer, status)
    code, details = v2_grpc_status(caught.value)
    return code.name, details


STATISTICS = {
    "model_stats": [
        {
            "name": "m",
            "version": "1",
            "last_inference": 1718000000000,
            "inference_count": 8,
            "execution_count": 2,
            "inference_stats": {"success": {"count": 8, "ns": 2**40}, "cache_hit": {"count": 0, "ns": 0}},
            "response_stats": {"0": {"success": {"count": 1, "ns": 5}}},
            "batch_stats": [{"batch_size": 4, "compute_infer": {"count": 2, "ns": 9}}],
            "memory_usage": [{"type": "CPU", "id": 0, "byte_size": 1024}],
            "of_a_later_version": 1,
        }
    ]
}


@pytest.mark.parametrize(
    ("name", "version", "path"),
    [
        ("", "", "/v2/models/stats"),
        ("", "1", "/v2/models/stats"),
        ("m", "", "/v2/models/m/stats"),
        ("m", "1.0", "/v2/models/m/versions/1.0/stats"),
        ("a/b é", "", "/v2/models/a%2Fb%20%C3%A9/stats"),
    ],
)
def test_statistics_are_asked_for_by_path(name: str, version: str, path: str) -> None:
    response, asked = ask("ModelStatistics", pb.ModelStatisticsRequest(name=name, version=version), STATISTICS)
    assert asked == ("GET", path, None)
    first = response.model_stats[0]
    assert (first.version, first.inference_count, first.inference_stats.success.ns) == ("1", 8, 2**40)
    assert (first.response_stats["0"].success.ns, first.batch_stats[0].batch_size) == (5, 4)
    assert first.memory_usage[0].byte_size == 1024


def test_the_index_has_models_that_were_never_loaded_by_name_only() -> None:
    known = [{"name": "a", "version": "1", "state": "READY", "reason": ""}, {"name": "b"}]
    response, asked = ask("RepositoryIndex", pb.RepositoryIndexRequest(ready=True), known)
    assert asked == ("POST", "/v2/repository/index", {"ready": True})
    assert [(each.name, each.version, each.state) for each in response.models] == [("a", "1", "READY"), ("b", "", "")]


def test_load_and_unload_pass_their_parameters_on() -> None:
    request = pb.RepositoryModelLoadRequest(model_name="m")
    request.parameters["config"].string_param = "{}"
    request.parameters["file:1/model.py"].bytes_param = b"\xff\x00"
    response, asked = ask("RepositoryModelLoad", request)
    assert asked == (
        "POST",
        "/v2/repository/models/m/load",
        {"parameters": {"config": "{}", "file:1/model.py": "/wA="}},
    )
    assert response == pb.RepositoryModelLoadResponse()
    unload = pb.RepositoryModelUnloadRequest(model_name="m")
    unload.parameters["unload_dependents"].bool_param = True
    unload.parameters["other"].int64_param = 1
    assert ask("RepositoryModelUnload", unload)[1] == (
        "POST",
        "/v2/repository/models/m/unload",
        {"parameters": {"unload_dependents": True}},
    )


def test_what_no_repository_can_do_is_refused_before_anybody_is_asked() -> None:
    said = ("UNIMPLEMENTED", "'repository_name' specification is not supported")
    assert refusal("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r")) == said
    assert refusal("RepositoryModelLoad", pb.RepositoryModelLoadRequest(repository_name="r", model_name="m")) == said
    assert refusal("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(repository_name="r")) == said
    for name, field, value, text in (
        ("config", "int64_param", 1, "invalid value type for load parameter 'config', expected string_param."),
        ("file:1/x", "string_param", "x", "invalid value type for load parameter 'file:1/x', expected bytes_param."),
        ("foo", "string_param", "x", "unrecognized load parameter 'foo'."),
    ):
        request = pb.RepositoryModelLoadRequest(model_name="m")
        setattr(request.parameters[name], field, value)
        assert refusal("RepositoryModelLoad", request) == ("INVALID_ARGUMENT", text)
    unload = pb.RepositoryModelUnloadRequest(model_name="m")
    unload.parameters["unload_dependents"].string_param = "x"
    assert refusal("RepositoryModelUnload", unload) == (
        "INVALID_ARGUMENT",
        "invalid value type for 'unload_dependents' parameter, expected bool_param.",
    )
    assert refusal("RepositoryModelLoad", pb.RepositoryModelLoadRequest())[0] == "INVALID_ARGUMENT"
    response, asked = ask("RepositoryModelUnload", pb.RepositoryModelUnloadRequest())
    assert (response, asked) == (pb.RepositoryModelUnloadResponse(), None)


def test_regions_are_registered_listed_and_unregistered() -> None:
    register = pb.SystemSharedMemoryRegisterRequest(name="r", key="/k", offset=2**63, byte_size=8)
    body = {"key": "/k", "offset": 2**63, "byte_size": 8}
    assert ask("SystemSharedMemoryRegister", register)[1] == ("POST", "/v2/systemsharedmemory/region/r/register", body)
    cuda = pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=b"\xff\x00", device_id=-1, byte_size=8)
    body = {"raw_handle": {"b64": "/wA="}, "device_id": -1, "byte_size": 8}
    assert ask("CudaSharedMemoryRegister", cuda)[1] == ("POST", "/v2/cudasharedmemory/region/r/register", body)

    regions = [{"name": "r", "key": "/k", "offset": 16, "byte_size": 8}]
    response, asked = ask("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), regions)
    assert asked == ("GET", "/v2/systemsharedmemory/status", None)
    assert json_format.MessageToDict(response, preserving_proto_field_name=True) == {
        "regions": {"r": {"name": "r", "key": "/k", "offset": "16", "byte_size": "8"}}
    }
    regions = [{"name": "c", "device_id": 1, "byte_size": 8}]
    response, asked = ask("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="c"), regions)
    assert asked == ("GET", "/v2/cudasharedmemory/region/c/status", None)
    assert response.regions["c"].device_id == 1

    for rpc, kind in (
        ("System", pb.SystemSharedMemoryUnregisterRequest),
        ("Cuda", pb.CudaSharedMemoryUnregisterRequest),
    ):
        path = f"/v2/{rpc.lower()}sharedmemory"
        assert ask(f"{rpc}SharedMemoryUnregister", kind())[1] == ("POST", f"{path}/unregister", None)
        assert ask(f"{rpc}SharedMemoryUnregister", kind(name="r"))[1] == ("POST", f"{path}/region/r/unregister", None)
    assert refusal("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(key="/k")) == (
        "INVALID_ARGUMENT",
        "'region name' is necessary to register system shared memory region",
    )


TRACED = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "5", "trace_file": ""}


def test_trace_settings_are_read_with_get_and_changed_with_post() -> None:
    response, asked = ask("TraceSetting", pb.TraceSettingRequest(), TRACED)
    assert asked == ("GET", "/v2/trace/setting", None)
    assert {key: list(each.value) for key, each in response.settings.items()} == {
        "trace_level": ["TIMESTAMPS", "TENSORS"],
        "trace_rate": ["5"],
        "trace_file": [""],
    }
    request = pb.TraceSettingRequest(model_name="m")
    request.settings["trace_level"].value.extend(["TIMESTAMPS", "TENSORS"])
    request.settings["trace_rate"].value.append("5")
    request.settings["trace_count"].SetInParent()
    assert ask("TraceSetting", request, TRACED)[1] == (
        "POST",
        "/v2/models/m/trace/setting",
        {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "5", "trace_count": None},
    )
    request.settings["trace_rate"].value.append("6")
    assert refusal("TraceSetting", request) == ("INVALID_ARGUMENT", "expect only 1 value for 'trace_rate'")


def test_log_settings_keep_their_types() -> None:
    known = {"log_file": "", "log_info": True, "log_verbose_level": 2, "log_format": "default"}
    response, asked = ask("LogSettings", pb.LogSettingsRequest(), known)
    assert asked == ("GET", "/v2/logging", None)
    assert response.settings["log_info"].bool_param is True
    assert response.settings["log_verbose_level"].uint32_param == 2
    assert response.settings["log_file"].WhichOneof("parameter_choice") == "string_param"
    request = pb.LogSettingsRequest()
    request.settings["log_error"].bool_param = False
    request.settings["log_verbose_level"].uint32_param = 1
    assert ask("LogSettings", request, known)[1] == (
        "POST",
        "/v2/logging",
        {"log_error": False, "log_verbose_level": 1},
    )


@pytest.mark.parametrize(
    ("name", "field", "value", "said"),
    [
        ("log_info", "string_param", "x", "expect boolean for 'log_info'"),
        ("log_verbose_level", "bool_param", True, "expect int32 for 'log_verbose_level'"),
        ("log_format", "uint32_param", 1, "expect string for 'log_format'"),
    ],
)
def test_a_log_setting_of_another_type_is_refused(name: str, field: str, value: object, said: str) -> None:
    request = pb.LogSettingsRequest()
    setattr(request.settings[name], field, value)
    assert refusal("LogSettings", request) == ("INVALID_ARGUMENT", said)


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        ({"error": "no", "code": "ALREADY_EXISTS"}, 400, ("ALREADY_EXISTS", "no")),
        ({"error": "no"}, 400, ("INVALID_ARGUMENT", "no")),
        ({"error": "no", "code": 404}, 404, ("NOT_FOUND", "no")),
        ({"error": "no", "code": "nonsense"}, 501, ("UNIMPLEMENTED", "no")),
        ({"error": "no"}, 503, ("UNAVAILABLE", "no")),
        ({"code": 500, "type": "X", "message": "ours"}, 500, ("INTERNAL", "ours")),
        ([], 404, ("NOT_FOUND", "The server answered with status 404.")),
        (None, 500, ("INTERNAL", "The server answered with status 500.")),
    ],
)
def test_the_supervisors_refusals_keep_their_text_and_status(
    answer: object, status: int, expected: tuple[str, str]
) -> None:
    assert refusal("ModelStatistics", pb.ModelStatisticsRequest(), answer, status) == expected


def test_details_are_never_longer_than_a_client_can_read() -> None:
    code, details = v2_grpc_status(RingServeError("é" * 100_000))
    assert code is grpc.StatusCode.INTERNAL
    assert len(details) < 2_100


POSITIVE = "version should be an integral value > 0"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("7", ("NOT_FOUND", "none")),
        ("0", ("NOT_FOUND", "none")),
        ("1.0", ("NOT_FOUND", "none")),
        (
            "abc",
            (
                "INVALID_ARGUMENT",
                f"failed to get model version from specified version string 'abc' (details: stol), {POSITIVE}",
            ),
        ),
        (
            "-1",
            ("INVALID_ARGUMENT", f"invalid model version specified '-1' , {POSITIVE}"),
        ),
    ],
)
def test_a_version_that_is_not_there_and_no_number_is_an_invalid_argument(
    version: str, expected: tuple[str, str]
) -> None:
    code, details = v2_grpc_status(not_there(VersionNotFound("none"), version))
    assert (code.name, details) == expected

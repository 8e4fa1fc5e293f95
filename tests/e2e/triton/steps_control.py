"""Regions, repository, settings and statistics, over REST and gRPC."""

import base64
from collections.abc import Iterator
from typing import Any

from tests.e2e.triton.forms import b64, call, infer, message, output, packed, rest, tensor

Steps = Iterator[dict[str, Any]]
SHM = "/v2/systemsharedmemory"
CUDA = "/v2/cudasharedmemory"
# What the one who holds the conversation makes in /dev/shm before it begins.
KEY, KEY_BYTES = "conversation_of_a_client", 8192


def _register(name: str, body: Any) -> dict[str, Any]:
    return rest("POST", f"{SHM}/region/{name}/register", body)


def _shared(name: str, datatype: str, shape: list[int], **parameters: Any) -> dict[str, Any]:
    return tensor(name, datatype, shape, None, **parameters)


def _in_region(region: str, size: Any, offset: Any = None) -> dict[str, Any]:
    found = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return found if offset is None else {**found, "shared_memory_offset": offset}


IN_WHOLE = [
    _shared("INPUT0", "INT32", [1, 16], **_in_region("whole", 64)),
    _shared("INPUT1", "INT32", [1, 16], **_in_region("whole", 64, 64)),
]
IN_PART = [
    _shared("INPUT0", "INT32", [1, 16], **_in_region("part", 64)),
    _shared("INPUT1", "INT32", [1, 16], **_in_region("part", 64, 64)),
]


def shared_memory() -> Steps:
    yield from _registrations()
    yield from _tensors_in_regions()
    yield from _odd_places()
    yield from _departures()


def _registrations() -> Steps:
    body: Any
    for path in (SHM, CUDA):
        yield rest("POST", f"{path}/unregister", b"")
        yield rest("GET", f"{path}/status")
        yield rest("GET", f"{path}/region/nothing/status")
        yield rest("POST", f"{path}/region/nothing/unregister", b"")
        yield rest("GET", f"{path}/unregister")
    yield rest("POST", f"{SHM}/status")
    for body in (
        {},
        {"key": f"/{KEY}"},
        {"byte_size": 64},
        {"key": "/", "byte_size": 64},
        {"key": "", "byte_size": 64},
        {"key": f"/{KEY}", "byte_size": KEY_BYTES + 1},
        {"key": f"/{KEY}", "byte_size": 64, "offset": KEY_BYTES},
        {"key": f"/{KEY}", "byte_size": 64, "offset": 2**62},
        {"key": f"/{KEY}", "byte_size": "64"},
        {"key": 5, "byte_size": 64},
        {"key": f"/{KEY}", "byte_size": -1},
        {"key": "/conversation_of_nobody", "byte_size": 64},
        [],
    ):
        yield _register("bad", body)
    yield _register("bad", b"{")
    yield _register("bad", b"")
    yield rest("GET", f"{SHM}/status")
    yield _register("whole", {"key": f"/{KEY}", "offset": 0, "byte_size": KEY_BYTES})
    yield _register("whole", {"key": f"/{KEY}", "offset": 0, "byte_size": KEY_BYTES})
    yield _register("part", {"key": KEY, "offset": 0, "byte_size": 4096})
    for path in ("/status", "/region/whole/status", "/region/part/status"):
        yield rest("GET", f"{SHM}{path}")
    yield rest("GET", f"{CUDA}/region/whole/status")
    yield rest("POST", f"{CUDA}/region/whole/unregister", b"")


def _tensors_in_regions() -> Steps:
    inputs, read = IN_WHOLE, IN_PART
    yield infer("simple", {"inputs": inputs})
    into = [output("OUTPUT0", **_in_region("part", 64)), output("OUTPUT1", **_in_region("part", 64, 64))]
    yield infer("simple", {"inputs": inputs, "outputs": into})
    yield infer("simple", {"inputs": read})
    yield infer("simple", {"inputs": inputs, "outputs": [into[0], output("OUTPUT1")]})
    yield infer("simple", {"inputs": [inputs[0], tensor("INPUT1", "INT32", [1, 16], list(range(16)))]})


def _odd_places() -> Steps:
    inputs = IN_WHOLE
    for size, offset in (
        (63, None),
        (65, None),
        (0, None),
        (64, KEY_BYTES),
        (64, KEY_BYTES - 32),
        (64, 2**63),
        (64, -1),
        ("64", None),
        (2**63, None),
    ):
        bad = _shared("INPUT0", "INT32", [1, 16], **_in_region("whole", size, offset))
        yield infer("simple", {"inputs": [bad, inputs[1]]})
        place = output("OUTPUT0", **_in_region("whole", size, offset))
        yield infer("simple", {"inputs": inputs, "outputs": [place]})
    yield infer("simple", {"inputs": [_shared("INPUT0", "INT32", [1, 16], shared_memory_region="whole"), inputs[1]]})
    yield infer("simple", {"inputs": [_shared("INPUT0", "INT32", [1, 16], shared_memory_byte_size=64), inputs[1]]})
    yield infer("simple", {"inputs": [_shared("INPUT0", "INT32", [1, 16], **_in_region("nobody", 64)), inputs[1]]})
    yield infer("simple", {"inputs": [{**inputs[0], "data": list(range(16))}, inputs[1]]})
    yield infer("simple", {"inputs": inputs, "outputs": [output("OUTPUT0", **_in_region("nobody", 64))]})
    yield infer(
        "simple", {"inputs": inputs, "outputs": [output("OUTPUT0", binary_data=True, **_in_region("part", 64))]}
    )
    scores = [tensor("INPUT", "FP32", [1, 3], [1, 2, 3])]
    yield infer("scores", {"inputs": scores, "outputs": [output("SCORES", classification=1, **_in_region("part", 64))]})
    yield infer(
        "identity",
        {
            "inputs": [tensor("INPUT_BYTES", "BYTES", [2], ["a", "bc"])],
            "outputs": [output("OUTPUT_BYTES", **_in_region("part", 64))],
        },
    )
    yield infer(
        "identity",
        {
            "inputs": [_shared("INPUT_BYTES", "BYTES", [2], **_in_region("part", 11))],
            "outputs": [output("OUTPUT_BYTES")],
        },
    )


def _departures() -> Steps:
    yield rest("POST", f"{SHM}/region/part/unregister", b"")
    yield rest("POST", f"{SHM}/region/part/unregister", b"")
    yield infer("simple", {"inputs": IN_PART})
    yield rest("GET", f"{SHM}/status")
    yield rest("POST", f"{SHM}/unregister", b"")
    yield rest("GET", f"{SHM}/status")
    handle = base64.b64encode(b"\0" * 64).decode()
    for body in (
        {"raw_handle": {"b64": handle}, "device_id": 0, "byte_size": 64},
        {"device_id": 0, "byte_size": 64},
        {},
    ):
        yield rest("POST", f"{CUDA}/region/card/register", body)


def _place(region: str, size: Any, offset: Any = None) -> dict[str, Any]:
    found = {"shared_memory_region": {"string_param": region}, "shared_memory_byte_size": {"int64_param": size}}
    return found if offset is None else {**found, "shared_memory_offset": {"int64_param": offset}}


def grpc_shared_memory() -> Steps:
    yield call("SystemSharedMemoryUnregister", {})
    yield call("CudaSharedMemoryUnregister", {})
    for rpc in ("SystemSharedMemoryStatus", "CudaSharedMemoryStatus"):
        yield call(rpc, {})
        yield call(rpc, {"name": "nothing"})
    for request in (
        {"name": "bad"},
        {"name": "bad", "key": "/", "byte_size": 64},
        {"name": "bad", "key": f"/{KEY}", "byte_size": KEY_BYTES + 1},
        {"name": "bad", "key": "/conversation_of_nobody", "byte_size": 64},
    ):
        yield call("SystemSharedMemoryRegister", request)
    yield call("SystemSharedMemoryRegister", {"name": "whole", "key": f"/{KEY}", "byte_size": KEY_BYTES})
    yield call("SystemSharedMemoryRegister", {"name": "whole", "key": f"/{KEY}", "byte_size": KEY_BYTES})
    yield call("SystemSharedMemoryStatus", {})
    yield call("SystemSharedMemoryStatus", {"name": "whole"})
    inputs = [
        {"name": f"INPUT{i}", "datatype": "INT32", "shape": [1, 16], "parameters": _place("whole", 64, 64 * i)}
        for i in (0, 1)
    ]
    yield call("ModelInfer", message("simple", inputs))
    into = [{"name": f"OUTPUT{i}", "parameters": _place("whole", 64, 4096 + 64 * i)} for i in (0, 1)]
    yield call("ModelInfer", message("simple", inputs, into))
    raw = {"name": "INPUT1", "datatype": "INT32", "shape": [1, 16]}
    yield call("ModelInfer", message("simple", [inputs[0], raw], raw=[packed("INT32", range(16))]))
    yield call("ModelInfer", message("simple", inputs, raw=[packed("INT32", range(16))]))
    for size, offset in ((63, None), (65, None), (64, KEY_BYTES), (64, KEY_BYTES - 32), (64, -1)):
        yield call(
            "ModelInfer", message("simple", [{**inputs[0], "parameters": _place("whole", size, offset)}, inputs[1]])
        )
        yield call(
            "ModelInfer", message("simple", inputs, [{"name": "OUTPUT0", "parameters": _place("whole", size, offset)}])
        )
    yield call("ModelInfer", message("simple", inputs, [{"name": "OUTPUT0", "parameters": _place("nobody", 64)}]))
    yield call("SystemSharedMemoryUnregister", {"name": "whole"})
    yield call("SystemSharedMemoryStatus", {})
    yield call("CudaSharedMemoryRegister", {"name": "card", "raw_handle": b64(b"\0" * 64), "byte_size": 64})


_CONFIG = '{"name": "later", "backend": "python", "max_batch_size": 4, "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [3]}], "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [3]}]}'


def _load(model: str, body: Any = b"") -> dict[str, Any]:
    return rest("POST", f"/v2/repository/models/{model}/load", body)


def _unload(model: str, body: Any = b"") -> dict[str, Any]:
    return rest("POST", f"/v2/repository/models/{model}/unload", body)


def repository() -> Steps:
    body: Any
    for body in (b"", b"{}", {"ready": True}, {"ready": False}, {"ready": "yes"}, b"{", {"other": 1}):
        yield rest("POST", "/v2/repository/index", body)
    yield rest("POST", "/v2/repository/mine/index", b"")
    yield rest("POST", "/v2/repository/mine/models/later/load", b"")
    yield _load("later")
    yield rest("GET", "/v2/models/later/ready")
    yield rest("GET", "/v2/models/later")
    yield infer("later", {"inputs": [tensor("INPUT0", "INT32", [2], [1, 2])]})
    yield _load("later")
    yield rest("POST", "/v2/repository/index", b"")
    yield _load("later", {"parameters": {"config": _CONFIG}})
    yield rest("GET", "/v2/models/later")
    yield rest("GET", "/v2/models/later/config")
    yield infer("later", {"inputs": [tensor("INPUT0", "FP32", [1, 3], [1, 2, 3])]})
    yield _load("later", {"parameters": {"config": _CONFIG.replace("4,", '"16",')}})
    yield rest("GET", "/v2/models/later/config")
    yield _load("later")
    yield rest("GET", "/v2/models/later")
    for text in ("{", "[]", '{"unknown": 1}', '{"name": "another"}', '{"max_batch_size": "many"}'):
        yield _load("later", {"parameters": {"config": text}})
    yield rest("GET", "/v2/models/later/ready")
    for body in ({"parameters": {"other": 1}}, {"parameters": 5}, b"{", {"parameters": {"config": 5}}):
        yield _load("later", body)
    yield _unload("later")
    yield rest("GET", "/v2/models/later/ready")
    yield rest("GET", "/v2/models/later")
    yield infer("later", {"inputs": [tensor("INPUT0", "INT32", [2], [1, 2])]})
    yield rest("POST", "/v2/repository/index", b"")
    yield _unload("later")
    yield _unload("nobody")
    yield _unload("simple_plain", {"parameters": {"unload_dependents": True}})
    yield _load("simple_plain")
    yield rest("GET", "/v2/models/simple_plain/ready")
    for name in ("nobody", "..", "a%2Fb", "%20"):
        yield _load(name)
    yield _load("broken")
    yield rest("GET", "/v2/models/broken/ready")
    yield rest("POST", "/v2/repository/index", b"")
    yield rest("POST", "/v2/repository/index", {"ready": True})


def grpc_repository() -> Steps:
    yield call("RepositoryIndex", {})
    yield call("RepositoryIndex", {"ready": True})
    yield call("RepositoryIndex", {"repository_name": "mine"})
    for rpc in ("RepositoryModelLoad", "RepositoryModelUnload"):
        yield call(rpc, {"repository_name": "mine", "model_name": "later"})
    yield call("RepositoryModelLoad", {"model_name": "later"})
    yield call("ModelReady", {"name": "later"})
    yield call("RepositoryModelLoad", {"model_name": "later", "parameters": {"config": {"string_param": _CONFIG}}})
    yield call("ModelMetadata", {"name": "later"})
    yield call("ModelConfig", {"name": "later"})
    yield call("RepositoryModelLoad", {"model_name": "later", "parameters": {"config": {"int64_param": 5}}})
    yield call("RepositoryModelLoad", {"model_name": "later", "parameters": {"other": {"string_param": "x"}}})
    yield call("RepositoryModelUnload", {"model_name": "later"})
    yield call("ModelReady", {"name": "later"})
    yield call("ModelMetadata", {"name": "later"})
    yield call("RepositoryModelUnload", {"model_name": "nobody"})
    for name in ("nobody", "", "..", "a/b", "broken"):
        yield call("RepositoryModelLoad", {"model_name": name})


def trace() -> Steps:
    body: Any
    settings: dict[str, Any]
    path = "/v2/trace/setting"
    yield rest("GET", path)
    yield call("TraceSetting", {})
    for body in (
        {"trace_level": ["TIMESTAMPS"]},
        {"trace_level": ["OFF", "TIMESTAMPS"]},
        {"trace_level": ["OFF"]},
        {"trace_level": "OFF"},
        {"trace_level": ["LOUD"]},
        {"trace_rate": "5"},
        {"trace_rate": 5},
        {"trace_rate": "-1"},
        {"trace_rate": "many"},
        {"trace_count": "10"},
        {"trace_count": "-1"},
        {"trace_count": "-2"},
        {"log_frequency": "3"},
        {"trace_file": "elsewhere"},
        {"unknown": "1"},
        {"trace_rate": None},
        {"log_frequency": None, "trace_count": None, "trace_level": None},
        {},
        [],
    ):
        yield rest("POST", path, body)
    yield rest("POST", path, b"{")
    yield rest("POST", path, b"")
    for model in ("simple", "nobody"):
        one = f"/v2/models/{model}/trace/setting"
        yield rest("GET", one)
        yield rest("POST", one, {"trace_rate": "7"})
        yield rest("GET", one)
        yield rest("POST", one, {"trace_rate": None})
        yield call("TraceSetting", {"model_name": model, "settings": {"trace_rate": {"value": ["9"]}}})
        yield call("TraceSetting", {"model_name": model, "settings": {"trace_rate": {}}})
    yield rest("GET", "/v2/models/simple/versions/1/trace/setting")
    for settings in (
        {"trace_level": {"value": ["TIMESTAMPS"]}},
        {"trace_level": {"value": ["OFF"]}},
        {"trace_rate": {"value": ["11"]}},
        {"trace_rate": {"value": ["1", "2"]}},
        {"trace_file": {"value": ["x"]}},
        {"unknown": {"value": ["x"]}},
        {"trace_rate": {}},
    ):
        yield call("TraceSetting", {"settings": settings})


def logging() -> Steps:
    body: Any
    settings: dict[str, Any]
    path = "/v2/logging"
    yield rest("GET", path)
    yield call("LogSettings", {})
    for body in (
        {"log_info": False},
        {"log_info": True},
        {"log_warning": False, "log_error": True},
        {"log_warning": True},
        {"log_warnings": True},
        {"log_info": "yes"},
        {"log_verbose_level": 1},
        {"log_verbose_level": 0},
        {"log_verbose_level": -1},
        {"log_verbose_level": "1"},
        {"log_format": "ISO8601"},
        {"log_format": "default"},
        {"log_format": "other"},
        {"log_format": 5},
        {"log_file": "elsewhere"},
        {"unknown": 1},
        {},
        [],
    ):
        yield rest("POST", path, body)
    yield rest("POST", path, b"{")
    yield rest("POST", path, b"")
    for settings in (
        {"log_info": {"bool_param": False}},
        {"log_info": {"bool_param": True}},
        {"log_info": {"string_param": "yes"}},
        {"log_verbose_level": {"uint32_param": 2}},
        {"log_verbose_level": {"uint32_param": 0}},
        {"log_verbose_level": {"bool_param": True}},
        {"log_format": {"string_param": "ISO8601"}},
        {"log_format": {"string_param": "default"}},
        {"log_file": {"string_param": "elsewhere"}},
        {"unknown": {"bool_param": True}},
    ):
        yield call("LogSettings", {"settings": settings})


def statistics() -> Steps:
    one = infer("later", {"inputs": [tensor("INPUT0", "INT32", [2], [1, 2])]})
    wrong = infer("later", {"inputs": [tensor("INPUT0", "INT32", [3], [1, 2, 3])]})
    yield _load("later")
    for step in (one, one, wrong):
        yield rest("GET", "/v2/models/later/stats")
        yield call("ModelStatistics", {"name": "later"})
        yield step
    yield rest("GET", "/v2/models/later/stats")
    for model in ("later", "nobody"):
        for version in ("1", "2", "7"):
            yield rest("GET", f"/v2/models/{model}/versions/{version}/stats")
            yield call("ModelStatistics", {"name": model, "version": version})
    yield _load("later", {"parameters": {"config": _CONFIG}})
    yield rest("GET", "/v2/models/later/stats")
    batch = infer("later", {"inputs": [tensor("INPUT0", "FP32", [2, 3], [1.0] * 6)]})
    for step in (batch, batch):
        yield step
        yield rest("GET", "/v2/models/later/stats")
        yield call("ModelStatistics", {"name": "later"})
    yield rest("POST", "/v2/models/later/stats", b"")
    yield _unload("later")
    yield rest("GET", "/v2/models/later/stats")
    yield call("ModelStatistics", {"name": "later"})

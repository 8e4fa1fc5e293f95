"""tritonclient controls the server: the repository, statistics, traces, logs; and Prometheus reads Triton's metrics."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from ringserve.server.testing import ServerProcess, wait_until

MODEL = """
import numpy as np
import triton_python_backend_utils as utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            given = utils.get_input_tensor_by_name(request, "X").as_numpy()
            answers.append(utils.InferenceResponse([utils.Tensor("Y", (given * FACTOR).astype(np.float32))]))
        return answers
"""
CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: 2 }
output { name: "Y" data_type: TYPE_FP32 dims: 2 }
instance_group { count: 1 kind: KIND_CPU }
metric_tags { key: "team" value: "blue" }
"""
BROKEN = "raise RuntimeError('this model is broken')\n"
PLAIN = "def handle(data, context):\n    return [b'ok'] * len(data) if data else None\n"


def put(root: Path, model: str, source: str, config: str = CONFIG, version: str = "1") -> None:
    """A model in Triton's layout."""
    (root / model / version).mkdir(parents=True, exist_ok=True)
    (root / model / "config.pbtxt").write_text(config)
    (root / model / version / "model.py").write_text(source)


def doubling(factor: int) -> str:
    return MODEL.replace("FACTOR", str(factor))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("control") / "repository"
    put(root, "double", doubling(2))
    put(root, "broken", BROKEN)
    put(root, "unused", doubling(1))
    archive(root, "plain", "plain.py:handle", source=PLAIN)
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    config = {
        "model_control_mode": "explicit",
        "default_workers_per_model": 1,
        "frontends": 2,
        "allow_load_files": "true",
        "trace_file": str(folder.parent / "traces.json"),
    }
    flags = ("--ncs", "--load-model", "double", "--load-model", "plain")
    with ServerProcess(folder, models=(), config=config, flags=flags) as started:
        wait_until(lambda: len(index(started, ready=True)) == 2, 30, "the models that are named at the start")
        yield started
    assert started.remains() == []


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with triton.InferenceServerClient(server.inference_url.removeprefix("http://")) as connected:
        yield connected


def index(server: ServerProcess, *, ready: bool = False) -> list[dict[str, str]]:
    answer = httpx.post(f"{server.inference_url}/v2/repository/index", json={"ready": ready}, timeout=30)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found: list[dict[str, str]] = answer.json()
    return found


def infer(client: Any, model: str, rows: int = 1, request_id: str = "") -> list[float]:
    given = triton.InferInput("X", [rows, 2], "FP32")
    given.set_data_from_numpy(np.ones((rows, 2), np.float32))
    found: list[float] = client.infer(model, [given], request_id=request_id).as_numpy("Y")[0].tolist()
    return found


def statistics(client: Any, model: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get_inference_statistics(model)["model_stats"][0]
    return found


def test_only_what_was_named_is_loaded_at_the_start(server: ServerProcess, client: Any) -> None:
    states = {line["name"]: line.get("state") for line in client.get_model_repository_index()}
    assert {name: states[name] for name in ("double", "plain", "unused")} == {
        "double": "READY",
        "plain": "READY",
        "unused": None,
    }
    assert [each["name"] for each in index(server, ready=True)] == ["double", "plain"]


def test_statistics_count_items_executions_and_requests_of_all_front_ends(client: Any) -> None:
    before = statistics(client, "double")
    for rows in (1, 3, 3):
        infer(client, "double", rows)
    after = statistics(client, "double")
    assert after["inference_count"] - before["inference_count"] == 7
    assert after["execution_count"] - before["execution_count"] == 3
    stats = after["inference_stats"]
    assert stats["success"]["count"] - before["inference_stats"]["success"]["count"] == 3
    stages = [stats[name] for name in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert {each["count"] for each in stages} == {stats["success"]["count"]}
    assert 0 < sum(each["ns"] for each in stages) <= stats["success"]["ns"]
    assert {1, 3} <= {each["batch_size"] for each in after["batch_stats"]}
    assert after["last_inference"] > 1_600_000_000_000
    assert after["memory_usage"][0]["byte_size"] > 1 << 20
    with pytest.raises(InferenceServerException, match="requested model 'nobody' is not available"):
        client.get_inference_statistics("nobody")
    with pytest.raises(InferenceServerException, match="requested model version is not available for model 'double'"):
        client.get_inference_statistics("double", "7")
    everything = {each["name"] for each in client.get_inference_statistics()["model_stats"]}
    assert {"double", "plain"} <= everything


def test_statistics_go_on_when_a_worker_dies(server: ServerProcess, client: Any) -> None:
    before = statistics(client, "double")["inference_count"]
    (described,) = httpx.get(f"{server.management_url}/models/double").json()
    (worker,) = described["workers"]
    os.kill(worker["pid"], signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(worker["pid"]), 30, "the end of the worker")
    infer(client, "double")
    assert statistics(client, "double")["inference_count"] == before + 1


def test_tritons_metrics_say_the_same(server: ServerProcess, client: Any) -> None:
    infer(client, "double", 2)
    stats = statistics(client, "double")
    lines = httpx.get(f"{server.metrics_url}/metrics").text.splitlines()
    labels = '{_team="blue",model="double",version="1"}'
    assert f"nv_inference_count{labels} {stats['inference_count']}" in lines
    assert f"nv_inference_exec_count{labels} {stats['execution_count']}" in lines
    assert f"nv_inference_request_success{labels} {stats['inference_stats']['success']['count']}" in lines
    failures = [line for line in lines if line.startswith("nv_inference_request_failure{") and '"double"' in line]
    assert len(failures) == 4


def test_a_model_is_loaded_and_unloaded_by_name(server: ServerProcess, client: Any, folder: Path) -> None:
    put(folder, "later", doubling(3))
    client.load_model("later")
    assert infer(client, "later") == [3.0, 3.0]
    client.load_model("later")  # nothing has changed
    assert statistics(client, "later")["inference_count"] == 1
    put(folder, "later", doubling(4))
    client.load_model("later")
    assert infer(client, "later") == [4.0, 4.0]
    assert statistics(client, "later")["inference_count"] == 1  # counters live with what was loaded
    client.unload_model("later")
    assert not client.is_model_ready("later")
    (line,) = [each for each in index(server) if each["name"] == "later"]
    assert line["state"] in ("UNLOADING", "UNAVAILABLE")
    wait_until(
        lambda: {"name": "later", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"} in index(server),
        30,
        "the end of the model",
    )
    client.unload_model("later")
    client.unload_model("nobody")


def test_a_load_that_fails_leaves_what_served_before(server: ServerProcess, client: Any, folder: Path) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("broken")
    assert "load failed for model 'broken': version 1 is at UNAVAILABLE state: " in caught.value.message()
    assert "this model is broken" in caught.value.message()
    (line,) = [each for each in index(server) if each["name"] == "broken"]
    assert (line["version"], line["state"]) == ("1", "UNAVAILABLE")
    assert "this model is broken" in line["reason"]
    put(folder, "fragile", doubling(5))
    client.load_model("fragile")
    put(folder, "fragile", BROKEN)
    with pytest.raises(InferenceServerException, match="load failed for model 'fragile'"):
        client.load_model("fragile")
    assert infer(client, "fragile") == [5.0, 5.0]
    assert not client.is_server_ready()  # a model was asked for that could not be loaded
    assert httpx.get(f"{server.inference_url}/v2/health/ready").json()["not_loaded"] == ["broken"]
    client.unload_model("broken")
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match="failed to load 'nobody', failed to poll from model repository"):
        client.load_model("nobody")


def test_a_configuration_comes_with_a_load_and_goes_with_the_next(client: Any) -> None:
    override = {
        "backend": "python",
        "max_batch_size": "2",
        "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [2]}],
        "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [2]}],
    }
    client.load_model("unused", config=json.dumps(override))
    assert client.get_model_config("unused")["max_batch_size"] == 2
    for text in ("{", '{"unknown": 1}', '{"name": "another"}'):
        with pytest.raises(InferenceServerException, match="failed to load 'unused', failed to poll"):
            client.load_model("unused", config=text)
    assert infer(client, "unused", 2) == [1.0, 1.0]
    client.load_model("unused")
    assert client.get_model_config("unused")["max_batch_size"] == 8


def test_files_that_come_with_a_load_are_the_whole_model(client: Any) -> None:
    override = {
        "backend": "python",
        "max_batch_size": 8,
        "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [2]}],
        "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [2]}],
    }
    files = {"file:1/model.py": doubling(7).encode()}
    client.load_model("brought", config=json.dumps(override), files=files)
    assert infer(client, "brought") == [7.0, 7.0]
    with pytest.raises(
        InferenceServerException, match="failed to load 'brought', failed to poll from model repository"
    ):
        client.load_model("brought", files=files)
    for name in ("file:../model.py", "file:/model.py", f"file:{'A' * 256}"):
        with pytest.raises(
            InferenceServerException, match=r"failed to load 'brought', failed to poll.*Invalid file path"
        ):
            client.load_model("brought", config=json.dumps(override), files={name: b""})
    assert infer(client, "brought") == [7.0, 7.0]
    client.unload_model("brought")


def test_requests_are_traced_as_the_settings_say(server: ServerProcess, client: Any, folder: Path) -> None:
    shared = client.get_trace_settings()
    assert shared["trace_level"] == ["OFF"]
    wanted = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "4"}
    assert client.update_trace_settings("double", settings=wanted) == {**shared, **wanted}
    for number in range(6):
        infer(client, "double", 2, request_id=f"traced-{number}")
    written = folder.parent / "traces.json"
    wait_until(
        lambda: written.exists() and written.read_text().count("model_name") == 4, 30, "the traces that were asked for"
    )
    assert client.get_trace_settings("double")["trace_count"] == "0"
    traces = json.loads(written.read_text())
    heads = [each for each in traces if "model_name" in each]
    assert len(heads) == 4
    assert {each["model_name"] for each in heads} == {"double"}
    assert all(each["request_id"].startswith("traced-") for each in heads)
    for trace in traces:
        stamps = [each["ns"] for each in trace.get("timestamps", ())]
        assert stamps == sorted(stamps)
        assert len(stamps) in (0, 7)
    cleared = {"trace_level": None, "trace_rate": None, "trace_count": None}
    assert client.update_trace_settings("double", settings=cleared) == shared
    with pytest.raises(InferenceServerException, match="Request for unknown model : nobody"):
        client.get_trace_settings("nobody")


def test_lines_of_the_log_are_left_out_as_the_settings_say(server: ServerProcess, client: Any) -> None:
    before = client.get_log_settings()
    assert before["log_info"] is True
    assert client.update_log_settings({"log_info": False}) == {**before, "log_info": False}
    at = server.log_file.stat().st_size
    client.unload_model("plain")
    client.load_model("plain")
    assert " INFO ringserve" not in server.log_file.read_text()[at:]
    assert client.update_log_settings({"log_info": True}) == before
    with pytest.raises(InferenceServerException, match="log file location can not be updated"):
        client.update_log_settings({"log_file": "elsewhere"})


def test_what_is_no_request_is_refused_as_the_protocol_does(server: ServerProcess) -> None:
    for method, path, status in (
        ("GET", "/v2/repository/index", 405),
        ("DELETE", "/v2/logging", 405),
        ("POST", "/v2/models/stats", 405),
        ("GET", "/v2/models/double/versions/1/trace/setting", 404),
        ("POST", "/v2/repository/elsewhere/models/double/load", 501),
        ("POST", "/v2/repository/models/%20/load", 400),
    ):
        answer = httpx.request(method, server.inference_url + path)
        assert (answer.status_code, next(iter(answer.json()))) == (status, "error"), path
    for path in ("/v2/repository/index", "/v2/logging", "/v2/trace/setting", "/v2/repository/models/double/load"):
        answer = httpx.post(server.inference_url + path, content=b"{")
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("failed to parse the request JSON buffer: ")


def test_with_tokens_what_changes_the_server_needs_the_key_of_management(folder: Path, tmp_path: Path) -> None:
    """And where a folder is watched, nobody loads by name."""
    config = {"disable_token_authorization": "false", "model_control_mode": "watch", "default_workers_per_model": 1}
    empty = tmp_path / "empty"
    empty.mkdir()
    with ServerProcess(empty, models=(), config=config) as server:
        keys = json.loads((server.folder / "key_file.json").read_text())
        inference, management = (
            {"authorization": f"Bearer {keys[plane]['key']}"} for plane in ("inference", "management")
        )
        url = server.inference_url
        for path in ("/v2/repository/models/double/load", "/v2/trace/setting", "/v2/logging"):
            assert httpx.post(url + path).status_code == 400
            assert httpx.post(url + path, headers=inference).status_code == 400
        assert httpx.post(f"{url}/v2/logging", headers=management, json={}).status_code == 200
        assert httpx.post(f"{url}/v2/repository/index", headers=inference).json() == []
        assert httpx.get(f"{url}/v2/models/stats", headers=inference).json() == {"model_stats": []}
        refused = httpx.post(f"{url}/v2/repository/models/double/load", headers=management)
        assert refused.status_code == 503
        assert refused.json()["error"] == "explicit model load / unload is not allowed if polling is enabled"
        # Whoever has the management address may ask there as well, with its key.
        assert httpx.post(f"{server.management_url}/v2/repository/index", headers=inference).status_code == 400
        assert httpx.post(f"{server.management_url}/v2/repository/index", headers=management).json() == []
    assert server.remains() == []

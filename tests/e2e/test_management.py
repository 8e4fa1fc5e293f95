"""The management API: register, scale, describe, list and unregister, as TorchServe's scripts call them."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until

DESCRIBED = """modelName modelVersion modelUrl runtime minWorkers maxWorkers batchSize maxBatchDelay responseTimeout
    startupTimeout maxRetryTimeoutInSec clientTimeoutInMills parallelType parallelLevel deviceType continuousBatching
    useJobTicket useVenv stateful sequenceMaxIdleMSec sequenceTimeoutMSec maxNumSequence maxSequenceJobQueueSize
    loadedAtStartup workers jobQueueStatus"""
WORKER = "id startTime status memoryUsage pid gpu gpuUsage"
NO_SUCH_ROUTE = "Requested resource is not found, please refer to API document."
NO_SUCH_METHOD = "Requested method is not allowed, please refer to API document."


@pytest.fixture
def new(management: httpx.Client) -> Iterator[str]:
    """A free model name; what is registered under it goes afterwards."""
    yield "new"
    while management.get("/models/new").status_code == 200:
        versions = [each["modelVersion"] for each in management.get("/models/new/all").json()]
        for version in reversed(versions):
            management.delete(f"/models/new/{version}")


def register(management: httpx.Client, url: str = "plain.mar", **more: Any) -> httpx.Response:
    return management.post("/models", params={"url": url, "model_name": "new", **more})


def status_of(response: httpx.Response, code: int = 200) -> str:
    assert response.status_code == code, response.text
    body = response.json()
    assert list(body) == ["status"]
    assert response.text == json.dumps(body, indent=2) + "\n"
    return str(body["status"])


def refused(response: httpx.Response, code: int, kind: str) -> str:
    assert response.status_code == code, response.text
    error = response.json()
    assert list(error) == ["code", "type", "message"]
    assert (error["code"], error["type"]) == (code, kind)
    assert response.text == json.dumps(error, indent=2) + "\n"
    return str(error["message"])


def described(management: httpx.Client, path: str = "new") -> dict[str, Any]:
    response = management.get(f"/models/{path}")
    assert response.status_code == 200, response.text
    (one,) = response.json()
    return dict(one)


def ready(management: httpx.Client, count: int) -> bool:
    workers = described(management)["workers"]
    return [worker["status"] for worker in workers] == ["READY"] * count


# ---- register


def test_registering_with_workers_answers_when_they_have_loaded(
    client: httpx.Client, management: httpx.Client, new: str
) -> None:
    said = status_of(register(management, initial_workers=2))
    assert said == 'Model "new" Version: 1.0 registered with 2 initial workers'
    assert ready(management, 2)
    assert client.get(f"/predictions/{new}").text == "new 1.0"


def test_registering_without_workers_says_how_to_add_some(management: httpx.Client, new: str) -> None:
    said = status_of(register(management, initial_workers=0))
    assert said == (
        f'Model "{new}" Version: 1.0 registered with 0 initial workers. '
        "Use scale workers API to add workers for the model."
    )
    assert described(management)["workers"] == []


def test_registering_asynchronously_answers_202_and_is_ready_later(
    client: httpx.Client, management: httpx.Client, new: str
) -> None:
    said = status_of(register(management, initial_workers=1, synchronous="false"), 202)
    assert said == "Processing worker updates..."
    wait_until(lambda: ready(management, 1), 20, "the worker is ready")
    assert client.get(f"/predictions/{new}").text == "new 1.0"


def test_a_request_sent_while_the_first_worker_loads_waits_for_it(
    client: httpx.Client, management: httpx.Client, new: str
) -> None:
    status_of(register(management, initial_workers=1, synchronous="false"), 202)
    assert client.get(f"/predictions/{new}").text == "new 1.0"


def test_parameters_override_the_archive(management: httpx.Client, new: str) -> None:
    overrides: dict[str, Any] = {
        "handler": "plain.py:handle",
        "runtime": "python3",
        "batch_size": 7,
        "max_batch_delay": 33,
        "response_timeout": 44,
        "startup_timeout": 55,
        "initial_workers": 0,
    }
    status_of(register(management, **overrides))
    one = described(management)
    fields = ("batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout", "loadedAtStartup")
    assert [one[field] for field in fields] == [7, 33, 44, 55, False]


def test_parameters_may_come_as_a_json_body(management: httpx.Client, new: str) -> None:
    body = {"url": "plain.mar", "model_name": new, "batch_size": "3", "initial_workers": 1, "synchronous": "true"}
    assert "1 initial workers" in status_of(management.post("/models?model_name=ignored", json=body))
    assert described(management)["batchSize"] == 3


def test_a_number_that_is_none_counts_as_not_given(management: httpx.Client, new: str) -> None:
    status_of(register(management, batch_size="many", initial_workers=0))
    assert described(management)["batchSize"] == 1


def test_any_folder_in_front_of_the_archive_is_ignored(management: httpx.Client, new: str) -> None:
    status_of(register(management, "/somewhere/else/plain.mar", initial_workers=0))
    assert described(management)["modelUrl"] == "/somewhere/else/plain.mar"


def test_the_same_version_twice_is_a_conflict_and_the_first_stays(
    client: httpx.Client, management: httpx.Client
) -> None:
    response = management.post("/models", params={"url": "plain.mar", "initial_workers": 1})
    expected = "Model version 1.0 is already registered for model plain"
    assert refused(response, 409, "ConflictStatusException") == expected
    assert client.get("/predictions/plain").text == "plain 1.0"


@pytest.mark.parametrize(
    ("params", "code", "kind", "message"),
    [
        ({}, 400, "BadRequestException", "Parameter url is required."),
        ({"url": ""}, 404, "ModelNotFoundException", "empty url"),
        ({"url": "none.mar"}, 404, "ModelNotFoundException", "Model not found at: none.mar"),
        (
            {"url": "../plain.mar"},
            404,
            "ModelNotFoundException",
            "Relative path is not allowed in url: ../plain.mar",
        ),
        (
            {"url": "http://127.0.0.1:9/x.mar"},
            404,
            "ModelNotFoundException",
            "Given URL http://127.0.0.1:9/x.mar does not match any allowed URL(s)",
        ),
        (
            {"url": "s3://bucket/x.mar"},
            404,
            "ModelNotFoundException",
            "Given URL s3://bucket/x.mar does not match any allowed URL(s)",
        ),
        (
            {"url": "file:///etc/passwd"},
            404,
            "ModelNotFoundException",
            "Given URL file:///etc/passwd does not match any allowed URL(s)",
        ),
        (
            {"url": "plain.mar", "runtime": "PYTHON"},
            400,
            "BadRequestException",
            "Invalid RuntimeType value: PYTHON",
        ),
    ],
)
def test_a_registration_that_cannot_be_is_refused_with_torchserves_text(
    management: httpx.Client, params: dict[str, str], code: int, kind: str, message: str
) -> None:
    assert refused(management.post("/models", params=params), code, kind) == message


@pytest.mark.parametrize("body", ["{broken", "[1]", '"text"'])
def test_a_body_that_is_no_json_object_is_a_bad_request(management: httpx.Client, body: str) -> None:
    response = management.post("/models", content=body, headers={"content-type": "application/json"})
    assert "expected a JSON object" in refused(response, 400, "BadRequestException")


@pytest.mark.parametrize(
    ("body", "code", "kind", "message"),
    [
        (b"{'url': ['plain.mar']}", 400, "BadRequestException", "url: expected text, got a list."),
        (b"{'url': 'plain.mar', 'model_name': \"\\ud800\"}", 400, "BadRequestException", "expected a JSON object"),
        (b'{"url": "x%b.mar"}' % (b"x" * 300_000), 413, "RequestEntityTooLargeException", "at most 262144 bytes"),
    ],
)
def test_parameters_that_nobody_can_use_are_refused(
    management: httpx.Client, body: bytes, code: int, kind: str, message: str
) -> None:
    """And the list of models can still be told afterwards."""
    response = management.post("/models", content=body, headers={"content-type": "Application/JSON"})
    assert message in refused(response, code, kind)
    assert management.get("/models").status_code == 200


@pytest.mark.parametrize("params", [{"batch_size": 10**6}, {"initial_workers": 10**6}])
def test_numbers_beyond_reason_are_refused(management: httpx.Client, params: dict[str, Any]) -> None:
    refused(register(management, **params), 400, "BadRequestException")
    assert management.get("/models/new").status_code == 404


def test_a_model_name_that_would_not_be_reachable_is_refused(management: httpx.Client) -> None:
    for name in ("a/b", "line\nbreak", "x" * 1000):
        response = management.post("/models", params={"url": "plain.mar", "model_name": name})
        assert refused(response, 400, "InvalidModelException").startswith("model_name: expected")


@pytest.mark.parametrize("handler", ["/etc/x.py:handle", "../../other/x.py", "a/../../x"])
def test_a_handler_outside_the_model_is_refused(management: httpx.Client, new: str, handler: str) -> None:
    message = refused(register(management, handler=handler, initial_workers=0), 400, "InvalidModelException")
    assert message.startswith("handler: expected a path inside the model's folder")


# ---- list


def test_the_list_is_sorted_and_pages_by_token(management: httpx.Client) -> None:
    everything = management.get("/models").json()["models"]
    names = [each["modelName"] for each in everything]
    assert names == sorted(names)
    assert {"modelName": "plain", "modelUrl": "plain.mar"} in everything
    assert names.count("probe") == 1
    pages, token = [], "0"
    while token != "":
        page = management.get("/models", params={"limit": 3, "next_page_token": token}).json()
        pages += page["models"]
        token = page.get("nextPageToken", "")
    assert pages == everything


def test_a_page_names_the_next_one_first_and_in_text(management: httpx.Client) -> None:
    page = management.get("/models", params={"limit": 1}).json()
    assert list(page) == ["nextPageToken", "models"]
    assert page["nextPageToken"] == "1"
    assert management.get("/models", params={"limit": 0}).json() == {"nextPageToken": "0", "models": []}
    assert management.get("/models", params={"next_page_token": 10**6}).json() == {"models": []}
    everything = management.get("/models").json()
    assert management.get("/models", params={"limit": -1, "next_page_token": -5}).json() == everything


# ---- describe


def test_describe_has_torchserves_fields_in_torchserves_order(management: httpx.Client, server: ServerProcess) -> None:
    one = described(management, "plain")
    assert list(one) == DESCRIBED.split()
    assert (one["modelName"], one["modelVersion"], one["modelUrl"], one["runtime"]) == (
        "plain",
        "1.0",
        "plain.mar",
        "python",
    )
    assert (one["minWorkers"], one["maxWorkers"], one["batchSize"], one["maxBatchDelay"]) == (1, 1, 1, 100)
    assert one["loadedAtStartup"] is True
    assert one["jobQueueStatus"] == {"remainingCapacity": 1000, "pendingRequests": 0}
    (worker,) = one["workers"]
    assert list(worker) == WORKER.split()
    assert worker["status"] == "READY"
    assert worker["id"].isdigit() and int(worker["id"]) >= 9000
    assert worker["pid"] in server.workers()
    assert worker["memoryUsage"] > 1_000_000
    assert (worker["gpu"], worker["gpuUsage"]) == (False, "N/A")


def test_describe_knows_one_version_and_all(management: httpx.Client) -> None:
    assert described(management, "probe/1.0")["modelUrl"] == "probe.mar"
    assert described(management, "probe/2.0")["modelUrl"] == "probe-2.mar"
    versions = {each["modelVersion"] for each in management.get("/models/probe/all").json()}
    assert versions == {"1.0", "2.0"}


def test_describe_counts_the_requests_that_wait(client: httpx.Client, management: httpx.Client, tmp_path: Path) -> None:
    def waiting() -> int:
        return int(described(management, "gate")["jobQueueStatus"]["pendingRequests"])

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(client.post, "/predictions/gate", content=str(tmp_path)) for _ in range(6)]
        wait_until(lambda: waiting() == 4, 10, "four wait: one runs and one is handed over already")
        (tmp_path / "open").touch()
        assert [each.result().text for each in asked] == ["passed"] * 6
    assert waiting() == 0


# ---- scale


def test_scaling_changes_how_many_workers_run(client: httpx.Client, management: httpx.Client, new: str) -> None:
    status_of(register(management, initial_workers=1))
    first = described(management)["workers"][0]["id"]
    said = status_of(management.put("/models/new", params={"min_worker": 3, "synchronous": "true"}))
    assert said == "Workers scaled to 3 for model: new"
    assert ready(management, 3)
    said = status_of(management.put("/models/new/1.0", params={"min_worker": 1, "synchronous": "true"}))
    assert said == "Workers scaled to 1 for model: new, version: 1.0"
    assert [worker["id"] for worker in described(management)["workers"]] == [first]
    assert client.get(f"/predictions/{new}").text == "new 1.0"


def test_scaling_asynchronously_answers_202_and_happens_later(management: httpx.Client, new: str) -> None:
    status_of(register(management, initial_workers=1))
    said = status_of(management.put("/models/new", params={"min_worker": 2}), 202)
    assert said == "Processing worker updates..."
    wait_until(lambda: ready(management, 2), 20, "two workers")
    status_of(management.put("/models/new", params={"min_worker": 1, "max_worker": 1}), 202)
    wait_until(lambda: ready(management, 1), 20, "one worker")


def test_scaling_to_nothing_refuses_requests_until_scaled_up_again(
    client: httpx.Client, management: httpx.Client, new: str, server: ServerProcess
) -> None:
    status_of(register(management, initial_workers=1))
    pid = described(management)["workers"][0]["pid"]
    status_of(management.put("/models/new", params={"min_worker": 0, "synchronous": "true"}))
    assert pid not in server.processes()
    assert refused(client.get(f"/predictions/{new}"), 503, "ServiceUnavailableException").startswith(
        'Model "new" has no worker to serve inference request.'
    )
    status_of(management.put("/models/new", params={"min_worker": 1, "synchronous": "true"}))
    assert client.get(f"/predictions/{new}").text == "new 1.0"


def test_between_minimum_and_maximum_nothing_changes(management: httpx.Client, new: str) -> None:
    status_of(register(management, initial_workers=2))
    before = described(management)["workers"]
    status_of(management.put("/models/new", params={"min_worker": 1, "max_worker": 3, "synchronous": "true"}))
    one = described(management)
    assert [each["pid"] for each in one["workers"]] == [each["pid"] for each in before]
    assert (one["minWorkers"], one["maxWorkers"]) == (1, 3)


def test_scaling_down_lets_a_running_request_finish(
    client: httpx.Client, management: httpx.Client, new: str, tmp_path: Path
) -> None:
    status_of(register(management, "gate.mar", initial_workers=1))
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(client.post, f"/predictions/{new}", content=str(tmp_path))
        wait_until(lambda: (tmp_path / "started").exists(), 10, "the request runs")
        scaled = pool.submit(management.put, "/models/new", params={"min_worker": 0, "synchronous": "true"})
        wait_until(lambda: described(management)["minWorkers"] == 0, 10, "scaling has begun")
        (tmp_path / "open").touch()
        assert asked.result().text == "passed"
        status_of(scaled.result())


@pytest.mark.parametrize(
    ("path", "params", "code", "kind", "message"),
    [
        (
            "plain",
            {"min_worker": 2, "max_worker": 1},
            400,
            "BadRequestException",
            "max_worker cannot be less than min_worker.",
        ),
        ("nobody", {"min_worker": 1}, 404, "ModelNotFoundException", "Model not found: nobody"),
        (
            "plain/9.9",
            {"min_worker": 1},
            404,
            "ModelVersionNotFoundException",
            "Model version: 9.9 does not exist for model: plain",
        ),
        (
            "plain",
            {"min_worker": 1, "model_version": "9.9"},
            404,
            "ModelVersionNotFoundException",
            "Model version: 9.9 does not exist for model: plain",
        ),
        ("plain", {"min_worker": -1}, 400, "BadRequestException", "min_worker: expected 0 or more, got -1"),
    ],
)
def test_scaling_that_cannot_be_is_refused(
    management: httpx.Client, path: str, params: dict[str, str | int], code: int, kind: str, message: str
) -> None:
    assert refused(management.put(f"/models/{path}", params=params), code, kind) == message


# ---- unregister


def test_unregistering_the_last_version_removes_model_processes_and_files(
    client: httpx.Client, management: httpx.Client, server: ServerProcess, new: str, store: Path
) -> None:
    unpacked = set(server.tmp_dir.glob("ringserve-*/models/*"))
    status_of(register(management, initial_workers=1))
    pid = described(management)["workers"][0]["pid"]
    assert status_of(management.delete("/models/new")) == 'Model "new" unregistered'
    assert pid not in server.processes()
    assert set(server.tmp_dir.glob("ringserve-*/models/*")) == unpacked
    assert (store / "plain.mar").exists()
    assert refused(client.get(f"/predictions/{new}"), 404, "ModelNotFoundException") == "Model not found: new"
    assert refused(management.delete("/models/new"), 404, "ModelNotFoundException") == "Model not found: new"


def test_the_default_version_goes_last(client: httpx.Client, management: httpx.Client, new: str) -> None:
    status_of(register(management, "probe.mar", initial_workers=0))
    status_of(register(management, "probe-2.mar", initial_workers=1))
    expected = "Cannot remove default version for model new"
    for path in ("/models/new", "/models/new/1.0"):
        assert refused(management.delete(path), 403, "InvalidModelVersionException") == expected
    missing = refused(management.delete("/models/new/9.9"), 404, "ModelVersionNotFoundException")
    assert missing == "Model version: 9.9 does not exist for model: new"
    status_of(management.delete("/models/new/2.0"))
    assert client.get(f"/predictions/{new}/2.0").status_code == 404
    status_of(management.delete("/models/new/1.0"))
    assert management.get("/models/new").status_code == 404


def test_requests_that_run_and_wait_while_a_model_is_unregistered_are_answered(
    client: httpx.Client, management: httpx.Client, new: str, tmp_path: Path
) -> None:
    status_of(register(management, "gate.mar", initial_workers=1))
    with ThreadPoolExecutor(7) as pool:
        asked = [pool.submit(client.post, f"/predictions/{new}", content=str(tmp_path)) for _ in range(6)]
        wait_until(lambda: described(management)["jobQueueStatus"]["pendingRequests"] == 4, 10, "four wait")
        removed = pool.submit(management.delete, "/models/new")
        wait_until(lambda: management.get("/models/new").status_code == 404, 10, "the model has left the list")
        assert client.get(f"/predictions/{new}").status_code == 404
        (tmp_path / "open").touch()
        assert [each.result().text for each in asked] == ["passed"] * 6
        assert status_of(removed.result()) == 'Model "new" unregistered'


def test_a_model_can_come_and_go_under_load_without_a_wrong_answer(
    client: httpx.Client, management: httpx.Client, new: str
) -> None:
    status_of(register(management, initial_workers=1))
    stop = False

    def ask() -> set[int]:
        seen = set()
        while not stop:
            response = client.get(f"/predictions/{new}")
            seen.add(response.status_code)
            assert response.status_code != 200 or response.text == "new 1.0"
        return seen

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        for _ in range(3):
            status_of(management.delete("/models/new"))
            status_of(register(management, initial_workers=1))
        stop = True
        assert set.union(*(each.result() for each in asking)) <= {200, 404, 503}


# ---- methods and routes


def test_unknown_routes_and_methods_are_answered_with_torchserves_text(management: httpx.Client) -> None:
    for path in ("/nowhere", "/models/plain/1.0/extra/x"):
        assert refused(management.get(path), 404, "ResourceNotFoundException") == NO_SUCH_ROUTE
    for method, path in (("PUT", "/models"), ("POST", "/models/plain"), ("PATCH", "/models/plain"), ("GET", "/")):
        assert refused(management.request(method, path), 405, "MethodNotAllowedException") == NO_SUCH_METHOD


def test_a_name_is_unescaped_once(management: httpx.Client) -> None:
    response = management.get("/models/pl%2561in")
    assert refused(response, 404, "ModelNotFoundException") == "Model not found: pl%61in"


def test_a_trailing_slash_is_accepted_on_every_route(management: httpx.Client) -> None:
    assert management.get("/models/").json() == management.get("/models").json()
    assert management.get("/models/plain/").json()[0]["modelName"] == "plain"
    assert management.get("/models/plain/1.0/").json()[0]["modelName"] == "plain"


def test_registering_and_unregistering_need_enable_model_api(start_server: Any, archive: Any, tmp_path: Path) -> None:
    archive(tmp_path / "store", "plain", "plain.py:handle")
    server = start_server(tmp_path / "store", flags=["--ncs"])
    with httpx.Client(base_url=server.management_url, trust_env=False) as management:
        for method, path in (("POST", "/models?url=plain.mar&model_name=x"), ("DELETE", "/models/plain")):
            assert refused(management.request(method, path), 405, "MethodNotAllowedException") == NO_SUCH_METHOD
        assert [each["modelName"] for each in management.get("/models").json()["models"]] == ["plain"]
        said = status_of(management.put("/models/plain", params={"min_worker": 2, "synchronous": "true"}))
        assert said == "Workers scaled to 2 for model: plain"

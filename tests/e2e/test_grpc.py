"""gRPC on a real server, asked with plain stubs: TorchServe's two services, health, reflection, and what becomes of calls that are given
up, too late, too large or too many."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from ringserve.protocol.grpc import google_rpc_pb2
from ringserve.protocol.grpc import torchserve_inference_pb2 as pb
from ringserve.protocol.grpc import torchserve_management_pb2 as mpb
from ringserve.protocol.grpc.torchserve_inference_pb2_grpc import InferenceAPIsServiceStub
from ringserve.protocol.grpc.torchserve_management_pb2_grpc import ManagementAPIsServiceStub
from ringserve.server.testing import ServerProcess, wait_until

WAIT_S_MAX = 60.0
REQUEST_BYTES_MAX = 100_000
TALK = """
import json
import os
import time
from pathlib import Path

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    for row in data:
        if "hold" in row:
            folder = Path(bytes(row["hold"]).decode())
            (folder / "started").touch()
            while not (folder / "open").exists():
                time.sleep(0.005)
    if "fail" in data[0]:
        raise ValueError("as asked")
    if "die" in data[0]:
        os._exit(3)
    for index, row in enumerate(data):
        if "status" in row:
            context.set_response_status(int(bytes(row["status"])), "", index)
            context.set_response_header(index, "X-More", "said")
    if "parts" in data[0]:
        for part in bytes(data[0]["parts"]).decode().split(","):
            send_intermediate_predict_response([part], context.request_ids, "Intermediate", 200, context)
        return ["end"]
    headers = context.get_all_request_header(0)
    return [json.dumps({k: [type(v).__name__, bytes(v).decode()] for k, v in row.items()} | {"headers": headers}) for row in data]
"""
COUNTING = "minWorkers: 1\nmaxWorkers: 1\nsequenceBatching: true\nmaxNumSequence: 4\nmaxSequenceJobQueueSize: 9\nsequenceMaxIdleMSec: 60000\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path], sums_config: str) -> Path:
    store = tmp_path_factory.mktemp("grpc") / "store"
    archive(store, "talk", "talk.py:handle", source=TALK, config="jobQueueSize: 1\nminWorkers: 1\nmaxWorkers: 1\n")
    archive(store, "counting", "counting.py:handle", config=COUNTING)
    archive(store, "sums", "sums.py", config=sums_config)
    return store


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = {"max_request_size": REQUEST_BYTES_MAX, "default_workers_per_model": 1, "grpc_frontends": 2}
    server = ServerProcess(store, config=config, folder=tmp_path_factory.mktemp("server"), grpc=True)
    with server:
        wait_until(lambda: ask_http(server, "/ping").status_code == 200, WAIT_S_MAX, f"healthy models\n{server.log}")
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []
    for words in (
        "Exception in callback",
        "AssertionError",
        "failed inside the server",
        "was never",
        "cannot be obeyed",
    ):
        assert words not in server.log


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return InferenceAPIsServiceStub(channel)


@pytest.fixture(scope="module")
def management(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc_management_address) as channel:
        yield ManagementAPIsServiceStub(channel)


def ask_http(server: ServerProcess, path: str) -> httpx.Response:
    base = server.management_url if path.startswith("/models") else server.inference_url
    return httpx.get(base + path, timeout=WAIT_S_MAX, trust_env=False)


def waiting(server: ServerProcess, model: str) -> int:
    found: int = ask_http(server, f"/models/{model}").json()[0]["jobQueueStatus"]["pendingRequests"]
    return found


def request_of(model: str, version: str = "", **inputs: object) -> pb.PredictionsRequest:
    sent = {name: value if isinstance(value, bytes) else str(value).encode() for name, value in inputs.items()}
    return pb.PredictionsRequest(model_name=model, model_version=version, input=sent)


def refused(call: Callable[[], object]) -> tuple[str, str]:
    """The code and the details with which a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code().name, error.details()


def call(stub: Any, request: pb.PredictionsRequest, **more: Any) -> Any:
    return stub.Predictions(request, timeout=WAIT_S_MAX, **more)


# ---- InferenceAPIsService


def test_ping_is_the_text_of_the_rest_route(server: ServerProcess, stub: Any) -> None:
    assert stub.Ping(empty_pb2.Empty(), timeout=WAIT_S_MAX).health == ask_http(server, "/ping").text.rstrip()


def test_each_input_reaches_the_handler_as_a_bytearray_of_that_name(stub: Any) -> None:
    said = json.loads(call(stub, request_of("talk", data="one", other="two")).prediction)
    assert said["data"] == ["bytearray", "one"]
    assert said["other"] == ["bytearray", "two"]
    assert "explain" not in said["headers"]


def test_inputs_of_a_typed_model_are_its_arrays(stub: Any) -> None:
    left, right = np.array([1, 2, 3], np.float32), np.array([4, 5, 6], np.float32)
    answer = json.loads(call(stub, request_of("sums", left=left.tobytes(), right=right.tobytes())).prediction)
    assert answer["sum"] == [5, 7, 9]


@pytest.mark.parametrize(
    ("request_", "code", "details"),
    [
        (
            request_of("nobody"),
            "NOT_FOUND",
            "Model not found: nobody\norg.pytorch.serve.archive.model.ModelNotFoundException",
        ),
        (
            request_of("talk", "9.0"),
            "NOT_FOUND",
            "Model version: 9.0 does not exist for model: talk\norg.pytorch.serve.archive.model.ModelVersionNotFoundException",
        ),
        (request_of(""), "INVALID_ARGUMENT", "Parameter model_name is required.\nBadRequestException.()"),
        (
            request_of("talk", fail="1"),
            "UNAVAILABLE",
            "Prediction failed\norg.pytorch.serve.http.InternalServerException",
        ),
    ],
)
def test_a_prediction_that_fails_has_the_status_that_says_why(
    stub: Any, request_: pb.PredictionsRequest, code: str, details: str
) -> None:
    for method in (stub.Predictions, lambda each, timeout: list(stub.StreamPredictions(each, timeout=timeout))):
        assert refused(lambda: method(request_, timeout=WAIT_S_MAX)) == (code, details)  # noqa: B023 - called at once


def test_the_status_and_headers_of_a_handler_travel_beside_its_answer(stub: Any) -> None:
    answer, told = stub.Predictions.with_call(request_of("talk", status="418"), timeout=WAIT_S_MAX)
    assert json.loads(answer.prediction)["status"] == ["bytearray", "418"]
    assert {("x-response-status", "418"), ("x-more", "said")} <= {tuple(each) for each in told.trailing_metadata()}


def test_each_part_of_a_streamed_answer_is_a_message_and_what_is_returned_the_last(stub: Any) -> None:
    parts = [each.prediction for each in stub.StreamPredictions(request_of("talk", parts="a,bb,c"), timeout=WAIT_S_MAX)]
    assert parts == [b"a", b"bb", b"c", b"end"]
    assert call(stub, request_of("talk", parts="a,bb,c")).prediction == b"abbcend"


def test_a_handler_that_does_not_stream_answers_a_stream_with_one_message(stub: Any) -> None:
    [answer] = stub.StreamPredictions(request_of("talk", data="x"), timeout=WAIT_S_MAX)
    assert json.loads(answer.prediction)["data"] == ["bytearray", "x"]


# ---- sequences


def of_sequence(sequence: str | None, **inputs: str) -> pb.PredictionsRequest:
    sent = {name: value.encode() for name, value in {"body": "{}", **inputs}.items()}
    return pb.PredictionsRequest(model_name="counting", input=sent, sequence_id=sequence)


def test_the_requests_of_a_stream_are_answered_in_the_order_of_their_sequence(stub: Any) -> None:
    requests = [
        of_sequence("one"),
        of_sequence("two"),
        of_sequence("one"),
        of_sequence("one", ts_request_sequence_end="true"),
    ]
    answers = list(stub.StreamPredictions2(iter(requests), timeout=WAIT_S_MAX))
    counts = [json.loads(each.prediction)["count"] for each in answers if each.sequence_id == "one"]
    assert counts == [1, 2, 3]
    assert sorted(each.sequence_id for each in answers) == ["one", "one", "one", "two"]


def test_what_goes_wrong_with_a_request_of_a_stream_is_told_in_its_message(stub: Any) -> None:
    requests = [of_sequence(None), pb.PredictionsRequest(model_name="nobody", sequence_id="s"), of_sequence("three")]
    answers = {each.sequence_id: each for each in stub.StreamPredictions2(iter(requests), timeout=WAIT_S_MAX)}
    unnamed, unknown, good = answers[""], answers["s"], answers["three"]
    assert (unnamed.status.code, unnamed.status.message) == (13, "Parameter sequenceId is required.")
    assert (unknown.status.code, unknown.status.message) == (5, "Model not found: nobody")
    reason = google_rpc_pb2.ErrorInfo()
    reason.ParseFromString(unknown.status.details[0].value)
    assert reason.reason == "org.pytorch.serve.archive.model.ModelNotFoundException"
    assert not good.HasField("status")


def test_a_sequence_that_begins_without_a_name_is_told_the_one_it_got(stub: Any) -> None:
    [answer] = stub.StreamPredictions2(iter([of_sequence(None, ts_request_sequence_start="true")]), timeout=WAIT_S_MAX)
    assert answer.sequence_id.startswith("ts-seq-")


# ---- what is given up, too late, too large or too many


def test_a_cancelled_call_frees_its_place_in_the_queue(server: ServerProcess, stub: Any, tmp_path: Path) -> None:
    running = stub.Predictions.future(request_of("talk", hold=tmp_path), timeout=WAIT_S_MAX)
    wait_until((tmp_path / "started").exists, WAIT_S_MAX, "the first request runs")
    sent = stub.Predictions.future(request_of("talk", data="sent"), timeout=WAIT_S_MAX)
    queued = stub.Predictions.future(request_of("talk", data="queued"), timeout=WAIT_S_MAX)
    wait_until(lambda: waiting(server, "talk") == 1, WAIT_S_MAX, "one waits")
    code, details = refused(lambda: call(stub, request_of("talk", data="too many")))
    assert code == "UNAVAILABLE"
    assert "job_queue_size is 1" in details
    queued.cancel()
    wait_until(lambda: waiting(server, "talk") == 0, WAIT_S_MAX, "its place is free")
    assert refused(lambda: stub.Predictions(request_of("talk", data="late"), timeout=0.2))[0] == "DEADLINE_EXCEEDED"
    wait_until(lambda: waiting(server, "talk") == 0, WAIT_S_MAX, "the late one does not wait any more")
    (tmp_path / "open").touch()
    assert running.result().prediction
    assert sent.result().prediction
    assert queued.cancelled()


def test_a_message_above_the_limit_is_refused_before_a_model_sees_it(stub: Any) -> None:
    code, details = refused(lambda: call(stub, request_of("talk", data=bytes(REQUEST_BYTES_MAX + 1))))
    assert code == "RESOURCE_EXHAUSTED"
    assert str(REQUEST_BYTES_MAX) in details


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_taken(stub: Any, algorithm: grpc.Compression) -> None:
    sent = request_of("talk", data="x" * 1000)
    assert json.loads(call(stub, sent, compression=algorithm).prediction)["data"][1] == "x" * 1000


def test_bytes_that_are_no_message_are_refused_and_nothing_else_suffers(channel: grpc.Channel, stub: Any) -> None:
    raw: Any = channel
    broken = raw.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions")
    assert refused(lambda: broken(b"\xff\xff\xff", timeout=WAIT_S_MAX))[0] == "INVALID_ARGUMENT"
    for streamed in ("StreamPredictions", "StreamPredictions2"):
        kind = raw.stream_stream if streamed.endswith("2") else raw.unary_stream
        method = kind(f"/org.pytorch.serve.grpc.inference.InferenceAPIsService/{streamed}")
        sent = iter([b"\xff"]) if streamed.endswith("2") else b"\xff"
        assert refused(lambda: list(method(sent, timeout=WAIT_S_MAX)))[0] == "INVALID_ARGUMENT"  # noqa: B023
    unknown = raw.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Nothing")
    assert refused(lambda: unknown(b"", timeout=WAIT_S_MAX))[0] == "UNIMPLEMENTED"
    assert call(stub, request_of("talk", data="x")).prediction


def test_calls_are_counted_and_logged_as_requests_are(server: ServerProcess, stub: Any) -> None:
    def counted() -> float:
        text = httpx.get(f"{server.metrics_url}/metrics", timeout=WAIT_S_MAX, trust_env=False).text
        lines = [
            line for line in text.splitlines() if line.startswith("ts_inference_requests_total{") and '"talk"' in line
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    before = counted()
    call(stub, request_of("talk", data="x"))
    assert counted() == before + 1
    log = Path(str(server.folder)) / "logs" / "access_log.log"
    path = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
    wait_until(lambda: f'"gRPC {path} HTTP/1.1" 0 ' in log.read_text(), WAIT_S_MAX, "a line in the access log")
    assert f'"gRPC {path} HTTP/1.1" 5 ' in log.read_text()  # the model that is not there


# ---- ManagementAPIsService


def test_models_are_described_and_listed_as_over_rest(server: ServerProcess, management: Any) -> None:
    described = management.DescribeModel(mpb.DescribeModelRequest(model_name="talk"), timeout=WAIT_S_MAX).msg
    assert json.loads(described)[0]["modelName"] == "talk"
    listed = json.loads(management.ListModels(mpb.ListModelsRequest(), timeout=WAIT_S_MAX).msg)
    assert [each["modelName"] for each in listed["models"]] == ["counting", "sums", "talk"]
    page = json.loads(management.ListModels(mpb.ListModelsRequest(limit=1, next_page_token=1), timeout=WAIT_S_MAX).msg)
    assert [each["modelName"] for each in page["models"]] == ["sums"]


def test_a_model_is_registered_scaled_made_default_and_removed(
    server: ServerProcess, management: Any, stub: Any, archive: Callable[..., Path], store: Path
) -> None:
    for version in ("1.0", "2.0"):
        archive(store, "passing", "talk.py:handle", version=version, file=f"passing-{version}", source=TALK)
    wanted = mpb.RegisterModelRequest(url="passing-1.0.mar", initial_workers=1, synchronous=True)
    said = management.RegisterModel(wanted, timeout=WAIT_S_MAX).msg
    assert said == 'Model "passing" Version: 1.0 registered with 1 initial workers'
    assert call(stub, request_of("passing", data="x")).prediction
    assert refused(lambda: management.RegisterModel(wanted, timeout=WAIT_S_MAX))[0] == "ABORTED"
    second = mpb.RegisterModelRequest(url="passing-2.0.mar", synchronous=True)
    management.RegisterModel(second, timeout=WAIT_S_MAX)
    names: dict[str, Any] = {"model_name": "passing", "model_version": "2.0"}
    scaled = mpb.ScaleWorkerRequest(**names, min_worker=1, synchronous=True)
    assert (
        management.ScaleWorker(scaled, timeout=WAIT_S_MAX).msg == "Workers scaled to 1 for model: passing, version: 2.0"
    )
    management.SetDefault(mpb.SetDefaultRequest(**names), timeout=WAIT_S_MAX)
    code, details = refused(lambda: management.UnregisterModel(mpb.UnregisterModelRequest(**names), timeout=WAIT_S_MAX))
    assert (code, details.split("\n")[1]) == (
        "PERMISSION_DENIED",
        "org.pytorch.serve.archive.model.InvalidModelVersionException",
    )
    for version in ("1.0", "2.0"):
        gone = mpb.UnregisterModelRequest(model_name="passing", model_version=version)
        assert management.UnregisterModel(gone, timeout=WAIT_S_MAX).msg == 'Model "passing" unregistered'
    assert refused(lambda: call(stub, request_of("passing")))[0] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("DescribeModel", mpb.DescribeModelRequest(model_name="nobody"), "NOT_FOUND"),
        ("DescribeModel", mpb.DescribeModelRequest(), "INVALID_ARGUMENT"),
        ("RegisterModel", mpb.RegisterModelRequest(), "INVALID_ARGUMENT"),
        ("RegisterModel", mpb.RegisterModelRequest(url="missing.mar"), "NOT_FOUND"),
        ("RegisterModel", mpb.RegisterModelRequest(url="../talk.mar"), "NOT_FOUND"),
        ("ScaleWorker", mpb.ScaleWorkerRequest(model_name="nobody"), "NOT_FOUND"),
        ("ScaleWorker", mpb.ScaleWorkerRequest(model_name="talk", min_worker=3, max_worker=2), "INVALID_ARGUMENT"),
        ("SetDefault", mpb.SetDefaultRequest(model_name="talk", model_version="9"), "NOT_FOUND"),
        ("UnregisterModel", mpb.UnregisterModelRequest(model_name="nobody"), "NOT_FOUND"),
        ("UnregisterModel", mpb.UnregisterModelRequest(), "INVALID_ARGUMENT"),
    ],
)
def test_a_refusal_of_management_has_its_status(management: Any, method: str, request_: Any, code: str) -> None:
    assert refused(lambda: getattr(management, method)(request_, timeout=WAIT_S_MAX))[0] == code


# ---- health and reflection


def health_of(channel: grpc.Channel, service: str) -> str:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S_MAX)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@pytest.mark.parametrize("service", ["", "talk", "talk/1.0", "org.pytorch.serve.grpc.inference.InferenceAPIsService"])
def test_the_server_its_services_and_its_models_are_healthy(channel: grpc.Channel, service: str) -> None:
    assert health_of(channel, service) == "SERVING"


def test_nobody_knows_the_health_of_what_is_not_there(channel: grpc.Channel) -> None:
    assert refused(lambda: health_of(channel, "nobody"))[0] == "NOT_FOUND"
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(service="nobody"), timeout=WAIT_S_MAX
    )
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_reflection_lists_the_services_of_each_listener_and_describes_them(
    server: ServerProcess, channel: grpc.Channel
) -> None:
    found = ProtoReflectionDescriptorDatabase(channel)
    services = set(found.get_services())
    assert {"org.pytorch.serve.grpc.inference.InferenceAPIsService", "grpc.health.v1.Health"} <= services
    for name in sorted(services):
        file = found.FindFileContainingSymbol(name)
        assert name in [f"{file.package}.{each.name}" for each in file.service]
    with grpc.insecure_channel(server.grpc_management_address) as other:
        listed = ProtoReflectionDescriptorDatabase(other).get_services()
        assert "org.pytorch.serve.grpc.management.ManagementAPIsService" in listed


# ---- the end of one process


def test_a_front_end_that_dies_is_started_again_on_its_ports(server: ServerProcess) -> None:
    before = server.grpc_front_ends()
    assert len(before) == 2
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(set(server.grpc_front_ends()) - set(before)) == 2, WAIT_S_MAX, "two new ones")
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = InferenceAPIsServiceStub(channel).Predictions(
            request_of("talk", data="x"), timeout=WAIT_S_MAX, wait_for_ready=True
        )
    assert answer.prediction

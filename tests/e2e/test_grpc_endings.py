"""gRPC with keys and TLS, and how its front ends come and go: a port that is taken, a drain, a new instance."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ringserve.protocol.grpc import torchserve_inference_pb2 as pb
from ringserve.protocol.grpc import torchserve_management_pb2 as mpb
from ringserve.protocol.grpc.torchserve_inference_pb2_grpc import InferenceAPIsServiceStub
from ringserve.protocol.grpc.torchserve_management_pb2_grpc import ManagementAPIsServiceStub
from ringserve.server.testing import ServerProcess, wait_until
from tests.authority import Authority

WAIT_S_MAX = 60.0
REFUSED = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
HEALTHY = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Path:
    store = tmp_path_factory.mktemp("grpc-endings") / "store"
    archive(store, "gate", "gate.py:handle")
    return store


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Guarded:
    """A server that asks for keys and speaks TLS."""

    def __init__(self, server: ServerProcess, authority: Authority) -> None:
        self.server = server
        self.credentials = grpc.ssl_channel_credentials(authority.pem)

    def metadata(self, plane: str) -> tuple[tuple[str, str | bytes], ...]:
        keys = json.loads((self.server.folder / "key_file.json").read_text())
        return (("authorization", f"Bearer {keys[plane]['key']}"),)


@pytest.fixture(scope="module")
def guarded(store: Path, tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Guarded]:
    certificate, key = authority.issue().write(tmp_path_factory.mktemp("own"))
    config = {
        "disable_token_authorization": "false",
        "enable_grpc_ssl": "true",
        "certificate_file": certificate,
        "private_key_file": key,
        "default_workers_per_model": 1,
    }
    folder = tmp_path_factory.mktemp("guarded")
    server = ServerProcess(store, config=config, flags=("--ncs",), folder=folder, grpc=True)
    with server:
        yield Guarded(server, authority)
    assert server.wait(1) == 0, server.log
    assert server.remains() == []


@pytest.fixture(scope="module")
def inference(guarded: Guarded) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(guarded.server.grpc_address, guarded.credentials) as channel:
        yield channel


@pytest.fixture(scope="module")
def management(guarded: Guarded) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(guarded.server.grpc_management_address, guarded.credentials) as channel:
        yield channel


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code().name, error.details()


def test_each_listener_lets_in_who_shows_its_key_and_nobody_else(
    guarded: Guarded, inference: grpc.Channel, management: grpc.Channel
) -> None:
    ping: Any = InferenceAPIsServiceStub(inference).Ping
    models: Any = ManagementAPIsServiceStub(management).ListModels
    asking = ((ping, empty_pb2.Empty(), "inference"), (models, mpb.ListModelsRequest(), "management"))
    for method, request, plane in asking:
        assert method(request, metadata=guarded.metadata(plane), timeout=WAIT_S_MAX)
        others = [name for name in ("inference", "management", "API") if name != plane]
        wrong = [*(guarded.metadata(other) for other in others), (("authorization", "Bearer no"),), ()]
        for metadata in wrong:
            code, details = refused(lambda: method(request, metadata=metadata, timeout=WAIT_S_MAX))  # noqa: B023
            assert (code, details) == ("PERMISSION_DENIED", REFUSED)


def test_streams_ask_for_the_key_too(inference: grpc.Channel) -> None:
    stub = InferenceAPIsServiceStub(inference)
    request = pb.PredictionsRequest(model_name="gate")
    assert refused(lambda: list(stub.StreamPredictions(request, timeout=WAIT_S_MAX)))[0] == "PERMISSION_DENIED"
    assert refused(lambda: list(stub.StreamPredictions2(iter([request]), timeout=WAIT_S_MAX)))[0] == "PERMISSION_DENIED"


def test_models_are_registered_and_removed_where_that_is_enabled_only(
    guarded: Guarded, management: grpc.Channel
) -> None:
    stub: Any = ManagementAPIsServiceStub(management)
    metadata = guarded.metadata("management")
    for method, request in (
        (stub.RegisterModel, mpb.RegisterModelRequest(url="gate.mar")),
        (stub.UnregisterModel, mpb.UnregisterModelRequest(model_name="gate")),
    ):
        code, details = refused(lambda: method(request, metadata=metadata, timeout=WAIT_S_MAX))  # noqa: B023
        assert (code, details.split("\n")[0]) == ("PERMISSION_DENIED", "Model API disabled")


def test_health_is_for_everybody(inference: grpc.Channel) -> None:
    check = health_pb2_grpc.HealthStub(inference).Check
    answer = check(health_pb2.HealthCheckRequest(service="gate"), timeout=WAIT_S_MAX)
    assert answer.status in (HEALTHY, health_pb2.HealthCheckResponse.NOT_SERVING)


def test_who_does_not_speak_tls_is_not_understood(guarded: Guarded) -> None:
    with grpc.insecure_channel(guarded.server.grpc_address) as channel:
        assert refused(lambda: InferenceAPIsServiceStub(channel).Ping(empty_pb2.Empty(), timeout=5))[0] == "UNAVAILABLE"


def test_a_port_that_another_server_has_is_a_sentence_at_the_start(
    guarded: Guarded, store: Path, tmp_path: Path
) -> None:
    taken = guarded.server.config["grpc_inference_port"]
    second = ServerProcess(store, config={"grpc_inference_port": taken}, folder=tmp_path, grpc=True)
    with pytest.raises(RuntimeError, match="the server ended"):
        second.start()
    said = f"grpc_inference_address: grpc://127.0.0.1:{taken} cannot be bound: Address already in use"
    assert said in second.log
    assert second.wait(5) == 1
    assert second.remains() == []


def test_a_new_certificate_is_shown_on_the_next_connections(guarded: Guarded, authority: Authority) -> None:
    other = Authority("another authority")
    other.issue().write(Path(str(guarded.server.config["certificate_file"])).parent)
    trusting = grpc.ssl_channel_credentials(other.pem)

    def trusted() -> bool:
        with grpc.secure_channel(guarded.server.grpc_address, trusting) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            try:
                return bool(check(health_pb2.HealthCheckRequest(service=""), timeout=5))
            except grpc.RpcError:
                return False

    wait_until(trusted, WAIT_S_MAX, "the certificate of the other authority")


def test_told_to_stop_it_answers_what_runs_and_refuses_what_comes(store: Path, tmp_path: Path) -> None:
    """Also: with port 0 the log says which port it is; who watches the health is told; two front ends drain as one does."""
    config = {"grpc_inference_port": 0, "grpc_management_port": 0, "default_workers_per_model": 1, "grpc_frontends": 2}
    server = ServerProcess(store, config=config, folder=tmp_path / "server", grpc=True)
    with server, ThreadPoolExecutor(2) as pool:
        [bound] = [line for line in server.log.splitlines() if "Inference gRPC bind to: " in line]
        address = bound.rpartition("grpc://")[2]
        assert not address.endswith(":0")
        with grpc.insecure_channel(address) as channel:
            stub, health = InferenceAPIsServiceStub(channel), health_pb2_grpc.HealthStub(channel)
            watched = health.Watch(health_pb2.HealthCheckRequest(service="gate"), timeout=WAIT_S_MAX)
            wait_until(lambda: next(watched).status == HEALTHY, WAIT_S_MAX, "the model is ready")
            request = pb.PredictionsRequest(model_name="gate", input={"body": str(tmp_path).encode()})
            running = stub.Predictions.future(request, timeout=WAIT_S_MAX)
            wait_until((tmp_path / "started").exists, WAIT_S_MAX, "the request runs")
            ended = pool.submit(server.stop)
            assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
            wait_until(lambda: refused_now(stub, request), WAIT_S_MAX, "new calls are refused")
            (tmp_path / "open").touch()
            assert running.result().prediction == b"passed"
            assert ended.result() == 0
    assert server.remains() == []


def refused_now(stub: Any, request: pb.PredictionsRequest) -> bool:
    code, _ = refused(lambda: stub.Predictions(request, timeout=0.5))
    return code == "UNAVAILABLE"

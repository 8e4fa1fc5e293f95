"""The Open Inference Protocol over gRPC, as its clients see it: tritonclient, and the same cases over REST and gRPC."""

import asyncio
import queue
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ringserve.protocol.datatypes import DTYPES
from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.asking_both import Both
from tests.e2e.parity_cases import CASES, NUMERIC, Case
from tests.e2e.triton.repository import LABELS, MODELS, REPOSITORY, config

SERVED = (
    "identity",
    "identity_batched",
    "simple",
    "optional",
    "scores",
    "oldest",
    "repeat",
    "failing",
    "echo_parameters",
)
WAIT_S = 30.0
ONES = np.ones((1, 16), np.int32)
# Waits until nobody wants its answer any more, and says so in a file.
PATIENT = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            name = pb_utils.get_input_tensor_by_name(request, "FILE").as_numpy().ravel()[0].decode()
            with open(name, "a") as file:
                file.write("begun\\n")
            end = time.monotonic() + 30
            while not request.is_cancelled() and time.monotonic() < end:
                time.sleep(0.005)
            with open(name, "a") as file:
                file.write("cancelled\\n" if request.is_cancelled() else "in vain\\n")
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([1], np.int32))]))
        return responses
"""


def _write_repository(root: Path) -> None:
    for name in SERVED:
        source, text, _ = REPOSITORY[name]
        (root / name / "1").mkdir(parents=True)
        shutil.copy(MODELS / f"{source}.py", root / name / "1" / "model.py")
        (root / name / "config.pbtxt").write_text(text)
        (root / name / "labels.txt").write_text(LABELS)
    (root / "halves" / "1").mkdir(parents=True)
    shutil.copy(MODELS / "identity.py", root / "halves" / "1" / "model.py")
    text = config("halves", 8, [("INPUT_BF16", "BF16", "-1")], [("OUTPUT_BF16", "BF16", "-1")])
    (root / "halves" / "config.pbtxt").write_text(text)
    (root / "patient" / "1").mkdir(parents=True)
    (root / "patient" / "1" / "model.py").write_text(PATIENT)
    text = config("patient", 0, [("FILE", "BYTES", "1")], [("OUT", "INT32", "1")])
    (root / "patient" / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("triton") / "models"
    _write_repository(root)
    config = {"model_control_mode": "explicit", "disable_token_authorization": "true"}
    server = ServerProcess(root, models=(), flags=("--load-model", "*"), config=config, grpc=True)
    with server:
        with triton.InferenceServerClient(server.grpc_address) as client:
            wait_until(
                lambda: all(client.is_model_ready(name) for name in (*SERVED, "halves", "patient")),
                WAIT_S,
                "all models",
            )
        yield server
        log = server.log
    assert server.remains() == []
    assert [line for line in log.splitlines() if "Traceback" in line and "MODEL_LOG" not in line] == []


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_address) as client:
        yield client


@pytest.fixture(scope="module")
def both(server: ServerProcess) -> Iterator[Both]:
    both = Both(server.inference_url, server.grpc_address)
    yield both
    both.close()


def tensor(name: str, array: np.ndarray) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


# ---- parity


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_rest_and_grpc_say_the_same(case: Case, both: Both) -> None:
    plain = case.status == 200 and case.model != "halves"  # numpy has no numbers of BF16 for JSON
    forms = ("gRPC", "binary", "JSON") if plain else ("gRPC", "binary")
    answers = {form: both.ask(form, case) for form in forms}
    said = answers["gRPC"]
    assert said.status == case.status, said
    assert said.error.startswith(case.says[:-3]) if case.says.endswith("...") else said.error == case.says
    assert bool(said.error) == (case.status != 200)
    for form in forms[1:]:
        assert answers[form] == (said._replace(error=case.rest_says) if case.rest_says else said), form


# ---- tritonclient


def test_health_metadata_and_configuration(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple", "1")
    about = client.get_server_metadata(as_json=True)
    assert about["name"] == "ringserve"
    assert {"classification", "sequence", "statistics"} <= set(about["extensions"])
    model = client.get_model_metadata("simple", as_json=True)
    assert (model["name"], model["versions"], model["platform"]) == ("simple", ["1"], "python")
    assert model["inputs"][0] == {"name": "INPUT0", "datatype": "INT32", "shape": ["-1", "16"]}
    found = client.get_model_config("simple").config
    assert (found.name, found.backend, found.max_batch_size) == ("simple", "python", 8)
    assert [(each.name, list(each.dims)) for each in found.input] == [("INPUT0", [16]), ("INPUT1", [16])]
    assert found.HasField("dynamic_batching")
    assert client.get_model_config("repeat").config.model_transaction_policy.decoupled
    for ask in (client.is_model_ready, client.get_model_metadata, client.get_model_config):
        with pytest.raises(InferenceServerException) as caught:
            ask("none")
        assert (caught.value.status(), caught.value.message()) == (
            "StatusCode.NOT_FOUND",
            "Request for unknown model: 'none' is not found",
        )


def test_what_the_supervisor_knows(client: triton.InferenceServerClient) -> None:
    client.infer("simple", [tensor("INPUT0", ONES), tensor("INPUT1", ONES)])

    def counted() -> Any:
        return client.get_inference_statistics("simple", "1").model_stats[0]

    wait_until(lambda: counted().inference_stats.success.count, WAIT_S, "a counted inference")
    known = counted()
    assert (known.name, known.version) == ("simple", "1")
    assert known.inference_count >= known.execution_count > 0
    index = {each.name: each.state for each in client.get_model_repository_index().models}
    assert index["simple"] == "READY"
    assert "log_info" in client.get_log_settings().settings
    assert list(client.get_trace_settings().settings["trace_level"].value) == ["OFF"]
    assert len(client.get_system_shared_memory_status().regions) == 0
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    for call, status in (
        (lambda: client.get_inference_statistics("none"), "INVALID_ARGUMENT"),
        (lambda: client.load_model("simple", config="{"), "INVALID_ARGUMENT"),
        (lambda: client.load_model("simple", files={"file:1/model.py": b""}), "INVALID_ARGUMENT"),
        (lambda: client.update_log_settings({"log_file": "/tmp/never"}), "UNIMPLEMENTED"),
        (lambda: client.get_system_shared_memory_status("none"), "NOT_FOUND"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()  # type: ignore[no-untyped-call]
        assert caught.value.status() == f"StatusCode.{status}"


def test_a_model_that_is_unloaded_is_not_ready_until_it_is_loaded_again(client: triton.InferenceServerClient) -> None:
    client.unload_model("optional")
    assert not client.is_model_ready("optional")
    inputs = [tensor("INPUT0", np.array([[1, 2]], np.int32))]
    with pytest.raises(InferenceServerException) as caught:
        client.infer("optional", inputs)
    assert caught.value.message().startswith("Request for unknown model")
    client.load_model("optional")
    assert client.is_model_ready("optional")
    wait_until(lambda: _answers(client, "optional", inputs), WAIT_S, "an answer of the loaded model")


def _answers(client: triton.InferenceServerClient, model: str, inputs: list[triton.InferInput]) -> bool:
    """Whether it is answered; a front end that has not heard of a model yet refuses it."""
    try:
        client.infer(model, inputs)
    except InferenceServerException as error:
        assert error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND"), error
        return False
    return True


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_arrays_of_every_datatype_go_there_and_back(
    client: triton.InferenceServerClient, algorithm: str | None
) -> None:
    arrays = [np.arange(2000).astype(DTYPES[datatype]).reshape(2, 1000) for datatype in NUMERIC]
    arrays.append(np.array([[b"a", b"", "é".encode()], [b"\xff", b"b", b"c"]], dtype=np.object_))
    inputs = []
    for array in arrays:
        datatype = np_to_triton_dtype(array.dtype)
        inputs.append(tensor(f"INPUT_{datatype}", array))
    answer = client.infer("identity_batched", inputs, request_id="7", compression_algorithm=algorithm)
    assert answer.get_response().id == "7"
    for array in arrays:
        found = answer.as_numpy(f"OUTPUT_{np_to_triton_dtype(array.dtype)}")
        assert found.dtype == array.dtype
        assert (found == array).all()


class Stream:
    """A client with an open stream; what it hears is in `heard`, as (id, outputs or sentence, final)."""

    def __init__(self, address: str, **options: Any) -> None:
        self.client = triton.InferenceServerClient(address)
        self.heard: queue.Queue[tuple[str, Any, bool]] = queue.Queue()
        self.failed: queue.Queue[InferenceServerException] = queue.Queue()
        self.client.start_stream(self._hear, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def _hear(self, result: Any, error: InferenceServerException | None) -> None:
        if error is not None:
            self.failed.put(error)
            return
        response = result.get_response()
        final = response.parameters["triton_final_response"].bool_param
        self.heard.put((response.id, [result.as_numpy(each.name).tolist() for each in response.outputs], final))

    def answers(self, count: int) -> list[tuple[str, Any, bool]]:
        return [self.heard.get(timeout=WAIT_S) for _ in range(count)]


def test_a_stream_answers_in_order_and_goes_on_after_an_error(server: ServerProcess) -> None:
    with Stream(server.grpc_address) as stream:
        for number in range(3):
            array = np.full((1, 16), number, np.int32)
            inputs = [tensor("INPUT0", array), tensor("INPUT1", array)]
            wanted = [triton.InferRequestedOutput("OUTPUT0")]
            stream.client.async_stream_infer("simple", inputs, request_id=str(number), outputs=wanted)
        assert stream.answers(3) == [(str(number), [[[2 * number] * 16]], True) for number in range(3)]
        stream.client.async_stream_infer("none", [tensor("INPUT0", ONES)], request_id="x")
        assert stream.failed.get(timeout=WAIT_S).message() == "Request for unknown model: 'none' is not found"
        stream.client.async_stream_infer("failing", [tensor("CODE", np.array([[1]], np.int32))])
        assert stream.failed.get(timeout=WAIT_S).message() == "the model does not like this"
        stream.client.async_stream_infer("failing", [tensor("CODE", np.array([[0]], np.int32))], request_id="y")
        assert stream.answers(1) == [("y", [[[0]]], True)]


def test_a_decoupled_model_answers_as_often_as_it_likes(server: ServerProcess) -> None:
    with Stream(server.grpc_address) as stream:
        ask = stream.client.async_stream_infer
        ask("repeat", [tensor("IN", np.array([5, 6], np.int32))], request_id="a", enable_empty_final_response=True)
        assert stream.answers(3) == [("a", [[5], [0]], False), ("a", [[6], [1]], False), ("a", [], True)]
        ask("repeat", [tensor("IN", np.array([], np.int32))], request_id="b")
        ask("repeat", [tensor("IN", np.array([7], np.int32))], request_id="c")
        assert stream.answers(1) == [("c", [[7], [0]], False)]
        ask("repeat", [tensor("IN", np.array([-1], np.int32))], request_id="d")
        assert stream.failed.get(timeout=WAIT_S).message() == "the first element is -1"
        with pytest.raises(InferenceServerException) as caught:
            stream.client.infer("repeat", [tensor("IN", np.array([5], np.int32))])
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_sequences_on_one_stream_keep_their_order(server: ServerProcess) -> None:
    with Stream(server.grpc_address) as stream:
        for step in range(1, 6):
            for sequence in (1_000_001, 1_000_002):
                marks = {"sequence_start": step == 1, "sequence_end": step == 5}
                value = tensor("INPUT", np.array([[step * sequence % 1_000_000]], np.int32))
                name = f"{sequence}-{step}"
                stream.client.async_stream_infer("oldest", [value], request_id=name, sequence_id=sequence, **marks)
        sums = [1, 3, 6, 10, 15]
        expected = [
            (f"{sequence}-{step + 1}", [[[sums[step] * (sequence - 1_000_000)]]], True)
            for step in range(5)
            for sequence in (1_000_001, 1_000_002)
        ]
        assert stream.answers(10) == expected


def test_a_stream_that_wants_the_status_ends_with_it(server: ServerProcess) -> None:
    with Stream(server.grpc_address, headers={"triton_grpc_error": "true"}) as stream:
        stream.client.async_stream_infer("none", [tensor("INPUT0", ONES)])
        failed = stream.failed.get(timeout=WAIT_S)
        assert (failed.status(), failed.message()) == (
            "StatusCode.NOT_FOUND",
            "Request for unknown model: 'none' is not found",
        )


def _noted(file: Path, word: str, times: int = 1) -> None:
    wait_until(lambda: file.exists() and file.read_text().split().count(word) == times, WAIT_S, f"{word} in {file}")


def _asked(file: Path) -> list[triton.InferInput]:
    return [tensor("FILE", np.array([str(file)], dtype=np.object_))]


def test_whoever_cancels_or_waits_no_longer_frees_the_model(
    server: ServerProcess, client: triton.InferenceServerClient, tmp_path: Path
) -> None:
    file = tmp_path / "cancelled"
    call = client.async_infer("patient", _asked(file), lambda result, error: None)
    _noted(file, "begun")
    call.cancel()
    _noted(file, "cancelled")

    file = tmp_path / "late"
    with pytest.raises(InferenceServerException) as caught:
        client.infer("patient", _asked(file), client_timeout=0.5)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    _noted(file, "cancelled")

    file = tmp_path / "streamed"
    with Stream(server.grpc_address) as stream:
        for _ in range(3):
            stream.client.async_stream_infer("patient", _asked(file))
        _noted(file, "begun")
        stream.client.stop_stream(cancel_requests=True)
        _noted(file, "cancelled")
    client.infer("simple", [tensor("INPUT0", ONES), tensor("INPUT1", ONES)])
    assert file.read_text().split() == ["begun", "cancelled"]  # the other two never got so far


def test_the_client_for_asyncio(server: ServerProcess) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(3):
            inputs = [tensor("IN", np.arange(number, dtype=np.int32))]
            yield {"model_name": "repeat", "inputs": inputs, "request_id": str(number)}

    async def talk() -> None:
        async with triton_aio.InferenceServerClient(server.grpc_address) as client:
            assert await client.is_model_ready("simple")
            inputs = [tensor("INPUT0", ONES), tensor("INPUT1", ONES)]
            answers = await asyncio.gather(*(client.infer("simple", inputs) for _ in range(50)))
            assert all((answer.as_numpy("OUTPUT0") == 2).all() for answer in answers)
            heard = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                heard.append((result.get_response().id, result.as_numpy("OUT").tolist()))
            assert sorted(heard) == [("1", [0]), ("2", [0]), ("2", [1])]
            with pytest.raises(InferenceServerException) as caught:
                await client.infer("simple", inputs[:1], request_id="q")
            assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
            assert caught.value.message().startswith("[request id: q] expected 2 inputs but got 1 inputs")

    asyncio.run(talk())

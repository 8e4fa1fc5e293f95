"""Python classes and Triton's Python models in real workers: answers in parts, sequences, threads, clients that leave, workers that die."""

import asyncio
import contextlib
import os
import queue
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.triton_apis import LEFT, RIGHT, Api, check_add_sub

CLASSES = Path(__file__).parents[2] / "examples" / "open_inference" / "classes"
WAIT_S_MAX = 60.0

# Its mode comes with the request; "endless" goes on until nobody reads, and then says so in a file.
MODES = """
import os
import threading
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            (mode,) = pb_utils.get_input_tensor_by_name(request, "MODE").as_numpy().ravel().tolist()
            answer = getattr(self, mode.decode())
            threading.Thread(target=answer, args=(request.get_response_sender(),)).start()

    def response(self, number, **more):
        return pb_utils.InferenceResponse([pb_utils.Tensor("Y", np.array([number], np.int32))], **more)

    def two(self, sender):
        sender.send(self.response(1))
        sender.send(self.response(2, parameters={"last": True}), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def dropped(self, sender):
        sender.send(self.response(1))

    def refused(self, sender):
        sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("no such thing", pb_utils.TritonError.NOT_FOUND)))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def endless(self, sender):
        number = 0
        while not sender.is_cancelled():
            sender.send(self.response(number))
            number += 1
        Path("FOLDER", "left").touch()
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def pid(self, sender):
        sender.send(self.response(os.getpid()))
        threading.Event().wait()
"""
MODES_CONFIG = """
name: "modes"
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [ { name: "MODE" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""


class Site:
    """A server with these models, and the folder that `modes` writes to."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.http = Api(http_client, server.inference_url.removeprefix("http://"))
        self.grpc = Api(grpc_client, server.grpc_address)

    def streamed(self, model: str, name: str, value: np.ndarray) -> list[Any]:
        """All that one request is answered: messages, and errors as their texts."""
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        found: list[Any] = []
        with self.grpc.client() as client:
            client.start_stream(callback=lambda result, error: answers.put((result, error)))
            client.async_stream_infer(model, [self.grpc.input(name, value)], enable_empty_final_response=True)
            while True:
                result, error = answers.get(timeout=WAIT_S_MAX)
                if error is not None:
                    return [*found, error.message()]
                found.append(result)
                if result.get_response().parameters["triton_final_response"].bool_param:
                    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("python-models")
    store = folder / "models"
    store.mkdir()
    for name in ("add_sub", "words", "running_sum"):
        source = (CLASSES / f"{name}.py").read_text()
        archive(store, name, f"{name}.py", source=source, config=(CLASSES / f"{name}.yaml").read_text())
    version = store / "modes" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODES.replace("FOLDER", str(folder)))
    (version.parent / "config.pbtxt").write_text(MODES_CONFIG)
    config = {"model_control_mode": "explicit", "load_model_names": "*"}
    with ServerProcess(store, models=(), config=config, flags=("--ncs",), grpc=True) as running:
        yield Site(running, folder)
    assert running.remains() == []


def numbers_of(answers: list[Any]) -> list[Any]:
    """What the output of `modes` held in each; errors as they are."""
    found = []
    for each in answers:
        array = None if isinstance(each, str) else each.as_numpy("Y")
        found.append(each if isinstance(each, str) else None if array is None else array.item())
    return found


def test_a_class_answers_what_tritons_model_answers(site: Site) -> None:
    """Over both protocols, also several rows at once."""
    for api in (site.http, site.grpc):
        left, right = np.repeat(LEFT, 3, axis=0), np.repeat(RIGHT, 3, axis=0)
        with api.client() as client:
            results = client.infer("add_sub", [api.input("INPUT0", left), api.input("INPUT1", right)])
        check_add_sub(results, left, right)


def test_a_class_yields_its_answers(site: Site) -> None:
    """With parameters of each, and an end after the last."""
    answers = site.streamed("words", "TEXT", np.array(["eins zwei grün".encode()], object))
    *words, last = [(each.as_numpy("WORD"), dict(each.get_response().parameters)) for each in answers]
    assert [word.tolist() for word, _ in words] == [[b"eins"], [b"zwei"], ["grün".encode()]]
    assert [said["place"].int64_param for _, said in words] == [0, 1, 2]
    assert last[0] is None


def test_a_class_without_answers_ends_nevertheless(site: Site) -> None:
    """No word, no answer."""
    (last,) = site.streamed("words", "TEXT", np.array([b""], object))
    assert len(last.get_response().outputs) == 0


def test_a_class_that_raises_says_so_in_the_stream(site: Site) -> None:
    """Bytes that are no text; the next request is answered."""
    assert site.streamed("words", "TEXT", np.array([b"\xff"], object)) == ["Prediction failed"]
    assert len(site.streamed("words", "TEXT", np.array([b"a"], object))) == 2


def test_a_class_keeps_the_state_of_sequences(site: Site) -> None:
    """Two of them, whose requests alternate, by both protocols."""
    sums: dict[str, list[int]] = {"one": [], "two": []}
    with site.http.client() as first, site.grpc.client() as second:
        for at in range(3):
            for client, api, name, step in ((first, site.http, "one", 1), (second, site.grpc, "two", 10)):
                inputs = [api.input("VALUE", np.array([[step]], np.int64))]
                marks = {"sequence_id": name, "sequence_start": at == 0, "sequence_end": at == 2}
                sums[name].append(client.infer("running_sum", inputs, **marks).as_numpy("SUM").item())
    assert sums == {"one": [1, 2, 3], "two": [10, 20, 30]}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("two", [1, 2]), ("dropped", [1, None]), ("refused", ["no such thing"])],
)
def test_a_triton_model_answers_from_its_threads(site: Site, mode: str, expected: list[Any]) -> None:
    """Its last answer says so; one that lets go of its sender has ended; an error is the last."""
    assert numbers_of(site.streamed("modes", "MODE", np.array([mode.encode()], object))) == expected


def test_a_triton_model_learns_that_its_client_has_left(site: Site) -> None:
    """It may stop, and does."""
    api = Api(grpc_aio, site.server.grpc_address)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "modes", "inputs": [api.input("MODE", np.array([b"endless"], object))]}
        await asyncio.Event().wait()

    async def leave_after_three() -> None:
        async with api.client() as client:
            answers = client.stream_infer(requests())
            for number in range(3):
                result, error = await anext(answers)
                assert error is None
                assert result.as_numpy("Y").item() == number
            answers.cancel()

    asyncio.run(leave_after_three())
    wait_until((site.folder / "left").exists, WAIT_S_MAX, "the model saw its client leave")
    assert numbers_of(site.streamed("modes", "MODE", np.array([b"dropped"], object))) == [1, None]


def test_a_worker_that_dies_ends_what_it_has_begun(site: Site) -> None:
    """The client reads why, and the worker that takes its place answers."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    asked = [site.grpc.input("MODE", np.array([b"pid"], object))]
    with site.grpc.client() as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        client.async_stream_infer("modes", asked)
        result, error = answers.get(timeout=WAIT_S_MAX)
        assert error is None
        os.kill(result.as_numpy("Y").item(), signal.SIGKILL)
        result, error = answers.get(timeout=WAIT_S_MAX)
        assert result is None
        assert isinstance(error, InferenceServerException)

    def answered() -> bool:
        with contextlib.suppress(InferenceServerException):
            return numbers_of(site.streamed("modes", "MODE", np.array([b"dropped"], object))) == [1, None]
        return False

    wait_until(answered, WAIT_S_MAX, "a new worker answered")

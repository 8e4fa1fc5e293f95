"""Models of declared tensors over HTTP: plain predictions of any size, answers of any number, batches of several rows."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from ringserve.server.testing import ServerProcess, wait_until

TWICE = """
class Twice:
    def predict(self, inputs):
        return {"y": inputs["x"] * 2}
"""
TWICE_CONFIG = """
backend: python
batchSize: 4
inputs:
  - {name: x, dtype: float32, shape: [-1]}
outputs:
  - {name: y, dtype: float32, shape: [-1]}
"""
REPEAT = """
import os
import numpy as np


class Repeat:
    def predict(self, inputs):
        for number in range(int(inputs["n"][0])):
            yield {"y": np.array([number, os.getpid()], "int32")}
"""
REPEAT_CONFIG = """
backend: python
model_transaction_policy: {decoupled: true}
input:
  - {name: n, data_type: TYPE_INT32, dims: [1]}
output:
  - {name: y, data_type: TYPE_INT32, dims: [2]}
"""
ONE = """
class One:
    def predict(self, inputs, outputs):
        outputs["y"][:] = inputs["x"] + 1
"""
ONE_CONFIG = """
backend: python
batchSize: 4
inputs:
  - {name: x, dtype: float32, shape: [3]}
outputs:
  - {name: y, dtype: float32, shape: [3]}
"""
ENDLESS = 10**9


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("declared") / "store"
    for name, source, config in (
        ("twice", TWICE, TWICE_CONFIG),
        ("repeat", REPEAT, REPEAT_CONFIG),
        ("one", ONE, ONE_CONFIG),
    ):
        archive(store, name, f"{name}.py", source=source, config=config)
    with ServerProcess(store, config={"default_workers_per_model": 1}) as running:
        yield running
    assert running.remains() == []


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.inference_url, timeout=60) as made:
        yield made


@pytest.mark.parametrize("size", [0, 1, 3, 40_000, 1_000_000])
def test_a_plain_body_of_any_size_is_one_input(client: httpx.Client, size: int) -> None:
    sent = np.arange(size, dtype="float32")
    answer = client.post("/predictions/twice", content=sent.tobytes(), headers={"accept": "application/octet-stream"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert (np.frombuffer(answer.content, "float32") == 2 * sent).all()


@pytest.mark.parametrize(
    "said",
    [
        {"json": [1, 2]},
        {"json": {"x": [1, 2]}},
        {"files": {"x": ("x", b"[1, 2]", "application/json")}},
        {"files": {"x": ("x", np.array([1, 2], "float32").tobytes())}},
    ],
    ids=["list", "object", "form of JSON", "form of bytes"],
)
def test_json_and_forms_are_inputs_by_name(client: httpx.Client, said: dict[str, Any]) -> None:
    answer = client.post("/predictions/twice", **said)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == [2, 4]


def test_what_is_no_input_is_refused_by_name(client: httpx.Client) -> None:
    for said, text in (({"z": [1]}, "Inputs: expected x, got z."), ({"x": "a"}, "got a string"), ([[1]], "shape [-1]")):
        answer = client.post("/predictions/twice", json=said)
        assert answer.status_code == 400
        assert text in answer.json()["message"]


@pytest.mark.parametrize("count", [0, 1, 20])
def test_every_answer_of_a_decoupled_model_is_a_line(client: httpx.Client, count: int) -> None:
    answer = client.post("/predictions/repeat", json=[count])
    assert answer.status_code == 200
    assert answer.text.splitlines() == answer.text.split()
    assert [int(line[1:].split(",")[0]) for line in answer.text.split()] == list(range(count))


def test_who_leaves_stops_the_model(client: httpx.Client) -> None:
    with client.stream("POST", "/predictions/repeat", json=[ENDLESS]) as answer:
        assert next(answer.iter_lines()).startswith("[0,")
    assert client.post("/predictions/repeat", json=[2]).text.count("\n") == 2, "its only worker is free again"


def test_a_worker_that_dies_breaks_its_answers_off(server: ServerProcess, client: httpx.Client) -> None:
    with (
        pytest.raises(httpx.RemoteProtocolError),
        client.stream("POST", "/predictions/repeat", json=[ENDLESS]) as answer,
    ):
        lines = answer.iter_lines()
        os.kill(int(next(lines).strip("[]").split(",")[1]), signal.SIGKILL)
        for _ in lines:
            pass
    wait_until(lambda: client.post("/predictions/repeat", json=[1]).status_code == 200, 30.0, "another worker")


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_batch_of_rows_is_answered_row_by_row(server: ServerProcess, rows: int) -> None:
    with triton.InferenceServerClient(server.inference_url.removeprefix("http://")) as asking:
        small = np.arange(rows * 3, dtype="float32").reshape(rows, 3)
        large = np.arange(rows * 50_000, dtype="float32").reshape(rows, 50_000)
        for model, sent, expected in (("one", small, small + 1), ("twice", large, large * 2)):
            given = triton.InferInput("x", sent.shape, "FP32")
            given.set_data_from_numpy(sent)
            assert (asking.infer(model, [given]).as_numpy("y") == expected).all()

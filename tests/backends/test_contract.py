"""What every backend does, whatever it runs. Each test runs once per word in the registry."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from ringserve.backends.contract import Backend, Batch, LoadedModel, TensorCall, TensorResult
from ringserve.backends.registry import BACKENDS, create_backend
from ringserve.protocol.errors import PredictionFailed
from ringserve.protocol.tensor import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "float32", (2,)),), (TensorSpec("y", "float32", (2,)),))

HANDLER = """
def handle(data, context):
    if data is None:
        return None
    if any(row["body"][0] < 0 for row in data):
        raise ValueError("negative")
    return [[2 * number for number in row["body"]] for row in data]
"""
PYTHON = """
class Doubler:
    def predict(self, inputs, outputs):
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        outputs["y"][:] = inputs["x"] * 2
"""


TRITON = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        if any((array < 0).any() for array in arrays):
            raise ValueError("negative")
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", array * 2)]) for array in arrays]
"""


class Doubler(torch.nn.Module):
    """Answers twice its input and refuses negative numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert bool((x >= 0).all())
        return x * 2


class Case(Protocol):
    """One backend with a model that doubles rows of two numbers."""

    model: LoadedModel
    failure: tuple[str, int]  # what a client reads when the model raises

    def batch(self, rows: Sequence[Sequence[float]]) -> Batch:
        """A batch of these rows."""

    def answers(self, batch: Batch) -> list[list[float]]:
        """What the backend answered to them."""


class BytesCase:
    """A case for a backend of byte payloads."""

    failure = ("Prediction failed", 503)

    def __init__(self, model: LoadedModel, request_of: Callable[..., Any], body_of: Callable[[Any], Any]) -> None:
        self.model, self._request_of, self._body_of = model, request_of, body_of

    def batch(self, rows: Sequence[Sequence[float]]) -> Batch:
        return Batch(len(rows), requests=[self._request_of(list(row)) for row in rows])

    def answers(self, batch: Batch) -> list[list[float]]:
        return [self._body_of(reply) for reply in batch.replies]


class ArraysCase:
    """A case for a backend of arrays."""

    failure = ("Prediction failed", 503)

    def __init__(self, model: LoadedModel, typed_batch: Callable[..., Batch]) -> None:
        self.model, self._typed_batch = model, typed_batch

    def batch(self, rows: Sequence[Sequence[float]]) -> Batch:
        return self._typed_batch(SIGNATURE, len(rows), x=np.array(rows, dtype=np.float32))

    def answers(self, batch: Batch) -> list[list[float]]:
        answers: list[list[float]] = batch.outputs["y"].tolist()
        return answers


class CallsCase:
    """A case for a backend that is handed each request by itself."""

    failure = ("Failed to process the request(s) for model 'm_0', message: ValueError: negative", 500)

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    def batch(self, rows: Sequence[Sequence[float]]) -> Batch:
        calls = [TensorCall(f"id-{at}", {"x": np.array([row], dtype=np.float32)}) for at, row in enumerate(rows)]
        return Batch(len(rows), calls=calls)

    def answers(self, batch: Batch) -> list[list[float]]:
        rows = []
        for result in batch.results:
            assert isinstance(result, TensorResult)
            (row,) = result.outputs["y"].tolist()
            rows.append(row)
        return rows


@pytest.fixture(params=BACKENDS)
def word(request: pytest.FixtureRequest) -> str:
    """The backend's name."""
    return str(request.param)


@pytest.fixture
def case(
    word: str,
    make_model: Callable[..., LoadedModel],
    request_of: Callable[..., Any],
    body_of: Callable[[Any], Any],
    typed_batch: Callable[..., Batch],
    save_scripted: Callable[[Any, Path], None],
) -> Case:
    """The doubling model in the form that the backend takes."""
    if word == "handler":
        return BytesCase(make_model({"handler.py": HANDLER}), request_of, body_of)
    if word == "python":
        return ArraysCase(make_model({"handler.py": PYTHON}, signature=SIGNATURE), typed_batch)
    if word == "triton":
        return CallsCase(make_model({"1/model.py": TRITON}, "1/model.py", signature=SIGNATURE))
    assert word == "torchscript", "a backend without a contract case"
    model = make_model({}, manifest={"serializedFile": "m.pt"}, signature=SIGNATURE)
    save_scripted(Doubler(), model.model_dir / "m.pt")
    return ArraysCase(model, typed_batch)


@pytest.fixture
def backend(word: str, case: Case) -> Backend:
    """The backend, loaded."""
    loaded = create_backend(word)
    loaded.load(case.model)
    return loaded


def test_load_returns_the_declared_signature(word: str, case: Case) -> None:
    """A model that declares nothing is untyped; a declaration comes back as it was given."""
    ragged = word == "triton"  # its models take each request by itself
    assert create_backend(word).load(case.model) == replace(case.model.signature, ragged=ragged)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_every_row_is_answered_in_its_place(backend: Backend, case: Case, rows: int) -> None:
    """The answer to row i is the answer to request i, for one row and for a full batch."""
    asked = [[float(row), row + 0.5] for row in range(rows)]
    batch = case.batch(asked)
    backend.execute(batch)
    assert case.answers(batch) == [[2 * number for number in row] for row in asked]


def test_a_batch_does_not_see_the_one_before(backend: Backend, case: Case) -> None:
    """A smaller batch after a larger one has its own answers only."""
    backend.execute(case.batch([[5, 5]] * 4))
    batch = case.batch([[1, 2]])
    backend.execute(batch)
    assert case.answers(batch) == [[2, 4]]


def test_a_model_that_raises_fails_its_batch_only(
    backend: Backend, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """The client reads one sentence, the log has the traceback, and the next batch is served."""
    with pytest.raises(PredictionFailed) as caught:
        backend.execute(case.batch([[1, 1], [-1, 1]]))
    assert (caught.value.message, caught.value.http_status) == case.failure
    assert caplog.records[0].name == "ringserve.model"
    assert caplog.records[0].exc_info is not None
    batch = case.batch([[1, 1]])
    backend.execute(batch)
    assert case.answers(batch) == [[2, 2]]


def test_an_error_does_not_keep_the_models_frames(backend: Backend, case: Case) -> None:
    """Frames of the model may hold views of shared memory, which could then never be closed."""
    with pytest.raises(PredictionFailed) as caught:
        backend.execute(case.batch([[-1, 1]]))
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_closing_twice_is_harmless(backend: Backend) -> None:
    """A worker that stops while it fails may close again."""
    backend.close()
    backend.close()

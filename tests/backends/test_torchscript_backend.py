"""TorchScript files between arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ringserve.backends.contract import Batch, ContractBroken, LoadedModel, TensorCall, TensorResult
from ringserve.backends.torchscript_backend import TorchScriptBackend
from ringserve.protocol.errors import InvalidModel, PredictionFailed
from ringserve.protocol.tensor import Signature, TensorSpec

X = TensorSpec("x", "float32", (2,))
N = TensorSpec("n", "int64", ())
SUM = TensorSpec("total", "float32", ())
COUNT = TensorSpec("count", "int64", ())

Load = Callable[..., TorchScriptBackend]


class SumTuple(torch.nn.Module):
    """Two outputs in declared order; two inputs of different types."""

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sum(dim=1), n + 1


class SumDict(torch.nn.Module):
    """The same outputs by name, in another order."""

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"count": n + 1, "total": x.sum(dim=1)}


class Same(torch.nn.Module):
    """Answers its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def load(make_model: Callable[..., LoadedModel], save_scripted: Callable[[Any, Path], None]) -> Load:
    """A backend that has loaded this module under this signature."""

    def loaded(module: torch.nn.Module, signature: Signature) -> TorchScriptBackend:
        model = make_model({}, manifest={"serializedFile": "m.pt"}, signature=signature)
        save_scripted(module, model.model_dir / "m.pt")
        backend = TorchScriptBackend()
        backend.load(model)
        return backend

    return loaded


@pytest.mark.parametrize("module", [SumTuple(), SumDict()])
def test_several_outputs_go_where_they_were_declared(
    load: Load, typed_batch: Callable[..., Batch], module: torch.nn.Module
) -> None:
    """A tuple by order, a dict by name."""
    signature = Signature((X, N), (SUM, COUNT))
    batch = typed_batch(
        signature, 2, x=np.array([[1, 2], [3, 4]], dtype=np.float32), n=np.array([7, 8], dtype=np.int64)
    )
    load(module, signature).execute(batch)
    assert batch.outputs["total"].tolist() == [3.0, 7.0]
    assert batch.outputs["count"].tolist() == [8, 9]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (TensorSpec("y", "float64", (2,)), r'Output "y": expected float64\[3, 2\], got float32\[3, 2\]'),
        (TensorSpec("y", "float32", (5,)), r'Output "y": expected float32\[3, 5\], got float32\[3, 2\]'),
    ],
)
def test_an_output_that_is_not_as_declared_is_named(
    load: Load, typed_batch: Callable[..., Batch], output: TensorSpec, message: str
) -> None:
    """What was expected and what came, rows included. Nothing is broadcast or converted silently."""
    signature = Signature((X,), (output,))
    with pytest.raises(PredictionFailed, match=message):
        load(Same(), signature).execute(typed_batch(signature, 3, x=np.zeros((3, 2), dtype=np.float32)))


@pytest.mark.parametrize(
    ("module", "outputs", "message"),
    [
        (SumTuple(), (SUM,), "the outputs total; got 2 tensors"),
        (SumDict(), (SUM, X), r"the outputs total, x; got a dict of \['count', 'total'\]"),
    ],
)
def test_a_wrong_set_of_outputs_is_refused(
    load: Load, typed_batch: Callable[..., Batch], module: Any, outputs: tuple[TensorSpec, ...], message: str
) -> None:
    """Too many, or not the declared names."""
    signature = Signature((X, N), outputs)
    inputs = {"x": np.zeros((1, 2), dtype=np.float32), "n": np.zeros(1, dtype=np.int64)}
    with pytest.raises(PredictionFailed, match=message):
        load(module, signature).execute(typed_batch(signature, 1, **inputs))


@pytest.mark.parametrize(
    ("signature", "missing"),
    [(Signature(), "inputs and outputs"), (Signature((X,)), "outputs"), (Signature((), (X,)), "inputs")],
)
def test_a_declaration_is_required_and_shown(load: Load, signature: Signature, missing: str) -> None:
    """The message is what to write."""
    with pytest.raises(InvalidModel, match=f"needs the {missing} of m declared.*model-config.yaml"):
        load(Same(), signature)


@pytest.mark.parametrize(
    ("files", "message"), [({}, "needs a serializedFile"), ({"serializedFile": "gone.pt"}, "gone.pt")]
)
def test_a_missing_file_is_named(make_model: Callable[..., LoadedModel], files: dict[str, str], message: str) -> None:
    """In the manifest or in the archive."""
    with pytest.raises(InvalidModel, match=message):
        TorchScriptBackend().load(make_model({}, manifest=files, signature=Signature((X,), (X,))))


def test_the_model_runs_on_the_slabs_memory(load: Load) -> None:
    """The input tensor is a view of the array: what the array holds at the call is what the model sees."""
    backend = load(Same(), Signature((X,), (TensorSpec("y", "float32", (2,)),)))
    array, answer = np.zeros((1, 2), dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
    tensor = backend._tensor(array, "float32")
    assert tensor is not None and tensor.data_ptr() == array.ctypes.data
    array[:] = 4
    backend.execute(Batch(1, inputs={"x": array}, outputs={"y": answer}))
    assert answer.tolist() == [[4.0, 4.0]]


def framed_batch(*arrays: np.ndarray) -> Batch:
    """Requests of these arrays, as the worker hands compatible ones over."""
    calls = [TensorCall("id", {"x": array}, len(array)) for array in arrays]
    return Batch(len(calls), inputs={"x": np.concatenate(arrays)}, calls=calls)


def outputs_of(batch: Batch) -> list[np.ndarray]:
    """The output of each request."""
    return [each.outputs["y"] for each in batch.results if isinstance(each, TensorResult)]


def test_variable_dimensions_are_computed_together_and_divided(load: Load) -> None:
    """Each request gets its rows."""
    backend = load(Same(), Signature((TensorSpec("x", "float32", (-1,)),), (TensorSpec("y", "float32", (-1,)),)))
    batch = framed_batch(np.ones((1, 3), np.float32), np.zeros((2, 3), np.float32))
    backend.execute(batch)
    assert [array.tolist() for array in outputs_of(batch)] == [[[1, 1, 1]], [[0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_torchs_own(load: Load, dtype: str) -> None:
    """numpy has no bfloat16: its bits come and go as uint16."""
    backend = load(Same(), Signature((TensorSpec("x", dtype, (-1,)),), (TensorSpec("y", dtype, (-1,)),)))
    array = np.array([[0x3F80, 0x4000]], np.uint16)
    batch = framed_batch(array if dtype == "bfloat16" else array.view(np.float16))
    backend.execute(batch)
    (answer,) = outputs_of(batch)
    assert answer.view(np.uint16).tolist() == array.tolist()


def test_another_shape_than_declared_is_named(load: Load) -> None:
    """With the dimensions that any length may have."""
    backend = load(Same(), Signature((TensorSpec("x", "float32", (-1,)),), (TensorSpec("y", "float32", (-1, 2)),)))
    with pytest.raises(ContractBroken, match=r'Output "y": expected float32\[1, -1, 2\], got float32\[1, 3\]'):
        backend.execute(framed_batch(np.ones((1, 3), np.float32)))


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (Signature((TensorSpec("x", "bytes", (1,)),), (X,)), "is of BYTES, which torch has not"),
        (Signature((X,), (X,), decoupled=True), "gives one answer to each request"),
    ],
)
def test_what_a_file_cannot_do_is_refused(load: Load, signature: Signature, message: str) -> None:
    """When it is loaded."""
    with pytest.raises(InvalidModel, match=message):
        load(Same(), signature)

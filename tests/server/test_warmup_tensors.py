"""The samples that a configuration in Triton's words asks for: which tensors they are, what is refused of them, and how they are run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.backends.contract import Batch
from ringserve.protocol.datatypes import DATATYPE_BYTES
from ringserve.protocol.errors import InvalidModel, PredictionFailed
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.model_configuration.configuration import configure
from ringserve.server.warmup import WarmupRequest, samples_of_tensors, warm_up

TYPED = Signature((TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),))
FRAMED = Signature((TensorSpec("x", "float32", (-1,)), TensorSpec("t", "bytes", (1,), optional=True)), TYPED.outputs)


def samples(
    model_dir: Path, signature: Signature, inputs: dict[str, Any], *, size_max: int = 4, **more: Any
) -> list[WarmupRequest]:
    said = {"max_batch_size": size_max, "model_warmup": [{"name": "first", "inputs": inputs, **more}]}
    return list(samples_of_tensors(model_dir, {"triton": configure(said, "x").fields}, signature))


def zeros(dims: list[int], word: str = "TYPE_FP32") -> dict[str, Any]:
    return {"data_type": word, "dims": dims, "zero_data": True}


def test_a_model_whose_rows_are_arrays_gets_rows_and_any_other_one_request(tmp_path: Path) -> None:
    [typed] = samples(tmp_path, TYPED, {"x": zeros([4])}, batch_size=3, count=2)
    [framed] = samples(tmp_path, FRAMED, {"x": zeros([5])}, batch_size=3)
    assert typed.tensors is not None
    assert framed.tensors is not None
    assert (typed.rows, typed.repeat, typed.tensors.inputs[0].shape) == (3, 2, (1, 4))
    assert (framed.rows, framed.repeat, framed.tensors.inputs[0].shape) == (1, 1, (3, 5))
    assert framed.tensors.inputs[0].data == bytes(3 * 5 * 4)


def test_a_model_that_does_not_batch_gets_no_batch_dimension(tmp_path: Path) -> None:
    signature = Signature(FRAMED.inputs, FRAMED.outputs, batches=False)
    [sample] = samples(tmp_path, signature, {"x": zeros([2])}, size_max=0)
    assert sample.tensors is not None
    assert sample.tensors.inputs[0].shape == (2,)


@pytest.mark.parametrize("datatype", sorted(DATATYPE_BYTES))
def test_numbers_of_chance_are_the_same_every_time(tmp_path: Path, datatype: str) -> None:
    signature = Signature((TensorSpec("x", _dtype(datatype), (-1,)),), TYPED.outputs)
    given = {"data_type": f"TYPE_{datatype}", "dims": [32], "random_data": True}
    first, second = (samples(tmp_path, signature, {"x": given})[0].tensors for _ in range(2))
    assert first == second
    assert first is not None
    data = first.inputs[0].data
    assert isinstance(data, bytes)
    assert len(data) == 32 * DATATYPE_BYTES[datatype]
    assert any(data)


def _dtype(datatype: str) -> str:
    [spec] = configure({"input": [{"name": "x", "data_type": f"TYPE_{datatype}", "dims": [1]}]}, "x").signature.inputs
    return spec.dtype


def test_an_item_may_lie_in_a_file_and_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "item").write_bytes(np.array([1, 2, 3, 4], np.float32).tobytes())
    x_given = {"data_type": "TYPE_FP32", "dims": [4], "input_data_file": "item"}
    given = {"x": x_given, "t": {"data_type": "TYPE_STRING", "dims": [1], "random_data": True}}
    [sample] = samples(tmp_path, FRAMED, given, batch_size=2)
    assert sample.tensors is not None
    x, t = sample.tensors.inputs
    assert isinstance(x.data, bytes)
    assert np.frombuffer(x.data, np.float32).tolist() == [1, 2, 3, 4] * 2
    assert (t.shape, t.data) == ((2, 1), bytes(8))


@pytest.mark.parametrize(
    ("inputs", "more", "message"),
    [
        ({}, {}, "expected the input x, got none"),
        ({"x": zeros([3, 3])}, {}, "expected x float32"),
        ({"x": zeros([4], "TYPE_FP64")}, {}, "expected x float32"),
        ({"x": zeros([0])}, {}, "expected a datatype and dims of 1 or more"),
        ({"x": zeros([-1])}, {}, "expected a datatype and dims of 1 or more"),
        ({"x": zeros([4], "TYPE_INVALID")}, {}, "expected a datatype and dims of 1 or more"),
        ({"x": zeros([1 << 40])}, {}, "expected at most"),
        ({"x": zeros([4]), "z": zeros([4])}, {}, "expected the inputs x, t, got z"),
        ({"x": zeros([4])}, {"batch_size": 5}, "batch_size: expected 1 to 4, got 5"),
        ({"x": {"data_type": "TYPE_FP32", "dims": [4], "input_data_file": "none"}}, {}, "expected a file"),
        (
            {"x": {"data_type": "TYPE_FP32", "dims": [4], "input_data_file": "short"}},
            {},
            "expected 16 bytes in short, got 2",
        ),
    ],
)
def test_what_is_no_request_of_the_model_is_refused(
    tmp_path: Path, inputs: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "short").write_bytes(b"12")
    with pytest.raises(InvalidModel) as caught:
        samples(tmp_path, FRAMED, inputs, **more)
    assert caught.value.message.startswith("Warm-up with model_warmup[0] first")
    assert message in caught.value.message


def test_a_file_lies_in_the_models_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="expected a path inside the model's folder"):
        samples(tmp_path, FRAMED, {"x": {"data_type": "TYPE_FP32", "dims": [4], "input_data_file": "../../etc/passwd"}})


def test_streams_and_sequences_are_no_samples(tmp_path: Path) -> None:
    decoupled = Signature(FRAMED.inputs, FRAMED.outputs, decoupled=True)
    assert samples(tmp_path, decoupled, {"x": zeros([4])}) == []
    said = {"sequence_batching": {}, "model_warmup": [{"name": "w"}]}
    assert list(samples_of_tensors(tmp_path, {"triton": configure(said, "x").fields}, FRAMED)) == []
    assert list(samples_of_tensors(tmp_path, {}, FRAMED)) == []


class Model:
    """Remembers the inputs it was given."""

    def __init__(self, *, fails: bool = False) -> None:
        self.seen: list[list[int]] = []
        self._fails = fails

    def execute(self, batch: Batch) -> None:
        if self._fails:
            raise PredictionFailed("no")
        self.seen.append(list(batch.inputs["x"].shape))
        if batch.calls:
            batch.outputs = {"y": np.zeros((batch.inputs["x"].shape[0], 4), np.float32)}


def run(model: Model, signature: Signature, found: Iterator[WarmupRequest]) -> None:
    warm_up(model, signature, 4, 1 << 16, found)  # type: ignore[arg-type]


@pytest.mark.parametrize(("signature", "shape"), [(TYPED, [3, 4]), (FRAMED, [3, 4])])
def test_a_model_is_run_with_as_many_items_as_the_sample_has(
    tmp_path: Path, signature: Signature, shape: list[int]
) -> None:
    model = Model()
    run(model, signature, iter(samples(tmp_path, signature, {"x": zeros([4])}, batch_size=3, count=2)))
    assert model.seen == [shape, shape]


def test_a_model_that_fails_its_sample_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(PredictionFailed, match=r"Warm-up with model_warmup\[0\] first failed: no"):
        run(Model(fails=True), FRAMED, iter(samples(tmp_path, FRAMED, {"x": zeros([4])})))

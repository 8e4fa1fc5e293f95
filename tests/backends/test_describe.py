"""What models say of themselves, and the device they are on when theirs is not there."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ringserve.backends.contract import LoadedModel
from ringserve.backends.handler_backend import HandlerBackend
from ringserve.backends.python_backend import PythonBackend
from ringserve.backends.torchscript_backend import TorchScriptBackend
from ringserve.backends.typed_model import on_usable_device
from ringserve.protocol.errors import PredictionFailed
from ringserve.protocol.tensor import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "float32", (2,)),), (TensorSpec("y", "float32", (2,)),))
DECLARED = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": [2]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [2]}],
}
SEEN = """
def handle(data, context):
    if data is None:
        return None
    header = context.get_request_header
    return [{"data": data, "describe": header(0, "describe"), "any case": header(0, "Describe"), "rows": len(data)}]
"""
BASE_HANDLER = """
from ts.torch_handler.base_handler import BaseHandler

class Mine(BaseHandler):
    def initialize(self, context):
        self.context = context

    def preprocess(self, data):
        raise AssertionError("describe takes its own hook")
"""
DESCRIBED_BY_BASE_HANDLER = '    def describe_handle(self):\n        return {"labels": 10}\n'
GENERATOR = """
def handle(data, context):
    yield [b"a part"]
    return [{"said": "last"}]
"""
PREDICT = "class Model:\n    def predict(self, inputs, outputs):\n        pass\n"

LoadHandler = Callable[..., HandlerBackend]
MakeModel = Callable[..., LoadedModel]


def test_a_handler_is_asked_with_one_empty_row_and_the_header_describe(load_handler_backend: LoadHandler) -> None:
    expected = {"data": [{}], "describe": "True", "any case": "True", "rows": 1}
    assert load_handler_backend(SEEN).describe() == expected


@pytest.mark.parametrize(("more", "said"), [("", None), (DESCRIBED_BY_BASE_HANDLER, {"labels": 10})])
def test_a_base_handler_answers_with_its_describe_handle(
    load_handler_backend: LoadHandler, more: str, said: object
) -> None:
    assert load_handler_backend(BASE_HANDLER + more).describe() == said


def test_a_generator_describes_by_what_it_returns_last(load_handler_backend: LoadHandler) -> None:
    assert load_handler_backend(GENERATOR).describe() == {"said": "last"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("{}", "Invalid model predict output"),
        ("[1, 2]", "number of batch response mismatched, expect: 1, got: 2."),
        ("[data[0]['body']]", "Prediction failed"),
        ("exit(3)", "Prediction failed"),
    ],
)
def test_a_handler_that_cannot_describe_fails_as_it_would_predicting(
    load_handler_backend: LoadHandler, answer: str, said: str
) -> None:
    backend = load_handler_backend(f"def handle(data, context):\n    return None if data is None else {answer}\n")
    with pytest.raises(PredictionFailed) as caught:
        backend.describe()
    assert caught.value.message == said


def test_a_typed_model_says_what_it_takes_and_gives(make_model: MakeModel) -> None:
    backend = PythonBackend()
    backend.load(make_model({"handler.py": PREDICT}, signature=SIGNATURE))
    assert backend.describe() == {"backend": "python", "device": "cpu", **DECLARED}


def test_a_class_may_describe_itself(make_model: MakeModel) -> None:
    backend = PythonBackend()
    more = "    def describe(self):\n        return {'trained': 2026}\n"
    backend.load(make_model({"handler.py": PREDICT + more}, signature=SIGNATURE))
    assert backend.describe() == {"trained": 2026}


def test_a_class_that_fails_to_describe_itself_is_a_failed_prediction(make_model: MakeModel) -> None:
    backend = PythonBackend()
    more = "    def describe(self):\n        raise KeyError('trained')\n"
    backend.load(make_model({"handler.py": PREDICT + more}, signature=SIGNATURE))
    with pytest.raises(PredictionFailed, match=r"^Prediction failed$"):
        backend.describe()


def test_a_script_whose_device_is_not_there_runs_on_the_cpu_and_says_so(
    make_model: MakeModel,
    save_scripted: Callable[[Any, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = make_model({}, manifest={"serializedFile": "m.pt"}, signature=SIGNATURE, device="cuda:1", gpu_id=1)
    save_scripted(torch.nn.Identity(), model.model_dir / "m.pt")
    backend = TorchScriptBackend()
    backend.load(model)
    assert backend.describe() == {"backend": "torchscript", "device": "cpu", **DECLARED}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "was given cuda:1" in caplog.text


@pytest.mark.parametrize(("has_cuda", "device", "gpu_id"), [(True, "cuda:1", 1), (False, "cpu", None)])
def test_a_class_is_told_the_device_that_torch_can_use(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, has_cuda: bool, device: str, gpu_id: int | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    source = (
        "import torch\n" + PREDICT + "    def load(self, model):\n        Model.seen = (model.device, model.gpu_id)\n"
    )
    source += "    def describe(self):\n        return self.seen\n"
    backend = PythonBackend()
    backend.load(make_model({"handler.py": source}, signature=SIGNATURE, device="cuda:1", gpu_id=1))
    assert backend.describe() == (device, gpu_id)


def test_a_model_without_torch_is_told_its_device_as_it_was_given(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    model = make_model({}, device="cuda:1", gpu_id=1)
    assert on_usable_device(model) is model

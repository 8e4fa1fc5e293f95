"""BaseHandler with the model files it can open, through the backend that runs it."""

import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ringserve.backends.contract import LoadedModel, Request
from ringserve.backends.handler_backend import HandlerBackend, make_context
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler
from ringserve.backends.ts.utils.pt2 import compile_options

MODEL_FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.9), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)
"""
HANDLER = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class Mine(BaseHandler):
    def preprocess(self, data):
        return super().preprocess([row["body"] for row in data])

    def get_insights(self, tensors, inputs, target):
        return [[tensors.shape[0], inputs, target]]

    def describe_handle(self):
        return {"inputs": 4}
"""
ROWS = [[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.5]]
EAGER = {"serializedFile": "net.pt", "modelFile": "net.py"}

MakeModel = Callable[..., LoadedModel]
Ask = Callable[..., list[Any]]
RequestOf = Callable[..., Request]


class Doubler(torch.nn.Module):
    """Answers twice its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.fixture
def net() -> Any:
    """The network that the archive's weights come from."""
    torch.manual_seed(3)
    module: Any = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Dropout(0.9), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    )
    return module.eval()


@pytest.fixture
def eager_model(make_model: MakeModel, net: Any) -> Callable[..., LoadedModel]:
    """An archive with a model file and a state dict."""
    weights = io.BytesIO()
    torch.save({f"layers.{name}": value for name, value in net.state_dict().items()}, weights)

    def make(**changes: Any) -> LoadedModel:
        files = {"handler.py": HANDLER, "net.py": MODEL_FILE, "net.pt": weights.getvalue()}
        return make_model({**files, **changes.pop("files", {})}, **{"manifest": EAGER, **changes})

    return make


def loaded(model: LoadedModel) -> HandlerBackend:
    """The backend that has loaded this model."""
    backend = HandlerBackend()
    backend.load(model)
    return backend


def initialized(model: LoadedModel) -> BaseHandler:
    """A bare BaseHandler that has loaded this model, whose folder is importable."""
    sys.path.insert(0, str(model.model_dir))
    handler = BaseHandler()
    handler.initialize(make_context(model))
    return handler


def test_an_eager_model_answers_as_it_was_trained(
    eager_model: Callable[..., LoadedModel], net: Any, request_of: RequestOf, ask: Ask
) -> None:
    """Model file and state dict: the numbers are the network's, in evaluation mode."""
    replies = ask(loaded(eager_model()), [request_of(row) for row in ROWS])
    expected = net(torch.tensor(ROWS))
    assert torch.allclose(torch.tensor([json.loads(reply.body) for reply in replies]), expected, atol=1e-6)


def test_a_batch_is_timed(
    eager_model: Callable[..., LoadedModel], request_of: RequestOf, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    """TorchServe's two times: of `handle`, and of the call that the server makes. In a server, nothing is printed."""
    ask(loaded(eager_model()), [request_of(row) for row in ROWS])
    names = [line.partition(".")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["[METRICS]HandlerTime", "[METRICS]PredictionTime"]


def test_the_steps_are_timed_when_the_configuration_says_so(
    eager_model: Callable[..., LoadedModel], request_of: RequestOf, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    """`handler: {profile: true}`; the overridden step is not decorated, its parent is."""
    ask(loaded(eager_model(config={"handler": {"profile": True}})), [request_of(ROWS[0])])
    names = [line.partition(".")[0] for line in capsys.readouterr().out.splitlines()]
    steps = [f"[METRICS]ts_handler_{step}" for step in ("preprocess", "inference", "postprocess")]
    assert names[:3] == steps


def test_explain_and_describe_requests_take_their_hooks(
    eager_model: Callable[..., LoadedModel], request_of: RequestOf, ask: Ask
) -> None:
    """The server marks them with a header."""
    backend = loaded(eager_model())
    assert json.loads(ask(backend, [request_of(ROWS[0], {"explain": "True"})])[0].body) == [1, ROWS[0], 0]
    assert json.loads(ask(backend, [request_of(ROWS[0], {"describe": "True"})])[0].body) == {"inputs": 4}
    assert len(json.loads(ask(backend, [request_of(ROWS[0])])[0].body)) == 3


def test_the_attributes_that_handlers_use(eager_model: Callable[..., LoadedModel]) -> None:
    """Names and values after `initialize`."""
    model = eager_model(files={"index_to_name.json": '{"0": "cat"}'}, config={"a": 1})
    handler = initialized(model)
    assert handler.initialized
    assert handler.mapping == {"0": "cat"}
    assert handler.model_pt_path == str(model.model_dir / "net.pt")
    assert handler.manifest["model"]["modelFile"] == "net.py"
    assert handler.model_yaml_config == {"a": 1}
    assert (handler.device, handler.map_location) == (torch.device("cpu"), "cpu")
    assert (handler.explain, handler.target, handler.profiler_args) == (False, 0, {})
    assert handler.get_device() is handler.device
    assert handler.context.model_name == "m"


def test_a_model_file_may_come_without_weights(eager_model: Callable[..., LoadedModel]) -> None:
    """It is instantiated as it is."""
    handler = initialized(eager_model(manifest={"modelFile": "net.py"}))
    assert handler.model_pt_path is None
    assert not handler.model.training


def test_a_torchscript_file_needs_no_model_file(
    make_model: MakeModel, save_scripted: Callable[[Any, Path], None], request_of: RequestOf, ask: Ask
) -> None:
    """A `.pt` alone."""
    model = make_model({"handler.py": HANDLER}, manifest={"serializedFile": "net.pt"})
    save_scripted(Doubler(), model.model_dir / "net.pt")
    replies = ask(loaded(model), [request_of(row) for row in ROWS])
    assert [json.loads(reply.body) for reply in replies] == [[2 * number for number in row] for row in ROWS]


def test_base_handler_is_a_default_handler(make_model: MakeModel, save_scripted: Callable[[Any, Path], None]) -> None:
    """The manifest may name it without any file."""
    model = make_model({}, "base_handler", manifest={"serializedFile": "net.pt"})
    save_scripted(Doubler(), model.model_dir / "net.pt")
    loaded(model)
    handler = initialized(model)
    context = handler.context
    assert handler.handle([[1.0], [2.0]], context) == [[2.0], [4.0]]


@pytest.mark.parametrize(
    ("manifest", "files", "kind", "message"),
    [
        ({}, {}, RuntimeError, "No model weights could be loaded"),
        ({"serializedFile": "net.pth"}, {}, RuntimeError, "No model weights could be loaded"),
        ({"serializedFile": "net.so"}, {}, RuntimeError, "aot_compile"),
        ({"modelFile": "gone.py"}, {}, RuntimeError, "Missing the model file gone.py"),
        ({"modelFile": "two.py"}, {"two.py": "class A: pass\nclass B: pass"}, ValueError, r"found \['A', 'B'\]"),
    ],
)
def test_what_cannot_be_loaded_is_named(
    make_model: MakeModel, manifest: dict[str, str], files: Mapping[str, str], kind: type[Exception], message: str
) -> None:
    """The sentence says which files would do."""
    with pytest.raises(kind, match=message):
        initialized(make_model(files, manifest=manifest))


def test_an_onnx_file_becomes_a_session(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the worker's threads; onnxruntime itself is played by an object."""
    calls: list[Any] = []

    def open_session(path: str, **options: Any) -> str:
        calls.append((path, options))
        return "session"

    runtime: Any = ModuleType("onnxruntime")
    runtime.SessionOptions = SimpleNamespace
    runtime.InferenceSession = open_session
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    model = make_model({}, manifest={"serializedFile": "net.onnx"})
    assert initialized(model).model == "session"
    path, options = calls[0]
    assert path == str(model.model_dir / "net.onnx")
    assert options["providers"] == ["CPUExecutionProvider"]
    assert options["sess_options"].intra_op_num_threads == 3


def test_an_aot_compiled_library_is_opened_when_configured(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pt2: {export: {aot_compile: true}}`; making a real one takes a compiler and half a minute."""
    monkeypatch.setattr(torch._export, "aot_load", lambda path, device: (Path(path).name, device))
    config = {"pt2": {"export": {"aot_compile": True}}}
    handler = initialized(make_model({}, manifest={"serializedFile": "net.so"}, config=config))
    assert handler.model == ("net.so", "cpu")


@pytest.mark.parametrize(
    ("pt2", "options"),
    [
        (None, None),
        ("inductor", {"backend": "inductor"}),
        ("magic", None),
        ({"backend": "eager", "mode": "default"}, {"backend": "eager", "mode": "default"}),
        ({"compile": {"enable": True, "backend": "eager"}}, {"backend": "eager"}),
        ({"compile": {"enable": True}}, {}),
        ({"compile": {"enable": False, "backend": "eager"}}, None),
        ({"compile": {"enable": True, "backend": "magic"}}, None),
        ({"export": {"aot_compile": True}}, None),
    ],
)
def test_the_pt2_section_has_three_forms(pt2: object, options: object) -> None:
    """None means: leave the model as it is."""
    assert compile_options({"pt2": pt2}) == options


def test_a_model_is_compiled_when_configured(eager_model: Callable[..., LoadedModel], net: Any) -> None:
    """Answers stay the same; the eager backend keeps this test short."""
    handler = initialized(eager_model(config={"pt2": {"compile": {"enable": True, "backend": "eager"}}}))
    assert type(handler.model).__name__ == "OptimizedModule"
    inputs = torch.tensor(ROWS)
    assert torch.allclose(handler.inference(inputs), net(inputs), atol=1e-6)


def test_a_compilation_that_fails_leaves_the_model_as_it_is(
    eager_model: Callable[..., LoadedModel], caplog: pytest.LogCaptureFixture
) -> None:
    """A warning, and an uncompiled model that works."""
    handler = initialized(eager_model(config={"pt2": {"compile": {"enable": True, "no_such_option": 1}}}))
    assert type(handler.model).__name__ == "Net"
    assert "uncompiled" in caplog.text


def test_the_profiler_path_answers_the_same(
    eager_model: Callable[..., LoadedModel], net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENABLE_TORCH_PROFILER, with the handler's own arguments: no trace file."""
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", "true")
    handler = initialized(eager_model())
    handler.profiler_args = {"activities": [torch.profiler.ProfilerActivity.CPU], "on_trace_ready": None}
    answer = handler.handle(ROWS, handler.context)
    assert torch.allclose(torch.tensor(answer), net(torch.tensor(ROWS)), atol=1e-6)

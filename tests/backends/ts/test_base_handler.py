"""BaseHandler with the model files it can open, through the backend that runs it."""

import io
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ringserve.backends.contract import LoadedModel, Request
from ringserve.backends.handler_backend import HandlerBackend, make_context
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler

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
        ({"serializedFile": "net.pth"}, {}, RuntimeError, "net.pth holds weights alone, .* no modelFile"),
        ({"serializedFile": "a.safetensors"}, {}, RuntimeError, "a.safetensors holds weights alone"),
        (
            {"serializedFile": "net.bin"},
            {},
            RuntimeError,
            "No model weights could be loaded from {'serializedFile': 'net.bin'}",
        ),
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


def test_an_aot_compiled_library_is_opened_when_configured(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pt2: {export: {aot_compile: true}}`; making a real one takes a compiler and half a minute."""
    monkeypatch.setattr(torch._export, "aot_load", lambda path, device: (Path(path).name, device))
    config = {"pt2": {"export": {"aot_compile": True}}}
    handler = initialized(make_model({}, manifest={"serializedFile": "net.so"}, config=config))
    assert handler.model == ("net.so", "cpu")


@pytest.mark.parametrize("kind", ["TEXT", "zip"])
def test_a_pt_file_that_is_no_torchscript_is_told_what_it_is(make_model: MakeModel, net: Any, kind: str) -> None:
    """Most often it holds a state dict, and the archive lacks the model file."""
    model = make_model({"net.pt": b"text"}, manifest={"serializedFile": "net.pt"})
    holds = "nothing that torch has saved"
    if kind == "zip":
        torch.save(net.state_dict(), model.model_dir / "net.pt")
        holds = "what torch.save wrote: a state dict, or a pickled object"
    with pytest.raises(RuntimeError, match=f"net.pt is no TorchScript file: it holds {holds}."):
        initialized(model)


def test_the_model_file_may_lie_in_a_folder_with_its_helpers(make_model: MakeModel) -> None:
    """The archiver packs it at the top level; archives made by hand keep their folders."""
    files = {
        "parts/net.py": "from torch import nn\nfrom sizes import SIZE\nclass Net(nn.Linear):\n    def __init__(self):\n        super().__init__(SIZE, SIZE)",
        "parts/sizes.py": "SIZE = 3",
    }
    handler = initialized(make_model(files, manifest={"modelFile": "parts/net.py"}))
    assert handler.model.weight.shape == (3, 3)


def test_two_model_files_of_one_name_are_two_modules(make_model: MakeModel) -> None:
    """The one that the manifest names is loaded, also where the other has been imported."""
    source = "from torch import nn\nclass Net(nn.{kind}): pass"
    files = {"net_one.py": source.format(kind="ReLU"), "parts/net_one.py": source.format(kind="Tanh")}
    model = make_model(files, manifest={"modelFile": "net_one.py"})
    assert isinstance(initialized(model).model, torch.nn.ReLU)
    model = make_model(files, manifest={"modelFile": "parts/net_one.py"})
    assert isinstance(initialized(model).model, torch.nn.Tanh)


def test_a_model_file_may_be_named_like_a_module_that_is_built_into_python(make_model: MakeModel) -> None:
    source = "from torch import nn\nclass Net(nn.ReLU): pass"
    model = make_model({"time.py": source}, manifest={"modelFile": "time.py"})
    assert isinstance(initialized(model).model, torch.nn.ReLU)


def test_weights_that_hold_more_are_read_when_the_configuration_allows_it(
    eager_model: Callable[..., LoadedModel], net: Any
) -> None:
    """`handler: {weights_only: false}`."""
    state = {f"layers.{name}": value for name, value in net.state_dict().items()}
    more = OrderedDict(state)
    more._metadata = OrderedDict(made_by=PurePosixPath("train.py"))  # type: ignore[attr-defined]
    weights = io.BytesIO()
    torch.save(more, weights)
    files = {"net.pt": weights.getvalue()}
    with pytest.raises(RuntimeError, match=r"net\.pt holds more than weights: pathlib\.PurePosixPath"):
        initialized(eager_model(files=files))
    trusting = {"handler": {"weights_only": False}}
    handler = initialized(eager_model(files=files, config=trusting))
    torch.testing.assert_close(handler.inference(torch.tensor(ROWS)), net(torch.tensor(ROWS)))


def test_a_batch_that_asks_for_explanations_leaves_no_trace(eager_model: Callable[..., LoadedModel]) -> None:
    """`explain` says what the batch at hand asks for; TorchServe's stays True for good."""
    handler = initialized(eager_model())
    headers: dict[str, str] = {"explain": "True"}
    handler.context = SimpleNamespace(get_request_header=lambda index, name: headers.get(name))
    assert handler._is_explain()
    assert handler.explain
    headers.clear()
    assert not handler._is_explain()
    assert not handler.explain

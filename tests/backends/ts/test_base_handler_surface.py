"""What subclasses of BaseHandler rely on: the names and parameters that TorchServe's has, and its steps."""

import abc
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ringserve.backends.ts.torch_handler import base_handler
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler
from ringserve.backends.ts.utils import compiled
from ringserve.backends.ts.utils.compiled import compile_model
from ringserve.backends.ts.utils.model_loading import EXTENSIONS, register_extensions
from ringserve.backends.ts.utils.pt2 import compile_options

# From `inspect.signature` of TorchServe 0.12's class. Its decorator hides the parameters of the three steps: theirs are
# those of the source.
PARAMETERS = {
    "initialize": "context",
    "preprocess": "data",
    "inference": "data, *args, **kwargs",
    "postprocess": "data",
    "handle": "data, context",
    "explain_handle": "data_preprocess, raw_data",
    "describe_handle": "",
    "get_device": "",
    "_infer_with_profiler": "data",
    "_is_describe": "",
    "_is_explain": "",
    "_load_pickled_model": "model_dir, model_file, model_pt_path",
    "_load_torch_export_aot_compile": "model_so_path",
    "_load_torchscript_model": "model_pt_path",
    "_use_torch_export_aot_compile": "",
}
# The attributes of a new one.
ATTRIBUTES: dict[str, Any] = {
    "context": None,
    "device": None,
    "explain": False,
    "initialized": False,
    "manifest": None,
    "map_location": None,
    "mapping": None,
    "model": None,
    "model_pt_path": None,
    "profiler_args": {},
    "target": 0,
}


class Add(torch.nn.Module):
    """One weight, so that it is a model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


class Ready(BaseHandler):
    """A handler that has its model, in a context of these headers."""

    def __init__(self, **headers: str) -> None:
        super().__init__()
        self.device, self.model = torch.device("cpu"), Add()
        self.times: list[Any] = []
        self.given = SimpleNamespace(
            manifest={"model": {"modelName": "a/b"}},
            model_yaml_config={},
            metrics=SimpleNamespace(add_time=lambda *words: self.times.append(words)),
            get_request_header=lambda index, name: headers.get(name),
        )

    def get_insights(self, tensors: Any, inputs: Any, target: Any) -> Any:
        """What the explanation is asked with."""
        return [[tensors.tolist(), inputs, target]]


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_hook_takes_what_torchserves_does(name: str) -> None:
    parameters = list(inspect.signature(getattr(BaseHandler, name)).parameters.values())
    plain = [str(each.replace(annotation=inspect.Parameter.empty)) for each in parameters]
    assert plain == ["self", *(word for word in PARAMETERS[name].split(", ") if word)]


def test_a_new_handler_has_torchserves_attributes() -> None:
    handler = BaseHandler()
    assert {name: getattr(handler, name) for name in ATTRIBUTES} == ATTRIBUTES
    assert isinstance(handler, abc.ABC)


def test_requests_in_json_need_no_handler_of_their_own() -> None:
    """Where TorchServe's `preprocess` raises."""
    handler = Ready()
    assert handler.handle([{"body": [1.0, 2.0, 3.0]}, {"data": [0.0, 0.0, 0.5]}], handler.given) == [
        [2.0, 3.0, 4.0],
        [1.0, 1.0, 1.5],
    ]
    (name, time_ms, index, unit), *_ = handler.times
    assert (name, index, unit) == ("HandlerTime", None, "ms")
    assert time_ms >= 0


def test_named_inputs_are_given_by_name() -> None:
    handler = Ready()
    assert handler.handle([{"body": {"x": [1.0, 2.0, 3.0]}}], handler.given) == [[2.0, 3.0, 4.0]]


@pytest.mark.parametrize("profiler", [False, True])
def test_describe_and_explain_take_their_hooks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profiler: bool) -> None:
    """Also under the profiler, where TorchServe's forgets to describe."""
    if profiler:
        monkeypatch.setenv("ENABLE_TORCH_PROFILER", "1")
        monkeypatch.setattr(base_handler, "PROFILES", tmp_path)
    describing = Ready(describe="True")
    assert describing.handle([{}], describing.given) == [None]
    explaining = Ready(explain="True")
    row = {"body": [1.0, 2.0, 3.0], "target": 2}
    assert explaining.handle([row], explaining.given) == [[[[1.0, 2.0, 3.0]], [1.0, 2.0, 3.0], 2]]


def test_a_profiled_batch_leaves_a_trace_named_after_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The name is one folder, whatever the manifest says."""
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", "true")
    monkeypatch.setattr(base_handler, "PROFILES", tmp_path)
    handler = Ready()
    assert handler.handle([{"body": [1.0, 2.0, 3.0]}], handler.given) == [[2.0, 3.0, 4.0]]
    (trace,) = (tmp_path / "a_b").iterdir()
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"preprocess", "inference", "postprocess"} <= names


@pytest.mark.parametrize(
    ("pt2", "options"),
    [
        (None, None),
        ("inductor", {"backend": "inductor"}),
        ("magic", None),
        ({}, {}),
        ({"backend": "eager", "mode": "default"}, {"backend": "eager", "mode": "default"}),
        ({"backend": "magic"}, None),
        ({"compile": {"enable": True, "backend": "eager"}}, {"backend": "eager"}),
        ({"compile": {"enable": True, "fullgraph": True}}, {"fullgraph": True}),
        ({"compile": {"enable": True}}, {}),
        ({"compile": {"enable": False, "backend": "eager"}}, None),
        ({"compile": {"backend": "eager"}}, None),
        ({"compile": {"enable": True, "backend": "magic"}}, None),
        ({"export": {"aot_compile": True}}, None),
        ({"export": {"aot_compile": True}, "compile": {"enable": True}}, {}),
    ],
)
def test_the_pt2_section_has_three_forms(pt2: object, options: object) -> None:
    """None means: leave the model as it is."""
    assert compile_options({"pt2": pt2}) == options


@pytest.mark.parametrize(
    ("pt2", "named"), [([1], r"pt2 .* got \[1\]"), (3, "pt2 "), ({"compile": True}, "pt2.compile")]
)
def test_a_pt2_section_of_no_form_is_refused_by_name(pt2: object, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        compile_options({"pt2": pt2})


def test_the_section_is_not_used_up() -> None:
    """TorchServe's takes `enable` out of it, and a second handler of the process finds none."""
    section = {"compile": {"enable": True, "backend": "eager"}}
    compile_options({"pt2": section})
    assert section == {"compile": {"enable": True, "backend": "eager"}}


def test_a_model_is_compiled() -> None:
    """Answers stay the same; the eager backend keeps this test short."""
    model = compile_model(Add(), {"backend": "eager"})
    assert type(model).__name__ == "OptimizedModule"
    assert model(torch.zeros(2, 3)).tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("options", [{"no_such_option": 1}, {"backend": "no_such_backend"}, {"mode": "no_such_mode"}])
def test_what_torch_does_not_compile_stays_as_it_is(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """A warning, and an uncompiled model that works."""
    model = Add()
    assert compile_model(model, options) is model
    assert "uncompiled" in caplog.text


def test_what_is_no_module_is_not_compiled(caplog: pytest.LogCaptureFixture) -> None:
    """An ONNX session, say, would lose its methods."""
    session = object()
    assert compile_model(session, {}) is session
    assert "object is no torch module" in caplog.text


@pytest.fixture
def failing() -> Callable[[int], dict[str, Any]]:
    """Options of a compiler that fails from its n-th call on."""

    def make(call: int) -> dict[str, Any]:
        calls = []

        def compiler(graph: Any, inputs: Any) -> Any:
            calls.append(graph)
            if len(calls) >= call:
                raise OSError("no compiler is installed")
            return graph.forward

        return {"backend": compiler, "dynamic": False}

    return make


@pytest.mark.parametrize("call", [1, 2])
def test_a_compiler_that_fails_when_the_model_runs_leaves_it_uncompiled(
    failing: Callable[[int], dict[str, Any]], caplog: pytest.LogCaptureFixture, call: int
) -> None:
    """At the first shape or a later one: every call is answered, and the warning comes once."""
    torch._dynamo.reset()
    model = compile_model(Add(), failing(call))
    for rows in (1, 2, 3):
        assert model(torch.zeros(rows, 3)).tolist() == [[1.0] * 3] * rows
    assert [record.message for record in caplog.records if "uncompiled" in record.message] == [
        next(record.message for record in caplog.records if "it runs uncompiled" in record.message)
    ]


def test_an_input_that_the_model_does_not_take_is_not_the_compilers_fault(caplog: pytest.LogCaptureFixture) -> None:
    """It raises what the model raises, and the compiled one stays."""
    torch._dynamo.reset()
    model = compile_model(Add(), {"backend": "eager", "dynamic": False})
    kept = model.forward
    with pytest.raises(RuntimeError, match="must match the size"):
        model(torch.zeros(2, 5))
    assert model.forward is kept
    assert model(torch.zeros(1, 3)).tolist() == [[1.0] * 3]
    assert "uncompiled" not in caplog.text


def test_a_configured_model_is_compiled_by_its_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compile_model", lambda *given: given)
    handler = Ready()
    handler.model_yaml_config = {"pt2": {"compile": {"enable": True, "mode": "default"}}}
    model = handler.model
    handler._optimize()
    assert handler.model == (model, {"mode": "default"})


def test_ipex_that_is_asked_for_and_not_there_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TS_IPEX_ENABLE", "true")
    handler = Ready()
    handler._optimize()
    assert isinstance(handler.model, Add)
    assert "without IPEX" in caplog.text


def test_an_extension_that_is_installed_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT registers its operators so, before a TorchScript file that uses them is read."""
    assert "torch_tensorrt" in EXTENSIONS
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torch_tensorrt.py").write_text("import builtins\nbuiltins.tensorrt_was_here = True")
    register_extensions()
    import builtins

    assert builtins.__dict__.pop("tensorrt_was_here")

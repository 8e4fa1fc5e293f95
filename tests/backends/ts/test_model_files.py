"""ONNX graphs, and what torch.export and AOTInductor write: opened by BaseHandler without a model file."""

import contextlib
import importlib.util
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from ringserve.backends import torch_files
from ringserve.backends.contract import LoadedModel
from ringserve.backends.handler_backend import make_context
from ringserve.backends.torch_files import FileKind, kind_of
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler, setup_ort_session
from ringserve.backends.ts.utils import model_loading

MakeModel = Callable[..., LoadedModel]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker: onnxruntime reports to nobody."""
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")


class Shifted(torch.nn.Module):
    """Linear in its input, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor([1.0, 10.0, 100.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 + self.shift


def onnx_graph(path: Path, nodes: list[Any], inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Path:
    """A graph whose inputs and outputs are `[rows, 2]` of these element types."""

    def values(types: Mapping[str, int]) -> list[Any]:
        return [helper.make_tensor_value_info(name, kind, ["rows", 2]) for name, kind in types.items()]

    graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """Two float inputs; their sum, and which is the greater."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Greater", ["a", "b"], ["first"])]
    types = {"a": TensorProto.FLOAT, "b": TensorProto.FLOAT}
    return onnx_graph(tmp_path / "sums.onnx", nodes, types, {"sum": TensorProto.FLOAT, "first": TensorProto.BOOL})


@pytest.fixture
def negative(tmp_path: Path) -> Path:
    """One float input, one output."""
    node = helper.make_node("Neg", ["x"], ["y"])
    return onnx_graph(tmp_path / "neg.onnx", [node], {"x": TensorProto.FLOAT}, {"y": TensorProto.FLOAT})


def served(make_model: MakeModel, path: Path) -> BaseHandler:
    """The default handler with this file as its model."""
    model = make_model({path.name: path.read_bytes()}, "base_handler", manifest={"serializedFile": path.name})
    handler = BaseHandler()
    handler.initialize(make_context(model))
    return handler


def test_the_default_handler_answers_an_onnx_graph(make_model: MakeModel, negative: Path) -> None:
    """Whole numbers in the JSON are given as the floats that the graph declares."""
    handler = served(make_model, negative)
    tensors = handler.preprocess([{"body": [1, 2]}, {"data": [3, 4.5]}])
    assert handler.postprocess(handler.inference(tensors)) == [[-1.0, -2.0], [-3.0, -4.5]]
    assert handler.postprocess(handler.inference(handler.preprocess([{"body": [1, 2]}]))) == [[-1.0, -2.0]]


def test_inputs_and_outputs_of_an_onnx_graph_go_by_name(make_model: MakeModel, sums: Path) -> None:
    """Each row is answered with its part of every output."""
    handler = served(make_model, sums)
    tensors = handler.preprocess([{"body": {"b": [1, 5], "a": [2, 3]}}])
    assert handler.postprocess(handler.inference(tensors)) == [{"sum": [3.0, 8.0], "first": [True, False]}]


def test_an_onnx_model_is_a_session(sums: Path) -> None:
    """What handlers written for TorchServe do with it."""
    session = setup_ort_session(str(sums), "cpu")
    names = [each.name for each in session.get_inputs()]
    row = np.ones((1, 2), dtype=np.float32)
    np.testing.assert_array_equal(session.run(None, dict.fromkeys(names, row))[0], row * 2)
    torch.testing.assert_close(session(torch.ones(1, 2), b=row)["sum"], torch.full((1, 2), 2.0))
    with pytest.raises(TypeError, match=r"takes 2 inputs \(a, b\), got 3"):
        session(row, row, row)


def test_strings_stay_what_onnxruntime_answers(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    path = onnx_graph(tmp_path / "same.onnx", [node], {"x": TensorProto.STRING}, {"y": TensorProto.STRING})
    words = np.array([["a", "b"]], dtype=object)
    assert model_loading.load_onnx(str(path), CPU)(words).tolist() == [["a", "b"]]


def test_a_session_takes_its_workers_share_of_the_processors(monkeypatch: pytest.MonkeyPatch, negative: Path) -> None:
    """And runs on the CPU where a GPU is given but onnxruntime knows none."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # of OMP_NUM_THREADS, which workers are started with
    session = model_loading.load_onnx(str(negative), torch.device("cuda:1"))
    assert session.get_session_options().intra_op_num_threads == 3
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_file_that_is_no_graph_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"onnxruntime cannot open net\.onnx: "):
        model_loading.load_onnx(str(path), CPU)


def test_an_onnx_file_without_onnxruntime_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"net\.onnx is run by the package onnxruntime, which is not installed"):
        model_loading.load_onnx("net.onnx", CPU)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with any number of rows."""
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    shapes = {"x": {0: torch.export.Dim("rows", min=1, max=64)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about torch
        torch.export.save(torch.export.export(Shifted().eval(), (torch.ones(2, 3),), dynamic_shapes=shapes), path)
    return path


def test_the_default_handler_answers_a_program_of_torch_export(make_model: MakeModel, exported: Path) -> None:
    """With as many rows as a batch has."""
    handler = served(make_model, exported)
    for rows in (1, 3):
        tensors = handler.preprocess([{"body": [0.5, 1.0, 2.0]}] * rows)
        assert handler.postprocess(handler.inference(tensors)) == [[2.0, 12.0, 104.0]] * rows


def test_the_two_kinds_of_pt2_are_told_apart_by_what_they_hold(
    tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making a package takes a compiler and seconds: that is a test with the whole server. This one has its members."""
    package = tmp_path / "package.pt2"
    with zipfile.ZipFile(package, "w") as file:
        file.writestr("package/data/aotinductor/model/abc.wrapper.so", b"")
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path, **more: (Path(path).name, more))
    assert kind_of(package) is FileKind.COMPILED
    assert kind_of(exported) is FileKind.EXPORTED
    assert model_loading.load_pt2(str(package), CPU) == ("package.pt2", {})
    assert model_loading.load_pt2(str(package), torch.device("cuda:2")) == ("package.pt2", {"device_index": 2})


def test_files_of_torch_are_told_apart(
    tmp_path: Path, save_scripted: Callable[[Any, Path], None], exported: Path
) -> None:
    """By the members of their zip."""
    save_scripted(Shifted(), tmp_path / "script.pt")
    torch.save(Shifted().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "other.pt").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as file:
        file.writestr("a/readme.txt", "hello")
    kinds = {path.name: kind_of(path) for path in tmp_path.iterdir()}
    assert kinds == {
        "script.pt": FileKind.TORCHSCRIPT,
        "weights.pt": FileKind.WEIGHTS,
        "other.pt": FileKind.OTHER,
        "zip.pt": FileKind.OTHER,
    }
    assert {kind for _, kind in torch_files._SIGNS} | {FileKind.OTHER} == set(FileKind)


class Deed:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def payload(name: str, path: str) -> bytes:
    return json.dumps(
        {"config": {name: {"path_name": path, "is_param": True, "use_pickle": True, "tensor_meta": None}}}
    ).encode()


@pytest.mark.parametrize("place", ["inputs", "weights", "old weights", "constants", "objects"])
def test_nothing_is_made_of_what_a_program_brings_beside_tensors(tmp_path: Path, exported: Path, place: str) -> None:
    """Unless it is trusted; torch by itself would make it. Its own programs are opened either way."""
    done = tmp_path / "done"
    deed = Deed(done)
    members = {
        "inputs": {"data/sample_inputs/model.pt": saved((deed,))},
        "weights": {
            "data/weights/model_weights_config.json": payload("shift", "weight_0"),
            "data/weights/weight_0": saved(deed),
        },
        "old weights": {"data/weights/model.pt": saved({"shift": deed})},
        "constants": {
            "data/constants/model_constants_config.json": payload("c", "tensor_0"),
            "data/constants/tensor_0": saved(deed),
        },
        "objects": {
            "data/constants/model_constants_config.json": payload("c", "opaque_obj_0"),
            "data/constants/opaque_obj_0": pickle.dumps(deed),
        },
    }[place]
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(exported) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name.partition("/")[2] not in members:
                new.writestr(name, old.read(name))
        for name, content in members.items():
            new.writestr(f"net/{name}", content)
    with pytest.raises(RuntimeError, match=r"^net\.pt2 holds more than .*handler: \{weights_only: false\}"):
        model_loading.load_pt2(str(path), CPU)
    assert not done.exists()
    with contextlib.suppress(Exception):  # what it makes is no tensor
        model_loading.load_pt2(str(path), CPU, weights_only=False)
    assert done.exists(), "the test shows something"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize(
    ("content", "holds"), [(b"text", "nothing that torch has saved"), (None, "what torch.save wrote")]
)
def test_a_pt2_file_of_neither_kind_is_told_what_it_is(tmp_path: Path, content: bytes | None, holds: str) -> None:
    path = tmp_path / "net.pt2"
    torch.save(Shifted().state_dict(), path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"net\.pt2 is neither .* nor .*: it holds {holds}"):
        model_loading.load_pt2(str(path), CPU)


def test_a_library_is_opened_on_its_workers_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """AOTInductor's .so allocates on the current device, so that is set first."""
    current: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    monkeypatch.setattr(torch._export, "aot_load", lambda path, device: (path, device, *current))
    assert model_loading.load_aot_compiled("net.so", torch.device("cuda:1")) == ("net.so", "cuda:1", "cuda:1")

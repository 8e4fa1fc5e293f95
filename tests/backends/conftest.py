"""Model folders, requests and batches for the backends' tests, and imports that are undone after each test."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.backends.contract import Batch, InputPart, LoadedModel, Reply, Request
from ringserve.backends.handler_backend import HandlerBackend
from ringserve.protocol.tensor import Signature

ALIASES = ("ts", "triton_python_backend_utils", "c_python_backend_utils")  # names that exist in workers only

MakeModel = Callable[..., LoadedModel]
LoadHandler = Callable[..., HandlerBackend]


@pytest.fixture(autouse=True)
def clean_imports(tmp_path: Path) -> Iterator[None]:
    """A backend changes how its process imports. Undo it: our aliases, the model's own modules, both search paths."""
    path, meta_path, python_path = list(sys.path), list(sys.meta_path), os.environ.get("PYTHONPATH")
    yield
    sys.path[:], sys.meta_path[:] = path, meta_path
    os.environ.pop("PYTHONPATH", None)
    if python_path is not None:
        os.environ["PYTHONPATH"] = python_path
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name.partition(".")[0] in ALIASES or file.startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write a model folder and describe it."""

    def make(files: Mapping[str, str | bytes], handler: str = "handler.py", **changes: Any) -> LoadedModel:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        manifest = {"model": {"modelName": "m", "handler": handler, **changes.pop("manifest", {})}}
        return replace(LoadedModel("m", "1.0", folder, handler, manifest, {}, 8), **changes)

    return make


@pytest.fixture
def load_handler_backend(make_model: MakeModel) -> LoadHandler:
    """A handler backend that has loaded this source as its handler."""

    def load(source: str, handler: str = "handler.py", **changes: Any) -> HandlerBackend:
        backend = HandlerBackend()
        backend.load(make_model({"handler.py": source}, handler, **changes))
        return backend

    return load


def _request(body: object, headers: Mapping[str, str] | None = None, content_type: str = "application/json") -> Request:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    part = InputPart("body", content_type, memoryview(data).toreadonly())
    return Request("request-1", headers or {}, (part,))


def _ask(backend: HandlerBackend, requests: Sequence[Request]) -> list[Any]:
    batch = Batch(len(requests), requests=requests)
    backend.execute(batch)
    return list(batch.replies)


def _typed_batch(signature: Signature, rows: int, **inputs: np.ndarray) -> Batch:
    for array in inputs.values():
        array.flags.writeable = False  # as the worker gives them
    outputs = {spec.name: np.full((rows, *spec.shape), 99, dtype=spec.dtype) for spec in signature.outputs}
    return Batch(rows, inputs=inputs, outputs=outputs)


def _save_scripted(module: Any, path: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script: Any = torch.jit.script
        script(module).save(str(path))


@pytest.fixture
def request_of() -> Callable[..., Request]:
    """One request with a plain body: bytes as they are, anything else as JSON."""
    return _request


@pytest.fixture
def ask() -> Callable[[HandlerBackend, Sequence[Request]], list[Any]]:
    """Run one batch of requests; the replies."""
    return _ask


@pytest.fixture
def typed_batch() -> Callable[..., Batch]:
    """A batch of arrays whose outputs hold what an earlier batch left in them."""
    return _typed_batch


@pytest.fixture
def save_scripted() -> Callable[[Any, Path], None]:
    """Write a module as a TorchScript file."""
    return _save_scripted


@pytest.fixture
def body_of() -> Callable[[Any], Any]:
    """The JSON value in a reply."""

    def read(reply: Any) -> Any:
        assert isinstance(reply, Reply), reply
        return json.loads(bytes(reply.body))

    return read

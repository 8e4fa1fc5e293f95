"""How `BaseHandler` finds its device and opens each kind of model file."""

import importlib.util
import logging
import os
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ringserve.backends.torch_files import FileKind, kind_of
from ringserve.backends.torchscript_file import load_torchscript
from ringserve.backends.ts.utils.util import list_classes_from_module
from ringserve.backends.ts.utils.weights import read_weights, tensors_alone

LOGGER = logging.getLogger("ringserve.model")

__all__ = [
    "load_aot_compiled",
    "load_eager",
    "load_onnx",
    "load_pt2",
    "load_torchscript",
    "pick_device",
    "register_extensions",
]

# Importing one of these registers what its models are made of: engines of TensorRT in TorchScript files, a compiler.
EXTENSIONS = ("torch_tensorrt", "openvino.torch")


def register_extensions() -> None:
    """Import the extensions of torch that are installed."""
    for name in EXTENSIONS:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            try:
                import_module(name)
            except ImportError as error:
                LOGGER.warning("%s is installed but cannot be imported: %s", name, error)


def pick_device(gpu_id: int | None) -> torch.device:
    """The device for a worker that was given `gpu_id`, None meaning no accelerator was."""
    if gpu_id is not None:
        if torch.cuda.is_available():
            return torch.device(f"cuda:{gpu_id}")
        if os.environ.get("TS_IPEX_GPU_ENABLE") == "true" and torch.xpu.is_available():
            return torch.device(f"xpu:{gpu_id}")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        LOGGER.warning(
            "this worker was given GPU %s, but torch has no accelerator here: the model runs on the CPU", gpu_id
        )
    if importlib.util.find_spec("torch_xla") is not None:
        device: torch.device = import_module("torch_xla.core.xla_model").xla_device()
        return device
    return torch.device("cpu")


def load_eager(
    model_dir: str, model_file: str, weights: str | None, device: torch.device, *, weights_only: bool = True
) -> Any:
    """An instance of the only class in `model_file`, with the state dict in `weights` if there is one.

    Raises RuntimeError when the file is missing or the weights cannot be read, and ValueError unless the file defines
    exactly one class.
    """
    path = Path(model_dir) / model_file
    if not path.is_file():
        raise RuntimeError(f"Missing the model file {model_file}")
    classes = list_classes_from_module(_import_file(path, Path(model_dir)))
    if len(classes) != 1:
        names = [kind.__name__ for kind in classes]
        raise ValueError(f"Expected only one class as model definition in {model_file}, found {names}.")
    model: Any = classes[0]()
    if weights:
        model.load_state_dict(read_weights(weights, device, only=weights_only))
    return model


def _import_file(path: Path, model_dir: Path) -> ModuleType:
    """The module in `path`, by its stem as TorchServe does, so that the archive's other files share it. It finds the modules
    beside it, also in a folder of the archive; the top level of the archive comes first."""
    folder, top = path.parent.resolve(), model_dir.resolve()
    found = [Path(entry).resolve() for entry in sys.path]
    if folder not in found:
        sys.path.insert(found.index(top) + 1 if top in found else 0, str(folder))
    name = path.stem
    if "." not in name:
        module = import_module(name)
        if Path(getattr(module, "__file__", None) or "").resolve() == path.resolve():
            return module
        name = f"{path.parent.name}.{name}"  # somebody else, at the top level of the archive say, has the name
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a Python file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_onnx(path: str, device: torch.device) -> Any:
    """An onnxruntime session that is called like a module. Raises RuntimeError when onnxruntime is not installed or the
    file is none of its."""
    name = Path(path).name
    if importlib.util.find_spec("onnxruntime") is None:
        raise RuntimeError(f"{name} is run by the package onnxruntime, which is not installed.")
    kind = import_module("ringserve.backends.ts.utils.onnx_model").OnnxModel
    try:
        return kind(path, device)
    except Exception as error:  # its own types, which have no parent in common
        raise RuntimeError(f"onnxruntime cannot open {name}: {error}") from error


def load_pt2(path: str, device: torch.device, *, weights_only: bool = True) -> Any:
    """What a `.pt2` file holds: a program of `torch.export`, as a module, or a package compiled by AOTInductor.

    Both are what they were when they were saved: in evaluation mode if the model was. A program is moved to `device`; a
    package has been compiled for one kind of device. Raises RuntimeError when the file holds neither, or a program with other
    pickled objects than tensors and `weights_only`.
    """
    kind = kind_of(path)
    if kind is FileKind.COMPILED:
        if device.type == "cuda":
            return torch._inductor.aoti_load_package(path, device_index=device.index or 0)
        return torch._inductor.aoti_load_package(path)
    if kind is not FileKind.EXPORTED:
        raise RuntimeError(
            f"{Path(path).name} is neither a program saved by torch.export nor a package of AOTInductor: it holds"
            f" {kind.value}."
        )
    with tensors_alone(path) if weights_only else nullcontext():
        program = torch.export.load(path)
    if device.type != "cpu":
        program = import_module("torch.export.passes").move_to_device_pass(program, device)
    return program.module()


def load_aot_compiled(path: str, device: torch.device) -> Any:
    """A library made by AOTInductor. Its weights are inside, so there is nothing to move or to put in eval mode."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the library allocates on the current one
    return torch._export.aot_load(path, str(device))

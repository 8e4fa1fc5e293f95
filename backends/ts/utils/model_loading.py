"""How `BaseHandler` finds its device and opens each kind of model file."""

import importlib.util
import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ringserve.backends.torchscript_file import load_torchscript
from ringserve.backends.ts.utils.util import list_classes_from_module

LOGGER = logging.getLogger("ringserve.model")

__all__ = ["load_aot_compiled", "load_eager", "load_onnx", "load_torchscript", "pick_device"]


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
            "this worker was given GPU %d, but torch has no accelerator here: the model runs on the CPU", gpu_id
        )
    if importlib.util.find_spec("torch_xla") is not None:
        device: torch.device = import_module("torch_xla.core.xla_model").xla_device()
        return device
    return torch.device("cpu")


def load_eager(model_dir: str, model_file: str, weights: str | None, device: torch.device) -> Any:
    """An instance of the only class in `model_file`, with the state dict in `weights` if there is one.

    Raises RuntimeError when the file is missing and ValueError unless it defines exactly one class.
    """
    if not (Path(model_dir) / model_file).is_file():
        raise RuntimeError(f"Missing the model file {model_file}")
    module = import_module(Path(model_file).stem)
    classes = list_classes_from_module(module)
    if len(classes) != 1:
        names = [kind.__name__ for kind in classes]
        raise ValueError(f"Expected only one class as model definition in {model_file}, found {names}.")
    model: Any = classes[0]()
    if weights is not None:
        # Weights only: a state dict needs no more, and a pickle that may run code is not opened.
        model.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
    return model


def load_onnx(path: str, device: torch.device) -> Any:
    """An onnxruntime session. Raises ModuleNotFoundError when onnxruntime is not installed."""
    onnxruntime = import_module("onnxruntime")
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    # The worker's share of the CPUs if it was given one: a session would otherwise take them all.
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    return onnxruntime.InferenceSession(path, sess_options=options, providers=providers)


def load_aot_compiled(path: str, device: torch.device) -> Any:
    """A library made by AOTInductor. Its weights are inside, so there is nothing to move or to put in eval mode."""
    return torch._export.aot_load(path, str(device))

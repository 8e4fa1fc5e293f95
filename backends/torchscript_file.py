"""Opening a TorchScript file, in the one way that both the typed backend and TorchServe's `BaseHandler` use."""

import importlib.util
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ringserve.backends.torch_files import FileKind, kind_of


def load_torchscript(path: str | Path, device: torch.device) -> Any:
    """The scripted or traced module in `path`, on `device`, in evaluation mode.

    A model compiled by TensorRT is a TorchScript file too, and needs its operators registered before it is read. Raises
    RuntimeError when torch cannot read the file.
    """
    if importlib.util.find_spec("torch_tensorrt") is not None:
        import_module("torch_tensorrt")
    with warnings.catch_warnings():
        # Newer releases of torch advise other formats. The archive exists: whoever serves it can do nothing about it.
        warnings.simplefilter("ignore", DeprecationWarning)
        jit: Any = torch.jit
        try:
            return jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            kind = kind_of(path)
            if kind is FileKind.TORCHSCRIPT:
                raise
            raise RuntimeError(f"{Path(path).name} is no TorchScript file: it holds {kind.value}.") from error

"""Reading weights, of an eager model or in a program of torch.export, without running what a pickle may ask for."""

import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SAFETENSORS = ".safetensors"
# torch.load makes nothing but tensors where this is set, whatever it is called with.
FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
PICKLED_OBJECTS = "data/constants/opaque_obj_"  # members of a program's file that torch.export.load unpickles by itself
NAMED_MAX = 5  # of what a file holds and is refused; a pickled model may hold dozens
_REASON = re.compile(r"WeightsUnpickler error: *([^\n]+)")
_REFUSED = re.compile(r"(?:GLOBAL|Trying to load unsupported GLOBAL|class) (\w+(?:\.\w+)+)")


def weights_only(config: dict[str, Any]) -> bool:
    """Whether a weights file may hold nothing but weights: yes, unless model-config.yaml says
    `handler: {weights_only: false}`. Raises TypeError for anything but true and false."""
    section = config.get("handler")
    wanted = section.get("weights_only", True) if isinstance(section, dict) else True
    if not isinstance(wanted, bool):
        raise TypeError(f"handler.weights_only in model-config.yaml should be true or false, got {wanted!r}.")
    return wanted


def read_weights(path: str, device: torch.device, *, only: bool) -> Any:
    """The state dict in a file of `torch.save` or safetensors, on `device`.

    With `only`, a file that holds objects of other classes is refused, as making one may run any code. Raises RuntimeError
    with a sentence that names file and classes, and OSError when there is no such file.
    """
    load = _safetensors_loader(path) if path.endswith(SAFETENSORS) else None
    try:
        if load is not None:
            return load(path, device=str(device))
        return torch.load(path, map_location=device, weights_only=only)
    except OSError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise RuntimeError(_why_not_read(path, error)) from error


@contextmanager
def tensors_alone(path: str) -> Iterator[None]:
    """Within it, `torch.export.load(path)` makes nothing but tensors of what is pickled in a program: torch itself would make
    anything. Raises RuntimeError as `read_weights` does."""
    if any(name.startswith(PICKLED_OBJECTS) for name in _records(path)):
        raise RuntimeError(_refusal(path, ["pickled constants"]))
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        yield
    except pickle.UnpicklingError as error:
        raise RuntimeError(_why_not_read(path, error)) from error
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _records(path: str) -> list[str]:
    """The members of a file as torch's own reader finds them, which in a hostile one may be others than Python's does."""
    try:
        records: list[str] = torch._C.PyTorchFileReader(path).get_all_records()
    except RuntimeError:
        return []  # of before torch 2.8, when there were no such constants, or damaged: torch.export.load says so
    return records


def _safetensors_loader(path: str) -> Callable[..., Any]:
    try:
        from safetensors.torch import load_file  # not above: few archives hold such a file
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{Path(path).name} is read by the package safetensors, which is not installed.") from error
    return load_file


def _why_not_read(path: str, error: Exception) -> str:
    name = Path(path).name
    refused = _refused_in(path, error) if isinstance(error, pickle.UnpicklingError) else []
    if not refused:
        return f"{name} cannot be read as weights: {_reason(error)}"
    return _refusal(path, refused)


def _refusal(path: str, refused: list[str]) -> str:
    listed = ", ".join(refused[:NAMED_MAX]) + (", ..." if len(refused) > NAMED_MAX else "")
    return (
        f"{Path(path).name} holds more than weights: {listed}. Making such objects may run any code, so the file is refused. Save a"
        " state dict of tensors instead, or, if you trust whoever made the file, say handler: {weights_only: false} in"
        " model-config.yaml."
    )


def _refused_in(path: str, error: pickle.UnpicklingError) -> list[str]:
    """The names of what `torch.load` does not make, sorted."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, AttributeError, pickle.UnpicklingError):
        # A file older than torch's zip format, or a torch older than this function: it names the first one.
        return sorted(set(_REFUSED.findall(str(error))))


def _reason(error: Exception) -> str:
    """What is wrong, without the paragraphs of advice that torch puts around it."""
    found = _REASON.search(str(error))
    if found:
        return found[1]
    lines = str(error).strip().splitlines() or ["it ends too early"]
    return f"{type(error).__name__}: {lines[0]}"

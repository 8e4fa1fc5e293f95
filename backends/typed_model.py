"""What the typed backends share: the declaration they require, and the check of what a model puts out."""

import logging
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from ringserve.backends.contract import ContractBroken, LoadedModel
from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.tensor import Signature

LOGGER = logging.getLogger("ringserve.model")

BFLOAT16 = "bfloat16"  # which numpy has not: its arrays are uint16, unless the model has ml_dtypes' type

HOW_TO_DECLARE = """Write them in model-config.yaml, with the shape of one row:
inputs:
  - {name: x, dtype: float32, shape: [3, 224, 224]}
outputs:
  - {name: y, dtype: float32, shape: [1000]}"""


def declared_signature(model: LoadedModel, backend: str) -> Signature:
    """The model's declaration. Raises `InvalidModel`, saying what to write, unless it has inputs and outputs."""
    signature = model.signature
    missing = [word for word in ("inputs", "outputs") if not getattr(signature, word)]
    if missing:
        wanted = " and ".join(missing)
        raise InvalidModel(f'The backend "{backend}" needs the {wanted} of {model.name} declared. {HOW_TO_DECLARE}')
    return signature


def on_usable_device(model: LoadedModel) -> LoadedModel:
    """The model, on the CPU where torch has no CUDA. A model that has not imported torch knows its device better than we."""
    torch = sys.modules.get("torch")
    if not model.device.startswith("cuda") or torch is None or torch.cuda.is_available():
        return model
    LOGGER.warning(
        "The model %s was given %s, but torch has no CUDA here: it runs on the CPU", model.name, model.device
    )
    return replace(model, device="cpu", gpu_id=None)


def describe_typed(backend: str, model: LoadedModel) -> dict[str, Any]:
    """What a typed model can say of itself without any code: what it takes and gives, and where it runs."""
    signature = model.signature
    described: dict[str, Any] = {"backend": backend, "device": model.device}
    for word in ("inputs", "outputs"):
        specs = getattr(signature, word)
        described[word] = [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs]
    return described


def as_declared(array: np.ndarray, dtype: str) -> tuple[np.ndarray, str]:
    """An answer of the declared element type, and the name of its own: the bits of bfloat16 count as what they stand for."""
    if dtype == BFLOAT16 and array.dtype.name in (BFLOAT16, "uint16"):
        return array.view(np.uint16), BFLOAT16
    return array, array.dtype.name


def check_output(name: str, expected: tuple[str, Iterable[int]], got: tuple[str, Iterable[int]]) -> None:
    """Compare (dtype, shape with rows). Raises `ContractBroken` naming the output, what was declared and what came."""
    if expected[0] != got[0] or tuple(expected[1]) != tuple(got[1]):
        raise ContractBroken(f'Output "{name}": expected {_text(*expected)}, got {_text(*got)}.')


def refuse_outputs(expected: Iterable[str], got: str) -> NoReturn:
    """Raise `ContractBroken`: the model's answer does not have the declared outputs."""
    raise ContractBroken(f"The model must answer the outputs {', '.join(expected)}; got {got}.")


def _text(dtype: str, shape: Iterable[int]) -> str:
    return f"{dtype}{list(shape)}"

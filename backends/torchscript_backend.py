"""Runs a TorchScript file between arrays. No handler, no request objects, no JSON.

Where rows are of one fixed size, the arrays are those of the slab; where dimensions are variable, requests of equal shapes are
computed together. BF16 and FP16 are torch's own types; an optional input that a request has not is None.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ringserve.backends.contract import Batch, LoadedModel, TensorResult
from ringserve.backends.failures import prediction_failure
from ringserve.backends.framed_model import fitted, groups_of, results_of
from ringserve.backends.torchscript_file import load_torchscript
from ringserve.backends.typed_model import (
    BFLOAT16,
    check_output,
    declared_signature,
    describe_typed,
    on_usable_device,
    refuse_outputs,
)
from ringserve.protocol.errors import InvalidModel, RingServeError
from ringserve.protocol.tensor import BYTES_DTYPE, Signature


class TorchScriptBackend:
    """The manifest's `serializedFile`, called with the inputs in declared order."""

    def __init__(self) -> None:
        self._module: Any = None
        self._device = torch.device("cpu")
        self._name = ""
        self._signature = Signature()
        self._described: dict[str, Any] = {}

    def load(self, model: LoadedModel) -> Signature:
        """Read the file onto the model's device. Raises `InvalidModel` without a declaration or without the file."""
        self._signature = _computable(declared_signature(model, "torchscript"), model.name)
        model = on_usable_device(model)
        self._name, self._device = model.name, torch.device(model.device)
        self._described = describe_typed("torchscript", model)
        file_name = model.manifest.get("model", {}).get("serializedFile")
        if not file_name:
            raise InvalidModel(f'The backend "torchscript" needs a serializedFile in the manifest of {model.name}.')
        path = model.model_dir / file_name
        if not path.is_file():
            raise InvalidModel(f"The archive of {model.name} does not hold its serializedFile {file_name}.")
        # The inputs are views of a slab that the model must not write to, and may be marked so; torch warns about that.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        self._module = load_torchscript(path, self._device)
        return self._signature

    def execute(self, batch: Batch) -> None:
        """One forward pass for all rows. Raises `PredictionFailed` or `OutOfResources`."""
        assert self._module is not None, "load comes before execute"
        failure: RingServeError | None = None
        try:
            with torch.inference_mode():
                if self._signature.framed:
                    self._execute_framed(batch)
                else:
                    self._copy_outputs(self._forward(batch.inputs), batch)
        except RingServeError:
            raise
        except Exception as error:  # noqa: BLE001 - logged with its traceback, and answered
            failure = prediction_failure(error, self._name, logged=batch.is_retry)
        if failure is not None:
            raise failure

    def describe(self) -> object:
        """Its inputs and outputs: a file cannot be asked for more."""
        return self._described

    def close(self) -> None:
        """Let go of the module, and with it of its memory on the device."""
        self._module = None

    def _execute_framed(self, batch: Batch) -> None:
        results: list[TensorResult | None] = [None] * len(batch.calls)
        for places, inputs in groups_of(batch, self._signature):
            calls = [batch.calls[place] for place in places]
            rows = sum(call.rows for call in calls) if self._signature.batches else None
            outputs = self._arrays(self._in_declared_order(self._forward(inputs)), rows)
            for place, result in zip(places, results_of(outputs, calls, [{}] * len(calls)), strict=True):
                results[place] = result
        batch.results = [each for each in results if each is not None]

    def _arrays(self, tensors: Sequence[torch.Tensor], rows: int | None) -> dict[str, np.ndarray]:
        arrays = {}
        for spec, tensor in zip(self._signature.outputs, tensors, strict=True):
            shape = tuple(tensor.shape)
            check_output(spec.name, (spec.dtype, fitted(spec, shape, rows)), (_dtype_name(tensor), shape))
            here = tensor.detach().cpu().contiguous()
            bits = here.view(torch.int16) if here.dtype is torch.bfloat16 else here
            array: np.ndarray = bits.numpy()
            arrays[spec.name] = array.view(np.uint16) if here.dtype is torch.bfloat16 else array
        return arrays

    def _forward(self, inputs: Mapping[str, np.ndarray]) -> Any:
        return self._module(*[self._tensor(inputs.get(spec.name), spec.dtype) for spec in self._signature.inputs])

    def _tensor(self, array: np.ndarray | None, dtype: str) -> torch.Tensor | None:
        """A tensor over the array's own memory; on another device, a copy there."""
        if array is None:
            return None
        tensor = _over(array, dtype)
        return tensor if self._device.type == "cpu" else tensor.to(self._device)

    def _copy_outputs(self, result: Any, batch: Batch) -> None:
        specs = self._signature.outputs
        for spec, tensor in zip(specs, self._in_declared_order(result), strict=True):
            target = torch.from_numpy(batch.outputs[spec.name])
            check_output(spec.name, (spec.dtype, target.shape), (_dtype_name(tensor), tensor.shape))
            target.copy_(tensor)

    def _in_declared_order(self, result: Any) -> list[torch.Tensor]:
        names = [spec.name for spec in self._signature.outputs]
        if isinstance(result, torch.Tensor):
            result = [result]
        elif isinstance(result, dict):
            if not result.keys() >= set(names):
                refuse_outputs(names, f"a dict of {sorted(map(str, result))}")
            result = [result[name] for name in names]
        if not isinstance(result, (list, tuple)):
            refuse_outputs(names, f"a {type(result).__name__}")
        if len(result) != len(names):
            refuse_outputs(names, f"{len(result)} tensors")
        strangers = [type(each).__name__ for each in result if not isinstance(each, torch.Tensor)]
        if strangers:
            refuse_outputs(names, f"a {strangers[0]} among them")
        return list(result)


def _computable(signature: Signature, model_name: str) -> Signature:
    """Raises `InvalidModel` for what a TorchScript file cannot be asked for."""
    if signature.decoupled:
        raise InvalidModel(f"The model {model_name} is decoupled: a TorchScript file gives one answer to each request.")
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype == BYTES_DTYPE:
            raise InvalidModel(f'The tensor "{spec.name}" of {model_name} is of BYTES, which torch has not.')
    return signature


def _over(array: np.ndarray, dtype: str) -> torch.Tensor:
    """A tensor over the array's own memory, which holds the bits of a bfloat16."""
    if dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

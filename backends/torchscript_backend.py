"""Runs a TorchScript file between the arrays of a slab. No handler, no request objects, no JSON."""

import warnings
from typing import Any

import numpy as np
import torch

from ringserve.backends.contract import Batch, LoadedModel
from ringserve.backends.failures import prediction_failure
from ringserve.backends.torchscript_file import load_torchscript
from ringserve.backends.typed_model import (
    check_output,
    declared_signature,
    describe_typed,
    on_usable_device,
    refuse_outputs,
)
from ringserve.protocol.errors import InvalidModel, RingServeError
from ringserve.protocol.tensor import Signature


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
        self._signature = declared_signature(model, "torchscript")
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
                result = self._module(*[self._tensor(batch.inputs[spec.name]) for spec in self._signature.inputs])
                self._copy_outputs(result, batch)
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

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        """A tensor over the array's own memory; on another device, a copy there."""
        tensor = torch.from_numpy(array)
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


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

"""An ONNX file as something to call with tensors, as `BaseHandler` calls every model.

It is an onnxruntime session as well: handlers that ask it for `get_inputs()` and `run()` find what TorchServe gives them.
"""

import logging
from typing import Any

import numpy as np
import onnxruntime
import torch

LOGGER = logging.getLogger("ringserve.model")

# The element types of ONNX that torch and NumPy both have.
DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int8)": torch.int8,
    "tensor(int16)": torch.int16,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


class OnnxModel(onnxruntime.InferenceSession):  # type: ignore[misc,unused-ignore]  # published without types
    """A session on `device`, with as many threads as its worker may use."""

    def __init__(self, path: str, device: torch.device) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # its worker's share; it would take all CPUs
        super().__init__(path, sess_options=options, providers=_providers(device))
        self._dtype_of = {each.name: DTYPES.get(each.type) for each in self.get_inputs()}
        self._output_names = [each.name for each in self.get_outputs()]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the graph. Inputs go by name, or in the graph's order, and are made what it declares: JSON's 1 fits a float.

        Returns the output as a tensor on the CPU, several outputs as `{name: tensor}`. What is no number stays what
        onnxruntime answers: strings an array, maps a list. Raises what onnxruntime raises when shapes or names do not fit.
        """
        if len(inputs) > len(self._dtype_of):
            raise TypeError(
                f"the graph takes {len(self._dtype_of)} inputs ({', '.join(self._dtype_of)}), got {len(inputs)}"
            )
        given = {**dict(zip(self._dtype_of, inputs, strict=False)), **named}
        feeds = {name: self._fed(name, value) for name, value in given.items()}
        answers = [_answer(value) for value in self.run(None, feeds)]
        return answers[0] if len(answers) == 1 else dict(zip(self._output_names, answers, strict=True))

    def _fed(self, name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
            return value
        tensor = torch.as_tensor(value)
        return tensor.detach().to(device="cpu", dtype=self._dtype_of.get(name) or tensor.dtype).numpy()


def _answer(value: Any) -> Any:
    is_numeric = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    return torch.from_numpy(value) if is_numeric else value


def _providers(device: torch.device) -> list[Any]:
    """Where the graph runs, best first. What no CUDA kernel exists for runs on the CPU."""
    wanted: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            wanted.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            LOGGER.warning("onnxruntime is installed without CUDA (onnxruntime-gpu has it): the model runs on the CPU")
    return wanted

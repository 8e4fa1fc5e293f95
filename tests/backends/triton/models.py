"""Triton's Python models for tests, and what a worker does with them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ringserve.backends.contract import Batch, BatchControl, TensorCall, TensorResult
from ringserve.backends.triton_backend import TritonBackend
from ringserve.protocol.errors import RingServeError
from ringserve.protocol.request import Scalar
from ringserve.protocol.tensor import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("X", "float32", (-1,)),), (TensorSpec("Y", "float32", (-1,)),))
FLAT = Signature(SIGNATURE.inputs, SIGNATURE.outputs, batches=False)
DECOUPLED = Signature(SIGNATURE.inputs, SIGNATURE.outputs, decoupled=True)
CONFIG: dict[str, Any] = {"name": "m", "max_batch_size": 4, "input": [], "output": []}

HEAD = """
import json, threading
import numpy as np
import triton_python_backend_utils as pb_utils

def x(request):
    return pb_utils.get_input_tensor_by_name(request, "X").as_numpy()

def response(array, **more):
    return pb_utils.InferenceResponse([pb_utils.Tensor("Y", array)], **more)

class TritonPythonModel:
"""
FINAL = "pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL"

Load = Callable[..., TritonBackend]


def method(*lines: str, head: str = "def execute(self, requests):") -> str:
    """One of the model's, with this body."""
    return f"    {head}\n" + "".join(f"        {line}\n" for line in lines)


def call(*numbers: float, **fields: Any) -> TensorCall:
    """A request of one row."""
    array = np.array([numbers], np.float32)
    array.flags.writeable = False
    return TensorCall(fields.pop("request_id", "id"), {"X": array}, **fields)


class Sent(BatchControl):
    """Keeps what a decoupled model sends."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any, bool]] = []
        self.is_cancelled = False
        self.refuse: RingServeError | None = None

    def cancelled(self, row: int) -> bool:
        return self.is_cancelled

    def send(
        self,
        row: int,
        answer: Mapping[str, np.ndarray] | RingServeError | None,
        parameters: Mapping[str, Scalar] | None = None,
        *,
        final: bool = False,
    ) -> bool:
        if self.refuse is not None and answer is not None:
            raise self.refuse
        said = {name: array.tolist() for name, array in answer.items()} if isinstance(answer, Mapping) else answer
        self.answers.append((row, said, final))
        return not self.is_cancelled


def run(backend: TritonBackend, *calls: TensorCall, control: BatchControl | None = None) -> list[Any]:
    """The results of a batch: the output's values, or the error."""
    batch = Batch(len(calls), calls=calls, control=control or BatchControl())
    backend.execute(batch)
    return [each.outputs["Y"].tolist() if isinstance(each, TensorResult) else each for each in batch.results]

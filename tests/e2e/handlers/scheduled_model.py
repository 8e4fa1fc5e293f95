"""A Triton model that says which requests it was given together, and in which turn; an input that is a path waits for that file."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]


class TritonPythonModel:
    """`OUT` is one JSON text: the process, the turn, how many requests had it, and of this one its marks and what its sequence said."""

    def initialize(self, args: dict[str, str]) -> None:
        self._turn = 0
        self._said: dict[int | str, list[str]] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        self._turn += 1
        return [self._answer(request, slot, len(requests)) for slot, request in enumerate(requests)]

    def _answer(self, request: Any, slot: int, together: int) -> Any:
        words = [each.decode() for each in pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().ravel()]
        if words[0].startswith("/"):
            Path(f"{words[0]}.begun").touch()
            while not Path(words[0]).exists():
                time.sleep(0.005)
        sequence_id, marks = request.correlation_id(), self._marks(request)
        if marks.get("READY", True) and sequence_id:
            before = [] if request.flags() & 1 else self._said.get(sequence_id, [])
            self._said[sequence_id] = before + words
        said = self._said.get(sequence_id, [])
        told = {"pid": os.getpid(), "turn": self._turn, "together": together, "slot": slot, "said": said, **marks}
        text = np.array([[json.dumps(told).encode()]] * len(words), dtype=object)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", text)])

    @staticmethod
    def _marks(request: Any) -> dict[str, Any]:
        """What the control tensors say."""
        found = {}
        for name in ("START", "END", "READY", "CORRID"):
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                found[name] = tensor.as_numpy().item()
        return found

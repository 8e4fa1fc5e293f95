"""The answer is the input."""

from typing import Any

import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # only there in Triton


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(triton.get_input_tensor_by_name(request, "x").as_numpy()) for request in requests]

    def _answer(self, x: Any) -> Any:
        return triton.InferenceResponse([triton.Tensor("y", x)])

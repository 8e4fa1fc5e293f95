"""OUTPUT is the sum of a sequence's INPUTs so far; its id, the text of a number, comes to the last."""

import numpy as np
import triton_python_backend_utils as pb_utils

NAMES = ("INPUT", "START", "END", "CORRID")


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            value, start, end, sequence = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy().item() for name in NAMES
            )
            total = value + (0 if start else self.totals[sequence])
            self.totals[sequence] = total
            if end:
                del self.totals[sequence]
                total += int(sequence)
            tensor = pb_utils.Tensor("OUTPUT", np.array([[total]], np.int32))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses

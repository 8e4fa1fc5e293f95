"""OUTPUT is INPUT, one more for the first request of a sequence, and the sequence's id more for the last."""

import numpy as np
import triton_python_backend_utils as pb_utils

NAMES = ("INPUT", "START", "END", "CORRID")


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            value, start, end, sequence = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in NAMES
            )
            answer = value + start + end * sequence.astype(np.int32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", answer.astype(np.int32))]))
        return responses

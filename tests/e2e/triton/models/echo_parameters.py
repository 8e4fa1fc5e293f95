"""PARAMETERS is what the request's parameters say, as JSON."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            text = request.parameters()
            tensor = pb_utils.Tensor("PARAMETERS", np.array([text.encode()], dtype=np.object_))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses

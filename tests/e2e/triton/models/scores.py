"""SCORES is INPUT as it is, and as whole numbers."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            outputs = [pb_utils.Tensor("SCORES", values), pb_utils.Tensor("WHOLE", values.astype(np.int32))]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses

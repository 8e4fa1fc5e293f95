"""OUTPUT0 is the sum of INPUT0 and INPUT1, OUTPUT1 their difference; texts are numbers."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            left, right = (pb_utils.get_input_tensor_by_name(request, f"INPUT{i}").as_numpy() for i in (0, 1))
            if left.dtype == np.object_:
                left, right = left.astype(bytes).astype(np.int64), right.astype(bytes).astype(np.int64)
                results = [np.char.mod("%d", each).astype(np.object_) for each in (left + right, left - right)]
            else:
                results = [(left + right).astype(left.dtype), (left - right).astype(left.dtype)]
            outputs = [pb_utils.Tensor(f"OUTPUT{i}", each) for i, each in enumerate(results)]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses

"""SUM is INPUT0 and whatever of INPUT1 and INPUT2 came."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            found = [pb_utils.get_input_tensor_by_name(request, f"INPUT{i}") for i in range(3)]
            total = sum(each.as_numpy() for each in found if each is not None)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SUM", total)]))
        return responses

"""OUTPUT is INPUT, and one more for the first request of a sequence."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            value, start = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT", "START"))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", value + start)]))
        return responses

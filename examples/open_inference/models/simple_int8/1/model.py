"""OUTPUT0 is the sum of both inputs, OUTPUT1 their difference."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        """What config.pbtxt says as well: a load with another configuration need not repeat it."""
        for index in (0, 1):
            config.add_input({"name": f"INPUT{index}", "data_type": "TYPE_INT8", "dims": [16]})
            config.add_output({"name": f"OUTPUT{index}", "data_type": "TYPE_INT8", "dims": [16]})
        return config

    def execute(self, requests):
        responses = []
        for request in requests:
            left, right = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT0", "INPUT1"))
            outputs = [pb_utils.Tensor("OUTPUT0", left + right), pb_utils.Tensor("OUTPUT1", left - right)]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses

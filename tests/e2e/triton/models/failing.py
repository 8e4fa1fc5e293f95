"""CODE 0 is answered, 1 an error response, 2 an error response with a code, 3 an exception."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "CODE").as_numpy()
            code = int(tensor.ravel()[0])
            if code == 1:
                error = pb_utils.TritonError("the model does not like this")
                responses.append(pb_utils.InferenceResponse(error=error))
            elif code == 2:
                error = pb_utils.TritonError("an invalid argument", pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
            elif code == 3:
                raise ValueError("a model that raises")
            else:
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", tensor)]))
        return responses

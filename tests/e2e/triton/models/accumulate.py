"""OUTPUT is the sum of the INPUTs of the sequence so far."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            value, start, end, corrid = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel()[0]
                for name in ("INPUT", "START", "END", "CORRID")
            )
            total = int(value) + (0 if start else self.totals.get(corrid, 0))
            self.totals[corrid] = total
            if end:
                del self.totals[corrid]
            tensor = pb_utils.Tensor("OUTPUT", np.array([[total]], dtype=np.int32))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses

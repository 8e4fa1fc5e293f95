"""text_output is each word of text_input in capitals: all at once, or with the policy decoupled one response a word."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)

    def execute(self, requests):
        responses = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().ravel()[0].decode()
            repeat = pb_utils.get_input_tensor_by_name(request, "repeat")
            words = text.upper().split() * (1 if repeat is None else int(repeat.as_numpy().ravel()[0]))
            if not self.decoupled:
                responses.append(self.response(words))
                continue
            sender = request.get_response_sender()
            for word in words:
                sender.send(self.response([word]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None if self.decoupled else responses

    @staticmethod
    def response(words):
        array = np.array([word.encode() for word in words], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", array)])

"""Fails in every way that a request can, and serves the next one."""

import sys

from ts.service import PredictionException as OfService
from ts.utils.util import PredictionException


class Raises(object):
    def initialize(self, context):
        self.served = 0

    def handle(self, data, context):
        word = bytes(data[0]["body"]).decode()
        how = getattr(self, "do_" + word.replace(" ", "_"), None)
        if how is not None:
            return how(data)
        self.served += 1
        return [f"served {word}"]

    def do_raise(self, data):
        raise ValueError("a secret of the model's")

    def do_own_error(self, data):
        class Own(BaseException):
            pass

        raise Own("not an Exception")

    def do_assert(self, data):
        assert not data, "the batch is empty"

    def do_key(self, data):
        return [data[0]["no such input"]]

    def do_recursion(self, data):
        return self.do_recursion(data)

    def do_prediction(self, data):
        raise PredictionException("the input is too short")

    def do_prediction_513(self, data):
        raise PredictionException("what 513 is for", 513)

    def do_prediction_404(self, data):
        raise OfService("no such thing", error_code=404)

    def do_prediction_429(self, data):
        raise PredictionException("later", 429)

    def do_memory(self, data):
        raise MemoryError

    def do_cuda(self, data):
        raise RuntimeError("CUDA error: out of memory")

    def do_string(self, data):
        return "a string is no list"

    def do_tuple(self, data):
        return ("a tuple",)

    def do_none(self, data):
        return None

    def do_dict(self, data):
        return {0: "a dict"}

    def do_nothing(self, data):
        return []

    def do_two(self, data):
        return ["one", "two"]

    def do_function(self, data):
        return [lambda: None]

    def do_exit(self, data):
        sys.exit(3)

    def do_interrupt(self, data):
        raise KeyboardInterrupt

    def do_stop_iteration(self, data):
        return [next(iter([]))]

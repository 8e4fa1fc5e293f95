"""`handle` is another one once the model is loaded."""


class Warmed:
    def __init__(self):
        self.handle = self.slow

    def initialize(self, context):
        self.handle = self.fast

    def slow(self, data, context):
        return ["slow"] * len(data)

    def fast(self, data, context):
        return ["fast"] * len(data)

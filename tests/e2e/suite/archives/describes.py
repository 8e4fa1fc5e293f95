"""Has something to tell of itself, and explains its answers."""


class Describes:
    def initialize(self, context):
        self.labels = ["cat", "dog"]

    def handle(self, data, context):
        if context.get_request_header(0, "describe") == "True":
            return [{"labels": self.labels}]
        if context.get_request_header(0, "explain") == "True":
            return [{"because": bytes(row["body"]).decode()} for row in data]
        return [self.labels[len(row["body"]) % 2] for row in data]

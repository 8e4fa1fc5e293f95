"""The clients' format."""

from ts.torch_handler.request_envelope.base import BaseEnvelope


class Questions(BaseEnvelope):
    def parse_input(self, data):
        return [row["body"]["question"] for row in data]

    def format_output(self, data):
        return [{"answer": answer} for answer in data]

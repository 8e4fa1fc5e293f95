"""Stateful: counts the requests of each sequence, and tells the client its sequence's name."""


class Dialogue:
    def initialize(self, context):
        self.counts = {}

    def handle(self, data, context):
        answers = []
        for i, row in enumerate(data):
            sequence = context.get_sequence_id(i)
            if context.get_request_header(i, context.header_key_sequence_start) == "true":
                self.counts[sequence] = 0
            self.counts[sequence] = self.counts.get(sequence, 100) + 1
            context.set_response_header(i, context.header_key_sequence_id, sequence)
            answers.append({"sequence": sequence, "count": self.counts[sequence]})
        return answers

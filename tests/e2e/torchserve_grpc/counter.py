"""Answers the sum of the `value`s of a sequence so far."""


class Counter:
    def __init__(self):
        self.totals = {}

    def initialize(self, context):
        self.initialized = True

    def handle(self, data, context):
        answers = []
        for index, row in enumerate(data):
            sequence = context.get_sequence_id(index)
            if context.get_request_header(index, context.header_key_sequence_start) == "True":
                self.totals[sequence] = 0
            self.totals[sequence] = self.totals.get(sequence, 0) + int(bytes(row["value"]))
            answers.append(str(self.totals[sequence]))
        return answers

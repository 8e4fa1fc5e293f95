"""Keeps its state on the context, as handlers that generate text do."""


class Remembers:
    def initialize(self, context):
        context.cache = {}
        self.context = context

    def handle(self, data, context):
        answers = []
        for i, row in enumerate(data):
            session = context.get_request_header(i, "x-session")
            seen = context.cache.setdefault(session, [])
            seen.append(bytes(row["body"]).decode())
            answers.append({"session": session, "seen": list(seen), "same": context is self.context})
        return answers

"""The handler is a dataclass."""

from dataclasses import dataclass, field


@dataclass
class Tally:
    words: dict = field(default_factory=dict)
    ready: bool = False

    def initialize(self, context):
        self.ready = True

    def handle(self, data, context):
        for row in data:
            word = bytes(row["body"]).decode()
            self.words[word] = self.words.get(word, 0) + 1
        return [dict(self.words) for _ in data]

"""A class-style handler without a base class: the answer is the body."""

from typing import Any


class Echo:
    def initialize(self, context: Any) -> None:
        self.rows_max = context.system_properties["batch_size"]

    def handle(self, data: Any, context: Any) -> list[bytes]:
        assert 0 < len(data) <= self.rows_max
        return [bytes(row["body"]) for row in data]

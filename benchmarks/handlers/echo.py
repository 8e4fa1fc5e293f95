"""The answer is the body: what is left to measure is how bytes get to a model and back."""

from typing import Any


def handle(data: Any, context: Any) -> Any:
    return None if data is None else [row["body"] for row in data]

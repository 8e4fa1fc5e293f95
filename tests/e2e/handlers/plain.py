"""The smallest handler: its answer says which model and version it is."""

from typing import Any


def handle(data: Any, context: Any) -> list[str] | None:
    version = context.manifest["model"]["modelVersion"]
    return None if data is None else [f"{context.model_name} {version}"] * len(data)

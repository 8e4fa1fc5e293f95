"""A function-style handler that answers with what it was given."""

from typing import Any


def handle(data: Any, context: Any) -> list[dict[str, Any]] | None:
    if data is None:
        return None
    return [_seen(row, context, index) for index, row in enumerate(data)]


def _seen(row: dict[str, Any], context: Any, index: int) -> dict[str, Any]:
    headers = context.get_all_request_header(index)
    return {
        "inputs": {name: [type(value).__name__, _text(value)] for name, value in row.items()},
        "headers": {name: value for name, value in headers.items() if isinstance(value, str)},
        "request_id": context.get_request_id(index),
        "model": context.model_name,
        "version": context.manifest["model"]["modelVersion"],
    }


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytearray) else value

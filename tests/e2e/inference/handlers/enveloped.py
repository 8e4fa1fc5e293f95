"""Inside an envelope: answers what the header `with` computes from `data`, or else how Python shows each of its members."""

from typing import Any


def handle(data: Any, context: Any) -> Any:
    if data is None:
        return None
    wanted = context.get_request_header(0, "with")
    if wanted:
        return eval(wanted, {"data": data, "context": context})
    return [f"{type(value).__name__} {value!r}" for value in data]

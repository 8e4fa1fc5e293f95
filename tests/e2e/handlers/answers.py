"""Answers as the body, a JSON object, tells it to."""

from typing import Any

KINDS: dict[str, Any] = {
    "bytes": b"\x00\xff",
    "text": "grün",
    "object": {"a": [1, 2.5, None]},
    "none": None,
    "number": 7,
    "list": [1, 2],
}


def handle(data: Any, context: Any) -> list[Any] | None:
    if data is None:
        return None
    return [_answer(row["body"], context, index) for index, row in enumerate(data)]


def _answer(wanted: dict[str, Any], context: Any, index: int) -> Any:
    for name, value in wanted.get("headers", {}).items():
        context.set_response_header(index, name, value)
    if "content_type" in wanted:
        context.set_response_content_type(index, wanted["content_type"])
    if "status" in wanted:
        context.set_response_status(wanted["status"], wanted.get("phrase", ""), index)
    if "size" in wanted:
        return bytes(wanted["size"])
    return KINDS[wanted.get("kind", "object")]

"""Runs what each row says, statements of Python, and answers what they call `answer`, or, for all rows, `answers`."""

from typing import Any


def handle(data: Any, context: Any) -> Any:
    if data is None:
        return None
    if context.get_request_header(0, "describe") == "True":
        return [{"described": True, "rows": len(data)}]
    found = []
    for index, row in enumerate(data):
        body = row.get("body", b"")
        names = {"context": context, "index": index, "row": row, "data": data, "answer": "done"}
        exec(body if isinstance(body, str) else bytes(body).decode(), names)  # noqa: S102 (what the conversation is made of)
        if "answers" in names:
            return names["answers"]
        found.append(names["answer"])
    return found

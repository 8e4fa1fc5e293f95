"""Answers in parts: as many and as long as each request says, numbered, with the request's own number and hash in each."""

import hashlib
from typing import Any

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data: Any, context: Any) -> Any:
    if data is None:
        return None
    rows = range(len(data))
    numbers = [context.get_request_header(idx, "x-stress-number") for idx in rows]
    counts = [int(context.get_request_header(idx, "x-stress-parts")) for idx in rows]
    paddings = ["." * int(context.get_request_header(idx, "x-stress-padding")) for idx in rows]
    hashes = [hashlib.sha256(bytes(row.get("body", b""))).hexdigest() for row in data]
    for part in range(max(counts)):
        parts = [
            f"{numbers[idx]} {part} {hashes[idx]}{paddings[idx]}\n" if part < counts[idx] else None for idx in rows
        ]
        send_intermediate_predict_response(parts, context.request_ids, "part", 200, context)
    return [f"{number} end\n" for number in numbers]

"""Keeps the state of sequences: answers how many requests of its sequence it has seen. A body `wait FILE` waits for that file,
`fail` makes a batch fail once all of it is counted."""

import os
import time
from pathlib import Path
from typing import Any

counts: dict[str, int] = {}


def handle(data: Any, context: Any) -> list[dict[str, Any]] | None:
    if data is None:
        return None
    rows = range(len(data))
    ids = [context.get_sequence_id(row) for row in rows]
    assert len(set(ids)) == len(ids), "a batch holds one request of each sequence"
    answers, fails = [], False
    for row in rows:
        word, _, file = bytes(data[row]["body"]).decode().partition(" ")
        end = time.monotonic() + 30
        while word == "wait" and not Path(file).exists() and time.monotonic() < end:
            time.sleep(0.002)
        fails |= word == "fail"
        said = context.get_all_request_header(row)
        counts[ids[row]] = count = counts.get(ids[row], 0) + 1
        answers.append(
            {
                "id": ids[row],
                "count": count,
                "pid": os.getpid(),
                "started": said.get(context.header_key_sequence_start, ""),
                "release": context.model_yaml_config.get("release", 1),
            }
        )
        if word == "finish":
            context.set_response_header(row, context.header_key_sequence_end, ids[row])
        if word == "finish" or said.get(context.header_key_sequence_end) == "true":
            del counts[ids[row]]
    if fails:
        raise RuntimeError("as it was told")
    return answers

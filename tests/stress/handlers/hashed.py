"""Answers a request with its own number and the hash of its own body: an answer that came to another client shows.

What else the request wants stands in its headers: the body back, a pause, a failure. `STRESS_SABOTAGE` makes this handler wrong
on purpose, so that whoever watches it can be seen to notice.
"""

import hashlib
import os
import time
from typing import Any

SABOTAGE = os.environ.get("STRESS_SABOTAGE", "")
BATCHES_BETWEEN = 50
batches = 0


def handle(data: Any, context: Any) -> Any:
    if data is None:
        return None
    bodies = [bytes(row.get("body", b"")) for row in data]
    if any(body.startswith(b"raise ") for body in bodies):
        raise ValueError("a body says so")
    time.sleep(max(int(context.get_request_header(idx, "x-stress-sleep-ms") or 0) for idx in range(len(data))) / 1000)
    answers = [answer(idx, body, context) for idx, body in enumerate(bodies)]
    return sabotaged(answers)


def answer(idx: int, body: bytes, context: Any) -> bytes:
    number = context.get_request_header(idx, "x-stress-number").encode()
    head: bytes = number + b" " + hashlib.sha256(body).hexdigest().encode()
    return head + b" " + body if context.get_request_header(idx, "x-stress-echo") else head


def sabotaged(answers: list[bytes]) -> list[bytes]:
    global batches
    batches += 1
    if batches % BATCHES_BETWEEN == 0:
        if SABOTAGE == "swap":
            return [answers[-1], *answers[:-1]] if len(answers) > 1 else [b"0-0" + answers[0][answers[0].find(b" ") :]]
        if SABOTAGE == "damage":
            return [*answers[:-1], answers[-1][:-1] + b"?"]
    return answers

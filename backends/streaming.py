"""Answers in parts: what a handler sends while it runs, or yields.

A handler streams in TorchServe's way, by `send_intermediate_predict_response`, or by being a generator: each list that it yields
is one part of every row's answer, in which None and what is empty are no part. What it returns after that are the last parts;
a generator usually returns nothing, and its answers end with the last yield. When every client is gone, a generator is closed
where it last yielded, so that its `finally` runs.
"""

import contextlib
from collections.abc import Generator
from typing import Any

from ringserve.backends.contract import ContractBroken, check_count
from ringserve.backends.replies import encode_reply
from ringserve.backends.ts.context import Context
from ringserve.protocol.errors import PredictionFailed


def send_parts(parts: Any, context: Context) -> bool:
    """Send one part of every row's answer. Returns whether anybody is still there to read. Raises `ContractBroken`."""
    if not isinstance(parts, list):
        raise ContractBroken(
            f"A part of the answers is a list with an element for each row; got a {type(parts).__name__}."
        )
    processors = context.request_processor
    check_count(len(processors), len(parts))
    return context.control.stream(
        [None if part is None else encode_reply(part, row) for part, row in zip(parts, processors, strict=True)]
    )


def send_failure(message: str, status: int, context: Context) -> bool:
    """End every row's answer with an error: its whole answer where nothing was sent before. Returns as `send_parts` does."""
    failure = PredictionFailed(message, status=status)
    return context.control.stream([failure] * len(context.request_processor))


def drained(answers: Generator[Any, Any, Any], context: Context) -> Any:
    """Send everything a generator yields. Returns the last parts."""
    nothing_more = [b""] * len(context.request_processor)
    with contextlib.closing(answers):
        while True:
            try:
                parts = next(answers)
            except StopIteration as end:
                return nothing_more if end.value is None else end.value
            if not send_parts(parts, context):
                return nothing_more

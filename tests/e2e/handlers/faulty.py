"""Fails as the body tells it to, and answers "fine" to anything else."""

import os
import sys
from typing import Any

from ts.utils.util import PredictionException


def handle(data: Any, context: Any) -> Any:
    if data is None:
        return None
    fault = bytes(data[0]["body"]).decode()
    if fault == "raise":
        raise RuntimeError("a secret of the model")
    if fault == "exit":
        sys.exit(3)
    if fault == "interrupt":
        raise KeyboardInterrupt
    if fault == "die":
        print("last words of the worker", file=sys.stderr, flush=True)
        os._exit(7)
    if fault == "memory":
        raise MemoryError
    if fault == "cuda":
        raise RuntimeError("CUDA error: device-side assert triggered")
    if fault.startswith("refuse"):
        raise PredictionException("the picture is upside down", int(fault.removeprefix("refuse")))
    answers = {
        "too few": [],
        "too many": ["a", "b"],
        "no list": "text",
        "none": None,
        "unserialisable": [object()],
        "bad status": ["x"],
        "split header": ["x"],
        "too large": [bytes(7_000_000)],
    }
    if fault == "bad status":
        context.set_response_status(99, "", 0)
    if fault == "split header":
        context.set_response_header(0, "x-evil", "a\r\nset-cookie: b")
    return answers.get(fault, ["fine"])

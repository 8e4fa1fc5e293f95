"""What a model says of itself (contract section 2.5): the worker's half. server/asking.py is the supervisor's, which asks; the
answer comes between two batches.

A model that fails to describe itself has its caller told so and goes on serving; one that does not come back at all ends its
process, as it would with a batch. What waits for it meanwhile is not lost: it has not been begun, and moves to another worker.
"""

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import orjson

from ringserve.backends.contract import Backend
from ringserve.protocol.errors import PredictionFailed, RingServeError
from ringserve.protocol.payload import ErrorRecord
from ringserve.server.control import AskDescription, Description
from ringserve.shm.link import WorkerLink

logger = logging.getLogger("ringserve.worker")

TEXT_BYTES_MAX = 4 << 20
# How often a worker says that it is at work, and looks whether its model has had time enough.
PULSE_S = 0.25


def describe(backend: Backend, ask: AskDescription, links: Sequence[WorkerLink]) -> Description:
    """The answer to `ask`, whatever the model does. `links` lead to the front ends whose batches wait meanwhile."""
    try:
        with _at_work(links, ask.timeout_s):
            text = json_object(backend.describe())
        if text is None or len(text) <= TEXT_BYTES_MAX:
            return Description(ask.token, text)
        limit = f"at most {TEXT_BYTES_MAX} are taken"
        error: RingServeError = PredictionFailed(f"The description has {len(text)} bytes; {limit}.", status=507)
    except RingServeError as raised:
        error = raised
    except BaseException:
        # SystemExit and KeyboardInterrupt of a model are its failure, not our end.
        logger.exception("the model raised while it described itself")
        error = PredictionFailed("Prediction failed")
    return Description(ask.token, None, ErrorRecord(error.code, error.message), error.http_status)


def json_object(value: object) -> bytes | None:
    """The JSON text of what a model answered, which should be an object or the text of one; anything else counts as `{}`, and
    None as no answer. Raises `PredictionFailed` for what has no JSON form."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            text = value.encode("utf-8", "replace")
        else:
            text = bytes(value) if isinstance(value, bytes | bytearray | memoryview) else _json(value)
        try:
            parsed = orjson.loads(text)
        except orjson.JSONDecodeError:
            parsed = None
        return orjson.dumps(parsed) if isinstance(parsed, dict) else b"{}"
    except (TypeError, ValueError, RecursionError):
        raise PredictionFailed("Unsupported model output data type.") from None


def _json(value: object) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        return json.dumps(value).encode()  # which knows integers of any size, and subclasses


@contextlib.contextmanager
def _at_work(links: Sequence[WorkerLink], limit_s: float) -> Iterator[None]:
    """Front ends must not take this process for stuck while its model describes itself. After `limit_s` it is, and ends."""
    done, started_s = threading.Event(), time.monotonic()

    def pulse() -> None:
        while not done.wait(PULSE_S):
            for link in links:
                link.commands.touch()
            if 0 < limit_s < time.monotonic() - started_s:
                logger.error("the model has not described itself within %g s; its worker ends", limit_s)
                sys.stdout.flush()
                os._exit(1)

    thread = threading.Thread(target=pulse, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

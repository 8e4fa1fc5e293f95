"""From a byte-payload request to what a TorchServe handler is given: one dict of decoded inputs, one of headers.

Decoding follows TorchServe's `ts/protocol/otf_message_handler.py`: the media type, its parameters removed and compared
as written, decides between `json.loads`, `str` and `bytearray`. JSON is UTF-8 without a byte order mark. Binary values are bytearrays because handlers were
written against them (they may write into them, and no view of the slab escapes into user code).
"""

import json
import logging
from typing import Any

import msgspec

from ringserve.backends.contract import Request
from ringserve.backends.ts.context import RequestHeaders

LOGGER = logging.getLogger("ringserve.model")
BODY = "body"  # the input that a body is, unless it is a form

# Several times faster than json.loads and stricter: what it refuses (NaN, a lone surrogate) is left to json.loads. orjson is as fast but turns integers above 64 bits into floats without a word.
decode_json_fast = msgspec.json.Decoder().decode


def decode_json(data: memoryview) -> Any:
    """What `json.loads` makes of the text `data`. Raises ValueError or RecursionError where it does, and where there is no
    UTF-8."""
    try:
        return decode_json_fast(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return json.loads(str(data, "utf-8"))


def decode_value(content_type: str, data: memoryview) -> Any:
    """One body or form field as the handler sees it. Never fails: what cannot be decoded arrives as a bytearray."""
    kind = media_type(content_type)
    if kind == "application/json":
        try:
            return decode_json(data)
        except (ValueError, RecursionError) as error:
            LOGGER.warning("An input said application/json and is not: %s. The handler gets its bytes.", error)
    elif kind.startswith("text"):
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            LOGGER.warning("An input said %s and is not UTF-8: %s. The handler gets its bytes.", kind, error)
    return bytearray(data)


def media_type(content_type: str) -> str:
    """A content type without its parameters, as it was written."""
    return content_type.partition(";")[0].strip()


def handler_inputs(request: Request, decode: bool) -> dict[str, Any]:
    """The row's inputs by name; of inputs with the same name the last one stays."""
    if decode:
        return {name: decode_value(content_type, data) for name, content_type, data in request.parts}
    return {name: bytearray(data) for name, _, data in request.parts}


def handler_headers(request: Request) -> RequestHeaders:
    """The row's headers without the client's credentials, plus one entry per input with that input's media type, unless a
    header has its name. They say how long a body is, as TorchServe's do, however it was sent."""
    headers = RequestHeaders(request.headers)
    headers.pop("authorization", None)
    if "content-length" not in request.headers:
        headers.pop("transfer-encoding", None)
        headers.update(("content-length", str(len(data))) for name, _, data in request.parts if name == BODY)
    for name, content_type, _ in request.parts:
        kind = media_type(content_type) if ";" in content_type else content_type
        headers.setdefault(name, {"content-type": kind})
    return headers

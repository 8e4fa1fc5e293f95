"""From what a handler returned for one row, and what it set on the context, to the reply.

Encoding follows TorchServe's `ts/protocol/otf_message_handler.py`. Beyond it, every answer says its content type, and an
element that cannot be encoded fails its own row only.
"""

import io
import sys
from typing import Any

from ringserve.backends.contract import Reply
from ringserve.backends.json_text import dumps_indented
from ringserve.backends.ts.context import RequestProcessor
from ringserve.protocol.errors import PredictionFailed

BINARY = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


def encode_reply(value: Any, processor: RequestProcessor) -> Reply | PredictionFailed:
    """The reply to one row, or the error that takes its place."""
    try:
        body, content_type = encode_value(value)
    except (TypeError, ValueError, RecursionError):
        return PredictionFailed("Unsupported model output data type.")
    if processor.untouched:
        return Reply(body, content_type)
    return _decorated(body, content_type, processor)


def encode_value(value: Any) -> tuple[bytes | bytearray, str]:
    """Body and content type of one element. Raises what `json.dumps` raises for what has no JSON form."""
    if isinstance(value, str):
        return value.encode(), TEXT
    if isinstance(value, (bytes, bytearray)):
        return value, BINARY
    # A handler that never imported torch cannot return a tensor, and then its worker must not pay for the import.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _saved_tensor(torch, value), BINARY
    return dumps_indented(value).encode(), JSON


def _saved_tensor(torch: Any, tensor: Any) -> bytes:
    # torch.save writes the whole storage: a row of a batch would carry every other client's row along.
    if tensor.layout is torch.strided and tensor.untyped_storage().nbytes() > tensor.nbytes:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    file = io.BytesIO()
    torch.save(tensor, file)
    return file.getvalue()


def _decorated(body: bytes | bytearray, content_type: str, processor: RequestProcessor) -> Reply | PredictionFailed:
    headers = {}
    for name, value in processor.get_response_headers().items():
        name, text = str(name), str(value)
        if not {"\r", "\n", "\0"}.isdisjoint(name + text):
            return PredictionFailed(f"The handler set the response header {name!r} to a value with a line break.")
        if name.lower() == "content-type":
            content_type = text
        else:
            headers[name] = text
    status = processor.get_response_status_code()
    if not isinstance(status, int) or not 200 <= status <= 999:
        return PredictionFailed(f"The handler set the response status to {status!r}: not an HTTP status.")
    return Reply(body, content_type, int(status), str(processor.get_response_status_phrase() or ""), headers)

"""What travels beside a byte payload in a slab: the head of a request row and the head of a reply row.

Typed models need neither: their rows are arrays. For handlers, the front end writes a `RequestHead` and then the parts
of the body; the worker answers with an optional `ReplyHead` and the body.
"""

import contextlib
from typing import Any

import msgspec


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One named input of a request. A plain body is one part named `body`; a form has one per field.

    `offset` and `length` are bytes within the row's body.
    """

    name: str
    content_type: str
    offset: int
    length: int


class RequestHead(msgspec.Struct, frozen=True, array_like=True):
    """The request without its bytes. `headers` keys are lower case, as HTTP says they compare."""

    request_id: str
    headers: dict[str, str]
    parts: tuple[Part, ...]


class ReplyHead(msgspec.Struct, frozen=True, array_like=True):
    """What a handler set on one answer. `phrase` may be empty: the status' own phrase is used."""

    status: int = 200
    phrase: str = ""
    headers: dict[str, str] = {}


decode_request_head = msgspec.msgpack.Decoder(RequestHead).decode
decode_reply_head = msgspec.msgpack.Decoder(ReplyHead).decode


class ErrorRecord(msgspec.Struct, frozen=True, array_like=True):
    """An error on its way from a worker to the front end; `code` names the class in errors.py."""

    code: str
    message: str


def encode_head(head: RequestHead | ReplyHead | ErrorRecord) -> bytes:
    """Text that is not Unicode arrives changed: a header whose bytes are not UTF-8 as Latin-1, as TorchServe reads all of them; a
    handler's lone surrogate as `?`."""
    try:
        return _encode(head)
    except UnicodeEncodeError:
        return _encode(without_surrogates(msgspec.to_builtins(head)))


def without_surrogates(value: Any) -> Any:
    """The same lists, dicts and texts, with texts that can be encoded."""
    match value:
        case str():
            return _text(value)
        case dict():
            return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
        case list() | tuple():
            return [without_surrogates(item) for item in value]
    return value


def _text(value: str) -> str:
    for errors, encoding in (("strict", "utf-8"), ("surrogateescape", "latin-1")):
        with contextlib.suppress(UnicodeEncodeError):
            return value.encode("utf-8", errors).decode(encoding)
    return value.encode("utf-8", "replace").decode()


_encode = msgspec.msgpack.Encoder().encode
decode_error = msgspec.msgpack.Decoder(ErrorRecord).decode

"""HTTP answers as bytes. TorchServe's facts about them: contract section 1.1 (headers on every response, JSON pretty printed,
connection closed from status 400 on)."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus

import orjson

from ringserve.protocol.errors import PredictionFailed, RingServeError
from ringserve.protocol.request import Answer
from ringserve.server.replies import CONTENT_TYPES

FIXED_HEADERS = {
    "Pragma": "no-cache",
    "Cache-Control": "no-cache; no-store, must-revalidate, private",
    "Expires": "Thu, 01 Jan 1970 00:00:00 UTC",
}
# How nearly every answer begins, by content type.
_PLAIN_STARTS: dict[str | None, bytes] = {}
JOINED_BYTES_MAX = 16_384
BODILESS = (204, 304)  # these never have a body
_REASONS = {status.value: status.phrase for status in HTTPStatus}
# What a status that nobody has named says, by its class, in TorchServe's words.
_CLASSES = {2: "Success", 3: "Redirection", 4: "Client Error", 5: "Server Error"}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Beyond ASCII anything but lone surrogates; those that stand for a byte of a request (surrogateescape) are that byte again.
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\ud7ff\udc80-\udcff\ue000-\U0010ffff]*")
# The server says these itself; a handler cannot know them.
_OURS = {"content-length", "transfer-encoding", "connection", "x-request-id"}


def add_fixed_headers(more: Mapping[str, str]) -> None:
    """What every answer of this process says besides, unless its handler says something else; to be told once, at start."""
    FIXED_HEADERS.update(more)
    fixed = "".join(f"{name}: {value}\r\n" for name, value in FIXED_HEADERS.items())
    for kind in CONTENT_TYPES:
        said = f"content-type: {kind}\r\n" if kind else ""
        _PLAIN_STARTS[kind] = f"HTTP/1.1 200 OK\r\n{said}{fixed}".encode()


add_fixed_headers({})


def json_text(value: object) -> bytes:
    """The server's own JSON: two spaces, a newline at the end."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def error_body(error: RingServeError) -> bytes:
    """TorchServe's `{"code", "type", "message"}`."""
    return json_text({"code": error.http_status, "type": error.type, "message": error.message})


def error_headers(error: RingServeError) -> dict[str, str]:
    """Those that only its answer has."""
    retry = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return {**error.headers, **retry}


def _uuids() -> Iterator[str]:
    """Random UUIDs (version 4), made a few hundred at a time: one system call and no object each."""
    while True:
        digits = os.urandom(16 * 256).hex()
        for at in range(0, len(digits), 32):
            text = digits[at : at + 32]
            variant = "89ab"[int(text[16], 16) & 3]
            yield f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


_next_uuid = _uuids().__next__


def request_id(sent: str | None) -> str:
    """The client's `x-request-id` when it is printable and short, else a fresh one."""
    if sent is not None and _REQUEST_ID.fullmatch(sent):
        return sent
    return _next_uuid()


def bodiless(answer: Answer) -> Answer:
    """The answer without the body that its status forbids."""
    if answer.source is None or answer.status not in BODILESS:
        return answer
    answer.source.close()
    return answer._replace(source=None)


def answer_buffers(answer: Answer, rid: str, *, keep_alive: bool, head_only: bool) -> tuple[bytes, ...]:
    """The whole response: one buffer, or head and body apart when joining them would cost more than a second buffer. Raises
    `PredictionFailed` for a status or header that HTTP cannot carry."""
    start = _PLAIN_STARTS.get(answer.content_type) if answer.status == 200 and answer.headers is None else None
    if start is None or answer.phrase:
        start = _status_and_headers(answer)
    connection = b"keep-alive" if keep_alive else b"close"
    if answer.status in BODILESS:
        return (start + b"x-request-id: %b\r\nconnection: %b\r\n\r\n" % (rid.encode("ascii"), connection),)
    body = answer.body
    end = b"x-request-id: %b\r\ncontent-length: %d\r\nconnection: %b\r\n\r\n"
    head = start + end % (rid.encode("ascii"), len(body), connection)
    if head_only:
        return (head,)
    return (head + body,) if len(body) < JOINED_BYTES_MAX else (head, body)


def tensor_buffers(
    parts: Sequence[bytes | bytearray | memoryview], nbytes: int, json_bytes: int, rid: str, *, keep_alive: bool
) -> tuple[bytes | bytearray | memoryview, ...]:
    """A response of status 200 of the Open Inference Protocol, whose body has so many bytes. With `json_bytes` >= 0 the JSON part is as
    long, and raw bytes follow it."""
    connection = b"keep-alive" if keep_alive else b"close"
    if json_bytes < 0:
        start, length = _PLAIN_STARTS["application/json"], b""
    else:
        start = _PLAIN_STARTS["application/octet-stream"]
        length = b"inference-header-content-length: %d\r\n" % json_bytes
    end = b"%bx-request-id: %b\r\ncontent-length: %d\r\nconnection: %b\r\n\r\n"
    head = start + end % (length, rid.encode("ascii"), nbytes, connection)
    return (b"".join((head, *parts)),) if nbytes < JOINED_BYTES_MAX else (head, *parts)


def streamed_head(answer: Answer, rid: str, *, keep_alive: bool, chunked: bool) -> bytes:
    """The head of a response whose body comes from the answer's source: in chunks, with its length, or until the connection is
    closed. Raises as `answer_buffers` does."""
    assert answer.source is not None
    head = _status_and_headers(answer)
    length = b""
    if chunked:
        length = b"transfer-encoding: chunked\r\n"
    elif answer.source.length is not None:
        length = b"content-length: %d\r\n" % answer.source.length
    end = b"x-request-id: %b\r\n%bconnection: %b\r\n\r\n"
    return head + end % (rid.encode("ascii"), length, b"keep-alive" if keep_alive else b"close")


def _status_and_headers(answer: Answer) -> bytes:
    if not 200 <= answer.status <= 999:
        raise PredictionFailed(f"The handler set status {answer.status!r}: expected a number from 200 to 999.")
    phrase = answer.phrase or _REASONS.get(answer.status) or _unnamed(answer.status)
    lines = [f"HTTP/1.1 {answer.status} {phrase}"]
    if not _HEADER_VALUE.fullmatch(phrase):
        raise PredictionFailed("The handler set a status phrase with control characters.")
    headers = dict(answer.headers or {})
    said = {name.lower() for name in headers}
    if answer.content_type is not None and "content-type" not in said:
        headers["content-type"] = answer.content_type
    headers.update((name, value) for name, value in FIXED_HEADERS.items() if name.lower() not in said)
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise PredictionFailed(f"The handler set the response header {name!r}, which HTTP cannot carry.")
        if name.lower() not in _OURS:
            lines.append(f"{name}: {value}")
    head = "\r\n".join(lines) + "\r\n"
    return head.encode() if head.isascii() else b"".join(_line_bytes(line) + b"\r\n" for line in lines)


def _line_bytes(line: str) -> bytes:
    """ISO 8859-1, which is how clients read headers (RFC 9110, section 5.5), and UTF-8 where that has no such character."""
    try:
        return line.encode("latin-1")
    except UnicodeEncodeError:
        return line.encode("utf-8", "surrogateescape")


def _unnamed(status: int) -> str:
    return f"{_CLASSES.get(status // 100, 'Unknown Status')} ({status})"


def error_answer(error: RingServeError) -> Answer:
    return Answer(error_body(error), "application/json", error.http_status, headers=error_headers(error) or None)

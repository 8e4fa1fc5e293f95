"""Form bodies as named parts: `multipart/form-data` and `application/x-www-form-urlencoded` (contract section 1.3)."""

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import FormPart

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

# A form names its parts; a flood of empty ones is an attack, not a request.
PARTS_MAX = 1000


def is_form(content_type: str) -> bool:
    return content_type.startswith(("multipart/form-data", "application/x-www-form-urlencoded"))


def parse_form(content_type: str, body: bytes) -> list[FormPart]:
    """The fields in order of first appearance; of a name sent twice the last value counts. Raises `BadRequest`."""
    parts = _multipart(content_type, body) if content_type.startswith("multipart/") else _urlencoded(body)
    return list({part.name: part for part in parts}.values())


def _urlencoded(body: bytes) -> list[FormPart]:
    pairs = [pair.partition(b"=") for pair in body.split(b"&") if pair]
    if len(pairs) > PARTS_MAX:
        raise BadRequest(f"Form: expected at most {PARTS_MAX} fields, got {len(pairs)}.")
    return [FormPart(_decoded(name).decode("utf-8", "replace"), "", _decoded(value)) for name, _, value in pairs]


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


class _Collector:
    """Callbacks of the multipart parser, gathering parts."""

    def __init__(self) -> None:
        self.parts: list[FormPart] = []
        self._headers: dict[str, bytes] = {}
        self._field = bytearray()
        self._value = bytearray()
        self._data = bytearray()

    def on_part_begin(self) -> None:
        self._headers, self._data = {}, bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._field.decode("latin-1").lower()] = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def on_part_end(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        name = options.get(b"name")
        if name is None:
            raise BadRequest("Form: expected every part to have a name in its content-disposition, got one without.")
        if len(self.parts) >= PARTS_MAX:
            raise BadRequest(f"Form: expected at most {PARTS_MAX} parts, got more.")
        content_type = self._headers.get("content-type", b"").decode("utf-8", "replace")
        self.parts.append(FormPart(name.decode("utf-8", "replace"), content_type, bytes(self._data)))


def _multipart(content_type: str, body: bytes) -> list[FormPart]:
    # As bytes, here and above: the parser refuses text that is not latin-1, and file names are in any language.
    _, options = parse_options_header(content_type.encode("utf-8", "replace"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("Form: expected a boundary in the content-type, got none.")
    collector = _Collector()
    finished: list[bool] = []
    callbacks: MultipartCallbacks = {
        "on_part_begin": collector.on_part_begin,
        "on_header_field": collector.on_header_field,
        "on_header_value": collector.on_header_value,
        "on_header_end": collector.on_header_end,
        "on_part_data": collector.on_part_data,
        "on_part_end": collector.on_part_end,
        "on_end": lambda: finished.append(True),
    }
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"Form: expected multipart/form-data, got a body that does not parse: {error}.") from None
    if not finished:
        raise BadRequest("Form: expected a closing boundary, got a body that ends before it.")
    return collector.parts

"""Form bodies as named parts: `multipart/form-data` and `application/x-www-form-urlencoded` (contract section 1.3)."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ringserve.protocol.errors import BadRequest
from ringserve.protocol.payload import Part
from ringserve.protocol.request import FormPart

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every form that it then refuses

# A form names its parts; a flood of empty ones is an attack, not a request.
PARTS_MAX = 1000
URLENCODED = "application/x-www-form-urlencoded"
_URLENCODED_CHARS = len(URLENCODED)
_MULTIPART, _BOUNDARY = "multipart/form-data", "boundary="
_SHORTEST = len(f"{_MULTIPART};{_BOUNDARY}x")


def is_form(content_type: str) -> bool:
    """As TorchServe sees it: a multipart body whose type names no boundary is like any other body."""
    if len(content_type) < _SHORTEST:  # most types are
        return False
    if content_type.startswith(_MULTIPART):
        return _BOUNDARY in content_type
    return content_type[:_URLENCODED_CHARS].lower() == URLENCODED


def is_multipart(content_type: str) -> bool:
    return content_type.startswith(_MULTIPART) and _BOUNDARY in content_type


def parse_form(content_type: str, body: bytes, *, typed: bool = False) -> list[FormPart]:
    """The fields in order of first appearance; of a name sent twice the last value counts. `typed` as for `FormParser`. Raises
    `BadRequest`."""
    if not is_multipart(content_type):
        # The form ends with its line.
        return last_of_each(_urlencoded(body.partition(b"\n")[0].rstrip(b"\r")))
    store = Buffer()
    parser = FormParser(content_type, store, typed=typed)
    parser.feed(body)
    return cut(parser.finish(), store.data)


def parse_query(query: bytes) -> list[FormPart]:
    """The parameters of a query string, as often as each comes. They are text: what is not UTF-8 becomes U+FFFD. Raises
    `BadRequest`."""
    fields = _urlencoded(query.replace(b";", b"&"), "Query")
    return [field._replace(data=field.data.decode("utf-8", "replace").encode()) for field in fields]


def last_of_each(parts: Iterable[FormPart]) -> list[FormPart]:
    """By name, in order of first appearance."""
    return list({part.name: part for part in parts}.values())


def cut(parts: Iterable[Part], data: bytes | bytearray | memoryview) -> list[FormPart]:
    """The parts with their bytes."""
    return [
        FormPart(part.name, part.content_type, bytes(data[part.offset : part.offset + part.length])) for part in parts
    ]


def _urlencoded(body: bytes, what: str = "Form") -> list[FormPart]:
    """The fields of a form, or of a query, as often as each comes. Raises `BadRequest`."""
    if body.count(b"&") >= 2 * PARTS_MAX:  # before a list is made of them
        raise BadRequest(f"{what}: expected at most {PARTS_MAX} fields, got more.")
    pairs = [pair.partition(b"=") for pair in body.split(b"&") if pair]
    if len(pairs) > PARTS_MAX:
        raise BadRequest(f"{what}: expected at most {PARTS_MAX} fields, got {len(pairs)}.")
    return [FormPart(_decoded(name).decode("utf-8", "replace"), "", _decoded(value)) for name, _, value in pairs]


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


class Store(Protocol):
    """Where the bytes of the parts go, one after the other."""

    @property
    def written(self) -> int:
        """How many there are."""

    def write(self, data: bytes) -> None: ...


class Buffer:
    """In memory of this process."""

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def written(self) -> int:
        return len(self.data)

    def write(self, data: bytes) -> None:
        self.data += data


class FormParser:
    """`multipart/form-data` as it comes: the bytes of the parts go to `store`, which may be exchanged for another that holds the
    same; `finish` says where each lies. Only files have content types, unless the form is for a `typed` model: handlers were
    written for TorchServe, which gives them the bytes of any other field, whatever it says it is."""

    def __init__(self, content_type: str, store: Store, *, typed: bool = False) -> None:
        """Raises `BadRequest` when the type names no boundary."""
        # As bytes, here and below: the parser refuses text that is not latin-1, and file names are in any language.
        _, options = parse_options_header(content_type.encode("utf-8", "replace"))
        boundary = options.get(b"boundary")
        if not boundary:
            raise BadRequest("Form: expected a boundary in the content-type, got none.")
        self.store = store
        self._typed = typed
        self._is_empty = True  # of nothing at all, which is a form without parts
        self._parts: list[Part] = []
        self._headers: dict[str, bytes] = {}
        self._field = bytearray()
        self._value = bytearray()
        self._began_at = 0
        self._complete = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _unparsable(error) from None

    def feed(self, data: bytes) -> None:
        """Raises `BadRequest`, and what the store raises."""
        self._is_empty = self._is_empty and not data
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _unparsable(error) from None

    def finish(self) -> tuple[Part, ...]:
        """The parts in order of first appearance; of a name sent twice the last one. Raises `BadRequest`."""
        if self._is_empty:
            return ()
        try:
            self._parser.finalize()
        except FormParserError as error:
            raise _unparsable(error) from None
        if not self._complete:
            raise BadRequest("Form: expected a closing boundary, got a body that ends before it.")
        return tuple({part.name: part for part in self._parts}.values())

    def _on_part_begin(self) -> None:
        self._headers, self._began_at = {}, self.store.written

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._field.decode("latin-1").lower()] = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.store.write(data[start:end])

    def _on_part_end(self) -> None:
        disposition = self._headers.get("content-disposition", b"")
        _, options = parse_options_header(disposition)
        name = options.get(b"name")
        if name is None:
            raise BadRequest("Form: expected every part to have a name in its content-disposition, got one without.")
        if len(self._parts) >= PARTS_MAX:
            raise BadRequest(f"Form: expected at most {PARTS_MAX} parts, got more.")
        content_type = ""
        if self._typed or b"filename" in options or b"filename*=" in disposition:
            default = b"" if self._typed else b"application/octet-stream"
            content_type = self._headers.get("content-type", default).decode("utf-8", "replace")
        length = self.store.written - self._began_at
        self._parts.append(Part(name.decode("utf-8", "replace"), content_type, self._began_at, length))

    def _on_end(self) -> None:
        self._complete = True


def _unparsable(error: FormParserError) -> BadRequest:
    return BadRequest(f"Form: expected multipart/form-data, got a body that does not parse: {error}.")

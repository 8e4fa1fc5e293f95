"""Decoding requests for handlers."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.backends.contract import InputPart, Request
from ringserve.backends.inputs import decode_json, decode_value, handler_headers, handler_inputs


def view(data: bytes) -> memoryview:
    """A read-only view, as the slab gives."""
    return memoryview(data).toreadonly()


def request(*parts: tuple[str, str, bytes], **headers: str) -> Request:
    """A request with these (name, content type, bytes) parts."""
    return Request("id", headers, [InputPart(name, kind, view(data)) for name, kind, data in parts])


@pytest.mark.parametrize(
    ("content_type", "data", "expected"),
    [
        ("application/json", b'{"a": [1, 2.5]}', {"a": [1, 2.5]}),
        ("application/json; charset=utf-8", b'"\xc3\xa9"', "é"),
        ("Application/JSON", b"1", bytearray(b"1")),
        ("application/json-lines", b"1", bytearray(b"1")),
        ("text/plain; charset=utf-8", b"caf\xc3\xa9", "café"),
        ("text/csv", b"\xff", bytearray(b"\xff")),
        ("image/png", b"\x89PNG", bytearray(b"\x89PNG")),
        ("", b"", bytearray()),
    ],
)
def test_the_content_type_decides(content_type: str, data: bytes, expected: object) -> None:
    """Value and type: binary is a bytearray, never bytes or a view."""
    value = decode_value(content_type, view(data))
    assert value == expected
    assert type(value) is type(expected)


def test_what_is_not_json_arrives_as_bytes_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The handler may know better than the header."""
    assert decode_value("application/json", view(b"{not json")) == bytearray(b"{not json")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("data", [b"[" * 200_000, b'"\xff"', b"", b"nan", b"\xef\xbb\xbf[1]", '"é"'.encode("utf-16")])
def test_json_that_nobody_can_read_arrives_as_bytes(data: bytes) -> None:
    """Too deep, not UTF-8, empty, misspelt, begun with a byte order mark."""
    assert decode_value("application/json", view(data)) == bytearray(data)


@pytest.mark.parametrize("data", [b"Infinity", b"1e400", b'"\\ud800"', b"18446744073709551616", b" [1, 1.0]\n"])
def test_json_loads_decides_what_json_is(data: bytes) -> None:
    """What stricter parsers refuse or round is read as the standard library reads it."""
    assert decode_json(view(data)) == json.loads(data)


def test_nan_is_accepted() -> None:
    """TorchServe's handlers get it, so ours do."""
    assert math.isnan(decode_json(view(b"[NaN]"))[0])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_json_is_read_as_the_standard_library_reads_it(value: Any, ascii_only: bool) -> None:
    """Same values and same types, integers of any size included."""
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert repr(decode_json(view(text))) == repr(json.loads(text))


@given(st.text(alphabet='0123456789+-.eE[]{},:"\\untrfalse ', max_size=12))
def test_nothing_is_accepted_that_the_standard_library_refuses(text: str) -> None:
    """The fast parser is not more lenient."""
    try:
        expected: object = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            decode_json(view(text.encode()))
    else:
        assert repr(decode_json(view(text.encode()))) == repr(expected)


def test_each_part_is_an_input_and_the_last_of_a_name_wins() -> None:
    """A form gives several inputs."""
    parts = [("a", "", b"1"), ("b", "application/json", b"[2]"), ("a", "text/plain", b"3")]
    assert handler_inputs(request(*parts), decode=True) == {"a": "3", "b": [2]}


def test_decoding_can_be_switched_off() -> None:
    """`decode_input_request=false`: bytes for everything."""
    inputs = handler_inputs(request(("body", "application/json", b"[2]")), decode=False)
    assert inputs == {"body": bytearray(b"[2]")}
    assert type(inputs["body"]) is bytearray


def test_headers_are_found_in_any_case() -> None:
    """HTTP compares header names without case; TorchServe does not."""
    headers = handler_headers(request(("body", "text/plain", b""), **{"content-type": "text/plain"}))
    assert headers["Content-Type"] == headers["content-type"] == headers.get("CONTENT-TYPE") == "text/plain"
    assert "Content-Type" in headers
    assert "X-Other" not in headers
    assert headers.get("X-Other", "none") == "none"
    with pytest.raises(KeyError):
        headers["X-Other"]


def test_each_input_has_an_entry_with_its_content_type() -> None:
    """Under the input's own name, whatever its case, and without parameters."""
    headers = handler_headers(request(("Image", "image/png", b""), ("note", "", b""), ("a", "text/csv; header=x", b"")))
    assert headers["Image"] == {"content-type": "image/png"}
    assert headers["note"] == {"content-type": ""}
    assert headers["a"] == {"content-type": "text/csv"}


def test_a_header_stays_what_it_is_when_an_input_has_its_name() -> None:
    """`?host=x` on `/invocations` does not hide the host."""
    assert handler_headers(request(("host", "", b"x"), host="a.example"))["host"] == "a.example"


@pytest.mark.parametrize(
    ("sent", "length"), [({}, "3"), ({"transfer-encoding": "chunked"}, "3"), ({"content-length": "3"}, "3")]
)
def test_the_headers_say_how_long_the_body_is(sent: dict[str, str], length: str) -> None:
    """However it was sent."""
    headers = handler_headers(request(("body", "", b"abc"), **sent))
    assert headers == {"content-length": length, "body": {"content-type": ""}}


def test_a_handler_never_sees_the_clients_token() -> None:
    """Model code has no business with credentials."""
    asked = request(authorization="Bearer secret", accept="*/*")
    assert handler_headers(asked) == {"accept": "*/*"}
    assert asked.headers["authorization"] == "Bearer secret", "the request itself is not ours to change"

"""Forms: whatever bytes a client put into a field come out of it."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import FormPart
from ringserve.server.forms import PARTS_MAX, Buffer, FormParser, cut, is_form, parse_form, parse_query

BOUNDARY = "----boundary-of-the-tests"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
URLENCODED = "application/x-www-form-urlencoded"
BINARY = "application/octet-stream"

names = st.text(
    st.characters(codec="utf-8", exclude_characters='"\\\r\n\0', exclude_categories=["Cc", "Zs"]), max_size=6
)
contents = st.lists(st.binary(max_size=20) | st.sampled_from([b"\r\n", b"--", b"\r\n--", b"\r"])).map(b"".join)


def multipart(parts: list[FormPart], boundary: str = BOUNDARY, end: bytes = b"--\r\n") -> bytes:
    """As files."""
    body = b""
    for part in parts:
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{part.name}"; filename="фото.png"\r\n'.encode()
        if part.content_type:
            body += f"Content-Type: {part.content_type}\r\n".encode()
        body += b"\r\n" + part.data + b"\r\n"
    return body + f"--{boundary}".encode() + end


def refusal(content_type: str, body: bytes) -> str:
    with pytest.raises(BadRequest) as caught:
        parse_form(content_type, body)
    return caught.value.message


@given(
    st.lists(st.builds(FormPart, names, st.sampled_from(["", "image/png", "application/json"]), contents), max_size=5)
)
def test_a_multipart_form_comes_back_as_it_was_sent(parts: list[FormPart]) -> None:
    expected = list({part.name: part for part in parts}.values())
    if parts:
        assert parse_form(MULTIPART, multipart(parts), typed=True) == expected
        as_handlers_get_it = [part._replace(content_type=part.content_type or BINARY) for part in expected]
        assert parse_form(MULTIPART, multipart(parts)) == as_handlers_get_it


@pytest.mark.parametrize(
    ("rest", "typed", "content_type"),
    [
        ("\r\nContent-Type: application/json", False, ""),
        ("\r\nContent-Type: application/json", True, "application/json"),
        ('; filename="a"\r\nContent-Type: application/json', False, "application/json"),
        ('; filename=""', False, BINARY),
        ("; filename*=utf-8''a", False, BINARY),
        ("", False, ""),
        ("", True, ""),
    ],
)
def test_only_files_have_a_content_type_unless_the_model_declares_its_inputs(
    rest: str, typed: bool, content_type: str
) -> None:
    """TorchServe's handlers get the bytes of any other field."""
    body = multipart([FormPart("f", "", b"1")]).replace('; filename="фото.png"'.encode(), rest.encode())
    assert parse_form(MULTIPART, body, typed=typed) == [FormPart("f", content_type, b"1")]


@pytest.mark.parametrize("content_type", [MULTIPART, URLENCODED])
def test_a_form_without_a_byte_has_no_parts(content_type: str) -> None:
    assert parse_form(content_type, b"") == []


def test_a_query_has_its_parameters_as_often_as_they_come() -> None:
    assert parse_query(b"a=1&a=%C3%BC%ff;b=c+d&&e") == [
        FormPart("a", "", b"1"),
        FormPart("a", "", "ü\ufffd".encode()),
        FormPart("b", "", b"c d"),
        FormPart("e", "", b""),
    ]


@given(
    st.lists(st.builds(FormPart, names, st.sampled_from(["", "image/png"]), contents), min_size=1, max_size=5),
    st.data(),
)
def test_a_form_that_comes_in_pieces_is_the_same(parts: list[FormPart], data: st.DataObject) -> None:
    store, whole = Buffer(), multipart(parts)
    parser = FormParser(MULTIPART, store)
    for piece in pieces(data, whole):
        parser.feed(piece)
    assert cut(parser.finish(), store.data) == parse_form(MULTIPART, whole)


def pieces(data: st.DataObject, whole: bytes) -> Iterator[bytes]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    yield from (whole[start:end] for start, end in itertools.pairwise([0, *cuts, len(whole)]))


@pytest.mark.parametrize(
    "data", [b"", b"\r\n", b"\r\n\r\n--\r\n", b"a\r\n--" + BOUNDARY[:-1].encode() + b"\r\nb", bytes(range(256))]
)
def test_line_breaks_and_near_boundaries_are_content(data: bytes) -> None:
    assert parse_form(MULTIPART, multipart([FormPart("f", "", data)])) == [FormPart("f", BINARY, data)]


@pytest.mark.parametrize("name", ["Content-Disposition", "content-disposition", "CONTENT-DISPOSITION"])
def test_header_names_of_parts_compare_without_case(name: str) -> None:
    body = multipart([FormPart("f", "", b"x")]).replace(b"Content-Disposition", name.encode())
    assert parse_form(MULTIPART, body) == [FormPart("f", BINARY, b"x")]


def test_of_a_name_sent_twice_the_last_value_counts_in_the_first_place() -> None:
    sent = [FormPart("a", "", b"1"), FormPart("b", "", b"2"), FormPart("a", "", b"3")]
    assert parse_form(MULTIPART, multipart(sent)) == [FormPart("a", BINARY, b"3"), FormPart("b", BINARY, b"2")]
    assert parse_form(URLENCODED, b"a=1&b=2&a=3") == [FormPart("a", "", b"3"), FormPart("b", "", b"2")]


def test_a_missing_boundary_is_named() -> None:
    expected = "Form: expected a boundary in the content-type, got none."
    assert refusal("multipart/form-data; boundary=", b"x") == expected


def test_a_quoted_boundary_is_a_boundary() -> None:
    assert (
        parse_form('multipart/form-data; boundary="a b"', multipart([FormPart("f", "", b"x")], "a b"))[0].data == b"x"
    )


@given(st.integers(1, 150))
def test_a_truncated_form_is_refused_wherever_it_ends(kept: int) -> None:
    whole = multipart([FormPart("first", "text/plain", b"one"), FormPart("second", "", b"two")])
    kept = min(kept, len(whole) - len(b"-\r\n") - 1)
    assert refusal(MULTIPART, whole[:kept]).startswith("Form: expected")


def test_a_body_that_is_no_form_is_refused_without_a_word_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The client is told; a hostile one would fill the log."""
    assert "does not parse" in refusal(MULTIPART, b'{"data": 1}')
    assert caplog.records == []


@pytest.mark.parametrize("head", [b"; a=b" * 100_000, b"\r\nh: b" * 100_000], ids=["long", "many"])
def test_the_head_of_a_part_is_bounded(head: bytes) -> None:
    """Taking apart a long one takes time by the square of its length."""
    body = multipart([FormPart("f", "", b"x")]).replace(b'filename="', b'a="a"' + head + b'; filename="')
    assert "Maximum header" in refusal(MULTIPART, body)


def test_a_part_without_a_name_is_refused() -> None:
    body = multipart([FormPart("f", "", b"x")]).replace(b'name="f"', b'title="f"')
    assert "expected every part to have a name" in refusal(MULTIPART, body)


def test_a_flood_of_parts_is_refused() -> None:
    fields = [FormPart(str(n), "", b"") for n in range(PARTS_MAX + 1)]
    assert refusal(MULTIPART, multipart(fields)) == f"Form: expected at most {PARTS_MAX} parts, got more."
    assert len(parse_form(MULTIPART, multipart(fields[:-1]))) == PARTS_MAX
    pairs = b"&".join(b"%d=" % n for n in range(PARTS_MAX + 1))
    assert refusal(URLENCODED, pairs) == f"Form: expected at most {PARTS_MAX} fields, got {PARTS_MAX + 1}."
    with pytest.raises(BadRequest, match=f"Query: expected at most {PARTS_MAX} fields, got {PARTS_MAX + 1}\\."):
        parse_query(pairs)


@given(st.binary())
def test_urlencoded_values_may_be_any_bytes(data: bytes) -> None:
    escaped = "".join(f"%{byte:02x}" for byte in data).encode()
    assert parse_form(URLENCODED, b"f=" + escaped) == [FormPart("f", "", data)]


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b"", []),
        (b"a=1&b=2", [("a", b"1"), ("b", b"2")]),
        (b"a=b=c", [("a", b"b=c")]),
        (b"a", [("a", b"")]),
        (b"=v", [("", b"v")]),
        (b"a+b=c+d%2B", [("a b", b"c d+")]),
        (b"&&a=1&", [("a", b"1")]),
        (b"%C3%A9=%ff", [("é", b"\xff")]),
        (b"%ff=1", [("\ufffd", b"1")]),
        (b"a=%zz%4", [("a", b"%zz%4")]),
        (b"a=1;b=2", [("a", b"1;b=2")]),
        (b"a=1\r\n", [("a", b"1")]),
        (b"a=1\nb=2", [("a", b"1")]),
    ],
)
def test_urlencoded_pairs(body: bytes, parts: list[tuple[str, bytes]]) -> None:
    assert parse_form(URLENCODED, body) == [FormPart(name, "", data) for name, data in parts]


@given(st.text(st.characters() | st.characters(categories=["Cs"])), st.binary())
def test_no_content_type_and_no_body_does_anything_but_parse_or_be_refused(tail: str, body: bytes) -> None:
    try:
        parse_form("multipart/form-data; boundary=" + tail, body)
    except BadRequest as error:
        assert error.message.startswith("Form: expected")


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        (MULTIPART, True),
        (URLENCODED, True),
        (URLENCODED + "; charset=utf-8", True),
        ("Application/X-WWW-Form-URLEncoded", True),
        ("multipart/form-data; charset=utf-8; boundary=x", True),
        ("multipart/form-data", False),
        ("multipart/form-data; charset=utf-8", False),
        ("multipart/mixed; boundary=----------", False),
        ("application/json", False),
        ("application/json; charset=utf-8; profile=x", False),
        ("", False),
    ],
)
def test_a_form_is_known_by_its_type(content_type: str, form: bool) -> None:
    assert is_form(content_type) is form

"""Heads survive the trip through msgpack, whatever a client or a handler put into them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.payload import (
    ErrorRecord,
    Part,
    ReplyHead,
    RequestHead,
    decode_error,
    decode_reply_head,
    decode_request_head,
    encode_head,
)

texts = st.text(max_size=30)
headers = st.dictionaries(texts, texts, max_size=4)
parts = st.builds(Part, texts, texts, st.integers(0, 2**40), st.integers(0, 2**40))
any_texts = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=10)  # with lone surrogates


@given(st.builds(RequestHead, texts, headers, st.lists(parts, max_size=4).map(tuple)))
def test_a_request_head_comes_back_equal(head: RequestHead) -> None:
    assert decode_request_head(encode_head(head)) == head


@given(st.builds(ReplyHead, st.integers(200, 999), texts, headers))
def test_a_reply_head_comes_back_equal(head: ReplyHead) -> None:
    assert decode_reply_head(memoryview(encode_head(head))) == head


@given(any_texts, any_texts)
def test_text_that_is_no_unicode_is_replaced_not_refused(name: str, value: str) -> None:
    """A header byte that is not UTF-8 reaches us as a lone surrogate, which msgpack cannot carry."""
    head = RequestHead("id", {name: value}, (Part(name, value, 1, 2),))
    (found_name, found_value), *none = decode_request_head(encode_head(head)).headers.items()
    assert none == []
    for found, sent in ((found_name, name), (found_value, value)):
        found.encode()
        assert found == sent or not sent.isascii()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("\udce9", "é"),
        ("caf\udce9", "café"),
        ("ü\udcff", "Ã¼ÿ"),
        ("a\ud800b", "a?b"),
        ("\udcff\ud800", "??"),
        ("ü", "ü"),
        ("plain", "plain"),
    ],
)
def test_bytes_that_are_no_utf_8_are_read_as_latin_1_and_other_surrogates_replaced(sent: str, expected: str) -> None:
    """The first is how TorchServe reads headers. What is Unicode beside it stays as it is."""
    head = RequestHead("id", {"x-a": sent, "x-b": "ü"}, ())
    assert decode_request_head(encode_head(head)).headers == {"x-a": expected, "x-b": "ü"}
    assert decode_error(encode_head(ErrorRecord("internal", sent))) == ErrorRecord("internal", expected)

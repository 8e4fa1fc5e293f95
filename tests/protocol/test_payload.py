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
    assert found_name == name.encode("utf-8", "replace").decode()
    assert found_value == value.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("text", ["\udcff", "a\ud800b", "plain"])
def test_an_error_message_may_hold_anything(text: str) -> None:
    record = decode_error(encode_head(ErrorRecord("internal", text)))
    assert record == ErrorRecord("internal", text.encode("utf-8", "replace").decode())

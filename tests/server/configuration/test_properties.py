"""Java's properties files, as Java reads and writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.configuration.properties import Property, parse_properties, write_properties


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("a=b", "a", "b"),
        ("a:b", "a", "b"),
        ("a b", "a", "b"),
        ("a", "a", ""),
        ("a=", "a", ""),
        ("  a  =  b c  ", "a", "b c  "),
        ("a\t:\tb", "a", "b"),
        ("a = = b", "a", "= b"),
        ("a  b=c", "a", "b=c"),
        ("address=http://127.0.0.1:80", "address", "http://127.0.0.1:80"),
        ("a\\=b=c", "a=b", "c"),
        ("a\\:b:c", "a:b", "c"),
        ("a\\ b c", "a b", "c"),
        ("a\\\\=b", "a\\", "b"),
        ("a\\\\ b", "a\\", "b"),
        ("a\\ =b", "a ", "b"),
        ("a=b\\\n   c", "a", "bc"),
        ("a=b\\\r\n\tc\\\r\nd", "a", "bcd"),
        ("a=b\\\n#c", "a", "b#c"),
        ("a\\\n=b", "a", "b"),
        ("\\\n#a=b", "#a", "b"),
        ("a=b\\\\\n#c", "a", "b\\"),
        ("a=b\\", "a", "b"),
        ("a=b\\\n", "a", "b"),
        ("a=b\\\n\n#c", "a", "b"),
        ("# c\n! d\n\n   \n  # e\na=b", "a", "b"),
        ("a=\\u0041\\t\\n\\x", "a", "A\t\nx"),
        ("\\u0061=b", "a", "b"),
        ("a=C:\\\\models", "a", "C:\\models"),
        ("a=1\rb" + "\\\n", "a", "1"),
        ("a=one\u2028line\x0b\x85", "a", "one\u2028line\x0b\x85"),
        ("a=\u00a0b", "a", "\u00a0b"),
        ("=b", "", "b"),
    ],
)
def test_a_line_reads_as_in_java(text: str, key: str, value: str) -> None:
    first = parse_properties(text)[0]
    assert (first.key, first.value) == (key, value)


def test_a_property_knows_the_line_it_begins_on() -> None:
    text = "# comment\na=1\\\n  2\\\n  3\r\n\r\nb=4\rc=5"
    assert parse_properties(text) == [Property("a", "123", 2), Property("b", "4", 6), Property("c", "5", 7)]


anything = st.text(st.characters(codec="utf-8"))  # what is no character cannot be written


@given(st.lists(st.tuples(anything, anything), max_size=6), st.lists(anything, max_size=2))
def test_what_is_written_is_read_as_it_was(pairs: list[tuple[str, str]], comments: list[str]) -> None:
    text = write_properties(pairs, comments)
    assert text.isascii()
    assert [(each.key, each.value) for each in parse_properties(text)] == pairs


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("a", "b c", "a=b c"),
        ("a b", "  c ", "a\\ b=\\  c "),
        ("a=b", "c:d=e#f!", "a\\=b=c\\:d\\=e\\#f\\!"),
        ("path", "C:\\x", "path=C\\:\\\\x"),
        ("json", '{\n\t"a": 1\r\f}', 'json={\\n\\t"a"\\: 1\\r\\f}'),
        ("caf\u00e9", "\u2028\x00\x7f\U0001f600", "caf\\u00E9=\\u2028\\u0000\\u007F\\uD83D\\uDE00"),
        ("", "", "="),
    ],
)
def test_a_pair_is_written_as_java_writes_it(key: str, value: str, line: str) -> None:
    assert write_properties([(key, value)]) == f"{line}\n"


def test_comments_come_first_and_cannot_become_settings() -> None:
    text = write_properties([("a", "1")], ["Saving snapshot", "two\nb=2"])
    assert text == "#Saving snapshot\n#two\n#b=2\na=1\n"


def test_half_a_character_is_none() -> None:
    assert parse_properties("a=x\\uD83Dy")[0].value == "x\ufffdy"


@given(st.text(st.sampled_from("ab=: \\\n\r\t#!u0")))
def test_any_text_is_a_properties_file(text: str) -> None:
    lines = [each.line for each in parse_properties(text)]
    assert lines == sorted(set(lines))


def test_a_file_of_one_long_line_takes_no_more_than_it_has() -> None:
    [long] = parse_properties("a" * (4 << 20))
    [joined] = parse_properties("a\\\n" * (1 << 20))
    assert (len(long.key), len(joined.key)) == (4 << 20, 1 << 20)


def test_a_file_that_ends_in_the_middle_of_a_line_says_what_it_said() -> None:
    assert [(each.key, each.value) for each in parse_properties("a=b\\\n")] == [("a", "b")]
    assert parse_properties("\\\n\\") == []

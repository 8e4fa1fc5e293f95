"""The indented JSON text, compared with the standard library's."""

import json
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.backends.json_text import dumps_indented

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.text() | st.integers() | st.floats() | st.booleans() | st.none()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


class Colour(IntEnum):
    """A number that is not exactly an int."""

    RED = 1


class Text(str):
    """A string that is not exactly a str."""


@given(VALUES)
def test_any_value_is_printed_as_the_standard_library_does(value: Any) -> None:
    """Escapes, number formats, keys that are no strings, empty and nested containers."""
    assert dumps_indented(value) == json.dumps(value, indent=2)


@given(st.lists(st.floats(), min_size=1) | st.lists(st.floats(min_value=0, max_value=1), min_size=1))
def test_floats_are_printed_as_python_does(values: list[float]) -> None:
    """Also the tiny and huge ones, where fast printers differ, alone and one level down."""
    assert dumps_indented(values) == json.dumps(values, indent=2)
    assert dumps_indented({"a": [values]}) == json.dumps({"a": [values]}, indent=2)


@pytest.mark.parametrize("exponent", range(-12, 24))
def test_powers_of_ten_are_printed_as_python_does(exponent: int) -> None:
    """The places where notations change from digits to exponents."""
    values = [sign * factor * 10.0**exponent for sign in (1, -1) for factor in (1.0, 9.999999, 1.2345678901234567)]
    assert dumps_indented(values) == json.dumps(values, indent=2)


@pytest.mark.parametrize(
    "value", [Colour.RED, [Colour.RED], Text("a"), {"a": Text("b")}, {Text("k"): [1]}, [[Text()], 1]]
)
def test_subclasses_are_printed_as_the_standard_library_does(value: Any) -> None:
    """Types that the fast walk does not know go to json.dumps."""
    assert dumps_indented(value) == json.dumps(value, indent=2)


@pytest.mark.parametrize("value", [{1, 2}, [object()], {"a": b"bytes"}, {(1, 2): 3}, [[1], 2j]])
def test_what_json_cannot_say_is_a_type_error(value: Any) -> None:
    """As json.dumps has it."""
    with pytest.raises(TypeError):
        dumps_indented(value)


def test_a_list_that_holds_itself_is_refused() -> None:
    """It would never end."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises((RecursionError, ValueError)):
        dumps_indented(value)

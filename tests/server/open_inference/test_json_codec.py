"""Numbers between JSON and arrays: types are strict, values are what they were, and no text can hurt the server."""

import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.datatypes import BYTES, DATATYPES, DTYPES, join_elements, split_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Tensor
from ringserve.server.open_inference.json_codec import (
    DEPTH_MAX,
    JSON_BYTES_MAX,
    check_depth,
    elements_from,
    list_of,
    read_json,
    tensor_json,
    tensor_of,
)

WHOLE = [each for each in DATATYPES if "INT" in each]


def written(tensor: Tensor, *, alone: bool = False) -> str:
    return orjson.dumps(list_of(tensor, alone=alone), option=orjson.OPT_SERIALIZE_NUMPY).decode()


def of(datatype: str, *values: Any) -> Tensor:
    return Tensor("t", datatype, (len(values),), bytes(elements_from(list(values), datatype, (len(values),))))


@st.composite
def lists(draw: st.DrawFn) -> tuple[str, list[Any]]:
    datatype = draw(st.sampled_from(DATATYPES))
    if datatype == "BOOL":
        return datatype, draw(st.lists(st.booleans()))
    if datatype == BYTES:
        return datatype, draw(st.lists(st.text()))
    if datatype in WHOLE:
        edges = np.iinfo(DTYPES[datatype])
        return datatype, draw(st.lists(st.integers(int(edges.min), int(edges.max))))
    width = {"FP16": 16, "BF16": 16, "FP32": 32, "FP64": 64}[datatype]
    numbers = st.integers(-100, 100).map(float) if datatype == "BF16" else st.floats(width=width)  # type: ignore[arg-type]
    return datatype, draw(st.lists(numbers))


@given(lists())
def test_what_is_read_and_written_is_what_it_was(case: tuple[str, list[Any]]) -> None:
    datatype, values = case
    found = json.loads(written(of(datatype, *values)))
    assert len(found) == len(values)
    for one, other in zip(found, values, strict=True):
        same = one == other or (isinstance(other, float) and math.isnan(one) and math.isnan(other))
        close = datatype in ("FP16", "FP32") and math.isclose(one, other, rel_tol=1e-6)
        assert same or close


@given(st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=3), max_leaves=12))
def test_nesting_of_data_does_not_matter(data: Any) -> None:
    def leaves(item: Any) -> list[int]:
        return [leaf for each in item for leaf in leaves(each)] if isinstance(item, list) else [item]

    data = data if isinstance(data, list) else [data]
    flat = leaves(data)
    assert bytes(elements_from(data, "INT32", (len(flat),))) == np.array(flat, np.int32).tobytes()


@pytest.mark.parametrize(
    ("datatype", "data", "text"),
    [
        ("INT32", [1, 2.0], "attempt to access JSON non-signed-integer as signed-integer"),
        ("INT32", [1, True], "attempt to access JSON non-signed-integer as signed-integer"),
        ("INT32", [1, None], "attempt to access JSON non-signed-integer as signed-integer"),
        ("INT32", [1, "2"], "attempt to access JSON non-signed-integer as signed-integer"),
        ("INT32", [1, {}], "attempt to access JSON non-signed-integer as signed-integer"),
        ("INT8", [1, 128], "out of the range of INT8, -128 to 127"),
        ("UINT8", [1, 256], "out of the range of UINT8, 0 to 255"),
        ("UINT8", [1, -1], "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ("UINT64", [1, 2.0**64], "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ("INT64", [1, 2**63], "attempt to access JSON non-signed-integer as signed-integer"),
        ("FP32", [1, "x"], "attempt to access JSON non-number as double"),
        ("FP32", [1, True], "attempt to access JSON non-number as double"),
        ("FP64", [1, 10**400], "out of the range of a double"),
        ("BOOL", [True, 1], "attempt to access JSON non-boolean as boolean"),
        ("BYTES", ["a", 1], "Unable to parse JSON bytes array: attempt to access JSON non-string as string"),
        ("BYTES", ["a", "\ud800"], "half of a surrogate pair"),
        ("FP32", [1], "Shape does not match true shape of 'data' field"),
        ("FP32", [[1, 2], [3]], "Shape does not match true shape of 'data' field"),
        ("FP32", "ab", "attempt to access JSON non-array as array"),
        ("FP32", {"a": 1}, "attempt to access JSON non-array as array"),
        ("FP32", None, "attempt to access JSON non-array as array"),
    ],
)
def test_elements_of_another_type_are_refused(datatype: str, data: Any, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        elements_from(data, datatype, (2,))
    assert text in caught.value.message


def test_a_shape_of_astronomic_size_allocates_nothing() -> None:
    with pytest.raises(BadRequest, match="true shape"):
        elements_from([1], "FP32", (16, 2**60 + 2))


def test_numbers_that_json_has_no_word_for_are_written_as_triton_writes_them() -> None:
    numbers = of("FP32", math.nan, math.inf, -math.inf, 1.5)
    assert written(numbers) == "[NaN,Infinity,-Infinity,1.5]"
    assert written(of("FP64", math.nan), alone=True) == "NaN"
    assert written(of("FP32", 1e300)) == "[Infinity]"
    assert written(of("FP16", 70000)) == "[Infinity]"
    read = read_json(b'{"a": [NaN, Infinity, -Infinity]}')
    assert isinstance(read, dict)
    assert str(read["a"]) == "[nan, inf, -inf]"


def test_a_tensor_of_one_element_can_stand_alone() -> None:
    assert [written(of(*case), alone=True) for case in (("INT8", -3), ("BOOL", True), ("BF16", 2), ("BYTES", "é"))] == [
        "-3",
        "true",
        "2.0",
        '"é"',
    ]


def test_bytes_that_are_no_text_have_no_form_in_json() -> None:
    with pytest.raises(BadRequest, match="Please use the binary data format for output t"):
        list_of(Tensor("t", BYTES, (1,), join_elements([b"\xff"])))


def test_bytes_travel_behind_their_lengths() -> None:
    assert split_elements(bytes(of("BYTES", "a\0b", "é", "").data)) == [b"a\0b", "é".encode(), b""]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (b"[" * DEPTH_MAX + b"]" * DEPTH_MAX, False),
        (b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1), True),
        (b'{"a":' * (DEPTH_MAX + 1) + b"1" + b"}" * (DEPTH_MAX + 1), True),
        (b"[[]" * 3000 + b"]" * 3000, True),
        (b"[" + b"[1]," * 3000 + b"[1]]", False),
        (b'["' + b"[{" * 3000 + b'"]', False),
        (b'["\\"' + b"[" * 3000 + b'"]', False),
        (b'"' + b"[" * 3000, True),  # no text at all: it may be called deep
    ],
)
def test_json_that_nests_too_deep_reaches_no_parser(text: bytes, deep: bool) -> None:
    for each in (text, memoryview(text)):
        if deep:
            with pytest.raises(BadRequest, match=r"JSON nesting depth exceeds maximum allowed limit \(100\)"):
                read_json(each)
        else:
            check_depth(bytes(each))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"nul", b"\xff", b'{"a": "\\ud800"}', b"[NaN", b"[Infinity" + b"1" * 5000, b"{} {}"]
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(BadRequest, match="failed to parse the request JSON buffer"):
        read_json(text)


def test_json_longer_than_the_limit_is_not_read() -> None:
    with pytest.raises(BadRequest, match=f"exceeds the maximum allowed input size of {JSON_BYTES_MAX} bytes"):
        read_json(memoryview(bytes(1)).cast("B", (1,)).tobytes() * (JSON_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("shape", "data", "expected"),
    [
        ([-1], [1, 2, 3], (3,)),
        ([2, -1], [1, 2, 3, 4], (2, 2)),
        (-1, [1, 2], (2,)),
        (150, [1], (1,)),
        (None, [[1, 2], [3, 4]], (4,)),
        ([1], 7, (1,)),
        ([2, 2], [[1, 2], [3, 4]], (2, 2)),
    ],
)
def test_models_that_declare_nothing_may_be_asked_loosely(shape: Any, data: Any, expected: tuple[int, ...]) -> None:
    said = {"name": "t", "datatype": "INT64", "shape": shape, "data": data}
    assert tensor_of(said, lenient=True).shape == expected


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": 1}, "Unable to parse 'name': attempt to access JSON non-string as string"),
        ({"datatype": "XX"}, "invalid datatype for input t"),
        ({"shape": [-1]}, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ({"shape": [True]}, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ({"shape": [1.0]}, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ({"shape": "x"}, "attempt to access JSON non-array as array"),
    ],
)
def test_a_declared_model_is_asked_strictly(change: dict[str, Any], text: str) -> None:
    good = {"name": "t", "datatype": "INT64", "shape": [1], "data": [1]}
    assert tensor_of(good).shape == (1,)
    with pytest.raises(BadRequest) as caught:
        tensor_of({**good, **change})
    assert text in caught.value.message


@pytest.mark.parametrize("shape", [[-1, -1], [-2], ["x"], [3], [0, -1], "x"])
def test_even_a_loose_shape_must_fit(shape: Any) -> None:
    with pytest.raises(BadRequest):
        tensor_of({"name": "t", "datatype": "INT64", "shape": shape, "data": [1, 2]}, lenient=True)


def test_a_tensor_is_written_with_its_name_and_shape() -> None:
    assert tensor_json(Tensor("t", BYTES, (1, 1), join_elements([b"x"]))) == {
        "name": "t",
        "shape": [1, 1],
        "datatype": "BYTES",
        "data": ["x"],
    }

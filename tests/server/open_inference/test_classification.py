"""The highest values, their places and their names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.datatypes import BYTES, DTYPES, split_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Tensor
from ringserve.server.open_inference.classification import classified

LABELS = ["cat", "dog", "fish"]


def of(values: object, datatype: str = "FP32") -> Tensor:
    array = np.array(values, DTYPES[datatype])
    return Tensor("y", datatype, array.shape, array.tobytes())


def texts(tensor: Tensor) -> list[str]:
    assert isinstance(tensor.data, bytes)
    return [each.decode() for each in split_elements(tensor.data)]


@pytest.mark.parametrize(
    ("tensor", "count", "batches", "shape", "expected"),
    [
        (of([[0.1, 0.7, 0.2]]), 2, True, (1, 2), ["0.700000:1:dog", "0.200000:2:fish"]),
        (of([[1, 2, 3], [6, 5, 4]]), 1, True, (2, 1), ["3.000000:2:fish", "6.000000:0:cat"]),
        (of([0.7, 0.7, 0.9]), 3, False, (3,), ["0.900000:2:fish", "0.700000:0:cat", "0.700000:1:dog"]),
        (of([1, 2]), 9, False, (2,), ["2.000000:1:dog", "1.000000:0:cat"]),
        (of([1, 2, 3, 4]), 1, False, (1,), ["4.000000:3"]),
        (of([-128, 127, 0], "INT8"), 3, False, (3,), ["127:1:dog", "0:2:fish", "-128:0:cat"]),
        (of([0, 255], "UINT8"), 2, False, (2,), ["255:1:dog", "0:0:cat"]),
        (of([[[1], [2]]], "INT64"), 1, True, (1, 1), ["2:1:dog"]),
        (of(np.zeros((0, 3))), 2, True, (0, 0), []),
        (of(np.zeros((2, 0))), 2, True, (2, 0), []),
        (of([np.nan, 1.0]), 1, False, (1,), ["1.000000:1:dog"]),
    ],
)
def test_the_highest_come_first(
    tensor: Tensor, count: int, batches: bool, shape: tuple[int, ...], expected: list[str]
) -> None:
    found = classified(tensor, count, LABELS, batches=batches)
    assert (found.name, found.datatype, found.shape, texts(found)) == ("y", BYTES, shape, expected)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(1, 9))
def test_places_are_those_of_a_stable_sort(values: list[int], count: int) -> None:
    order = sorted(range(len(values)), key=lambda at: -values[at])[:count]
    assert texts(classified(of(values, "INT64"), count, (), batches=False)) == [f"{values[at]}:{at}" for at in order]


@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "BF16", "BYTES"])
def test_what_cannot_be_ordered_is_refused(datatype: str) -> None:
    with pytest.raises(BadRequest, match=f"class result not available for output due to unsupported type '{datatype}'"):
        classified(Tensor("y", datatype, (1,), bytes(4)), 1, (), batches=False)


def test_a_tensor_that_is_too_large_is_refused() -> None:
    with pytest.raises(BadRequest, match="classification output tensor too large"):
        classified(Tensor("y", "INT8", (1_000_001,), bytes(1_000_001)), 1, (), batches=False)

"""Declared tensors know how many bytes a row of them takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.tensor import ITEM_BYTES, Signature, TensorSpec

specs = st.builds(TensorSpec, st.just("x"), st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(1, 9)).map(tuple))


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_item_sizes_are_numpys(dtype: str) -> None:
    assert np.dtype(dtype).itemsize == ITEM_BYTES[dtype]


@given(specs)
def test_row_bytes_are_those_of_one_row(spec: TensorSpec) -> None:
    assert spec.row_bytes == math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


@given(st.lists(specs), st.lists(specs))
def test_a_signature_adds_its_rows_up(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
    signature = Signature(tuple(inputs), tuple(outputs))
    assert signature.input_row_bytes == sum(spec.row_bytes for spec in inputs)
    assert signature.output_row_bytes == sum(spec.row_bytes for spec in outputs)
    assert signature.typed is bool(inputs)


def test_a_tensor_reads_as_it_is_declared() -> None:
    assert str(TensorSpec("image", "uint8", (3, 224, 224))) == "image uint8[3, 224, 224]"
    assert str(TensorSpec("score", "float32", ())) == "score float32[]"

"""Declared tensors know how many bytes a row of them takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.tensor import ANY, BYTES_DTYPE, ITEM_BYTES, Signature, TensorSpec

FIXED_DTYPES = sorted(ITEM_BYTES.keys() - {"bfloat16"})
specs = st.builds(TensorSpec, st.just("x"), st.sampled_from(FIXED_DTYPES), st.lists(st.integers(1, 9)).map(tuple))


@pytest.mark.parametrize("dtype", FIXED_DTYPES)
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


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("x", "float32", (ANY, 2)),
        TensorSpec("x", BYTES_DTYPE, (1,)),
        TensorSpec("x", "bfloat16", (2,)),
        TensorSpec("x", "float32", (2,), optional=True),
    ],
    ids=str,
)
def test_what_has_no_size_or_no_arrays_travels_in_frames(spec: TensorSpec) -> None:
    fixed = TensorSpec("y", "float32", (2,))
    assert Signature((fixed,), (fixed,)).typed
    for signature in (Signature((fixed, spec), (fixed,)), Signature((fixed,), (spec,))):
        assert signature.framed
        assert not signature.typed


@pytest.mark.parametrize("more", [{"batches": False}, {"decoupled": True}, {"ragged": True}], ids=str)
def test_what_is_not_put_next_to_each_other_travels_in_frames(more: dict[str, bool]) -> None:
    fixed = (TensorSpec("y", "float32", (2,)),)
    assert Signature(fixed, fixed, **more).framed
    assert not Signature().framed

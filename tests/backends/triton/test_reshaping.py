"""Tensors that a model wants in another shape."""

import numpy as np
import pytest

from ringserve.backends.triton.reshaping import reshaped, reshapes_of


@pytest.mark.parametrize(
    ("shape", "before", "after", "expected"),
    [
        ((4, 1), (1,), (), (4,)),
        ((4,), (), (1,), (4, 1)),
        ((2, 6), (6,), (2, 3), (2, 2, 3)),
        ((2, 3, 5), (-1, 5), (5, -1), (2, 5, 3)),
        ((2, 3, 4, 5), (-1, 4, -1), (-1, -1, 4), (2, 3, 5, 4)),
        ((0, 6), (6,), (2, 3), (0, 2, 3)),
    ],
)
def test_variable_dimensions_keep_their_order(
    shape: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """And the batch dimension stays as it is."""
    assert reshaped(np.zeros(shape), before, after, batches=True).shape == expected


def test_without_a_batch_dimension_all_are_the_tensors() -> None:
    """A scalar among them."""
    assert reshaped(np.zeros((1,)), (1,), (), batches=False).shape == ()


def test_another_number_of_dimensions_cannot_be_reshaped() -> None:
    """A model may have answered anything."""
    with pytest.raises(ValueError, match="expected 1 dimensions to reshape, got"):
        reshaped(np.zeros((2, 3, 4)), (-1,), (1,), batches=True)


def test_a_configuration_names_those_that_have_one() -> None:
    """An empty shape is one, too."""
    config = {"input": [{"name": "a", "dims": [1], "reshape": {"shape": []}}, {"name": "b", "dims": [2]}]}
    assert reshapes_of(config, "input") == {"a": ((1,), ())}
    assert reshapes_of(config, "output") == {}

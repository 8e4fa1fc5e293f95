"""`reshape` of a configuration: a tensor that its model wants in another shape than its clients have."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Reshape = tuple[tuple[int, ...], tuple[int, ...]]  # from these dimensions to those, without the batch dimension


def reshapes_of(config: Mapping[str, Any], kind: str) -> dict[str, Reshape]:
    """Of its inputs, or of its outputs, those that have one, by name: from the clients' dimensions to the model's."""
    found = {}
    for tensor in config.get(kind) or ():
        wanted = (tensor.get("reshape") or {}).get("shape")
        if wanted is not None:
            found[tensor["name"]] = (tuple(map(int, tensor["dims"])), tuple(map(int, wanted)))
    return found


def reshaped(array: np.ndarray, before: tuple[int, ...], after: tuple[int, ...], *, batches: bool) -> np.ndarray:
    """A view where numpy can make one. Variable dimensions are carried over in their order. Raises `ValueError`."""
    shape = array.shape[1:] if batches else array.shape
    if len(shape) != len(before):
        raise ValueError(f"expected {len(before)} dimensions to reshape, got {list(shape)}")
    variable = iter([length for length, dim in zip(shape, before, strict=True) if dim == -1])
    new = [next(variable, -1) if dim == -1 else dim for dim in after]
    return array.reshape(array.shape[:1] + tuple(new) if batches else new)

"""The classification extension: instead of a tensor, its highest values with their places and names (contract section 3.3)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ringserve.protocol.datatypes import BYTES, DTYPES, join_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Tensor
from ringserve.server.open_inference.checks import CLASSES_MAX

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_UNSUPPORTED = frozenset(("BOOL", "FP16", "BF16", BYTES))


def classified(output: Tensor, count: int, labels: Sequence[str], *, batches: bool) -> Tensor:
    """The `count` highest values of each item, as BYTES `value:index` or `value:index:label` of shape `[batch, count]`, or `[count]` of
    a model that does not batch. Of equal values the first comes first. Raises `BadRequest` where the tensor has another kind of
    elements, or too many."""
    if output.datatype in _UNSUPPORTED:
        raise BadRequest(f"class result not available for output due to unsupported type '{output.datatype}'")
    elements = math.prod(output.shape)
    if elements > CLASSES_MAX:
        raise BadRequest(
            f"classification output tensor too large: '{output.name}' has {elements} elements, at most {CLASSES_MAX} are allowed"
        )
    data = output.data
    assert isinstance(data, bytes | bytearray | memoryview), "answers are in our memory"
    values = np.frombuffer(data, DTYPES[output.datatype])
    batch = output.shape[0] if batches else 1
    each = elements // batch if batch else 0
    kept = min(count, each)
    texts: list[bytes] = []
    for item in values.reshape(batch, each) if elements else ():
        # The highest come last: sorted from behind, so that equal values keep their order, and no NaN comes before a number.
        order = np.argsort(_descending(item), kind="stable")[:kept]
        texts += [_said(item[at], int(at), labels) for at in order]
    shape = (batch, kept) if batches else (kept,)
    return Tensor(output.name, BYTES, shape, join_elements(texts))


def _descending(item: Array) -> Array:
    """Keys whose ascending order is the descending order of the values. The lowest integer has no negative, nor has any unsigned one:
    their complement keeps the order."""
    if np.issubdtype(item.dtype, np.floating):
        return np.asarray(np.negative(item))
    return np.asarray(np.invert(item))


def _said(value: np.generic, at: int, labels: Sequence[str]) -> bytes:
    text = f"{float(value):.6f}" if isinstance(value, np.floating) else str(int(value))
    return f"{text}:{at}:{labels[at]}".encode() if at < len(labels) else f"{text}:{at}".encode()

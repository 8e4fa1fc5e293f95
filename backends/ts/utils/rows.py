"""Between requests and tensors, for handlers that leave `preprocess` and `postprocess` to `BaseHandler`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ringserve.backends.ts.utils.util import PredictionException

BAD_REQUEST = 400
_NO_NUMBERS = (bytes, bytearray, memoryview, str)


def tensors_of(rows: Sequence[Mapping[str, Any]], device: Any) -> Any:
    """One tensor `[rows, ...]` of what each request brought as `data` or `body`, a list of numbers. Where that is an object,
    or a request names its inputs itself, one tensor for each name.

    TorchServe raises here. Raises `PredictionException` with status 400 when a request brought anything else.
    """
    values = [row["data"] if "data" in row else row.get("body", row) for row in rows]
    if not isinstance(values[0], Mapping):
        return _tensor("its data", values, device)
    if not values[0] or any(not isinstance(value, Mapping) or value.keys() != values[0].keys() for value in values):
        raise PredictionException(
            "The model takes numbers in JSON: a list of them, or an object of one such list for each input.",
            BAD_REQUEST,
        )
    return {name: _tensor(f'its input "{name}"', [value[name] for value in values], device) for name in values[0]}


def _tensor(what: str, values: list[Any], device: Any) -> torch.Tensor:
    for value in values:
        if value is None or isinstance(value, _NO_NUMBERS):
            raise PredictionException(
                f"The model takes numbers in JSON; the request brought {type(value).__name__} as {what}.", BAD_REQUEST
            )
    try:
        tensor = torch.as_tensor(values, device=device)
        if not tensor.numel() and not _is_empty(values):  # torch leaves out what stands beside an empty list
            raise ValueError("an empty list beside others")
        return tensor
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # ragged, or not numbers
        raise PredictionException(
            f"The model takes numbers in JSON; what the request brought as {what} makes no tensor: {error}", BAD_REQUEST
        ) from error


def _is_empty(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_empty, value))


def rows_of(output: Any) -> Any:
    """The list of answers in what a model returned: of a tensor its rows; of several, named or not, one object or list of
    theirs for each row."""
    if isinstance(output, Mapping):
        columns = [_column(value) for value in output.values()]
        return [dict(zip(output, row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(output, list | tuple) and all(hasattr(value, "tolist") for value in output):
        return [list(row) for row in zip(*map(_column, output), strict=True)]
    return output.tolist()


def _column(value: Any) -> Any:
    return value if isinstance(value, list) else value.tolist()

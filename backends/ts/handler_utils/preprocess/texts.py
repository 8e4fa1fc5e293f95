"""A batch of texts as the numbers of their words."""

from typing import Any, Self

import torch


class TextBatch(tuple[torch.Tensor, list[Any]]):
    """What `preprocess` gives: (numbers of all rows' words, one after the other, int64; the words), as handlers unpack it. The
    words are a list for a single row, which is all that TorchServe knows, and a list of lists for several."""

    rows: list[tuple[torch.Tensor, list[str]]]

    def __new__(cls, rows: list[tuple[torch.Tensor, list[str]]]) -> Self:
        numbers = torch.cat([each for each, _ in rows])
        words: list[Any] = [each for _, each in rows] if len(rows) > 1 else rows[0][1]
        batch = super().__new__(cls, (numbers, words))
        batch.rows = rows
        return batch


def rows_of(data: Any) -> list[tuple[torch.Tensor, list[str]]]:
    """The batch row by row; what a subclass prepared, a pair of numbers and words, is one row."""
    return data.rows if isinstance(data, TextBatch) else [data]

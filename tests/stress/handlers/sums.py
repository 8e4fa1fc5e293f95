"""A typed model: the first number of a row, and the sum of all of them."""

from typing import Any


class Sums:
    def predict(self, inputs: Any, outputs: Any) -> None:
        outputs["y"][:, 0] = inputs["x"][:, 0]
        outputs["y"][:, 1] = inputs["x"].sum(axis=1)

"""The output is the input, on arrays."""

import numpy as np


class Echo:
    def predict(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        np.copyto(outputs["y"], inputs["x"])

"""The words of a text, one answer for each: a decoupled model, whose predict is a generator."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class Words:
    def predict(
        self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], context: Any
    ) -> Iterator[dict[str, Any]]:
        """One text in, [1]; each dict that is yielded is one answer. It ends when nobody reads any more."""
        (text,) = inputs["TEXT"].tolist()
        for place, word in enumerate(text.decode().split()):
            context.requests[0].response_parameters["place"] = place
            yield {"WORD": [word]}

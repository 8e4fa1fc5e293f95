"""Answers as many 32-bit numbers as the body says: 0, 1, 2, and so on."""

from typing import Any

import numpy as np


def handle(data: Any, context: Any) -> list[bytes] | None:
    return None if data is None else [np.arange(int(bytes(row["body"])), dtype="<u4").tobytes() for row in data]

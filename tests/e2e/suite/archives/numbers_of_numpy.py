"""What numpy makes: its float64 is a float, its arrays and other numbers have no JSON form until they are made lists."""

import numpy as np


def handle(data, context):
    if data is None:
        return None
    made = {
        "float64": np.float64(0.5),
        "float32": np.float32(0.5),
        "array": np.arange(3),
        "list": np.arange(6).reshape(2, 3).tolist(),
        "bytes": np.arange(3, dtype=np.uint8).tobytes(),
    }
    return [made[bytes(row["body"]).decode()] for row in data]

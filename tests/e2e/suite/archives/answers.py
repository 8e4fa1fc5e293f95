"""One answer of every kind that there is."""

import math


class Rows(list):
    """A list by another name."""


KINDS = {
    "str": "a text",
    "unicode": "naïve ☃ \U0001f600",
    "bytes": b"\x00\xff\x80 bytes",
    "bytearray": bytearray(b"\x01\x02"),
    "empty bytes": b"",
    "empty str": "",
    "None": None,
    "int": 42,
    "big int": 2**70,
    "float": 0.1,
    "bool": True,
    "NaN": [math.nan, {"x": math.inf}, -math.inf],
    "list": [1, 2.5, "three", None, False],
    "empty list": [],
    "empty dict": {},
    "dict": {"name": "a", "nested": {"list": [[1, 2], [3]], "none": None}, "é": "ü"},
    "int keys": {1: "one", None: "none", True: "true"},
    "tuple": (1, (2, 3)),
    "megabyte": b"m" * 1_000_000,
    "long list": list(range(20_000)),
    "set": {1, 2},
    "object": object(),
    "complex": 1 + 2j,
    "tuple keys": {(1, 2): 3},
}


def handle(data, context):
    if data is None:
        return None
    words = [bytes(row["body"]).decode() for row in data]
    if words == ["rows"]:
        return Rows(["a list by another name"])
    if words == ["circle"]:
        circle = []
        circle.append(circle)
        return [circle]
    return [KINDS[word] for word in words]

"""The element types of the Open Inference Protocol, and numpy's names for them.

BYTES has elements of any length: on the wire and in slabs each follows its length, four bytes little-endian. BF16 has no numpy
type: its arrays are uint16 in processes that do not know better.
"""

import struct
from collections.abc import Iterable, Sequence

# Bytes of one element; BYTES has none of its own.
DATATYPE_BYTES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
}
BYTES = "BYTES"
DATATYPES = (*DATATYPE_BYTES, BYTES)

# The names that declarations use (protocol/tensor.py): numpy's, but for the two that numpy has not.
DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "bfloat16",
    BYTES: "bytes",
}
DATATYPE_OF = {dtype: datatype for datatype, dtype in DTYPES.items()}

_LENGTH = struct.Struct("<I")


def join_elements(elements: Iterable[bytes | memoryview]) -> bytes:
    """The elements of a BYTES tensor, row-major, as they travel."""
    parts: list[bytes | memoryview] = []
    for element in elements:
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


def split_elements(data: bytes | bytearray | memoryview) -> Sequence[bytes]:
    """The reverse. Raises `ValueError` where a length is cut off, or says more than there is."""
    elements, at, memory = [], 0, memoryview(data)
    while at < len(memory):
        if at + _LENGTH.size > len(memory):
            raise ValueError("incomplete string length indicator")
        (length,) = _LENGTH.unpack_from(memory, at)
        at += _LENGTH.size
        if at + length > len(memory):
            raise ValueError("incomplete string data")
        elements.append(bytes(memory[at : at + length]))
        at += length
    return elements

"""The three names of an element type: Triton's configuration has TYPE_FP32, the protocol FP32, numpy float32.

`TYPE_STRING` is the protocol's BYTES and numpy's object. BF16 has no numpy type of its own: its arrays are uint16 here.
"""

from typing import Any, Final

import numpy as np

from ringserve.protocol.datatypes import BYTES, DTYPES

BF16: Final = "BF16"

_OF_CONFIGURATION = {"TYPE_STRING": BYTES} | {f"TYPE_{word}": word for word in DTYPES if word != BYTES}
CONFIGURATION_OF = {word: name for name, word in _OF_CONFIGURATION.items()}

# Triton's enum: what `numpy_to_triton_type` answers, and `Tensor.triton_dtype`.
NUMBERS = {
    "BOOL": 1,
    "UINT8": 2,
    "UINT16": 3,
    "UINT32": 4,
    "UINT64": 5,
    "INT8": 6,
    "INT16": 7,
    "INT32": 8,
    "INT64": 9,
    "FP16": 10,
    "FP32": 11,
    "FP64": 12,
    BYTES: 13,
    BF16: 14,
}
_SCALARS: dict[str, type[Any]] = {
    word: np.bool_ if word == "BOOL" else np.dtype(name).type
    for word, name in DTYPES.items()
    if word not in (BYTES, BF16)
}
_SCALARS[BYTES] = np.object_
_WORDS = {np.dtype(scalar): word for word, scalar in _SCALARS.items()}


def datatype_of(dtype: np.dtype[Any]) -> str | None:
    """The protocol's word for an array's element type; texts of a fixed length are BYTES. None for a type that it has not."""
    if dtype.kind == "S":
        return BYTES
    word = _WORDS.get(dtype.newbyteorder("="))
    if word is None and dtype.name == "bfloat16":  # ml_dtypes' type, which only models that import it have
        return BF16
    return word


def triton_string_to_numpy(triton_type_string: str) -> type[Any]:
    """TYPE_FP32 -> numpy.float32. Raises `KeyError` for what numpy has not, TYPE_BF16 among it, as Triton does."""
    word = _OF_CONFIGURATION[triton_type_string]
    if word not in _SCALARS:
        raise KeyError(triton_type_string)
    return bool if word == "BOOL" else _SCALARS[word]


def numpy_to_triton_type(data_type: Any) -> int | None:
    """The number of a numpy type in Triton's enum; None for a type that it has not."""
    try:
        word = datatype_of(np.dtype(data_type))
    except TypeError:
        return None
    return None if word is None else NUMBERS[word]


def triton_to_numpy_type(data_type: int) -> type[Any]:
    """The reverse. Raises `KeyError` for a number that no numpy type has."""
    for word, number in NUMBERS.items():
        if number == data_type and word in _SCALARS:
            return bool if word == "BOOL" else _SCALARS[word]
    raise KeyError(data_type)


def word_of_configuration(data_type: str) -> str | None:
    """TYPE_FP32 -> FP32; None for a word that no configuration has."""
    return _OF_CONFIGURATION.get(data_type)

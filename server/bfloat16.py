"""BF16 in processes whose numpy does not know it: the upper half of a float32, as uint16."""

import numpy as np
import numpy.typing as npt

_NAN = np.uint16(0x7FC0)


def to_bfloat16(values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """The nearest BF16 numbers, ties to even, as every library rounds them; of the same shape."""
    floats = np.asarray(values, dtype=np.float32)
    bits = floats.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(floats), _NAN, rounded)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The same numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32)

"""The datatypes of a model configuration, `TYPE_FP32` and the like, in the words of declarations (protocol/datatypes.py)."""

from ringserve.protocol.datatypes import BYTES, DTYPES

_PREFIX = "TYPE_"
_TYPE_STRING = "STRING"  # what the protocol calls BYTES
# The numbers of inference.DataType (contracts/open-inference.md, section 2.2).
WORDS = ("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
         _TYPE_STRING, "BF16")  # fmt: skip


def datatype_of(number: int) -> str:
    """The protocol's word of an `inference.DataType`, "" for one that is none."""
    word = WORDS[number] if 0 < number < len(WORDS) else ""
    return BYTES if word == _TYPE_STRING else word


def dtype_of(number: int) -> str:
    """The declarations' word, "" for none."""
    return DTYPES.get(datatype_of(number), "")


def type_name(datatype: str) -> str:
    """`TYPE_FP32` of `FP32`."""
    return _PREFIX + (_TYPE_STRING if datatype == BYTES else datatype)

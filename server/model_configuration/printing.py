"""A model configuration as JSON, as Triton prints it: every scalar, list and map whether set or not, messages only where they are there,
numbers as numbers however long, enumerations by name (contracts/open-inference.md, section 3.7).

protobuf's own JSON writes numbers of 64 bits as text, which no client of Triton expects.
"""

import struct
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

WHOLE_MAX = 2.0**53  # numbers without a fraction are printed without a point below this one


def to_mapping(message: Message, *, sparse: bool = False) -> dict[str, Any]:
    """The fields by name, in the order of the declaration. `sparse`: only what somebody has said."""
    found: dict[str, Any] = {}
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            if value or not sparse:
                found[field.name] = _several(value, field, sparse)
        elif field.message_type is not None or field.containing_oneof is not None:
            if message.HasField(field.name):
                found[field.name] = _plain(value, field, sparse)
        elif not sparse or value != field.default_value:
            found[field.name] = _plain(value, field, sparse)
    return found


def _several(values: Any, field: FieldDescriptor, sparse: bool) -> dict[str, Any] | list[Any]:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        of_value = entry.fields_by_name["value"]
        return {str(key): _plain(values[key], of_value, sparse) for key in sorted(values)}
    return [_plain(value, field, sparse) for value in values]


def _plain(value: Any, field: FieldDescriptor, sparse: bool) -> Any:
    if field.message_type is not None:
        return to_mapping(value, sparse=sparse)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    if field.type == FieldDescriptor.TYPE_FLOAT:
        value = _shortest(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE_MAX:
        return int(value)
    return value


def _shortest(value: float) -> float:
    """The shortest decimal that is this number of 32 bits: 0.1, and not 0.10000000149011612."""
    for digits in range(6, 10):
        text = f"{value:.{digits}g}"
        if _as_32_bits(float(text)) == value:
            return float(text)
    return value


def _as_32_bits(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return value

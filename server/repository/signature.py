"""The `inputs:` and `outputs:` of model-config.yaml: which arrays a model takes and gives, one row at a time.

inputs:
  - {name: x, dtype: float32, shape: [3, 224, 224]}
  - {name: prompt, dtype: bytes, shape: [-1], optional: true}

-1 is a dimension of any length; `bytes` has elements of any length; an optional input may be missing from a request.
"""

import math
from collections.abc import Mapping
from typing import Any

from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.tensor import ANY, BYTES_DTYPE, ITEM_BYTES, Signature, TensorSpec

TENSORS_MAX = 64
DIMENSIONS_MAX = 32  # numpy 1's own bound
NAME_CHARS_MAX = 256
ROW_BYTES_MAX = 1 << 30
KEYS = ("name", "dtype", "shape")
OPTIONAL = "optional"
DTYPES = (*ITEM_BYTES, BYTES_DTYPE)

# Triton's and torch's words for numpy's types. `float` is torch's, four bytes; numpy's own `float` would be eight.
DTYPE_ALIASES = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "bfloat16",
    "BYTES": BYTES_DTYPE,
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "byte": "uint8",
    "char": "int8",
    "short": "int16",
    "int": "int32",
    "long": "int64",
}
assert set(DTYPE_ALIASES.values()) <= set(DTYPES)


def parse_signature(raw: Mapping[str, Any], file_name: str) -> Signature:
    """The signature a configuration declares, empty when it declares none. Raises `InvalidModel`."""
    inputs = _specs(raw, "inputs", file_name)
    outputs = _specs(raw, "outputs", file_name)
    if outputs and not inputs:
        raise InvalidModel(f"{file_name}: inputs: expected a list beside outputs, got none")
    return Signature(inputs, outputs)


def _specs(raw: Mapping[str, Any], key: str, file_name: str) -> tuple[TensorSpec, ...]:
    if key not in raw:
        return ()
    entries = raw[key]
    if not isinstance(entries, list) or not 0 < len(entries) <= TENSORS_MAX:
        raise InvalidModel(f"{file_name}: {key}: expected a list of 1 to {TENSORS_MAX} tensors, got {entries!r:.200}")
    is_input = key == "inputs"
    specs = tuple(
        _spec(entry, f"{file_name}: {key}[{index}]", is_input=is_input) for index, entry in enumerate(entries)
    )
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise InvalidModel(f"{file_name}: {key}: expected every name once, got {', '.join(names)}")
    row_bytes = sum(_row_bytes_min(spec) for spec in specs)
    if row_bytes > ROW_BYTES_MAX:
        raise InvalidModel(f"{file_name}: {key}: expected at most {ROW_BYTES_MAX} bytes a row, got {row_bytes:,}")
    return specs


def _row_bytes_min(spec: TensorSpec) -> int:
    """What a row has at least: dimensions of any length count as 1, and so do elements of any."""
    return ITEM_BYTES.get(spec.dtype, 1) * math.prod(1 if each == ANY else each for each in spec.shape)


def _spec(entry: object, where: str, *, is_input: bool) -> TensorSpec:
    if not isinstance(entry, dict) or set(entry) - {OPTIONAL} != set(KEYS):
        raise InvalidModel(f"{where}: expected the keys {', '.join(KEYS)}, got {entry!r:.200}")
    optional = entry.get(OPTIONAL, False)
    if not isinstance(optional, bool) or (optional and not is_input):
        expected = "true or false" if is_input else "none, as outputs are never missing"
        raise InvalidModel(f"{where}.{OPTIONAL}: expected {expected}, got {optional!r:.200}")
    name = entry["name"]
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        expected = f"a name of 1 to {NAME_CHARS_MAX} printable characters"
        raise InvalidModel(f"{where}.name: expected {expected}, got {name!r:.200}")
    return TensorSpec(name, _dtype(entry["dtype"], where), _shape(entry["shape"], where), optional)


def _dtype(value: object, where: str) -> str:
    if isinstance(value, str):
        word = value.removeprefix("torch.")
        word = DTYPE_ALIASES.get(word, word)
        if word in DTYPES:
            return word
    raise InvalidModel(f"{where}.dtype: expected one of {', '.join(DTYPES)}, got {value!r:.200}")


def _shape(value: object, where: str) -> tuple[int, ...]:
    """One row's shape: [] is a scalar a row."""
    if isinstance(value, list) and len(value) <= DIMENSIONS_MAX and all(_is_dimension(entry) for entry in value):
        return tuple(value)
    expected = f"a list of at most {DIMENSIONS_MAX} positive integers, or -1 for any, without the batch dimension"
    raise InvalidModel(f"{where}.shape: expected {expected}, got {value!r:.200}")


def _is_dimension(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (value == ANY or 0 < value <= ROW_BYTES_MAX)

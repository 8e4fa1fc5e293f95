"""What a model declares about its tensors: name, element type and the shape of one row."""

import math

import msgspec

# numpy's names; `bfloat16` has no numpy type and arrives with the framework backends that need it.
ITEM_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}


class TensorSpec(msgspec.Struct, frozen=True):
    """One declared input or output. `shape` is the shape of a single row: the batch dimension is never part of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


class Signature(msgspec.Struct, frozen=True):
    """The declared inputs and outputs of a model. Empty means undeclared: requests and answers are bytes."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    @property
    def typed(self) -> bool:
        """Whether rows are laid out as arrays rather than as byte payloads."""
        return bool(self.inputs)

    @property
    def input_row_bytes(self) -> int:
        return sum(spec.row_bytes for spec in self.inputs)

    @property
    def output_row_bytes(self) -> int:
        return sum(spec.row_bytes for spec in self.outputs)

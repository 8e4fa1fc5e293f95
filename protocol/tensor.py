"""What a model declares about its tensors: name, element type and the shape of one row."""

import math

import msgspec

# numpy's names, and `bfloat16`, which numpy has not. `bytes`, whose elements are of any length, has no size.
ITEM_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}


BYTES_DTYPE = "bytes"
ANY = -1  # a dimension that each request says


class TensorSpec(msgspec.Struct, frozen=True):
    """One declared input or output. `shape` is the shape of a single row: the batch dimension is never part of it; `ANY` is a
    dimension of any length. An `optional` input may be missing."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    optional: bool = False

    @property
    def fixed(self) -> bool:
        """Whether every row has the same bytes, of which numpy makes arrays: not of BF16."""
        return self.dtype in ITEM_BYTES and self.dtype != "bfloat16" and ANY not in self.shape and not self.optional

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a fixed tensor."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


class Signature(msgspec.Struct, frozen=True):
    """The declared inputs and outputs of a model. Empty means undeclared: requests and answers are bytes.

    `batches`: tensors of requests begin with a batch dimension. `decoupled`: a request has any number of answers. `ragged`: each
    request is handed to the model by itself, as arrays of its own, and nothing is put next to each other.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batches: bool = True
    decoupled: bool = False
    ragged: bool = False

    @property
    def declared(self) -> bool:
        return bool(self.inputs)

    @property
    def typed(self) -> bool:
        """Whether rows are laid out as arrays, next to each other, rather than as payloads."""
        plain = self.batches and not self.decoupled and not self.ragged and self.declared
        return plain and all(spec.fixed for spec in (*self.inputs, *self.outputs))

    @property
    def framed(self) -> bool:
        """Whether requests and answers are tensors, and travel as payloads (protocol/tensor_frame.py)."""
        return self.declared and not self.typed

    @property
    def input_row_bytes(self) -> int:
        return sum(spec.row_bytes for spec in self.inputs)

    @property
    def output_row_bytes(self) -> int:
        return sum(spec.row_bytes for spec in self.outputs)

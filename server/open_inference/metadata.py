"""What the protocol tells of the server and of a model: facts for REST and gRPC to render."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from ringserve.protocol.datatypes import DATATYPE_OF
from ringserve.protocol.tensor import ANY, TensorSpec

# In the protocol's order. What is not on at a server is left out.
EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
# These are always on: they are this package's own.
OWN_EXTENSIONS = (
    "classification",
    "sequence",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
)


class ServerMetadata(NamedTuple):
    name: str
    version: str
    extensions: tuple[str, ...]


class TensorMetadata(NamedTuple):
    """`shape` has the batch dimension, as -1, where the model batches."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(NamedTuple):
    """`versions` are those that are ready, or the one that was asked for."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


def tensors_of(specs: Iterable[TensorSpec], *, batches: bool) -> tuple[TensorMetadata, ...]:
    first = (ANY,) if batches else ()
    return tuple(TensorMetadata(spec.name, DATATYPE_OF[spec.dtype], (*first, *spec.shape)) for spec in specs)


def in_order(versions: Iterable[str]) -> tuple[str, ...]:
    """Versions with their numbers compared as numbers: 2 before 10, 1.9 before 1.10."""

    def key(version: str) -> list[tuple[int, int, str]]:
        return [(0, int(word), "") if word.isdecimal() else (1, 0, word) for word in re.split(r"(\d+)", version)]

    return tuple(sorted(versions, key=key))

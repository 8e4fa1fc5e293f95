"""The samples of `model_warmup` in a configuration in Triton's words: tensors of zeros, of chance, or of a file in the model's folder
warmup/ (contracts/open-inference.md, section 4.7).

One item is repeated as often as `batch_size` says. Elements of BYTES are empty where they are not a file's.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ringserve.protocol.datatypes import BYTES, DATATYPE_BYTES, DTYPES, join_elements
from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.request import Tensor, TensorRequest
from ringserve.protocol.tensor import Signature

FOLDER = Path("warmup")
PARAMETER = "model_warmup"
# What there is of an item, before it is repeated.
Read = Callable[[Path, str, str], bytes]
_SEED = 1


def tensor_samples(
    model_dir: Path, triton: Mapping[str, Any], signature: Signature, read: Read, bytes_max: int
) -> Iterator[tuple[str, TensorRequest, int, int]]:
    """(name, request, rows, times) of each; a model whose rows are laid out as arrays gets requests of one item and so many rows, any other
    one request with all items. `read` gets a file of a folder, and is told for whom. Raises `InvalidModel`."""
    for index, sample in enumerate(triton.get(PARAMETER, ())):
        name = f"{PARAMETER}[{index}] {sample.get('name', '')}".rstrip()
        size, size_max = max(1, sample.get("batch_size", 0)), max(1, triton.get("max_batch_size", 0))
        if size > size_max:
            raise InvalidModel(f"Warm-up with {name} failed: batch_size: expected 1 to {size_max}, got {size}.")
        items = 1 if signature.typed else size
        inputs = [
            _tensor(key, given, items if signature.batches else 0, model_dir, read, f"{name}, input {key}", bytes_max)
            for key, given in sample.get("inputs", {}).items()
        ]
        request = TensorRequest(_in_order(inputs, signature, name))
        yield name, request, size if signature.typed else 1, max(1, sample.get("count", 0))


def _in_order(inputs: list[Tensor], signature: Signature, name: str) -> tuple[Tensor, ...]:
    """As they are declared. Raises `InvalidModel` for one that is not, or not as it is given, or is missing."""
    given = {tensor.name: tensor for tensor in inputs}
    for spec in signature.inputs:
        if spec.name not in given and not spec.optional:
            raise InvalidModel(f"Warm-up with {name} failed: expected the input {spec.name}, got none.")
        tensor = given.get(spec.name)
        dims = () if tensor is None else tensor.shape[1:] if signature.batches else tensor.shape
        fits = len(dims) == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, dims, strict=True)
        )
        if tensor is not None and not (fits and DTYPES[tensor.datatype] == spec.dtype):
            raise InvalidModel(f"Warm-up with {name} failed: expected {spec}, got {tensor.datatype}{list(dims)}.")
    declared = [spec.name for spec in signature.inputs]
    strangers = [each for each in given if each not in declared]
    if strangers:
        raise InvalidModel(
            f"Warm-up with {name} failed: expected the inputs {', '.join(declared)}, got {strangers[0]}."
        )
    return tuple(given[each] for each in declared if each in given)


def _tensor(
    name: str, given: Mapping[str, Any], items: int, model_dir: Path, read: Read, where: str, bytes_max: int
) -> Tensor:
    """`items` 0: without a batch dimension. Raises `InvalidModel`."""
    datatype = given["data_type"].removeprefix("TYPE_").replace("STRING", BYTES)
    dims = tuple(given.get("dims", ()))
    count = math.prod(dims)
    if datatype not in DTYPES or not all(each >= 1 for each in dims):
        raise InvalidModel(
            f"Warm-up with {where} failed: expected a datatype and dims of 1 or more, got {datatype}{dims}."
        )
    item_bytes = count * DATATYPE_BYTES.get(datatype, 4)
    if item_bytes * max(1, items) > bytes_max:
        raise InvalidModel(
            f"Warm-up with {where} failed: expected at most {bytes_max} bytes, got {item_bytes:,} an item."
        )
    file = given.get("input_data_file")
    if file is not None:
        data = read(model_dir / FOLDER, file, where)
        if datatype != BYTES and len(data) != item_bytes:
            raise InvalidModel(f"Warm-up with {where} failed: expected {item_bytes} bytes in {file}, got {len(data)}.")
    elif datatype == BYTES:
        data = join_elements([b""] * count)
    else:
        data = _chance(datatype, count) if given.get("random_data") else bytes(item_bytes)
    return Tensor(name, datatype, (items, *dims) if items else dims, data * max(1, items))


def _chance(datatype: str, count: int) -> bytes:
    """The same numbers every time."""
    chance = np.random.default_rng(_SEED)
    if datatype == "BF16":  # the upper half of a float32
        return (chance.random(count, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    if datatype == "BOOL":
        return chance.integers(0, 2, count, dtype=np.uint8).tobytes()
    dtype = np.dtype(DTYPES[datatype])
    if dtype.kind == "f":
        return chance.random(count).astype(dtype).tobytes()
    limits = np.iinfo(dtype)
    return chance.integers(limits.min, limits.max, count, dtype=dtype, endpoint=True).tobytes()

"""What the backends do for models whose tensors are not of one fixed size: arrays put next to each other, and answers checked."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ringserve.backends.contract import Batch, ContractBroken, TensorCall, TensorResult
from ringserve.backends.typed_model import as_declared, check_output, refuse_outputs
from ringserve.protocol.request import Scalar
from ringserve.protocol.tensor import ANY, BYTES_DTYPE, Signature, TensorSpec


def groups_of(batch: Batch, signature: Signature) -> Iterator[tuple[Sequence[int], Mapping[str, np.ndarray]]]:
    """The calls of a batch that may be computed together, and their inputs next to each other.

    The worker has put them next to each other where the signature lets it. The calls of a ragged one come with arrays of their own:
    those whose inputs and shapes are equal are put together here.
    """
    if batch.inputs:
        yield range(len(batch.calls)), batch.inputs
        return
    by_shape: dict[object, list[int]] = {}
    for place, call in enumerate(batch.calls):
        shapes = tuple((name, array.shape[1:]) for name, array in call.inputs.items())
        by_shape.setdefault(shapes if signature.batches else place, []).append(place)
    for places in by_shape.values():
        calls = [batch.calls[place] for place in places]
        if len(calls) == 1:
            yield places, calls[0].inputs
            continue
        yield places, {name: np.concatenate([call.inputs[name] for call in calls]) for name in calls[0].inputs}


def wanted_outputs(calls: Iterable[TensorCall], signature: Signature) -> list[TensorSpec]:
    """The declared outputs that any of them wants."""
    names: set[str] = set()
    for call in calls:
        if not call.outputs:
            return list(signature.outputs)
        names.update(call.outputs)
    return [spec for spec in signature.outputs if spec.name in names]


def checked_outputs(
    answers: Mapping[str, Any], wanted: Sequence[TensorSpec], rows: int | None
) -> dict[str, np.ndarray]:
    """The arrays of the wanted outputs. `rows` is the batch dimension, None without one. Raises `ContractBroken`, naming the output."""
    missing = [spec.name for spec in wanted if spec.name not in answers]
    if missing:
        refuse_outputs([spec.name for spec in wanted], f"a dict of {sorted(map(str, answers))}")
    return {spec.name: _checked(spec, answers[spec.name], rows) for spec in wanted}


def results_of(
    outputs: Mapping[str, np.ndarray], calls: Sequence[TensorCall], parameters: Sequence[Mapping[str, Scalar]]
) -> Iterator[TensorResult]:
    """The rows of each call, as its result."""
    first = 0
    for call, said in zip(calls, parameters, strict=True):
        end = first + call.rows
        alone = len(calls) == 1  # whose first dimension may be no batch dimension
        yield TensorResult(dict(outputs) if alone else {name: each[first:end] for name, each in outputs.items()}, said)
        first = end


def _checked(spec: TensorSpec, answer: Any, rows: int | None) -> np.ndarray:
    if spec.dtype == BYTES_DTYPE:
        array, dtype = _texts(spec.name, answer), BYTES_DTYPE
    else:
        array, dtype = as_declared(np.asarray(answer), spec.dtype)
    check_output(spec.name, (spec.dtype, fitted(spec, array.shape, rows)), (dtype, array.shape))
    return array


def fitted(spec: TensorSpec, shape: Sequence[int], rows: int | None) -> tuple[int, ...]:
    """The declared shape, whose dimensions of any length are those that came."""
    wanted = spec.shape if rows is None else (rows, *spec.shape)
    if len(wanted) != len(shape):
        return wanted
    return tuple(had if dim == ANY else dim for dim, had in zip(wanted, shape, strict=True))


def _texts(name: str, answer: Any) -> np.ndarray:
    """Texts and bytes, in an array or in lists of lists, as an array of `bytes`."""
    array = answer if isinstance(answer, np.ndarray) else np.array(answer, np.object_)
    if array.dtype.kind not in "OSU":
        raise ContractBroken(f'Output "{name}": expected bytes or texts, got {array.dtype.name}{list(array.shape)}.')
    flat = array.ravel().tolist()
    strangers = [type(each).__name__ for each in flat if not isinstance(each, (bytes, str))]
    if strangers:
        raise ContractBroken(f'Output "{name}": expected bytes or texts, got a {strangers[0]} among them.')
    found = np.empty(array.shape, np.object_)
    found.reshape(-1)[:] = [each.encode() if isinstance(each, str) else each for each in flat]
    return found

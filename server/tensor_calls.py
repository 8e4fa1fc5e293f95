"""The worker's side of tensors: rows of a slab as calls for the backend, and what it answered as frames.

Nothing is copied on the way in, but the elements of BYTES, which have no arrays. On the way out numpy's bytes are copied once, into the
slab.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ringserve.backends.contract import ContractBroken, TensorCall, TensorResult
from ringserve.protocol.datatypes import BYTES, DATATYPE_OF, DTYPES, join_elements, split_elements
from ringserve.protocol.errors import BadRequest, RingServeError
from ringserve.protocol.request import Scalar
from ringserve.protocol.tensor import Signature
from ringserve.protocol.tensor_frame import (
    CallHead,
    FrameBroken,
    FrameError,
    ReplyHead,
    TensorPlace,
    Whole,
    decode_call,
    encode_head,
    frame_bytes,
    parameters_of,
    place,
    write_frame,
)
from ringserve.shm.lane import Array, Slab
from ringserve.shm.layout import (
    REQUEST_WORDS,
    ROW_BODY_AT,
    ROW_BODY_BYTES,
    ROW_CANCELLED,
    ROW_DEADLINE_NS,
    ROW_FLAGS,
    ROW_HEAD_AT,
    ROW_HEAD_BYTES,
    ROW_PARCEL_BYTES,
)
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import RingCorrupt

MESSAGE_CHARS_MAX = 8192


def bfloat16_dtype() -> np.dtype[Any]:
    """What arrays of BF16 are here: ml_dtypes' own type where the model has imported that."""
    ml_dtypes = sys.modules.get("ml_dtypes")
    return np.dtype("<u2") if ml_dtypes is None else np.dtype(ml_dtypes.bfloat16)


# ---- requests


def read_calls(
    slab: Slab, first: int, rows: int, batches: bool, receive_parcel: Callable[[], Segment]
) -> tuple[list[TensorCall | None], dict[int, RingServeError], list[Segment]]:
    """`rows` rows from `first` on, the refusals of those whose tensors are none, and the parcels to close when the batch is answered.
    None for a row that is refused, or cancelled, which may be a hole. What a client writes into memory of its own, nobody has looked
    at before. Every row's parcel is taken, for they come in the order of the rows. Raises `RingCorrupt`."""
    calls: list[TensorCall | None] = []
    refused: dict[int, RingServeError] = {}
    parcels = []
    for line in slab.table[first : first + rows, :REQUEST_WORDS].tolist():
        memory = slab.bytes_in
        if line[ROW_PARCEL_BYTES]:
            parcel = receive_parcel()
            parcels.append(parcel)
            memory = parcel.view
        if line[ROW_FLAGS] & ROW_CANCELLED:
            calls.append(None)
            continue
        head_at, body_at = line[ROW_HEAD_AT], line[ROW_BODY_AT]
        try:
            head = decode_call(memory[head_at : head_at + line[ROW_HEAD_BYTES]])
            calls.append(_call(head, memory[body_at : body_at + line[ROW_BODY_BYTES]], batches, line[ROW_DEADLINE_NS]))
        except BadRequest as refusal:
            refused[len(calls)] = refusal
            calls.append(None)
        except (FrameBroken, KeyError) as error:
            raise RingCorrupt(f"a request's tensors cannot be read: {error}") from None
    return calls, refused, parcels


def _call(head: CallHead, body: memoryview, batches: bool, deadline_ns: int) -> TensorCall:
    """Raises as `array_of`."""
    inputs = {each.name: array_of(each, body) for each in head.tensors}
    rows = 1
    if batches:
        rows = next((array.shape[0] for array in inputs.values() if array.ndim), 1)
    return TensorCall(
        head.request_id,
        inputs,
        rows,
        head.parameters,
        head.outputs,
        head.sequence_id,
        head.sequence_start,
        head.sequence_end,
        head.priority,
        deadline_ns,
        head.headers,
    )


def array_of(spot: TensorPlace, body: memoryview) -> Array:
    """The tensor as an array. Raises `BadRequest` where its bytes are not those of its shape, or numpy has no such shape (it has none
    of [0, 2**62]), `KeyError` for an unknown datatype."""
    data = body[spot.offset : spot.offset + spot.length]
    try:
        if spot.datatype != BYTES:
            dtype = bfloat16_dtype() if spot.datatype == "BF16" else np.dtype(DTYPES[spot.datatype])
            return np.frombuffer(data, dtype).reshape(spot.shape)
        elements = split_elements(data)
        if len(elements) != math.prod(spot.shape):
            raise ValueError(f"{len(elements)} elements were written for the shape {list(spot.shape)}")
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array.reshape(spot.shape)
    except ValueError as error:
        raise BadRequest(f"Input {spot.name}: {str(error).removesuffix('.')}.") from None


def compatible(call: TensorCall) -> object:
    """What is equal for calls that can be put next to each other."""
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in call.inputs.items()))


def groups_of(
    rows: Sequence[int], calls: Sequence[TensorCall | None], signature: Signature, items_max: int
) -> list[list[int]]:
    """Which rows the backend is called with together, in the order in which they came."""
    if not signature.batches:
        return [list(rows)] if signature.ragged else [[row] for row in rows]
    groups: list[list[int]] = []
    open_groups: dict[object, tuple[list[int], int]] = {}
    for row in rows:
        call = calls[row]
        assert call is not None
        kind = None if signature.ragged else compatible(call)
        group, items = open_groups.get(kind, ([], items_max))
        if items + call.rows > items_max:
            group, items = [], 0
            groups.append(group)
        group.append(row)
        open_groups[kind] = (group, items + call.rows)
    return groups


def joined(calls: Sequence[TensorCall]) -> Mapping[str, Array]:
    """The inputs of compatible calls, next to each other; of one call its own."""
    if len(calls) == 1:
        return calls[0].inputs
    return {name: np.concatenate([call.inputs[name] for call in calls]) for name in calls[0].inputs}


def divided(
    outputs: Mapping[str, Any], calls: Sequence[TensorCall], *, has_rows: bool
) -> list[TensorResult | RingServeError]:
    """What a backend put out for all calls, call by call. Raises `ContractBroken`."""
    if not has_rows:
        return [TensorResult(outputs)]
    total = sum(call.rows for call in calls)
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    for name, array in arrays.items():
        if not array.ndim or array.shape[0] != total:
            raise ContractBroken(f'Output "{name}": expected {total} rows, got an array of shape {list(array.shape)}.')
    results: list[TensorResult | RingServeError] = []
    at = 0
    for call in calls:
        results.append(TensorResult({name: array[at : at + call.rows] for name, array in arrays.items()}))
        at += call.rows
    return results


# ---- replies


class FramedReply:
    """One reply, ready to be written: its tensors are still where the model has them."""

    __slots__ = ("_body_bytes", "_buffers", "_head", "_places", "nbytes")

    def __init__(self, head: bytes, places: Sequence[TensorPlace], buffers: Sequence[Any], body_bytes: int) -> None:
        self._head = head
        self._places = places
        self._buffers = buffers
        self._body_bytes = body_bytes
        self.nbytes = frame_bytes(head, body_bytes)

    def write_to(self, memory: memoryview) -> None:
        """`memory` is `nbytes` long."""
        write_frame(memory, self._head, self._places, self._buffers, self._body_bytes)

    def to_bytes(self) -> bytearray:
        memory = bytearray(self.nbytes)
        self.write_to(memoryview(memory))
        return memory


class Framing:
    """How the answers of one model become frames."""

    def __init__(self, signature: Signature) -> None:
        self._names = [spec.name for spec in signature.outputs]
        self._has_rows = signature.batches and not signature.ragged and not signature.decoupled
        self._bfloat16 = {spec.name for spec in signature.outputs if spec.dtype == "bfloat16"}

    def reply(
        self,
        call: TensorCall,
        outputs: Mapping[str, Any],
        parameters: Mapping[str, Scalar] | None,
        *,
        final: bool = True,
    ) -> FramedReply:
        """Those of the outputs that the call wants, in the order of the declaration or of its wish. Raises `ContractBroken`."""
        unknown = [str(name) for name in outputs if name not in self._names]
        if unknown:
            raise ContractBroken(f'Output "{unknown[0]}": expected one of {", ".join(self._names)}.')
        wholes, buffers = [], []
        for name in call.outputs or self._names:
            if name not in outputs:
                continue
            datatype, shape, buffer, nbytes = self._tensor(name, outputs[name])
            if self._has_rows and (not shape or shape[0] != call.rows):
                raise ContractBroken(
                    f'Output "{name}": expected {call.rows} rows, got an array of shape {list(shape)}.'
                )
            wholes.append(Whole(name, datatype, shape, nbytes))
            buffers.append(buffer)
        places, body_bytes = place(wholes)
        try:
            head = encode_head(ReplyHead(places, parameters_of(parameters) if parameters else {}, final))
        except (TypeError, OverflowError) as error:
            raise ContractBroken(f"The answer's parameters: {error}.") from None
        return FramedReply(head, places, buffers, body_bytes)

    def _tensor(self, name: str, value: Any) -> tuple[str, tuple[int, ...], Any, int]:
        try:
            array = np.asarray(value)
        except (ValueError, TypeError) as error:
            raise ContractBroken(f'Output "{name}": expected an array, got {type(value).__name__}: {error}.') from None
        if array.dtype.kind in "OSU":
            data = join_elements([_element(name, each) for each in array.ravel().tolist()])
            return BYTES, array.shape, data, len(data)
        datatype = DATATYPE_OF.get(array.dtype.name)
        if datatype is None or datatype == BYTES:
            raise ContractBroken(
                f'Output "{name}": expected a type of the protocol, got an array of {array.dtype.name}.'
            )
        if datatype == "UINT16" and name in self._bfloat16:
            datatype = "BF16"
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return datatype, array.shape, flat, flat.nbytes


def _element(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ContractBroken(f'Output "{name}": expected texts that UTF-8 can have: {error}.') from None
    raise ContractBroken(f'Output "{name}": expected elements of bytes or str, got {type(value).__name__}.')


def error_reply(error: RingServeError) -> FramedReply:
    """The end of a stream of replies that cannot go on."""
    said = FrameError(error.http_status, error.code, error.message[:MESSAGE_CHARS_MAX])
    return FramedReply(encode_head(ReplyHead((), {}, True, said)), (), (), 0)


END = FramedReply(encode_head(ReplyHead(())), (), (), 0)

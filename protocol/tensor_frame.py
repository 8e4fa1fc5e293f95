"""Tensors as bytes in shared memory: a frame has a head, which says what there is, and the tensors' bytes.

    | head bytes, body bytes | head | padding | tensor 0 | padding | tensor 1 | ...      each tensor begins a multiple of 64
      <QQ                      msgpack

A request's head and body have places of their own in its row, and no prefix. A reply is a whole frame, and a stream of replies is
one frame after the other. The worker runs code of its users and may have written anything: whoever reads checks every bound.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from ringserve.protocol.datatypes import BYTES, DATATYPE_BYTES
from ringserve.protocol.payload import without_surrogates
from ringserve.protocol.request import Scalar, Tensor, TensorReply

PREFIX = struct.Struct("<QQ")
ALIGNMENT = 64
HEAD_BYTES_MAX = 16 << 20
_ZEROS = bytes(ALIGNMENT)


class FrameBroken(Exception):
    """A frame that does not say what it should: its writer is broken."""


class TensorPlace(msgspec.Struct, frozen=True, array_like=True):
    """One tensor: its bytes lie from `offset` on in the frame's body."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class CallHead(msgspec.Struct, frozen=True, array_like=True):
    """A request but for its bytes (request.py: `TensorRequest`)."""

    request_id: str
    tensors: tuple[TensorPlace, ...]
    parameters: dict[str, Scalar] = {}
    outputs: tuple[str, ...] = ()
    priority: int = 0
    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    headers: dict[str, str] = {}


class FrameError(msgspec.Struct, frozen=True, array_like=True):
    """An error in the place of a reply; `code` names the class in errors.py."""

    status: int
    code: str
    message: str


class ReplyHead(msgspec.Struct, frozen=True, array_like=True):
    """A reply but for its bytes. `final`: none follows it. With an `error` it has no tensors."""

    tensors: tuple[TensorPlace, ...]
    parameters: dict[str, Scalar] = {}
    final: bool = True
    error: FrameError | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode_call = msgspec.msgpack.Decoder(CallHead).decode
_decode_reply = msgspec.msgpack.Decoder(ReplyHead).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Whole(NamedTuple):
    """One tensor to be placed: its bytes are `nbytes` long."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    nbytes: int


def padded(count: int) -> int:
    """The next multiple of the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def place(tensors: Sequence[Whole]) -> tuple[tuple[TensorPlace, ...], int]:
    """Where they lie in a body, one after the other, and how long that is."""
    places, at = [], 0
    for name, datatype, shape, nbytes in tensors:
        at = padded(at)
        places.append(TensorPlace(name, datatype, shape, at, nbytes))
        at += nbytes
    return tuple(places), at


def encode_head(head: CallHead | ReplyHead) -> bytes:
    """Raises `OverflowError` where a number of the parameters has more than 64 bits."""
    try:
        return _encode(head)
    except UnicodeEncodeError:
        return _encode(without_surrogates(msgspec.to_builtins(head)))


def decode_call(data: bytes | memoryview) -> CallHead:
    """Raises `FrameBroken`."""
    try:
        return _decode_call(data)
    except _UNREADABLE as error:
        raise FrameBroken(f"a request's head cannot be read: {error}") from None


# ---- replies


def frame_bytes(head: bytes, body_bytes: int) -> int:
    """How long a whole frame is."""
    return padded(PREFIX.size + len(head)) + body_bytes


def write_frame(
    memory: memoryview, head: bytes, places: Sequence[TensorPlace], buffers: Sequence[Any], body_bytes: int
) -> None:
    """Write a frame to the beginning of `memory`: the tensors' bytes are `buffers`, contiguous and as long as the head says."""
    PREFIX.pack_into(memory, 0, len(head), body_bytes)
    memory[PREFIX.size : PREFIX.size + len(head)] = head
    body_at = padded(PREFIX.size + len(head))
    for spot, buffer in zip(places, buffers, strict=True):
        at = body_at + spot.offset
        memory[at : at + spot.length] = buffer


def read_prefix(memory: bytes | bytearray | memoryview, frame_bytes_max: int) -> tuple[int, int] | None:
    """(bytes of the head, bytes of the whole frame) of the frame that begins here; None while the prefix is not all there. Raises
    `FrameBroken`."""
    if len(memory) < PREFIX.size:
        return None
    head_bytes, body_bytes = PREFIX.unpack_from(memory, 0)
    whole = padded(PREFIX.size + head_bytes) + body_bytes
    if head_bytes > HEAD_BYTES_MAX or whole > frame_bytes_max:
        raise FrameBroken(f"a frame announces a head of {head_bytes} bytes and {body_bytes} bytes of tensors")
    return head_bytes, whole


def read_reply(memory: memoryview) -> TensorReply | FrameError:
    """The reply that a whole frame is; its tensors are views of `memory`. What the elements of BYTES are is not looked at. Raises
    `FrameBroken`."""
    found = read_prefix(memory, len(memory))
    if found is None:
        raise FrameBroken(f"a frame of {len(memory)} bytes ends within its prefix")
    head_bytes, whole = found
    if whole != len(memory):
        raise FrameBroken(f"a frame of {whole} bytes is announced in {len(memory)}")
    try:
        head = _decode_reply(memory[PREFIX.size : PREFIX.size + head_bytes])
    except _UNREADABLE as error:
        raise FrameBroken(f"a reply's head cannot be read: {error}") from None
    if head.error is not None:
        return head.error
    body = memory[padded(PREFIX.size + head_bytes) :]
    return TensorReply(tuple(_tensor(each, body) for each in head.tensors), head.parameters, head.final)


def _tensor(spot: TensorPlace, body: memoryview) -> Tensor:
    name, datatype, shape, at, length = spot.name, spot.datatype, spot.shape, spot.offset, spot.length
    if at < 0 or length < 0 or at + length > len(body):
        raise FrameBroken(f"tensor {name!r} is said to lie at bytes {at} to {at + length} of {len(body)}")
    if any(size < 0 for size in shape):
        raise FrameBroken(f"tensor {name!r} is said to have the shape {list(shape)}")
    if datatype != BYTES and (datatype not in DATATYPE_BYTES or length != DATATYPE_BYTES[datatype] * math.prod(shape)):
        raise FrameBroken(f"tensor {name!r} of {datatype}{list(shape)} is said to have {length} bytes")
    return Tensor(name, datatype, shape, body[at : at + length])


def parameters_of(parameters: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """As a head has them. Raises `TypeError` naming one that is no text, number or truth value."""
    for name, value in parameters.items():
        if not isinstance(name, str) or not isinstance(value, bool | int | float | str):
            raise TypeError(f"parameter {name!r}: expected a string, a number or a boolean, got {type(value).__name__}")
    return dict(parameters)

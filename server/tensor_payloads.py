"""From a request in tensors to the bytes of its row: what payloads.py does for plain bodies.

    typed model      a buffer for each declared input, one row for each item of the batch
    framed model     a head and the tensors' bytes, one row for the whole request (protocol/tensor_frame.py)
    handler          the JSON document that TorchServe's gRPC makes of it, a plain body

A framed model also takes plain bodies: their shapes follow from the declaration. Tensors that lie in a client's own memory are copied
to the slab when the row is written, and nowhere else.
"""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from ringserve.protocol.datatypes import BYTES, DATATYPE_BYTES, DTYPES, split_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import HANDLER_HEADERS, Elsewhere, InferRequest, Tensor, TensorRequest
from ringserve.protocol.tensor_frame import CallHead, TensorPlace, Whole, encode_head, place
from ringserve.server.bfloat16 import from_bfloat16
from ringserve.shm.lane import Slab
from ringserve.shm.layout import REQUEST_LINE, ROW_BYTES, align
from ringserve.shm.segment import Segment

Buffer = bytes | bytearray | memoryview
Data = Buffer | Elsewhere
HERE = (bytes, bytearray, memoryview)  # isinstance takes a union four times as long to look through


def data_bytes(data: Data) -> int:
    """How long a tensor's data is."""
    return len(data) if isinstance(data, (bytes, bytearray)) else data.nbytes


class Coming:
    """Bytes of a tensor that somebody will write to where they belong (protocol/request.py: `Elsewhere`)."""

    __slots__ = ("nbytes",)

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def read_into(self, memory: memoryview) -> None:
        """They are not there yet."""

    def part(self, offset: int, nbytes: int) -> "Coming":
        return Coming(nbytes)


def copied(data: Data) -> Buffer:
    """The bytes, in this process. Raises `BadRequest` where they are not there any more."""
    if isinstance(data, HERE):
        return data
    memory = bytearray(data.nbytes)
    data.read_into(memoryview(memory))
    return memory


# ---- typed


def typed_datas(declared: Sequence[tuple[str, int]], tensors: TensorRequest, rows: int) -> list[Data]:
    """The data of `rows` rows of every input, in declared order; `declared` are the inputs' names and the bytes of one row. Raises
    `BadRequest` where an input is missing or has not their bytes: they are written where other clients' lie."""
    inputs = tensors.inputs
    if len(inputs) != len(declared) or any(
        tensor.name != name for tensor, (name, _) in zip(inputs, declared, strict=True)
    ):
        inputs = _in_order(declared, tensors)
    datas = [tensor.data for tensor in inputs]
    for data, (name, row_bytes) in zip(datas, declared, strict=True):
        if (length := data_bytes(data)) != rows * row_bytes:
            expected = f"{rows * row_bytes} bytes ({rows} rows of {row_bytes})"
            raise BadRequest(f"Input {name}: expected {expected}, got {length} bytes.")
    return datas


def _in_order(declared: Sequence[tuple[str, int]], tensors: TensorRequest) -> tuple[Tensor, ...]:
    by_name = {tensor.name: tensor for tensor in tensors.inputs}
    names = [name for name, _ in declared]
    if len(by_name) != len(tensors.inputs) or by_name.keys() != set(names):
        got = ", ".join(tensor.name for tensor in tensors.inputs)
        raise BadRequest(f"Inputs: expected {', '.join(names)}, got {got or 'none'}.")
    return tuple(by_name[name] for name in names)


def row_of(datas: Sequence[Data], row: int, rows: int) -> list[Data]:
    """One of the rows."""
    found: list[Data] = []
    for data in datas:
        length = data_bytes(data) // rows
        at = row * length
        if isinstance(data, HERE):
            found.append(memoryview(data)[at : at + length])
        else:
            found.append(data.part(at, length))
    return found


def rows_asked(tensors: TensorRequest) -> int:
    """How many rows of a typed model a request takes: the first dimension of its inputs. Raises `BadRequest`."""
    rows, inputs = 0, tensors.inputs
    for tensor in inputs:
        shape = tensor.shape
        if not shape or shape[0] < 1 or rows not in (0, shape[0]):
            rows = 0
            break
        rows = shape[0]
    if not rows:
        shapes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in inputs)
        raise BadRequest(f"Inputs: expected one batch dimension of at least 1, got {shapes or 'none'}.")
    return rows


# ---- framed


class FramePayload:
    """A row of a framed model: a head, and every tensor's bytes at its place."""

    __slots__ = ("body_bytes", "datas", "head", "head_room", "parcel_bytes", "places")

    def __init__(self, head: bytes, places: Sequence[TensorPlace], datas: Sequence[Data], body_bytes: int) -> None:
        self.head = head
        self.head_room = align(len(head))
        self.places = places
        self.datas = datas
        self.body_bytes = body_bytes
        self.parcel_bytes = 0

    @property
    def items(self) -> int:
        """How many items of a batch it is, where there is a batch dimension."""
        return max((spot.shape[0] for spot in self.places[:1] if spot.shape), default=1)

    def slab_bytes(self) -> int:
        return self.head_room + align(self.body_bytes)

    def _copy(self, memory: memoryview, at: int) -> None:
        memory[at : at + len(self.head)] = self.head
        body_at = at + self.head_room
        for spot, data in zip(self.places, self.datas, strict=True):
            start = body_at + spot.offset
            if isinstance(data, HERE):
                memory[start : start + spot.length] = data
            else:
                data.read_into(memory[start : start + spot.length])

    def to_parcel(self) -> Segment:
        parcel = Segment.create_parcel(max(self.slab_bytes(), 1))
        try:
            self._copy(parcel.view, 0)
        except BaseException:
            parcel.close()
            raise
        self.parcel_bytes = parcel.size_bytes
        return parcel

    def write(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> None:
        """Raises `BadRequest`."""
        if self.parcel_bytes:
            at = 0
        else:
            self._copy(slab.bytes_in, at)
        body_at = at + self.head_room
        line = (row_id, deadline_ns, 0, at, len(self.head), body_at, self.body_bytes, self.parcel_bytes)
        REQUEST_LINE.pack_into(slab.memory, row * ROW_BYTES, *line)

    def open(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> list[memoryview]:
        self.write(slab, row, at, row_id, deadline_ns)
        body_at = at + self.head_room
        return [
            slab.bytes_in[body_at + spot.offset : body_at + spot.offset + spot.length]
            for spot, data in zip(self.places, self.datas, strict=True)
            if isinstance(data, Coming)
        ]


def frame_of(request: InferRequest, tensors: TensorRequest) -> FramePayload:
    """The payload of a request in tensors. Raises `BadRequest` for what no head can say, or bytes that are not a tensor's."""
    wholes, datas = [], []
    for name, datatype, shape, data in tensors.inputs:
        length = data_bytes(data)
        if datatype != BYTES and length != DATATYPE_BYTES[datatype] * math.prod(shape):
            expected = f"{DATATYPE_BYTES[datatype] * math.prod(shape)} bytes ({datatype}{list(shape)})"
            raise BadRequest(f"Input {name}: expected {expected}, got {length} bytes.")
        wholes.append(Whole(name, datatype, tuple(shape), length))
        datas.append(data)
    places, body_bytes = place(wholes)
    head = CallHead(
        request.request_id,
        places,
        dict(tensors.parameters),
        tuple(tensors.outputs),
        tensors.priority,
        tensors.sequence_id,
        tensors.sequence_start,
        tensors.sequence_end,
        dict(request.headers),
    )
    try:
        return FramePayload(encode_head(head), places, datas, body_bytes)
    except OverflowError:
        raise BadRequest("Parameters: expected numbers of at most 64 bits, got a larger one.") from None


# ---- handlers


def envelope_request(request: InferRequest) -> InferRequest:
    """The same request as the document that TorchServe's gRPC hands to handlers in its envelope kservev2
    (contracts: torchserve.md 5.4): data flat, elements of BYTES as base64. Raises `BadRequest`."""
    assert request.tensors is not None
    inputs = [
        {"name": each.name, "shape": list(each.shape), "datatype": each.datatype, "data": json_data(each)}
        for each in request.tensors.inputs
    ]
    document: dict[str, Any] = {"id": request.request_id, "model_name": request.model, "inputs": inputs}
    if request.tensors.parameters:
        document["parameters"] = dict(request.tensors.parameters)
    try:
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise BadRequest(f"Parameters: expected numbers of at most 64 bits: {error}.") from None
    headers = {**HANDLER_HEADERS, **request.headers, "content-type": "application/json"}
    headers["content-length"] = str(len(body))
    return request._replace(content_type="application/json", headers=headers, body=body, tensors=None)


def json_data(tensor: Tensor) -> object:
    """The elements of a tensor, flat, as orjson can write them: an array, or base64 texts. Raises `BadRequest`."""
    data = copied(tensor.data)
    if tensor.datatype == BYTES:
        try:
            return [base64.b64encode(each).decode() for each in split_elements(data)]
        except ValueError as error:
            raise BadRequest(f"Input {tensor.name}: {error}.") from None
    if tensor.datatype == "BF16":
        return from_bfloat16(np.frombuffer(data, "<u2"))
    array = np.frombuffer(data, DTYPES[tensor.datatype])
    return array.astype(np.float32) if tensor.datatype == "FP16" else array

"""From a request to the bytes of its row, and into a slab.

A typed model's row is one buffer per declared input, checked here against the declaration. Any other model's row is a head
(request id, headers, part list) and the body. Both know how to put themselves into a slab row: that copy is the only one
between the request's body and the model.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import orjson

from ringserve.backends.contract import InputPart, Request
from ringserve.protocol.errors import BadRequest, OutOfResources
from ringserve.protocol.payload import Part, RequestHead, decode_request_head, encode_head
from ringserve.protocol.request import FormPart, InferRequest, Tensor, TensorRequest
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.json_values import holds_text, kind_of, misfit_of
from ringserve.server.plain_bodies import refuse_explanation, request_of_spool
from ringserve.server.tensor_payloads import (
    HERE,
    Coming,
    Data,
    data_bytes,
    envelope_request,
    row_of,
    rows_asked,
    typed_datas,
)
from ringserve.shm.lane import Slab
from ringserve.shm.layout import (
    REQUEST_LINE,
    REQUEST_WORDS,
    ROW_BODY_AT,
    ROW_BYTES,
    ROW_CANCELLED,
    ROW_FLAGS,
    ROW_HEAD_AT,
    ROW_HEAD_BYTES,
    ROW_PARCEL_BYTES,
    align,
)
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import OutOfSharedMemory
from ringserve.shm.spool import Spool

Buffer = bytes | bytearray | memoryview
NO_REGION = 1 << 62  # more bytes than any slab has room for


class Payload(Protocol):
    """One request, ready to be written into a row."""

    def slab_bytes(self) -> int:
        """Bytes it takes of the slab's byte region."""

    def to_parcel(self) -> Segment | Spool:
        """The bytes in a one-off segment, for a row whose slab has no room for them. Raises `OutOfSharedMemory`. `write` refers
        to it from then on."""

    def write(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> None:
        """Fill row `row`; its bytes go to `at` in the byte region."""

    def open(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> list[memoryview]:
        """Fill row `row` but for the body, which somebody will write into these places, one after the other."""


class TypedPayload:
    """A row of a typed model: one buffer per input, each exactly the input's row bytes."""

    __slots__ = ("buffers",)

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.buffers = buffers

    def slab_bytes(self) -> int:
        return 0

    def to_parcel(self) -> Segment | Spool:
        raise AssertionError("typed rows always fit: the slab was sized for them")

    def write(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> None:
        for rows, buffer in zip(slab.input_rows, self.buffers, strict=True):
            length = len(buffer)
            rows[row * length : row * length + length] = buffer
        REQUEST_LINE.pack_into(slab.memory, row * ROW_BYTES, row_id, deadline_ns, 0, 0, 0, 0, 0, 0)

    def open(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> list[memoryview]:
        REQUEST_LINE.pack_into(slab.memory, row * ROW_BYTES, row_id, deadline_ns, 0, 0, 0, 0, 0, 0)
        places = []
        for rows in slab.input_rows:
            length = len(rows) // len(slab.table)
            places.append(rows[row * length : row * length + length])
        return places


class ElsewherePayload(TypedPayload):
    """A row of a typed model some of whose inputs may lie in their client's memory."""

    __slots__ = ("datas",)

    def __init__(self, datas: Sequence[Data]) -> None:
        super().__init__(())
        self.datas = datas

    def write(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> None:
        """Raises `BadRequest`."""
        for rows, data in zip(slab.input_rows, self.datas, strict=True):
            length = data_bytes(data)
            memory = rows[row * length : row * length + length]
            if isinstance(data, HERE):
                memory[:] = data
            else:
                data.read_into(memory)
        REQUEST_LINE.pack_into(slab.memory, row * ROW_BYTES, row_id, deadline_ns, 0, 0, 0, 0, 0, 0)


class ComingPayload(ElsewherePayload):
    """A row of a typed model some of whose inputs are still to come. `coming` are their lengths, None for those that are here."""

    __slots__ = ("_order",)

    def __init__(
        self, declared: Sequence[tuple[str, int]], inputs: Sequence[Tensor], coming: Sequence[int | None]
    ) -> None:
        """Raises `BadRequest`."""
        told = [
            each if length is None else each._replace(data=Coming(length))
            for each, length in zip(inputs, coming, strict=True)
        ]
        super().__init__(typed_datas(declared, TensorRequest(tuple(told)), 1))
        numbers = {name: number for number, (name, _) in enumerate(declared)}
        self._order = [numbers[each.name] for each in told if isinstance(each.data, Coming)]

    def open(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> list[memoryview]:
        """Raises `BadRequest`."""
        self.write(slab, row, at, row_id, deadline_ns)
        places = []
        for number in self._order:
            length = data_bytes(self.datas[number])
            places.append(slab.input_rows[number][row * length : (row + 1) * length])
        return places


class BytesPayload:
    """A row of a model that declares nothing: head and body. What `bodies` lack of `body_bytes` is still to come."""

    __slots__ = ("bodies", "body_bytes", "head", "head_room", "parcel_bytes")

    def __init__(self, head: bytes, bodies: Sequence[Buffer], body_bytes: int) -> None:
        self.head = head
        self.head_room = align(len(head))  # the body starts a cache line, so that a handler's view of it is aligned
        self.bodies = bodies
        self.body_bytes = body_bytes
        self.parcel_bytes = 0

    def slab_bytes(self) -> int:
        return self.head_room + align(self.body_bytes)

    def _copy(self, memory: memoryview, at: int) -> None:
        memory[at : at + len(self.head)] = self.head
        place = at + self.head_room
        for body in self.bodies:
            memory[place : place + len(body)] = body
            place += len(body)

    def to_parcel(self) -> Segment | Spool:
        parcel = Segment.create_parcel(max(self.slab_bytes(), 1))
        self._copy(parcel.view, 0)
        self.parcel_bytes = parcel.size_bytes
        return parcel

    def write(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> None:
        if self.parcel_bytes:
            at = 0
        else:
            self._copy(slab.bytes_in, at)
        head_bytes, body_at = len(self.head), at + self.head_room
        REQUEST_LINE.pack_into(
            slab.memory,
            row * ROW_BYTES,
            row_id,
            deadline_ns,
            0,
            at,
            head_bytes,
            body_at,
            self.body_bytes,
            self.parcel_bytes,
        )

    def open(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> list[memoryview]:
        self.write(slab, row, at, row_id, deadline_ns)
        body_at = at + self.head_room
        return [slab.bytes_in[body_at + sum(map(len, self.bodies)) : body_at + self.body_bytes]]


class SpooledPayload:
    """A body that arrived in a one-off segment of its own; the head follows it there."""

    __slots__ = ("body_bytes", "head", "spool")

    def __init__(self, head: bytes, spool: Spool) -> None:
        self.head = head
        self.spool = spool
        self.body_bytes = spool.written

    def slab_bytes(self) -> int:
        return NO_REGION

    def to_parcel(self) -> Segment | Spool:
        if self.spool.written == self.body_bytes:  # it may be asked again, where the first slab had no room
            self.spool.write(bytes(align(self.body_bytes) - self.body_bytes) + self.head)
            self.spool.finish()
        return self.spool

    def write(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> None:
        line = (
            row_id,
            deadline_ns,
            0,
            align(self.body_bytes),
            len(self.head),
            0,
            self.body_bytes,
            self.spool.size_bytes,
        )
        REQUEST_LINE.pack_into(slab.memory, row * ROW_BYTES, *line)

    def open(self, slab: Slab, row: int, at: int, row_id: int, deadline_ns: int) -> list[memoryview]:
        raise AssertionError("a spooled body has arrived")


class BytesEncoder:
    """For models that declare nothing: everything a client sends is passed on as it is."""

    def encode(self, request: InferRequest) -> BytesPayload:
        if request.tensors is not None:
            request = envelope_request(request)
        if request.query:
            return self._with_query(request, len(request.body), (request.body,))
        if request.parts is None:
            body_bytes = len(request.body)
            return BytesPayload(_plain_head(request, body_bytes), (request.body,), body_bytes)
        placed = _placed(request.parts, 0)
        return BytesPayload(
            _head(request, placed), [part.data for part in request.parts], sum(part.length for part in placed)
        )

    def expect(self, request: InferRequest, body_bytes: int) -> BytesPayload:
        """The payload of a request whose body is still to come."""
        if request.query:
            return self._with_query(request, body_bytes, ())
        return BytesPayload(_plain_head(request, body_bytes), (), body_bytes)

    def expect_tensors(self, request: InferRequest, lengths: Sequence[int]) -> Payload | None:
        """None: a handler is given a document of them, which is made when all are there."""
        return None

    def encode_spooled(self, request: InferRequest, spool: Spool) -> Payload:
        """Raises `OutOfResources`."""
        placed = request.placed
        if not request.query and placed is None:
            return SpooledPayload(_plain_head(request, spool.written), spool)
        if placed is None:
            placed = (Part("body", request.content_type, 0, spool.written),)
        beside = _placed(request.query, spool.written)
        try:
            spool.write(b"".join(part.data for part in request.query))
        except OutOfSharedMemory as error:
            raise OutOfResources(f"The request does not fit into memory: {error}") from None
        return SpooledPayload(_head(request, (*beside, *placed)), spool)

    @staticmethod
    def _with_query(request: InferRequest, body_bytes: int, bodies: Sequence[Buffer]) -> BytesPayload:
        """What the query brings lies in front, so that a body that is still to come follows it. The body is aligned as ever."""
        fields: Sequence[FormPart] = (*request.query, *(request.parts or ()))
        beside = _placed(fields, 0)
        began = b"".join(part.data for part in fields)
        if request.parts is None:
            began += bytes(align(len(began)) - len(began))
            beside.append(Part("body", request.content_type, len(began), body_bytes))
        return BytesPayload(_head(request, beside), (began, *bodies), len(began) + body_bytes)


def _plain_head(request: InferRequest, body_bytes: int) -> bytes:
    part = Part("body", request.content_type, 0, body_bytes)
    return encode_head(RequestHead(request.request_id, request.headers, (part,)))


def _head(request: InferRequest, parts: Iterable[Part]) -> bytes:
    """Of parts with the same name the last one counts; it has the place of the first."""
    by_name = {part.name: part for part in parts}
    return encode_head(RequestHead(request.request_id, request.headers, tuple(by_name.values())))


def _placed(parts: Iterable[FormPart], at: int) -> list[Part]:
    """One after the other, from `at` on."""
    placed = []
    for part in parts:
        placed.append(Part(part.name, part.content_type, at, len(part.data)))
        at += len(part.data)
    return placed


class TypedEncoder:
    """For typed models: raw little-endian bytes of all inputs in declared order, JSON, or a form with a part per input."""

    def __init__(self, signature: Signature) -> None:
        assert signature.typed
        self._inputs = signature.inputs
        self._rows = [(spec.name, spec.row_bytes) for spec in signature.inputs]
        self._row_bytes = signature.input_row_bytes

    def encode(self, request: InferRequest) -> TypedPayload:
        """Raises `BadRequest` naming the input, what was expected and what came."""
        if request.tensors is not None:
            (payload,) = self.encode_rows(request, 1)
            return payload
        if request.headers:
            refuse_explanation(request)
        if request.parts is not None:
            return TypedPayload(self._from_parts(request))
        if request.content_type.startswith("application/json"):
            return TypedPayload(self._from_json(request.body))
        body = request.body
        self._check_bytes(len(body))
        if len(self._inputs) == 1:
            return TypedPayload((body,))
        buffers, at, view = [], 0, memoryview(body)
        for spec in self._inputs:
            buffers.append(view[at : at + spec.row_bytes])
            at += spec.row_bytes
        return TypedPayload(buffers)

    def encode_rows(self, request: InferRequest, rows: int) -> list[TypedPayload]:
        """A request in tensors, a payload for each of its rows. Raises `BadRequest`."""
        assert request.tensors is not None
        datas = typed_datas(self._rows, request.tensors, rows)
        parts = [datas] if rows == 1 else [row_of(datas, row, rows) for row in range(rows)]
        return [_typed_payload(part) for part in parts]

    def rows_of(self, request: InferRequest) -> int:
        """How many rows it takes. Raises `BadRequest`."""
        return 1 if request.tensors is None else rows_asked(request.tensors)

    def expect(self, request: InferRequest, body_bytes: int) -> TypedPayload | None:
        """The payload of a request whose body is still to come, None for one that must be read before it is a row. Raises
        `BadRequest`: a body of the wrong length need not even arrive."""
        refuse_explanation(request)
        if request.content_type.startswith("application/json"):
            return None
        self._check_bytes(body_bytes)
        return TypedPayload(())

    def expect_tensors(self, request: InferRequest, lengths: Sequence[int]) -> Payload | None:
        """The payload of a request in tensors some of which are still to come: those whose `lengths` are not negative. None when it
        takes more than one row. Raises `BadRequest`."""
        assert request.tensors is not None
        if rows_asked(request.tensors) != 1:
            return None
        coming = [length if length >= 0 else None for length in lengths]
        return ComingPayload(self._rows, request.tensors.inputs, coming)

    def encode_spooled(self, request: InferRequest, spool: Spool) -> Payload:
        return self.encode(request_of_spool(request, spool))

    def _check_bytes(self, count: int) -> None:
        if count != self._row_bytes:
            declared = ", ".join(map(str, self._inputs))
            raise BadRequest(f"Body: expected {self._row_bytes} bytes ({declared}), got {count} bytes.")

    def _from_json(self, body: Buffer) -> list[Buffer]:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"Body: expected JSON, got a document that does not parse: {error}.") from None
        if not isinstance(value, dict):
            if len(self._inputs) != 1:
                names = ", ".join(spec.name for spec in self._inputs)
                raise BadRequest(f"Body: expected a JSON object with the inputs {names}, got {kind_of(value)}.")
            return [_json_row(self._inputs[0], value, has_texts=_has_texts(body, 0))]
        _check_names({spec.name for spec in self._inputs}, set(value))
        has_texts = _has_texts(body, len(value))
        return [_json_row(spec, value[spec.name], has_texts=has_texts) for spec in self._inputs]

    def _from_parts(self, request: InferRequest) -> list[Buffer]:
        assert request.parts is not None
        by_name = {part.name: part for part in request.parts}
        _check_names({spec.name for spec in self._inputs}, set(by_name))
        return [_part_row(spec, by_name[spec.name].data, by_name[spec.name].content_type) for spec in self._inputs]


def _typed_payload(datas: Sequence[Data]) -> TypedPayload:
    here = [data for data in datas if isinstance(data, HERE)]
    return TypedPayload(here) if len(here) == len(datas) else ElsewherePayload(datas)


def _check_names(expected: set[str], got: set[str]) -> None:
    if expected != got:
        raise BadRequest(f"Inputs: expected {', '.join(sorted(expected))}, got {', '.join(sorted(got)) or 'none'}.")


def _part_row(spec: TensorSpec, data: bytes, content_type: str) -> Buffer:
    if content_type.startswith("application/json"):
        try:
            return _json_row(spec, orjson.loads(data), has_texts=_has_texts(data, 0))
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"Input {spec.name}: expected JSON, got a part that does not parse: {error}.") from None
    if len(data) != spec.row_bytes:
        raise BadRequest(f"Input {spec.name}: expected {spec.row_bytes} bytes ({spec}), got {len(data)} bytes.")
    return data


def _has_texts(document: Buffer, names: int) -> bool:
    """Whether a JSON document may have texts beside the names of so many inputs, without a look at every value."""
    return bytes(document).count(b'"') != 2 * names


def _json_row(spec: TensorSpec, value: object, *, has_texts: bool) -> Buffer:
    """One row from nested lists; a flat list of the right length is accepted for any shape. Texts are looked for where there may be
    some: NumPy would make room for the longest in every place."""
    if has_texts and holds_text(value):
        raise BadRequest(f"Input {spec.name}: expected {spec.dtype} values, got a string.")
    try:
        found = np.asarray(value)
    except ValueError:
        raise BadRequest(f"Input {spec.name}: expected {spec}, got lists of unequal lengths.") from None
    if found.shape != spec.shape and found.shape != (math.prod(spec.shape),):
        raise BadRequest(f"Input {spec.name}: expected shape {list(spec.shape)}, got {list(found.shape)}.")
    misfit = misfit_of(found, np.dtype(spec.dtype))
    if misfit is not None:
        raise BadRequest(f"Input {spec.name}: expected {spec.dtype} values, got {misfit}.")
    return np.ascontiguousarray(found, dtype=spec.dtype).tobytes()


_NOBODY = Request("", {}, ())


def read_requests(
    slab: Slab, first: int, rows: int, receive_parcel: Callable[[], Segment]
) -> tuple[list[Request], list[Segment]]:
    """The worker's side of `BytesPayload`: `rows` rows from `first` on as requests whose parts are read-only views, and the
    parcels to close when the batch is answered. Every row's parcel is taken, for they come in the order of the rows. A row
    that is cancelled is an empty request: it may be a hole, in which nothing was ever written."""
    requests, parcels = [], []
    region = slab.bytes_in.toreadonly()
    for line in slab.table[first : first + rows, :REQUEST_WORDS].tolist():
        memory = region
        if line[ROW_PARCEL_BYTES]:
            parcel = receive_parcel()
            parcels.append(parcel)
            memory = parcel.view.toreadonly()
        if line[ROW_FLAGS] & ROW_CANCELLED:
            requests.append(_NOBODY)
            continue
        head_at, body_at = line[ROW_HEAD_AT], line[ROW_BODY_AT]
        head = decode_request_head(memory[head_at : head_at + line[ROW_HEAD_BYTES]])
        parts = [
            InputPart(part.name, part.content_type, memory[body_at + part.offset : body_at + part.offset + part.length])
            for part in head.parts
        ]
        requests.append(Request(head.request_id, head.headers, parts))
    return requests, parcels

"""Answers in tensors, as the front end reads them: rows of typed arrays, frames of framed models, JSON of handlers.

A long answer stays where the worker wrote it, and its tensors are views of that until its source is closed.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from ringserve.protocol.datatypes import BYTES, DATATYPE_OF, DTYPES, join_elements, split_elements
from ringserve.protocol.errors import Internal, PredictionFailed, RingServeError, WorkerLost, error_from
from ringserve.protocol.request import Answer, Tensor, TensorReply
from ringserve.protocol.tensor import Signature
from ringserve.protocol.tensor_frame import FrameBroken, FrameError, read_prefix, read_reply
from ringserve.server.bfloat16 import from_bfloat16, to_bfloat16
from ringserve.server.replies import DIRECT_BYTES_MIN, FLAG_ERROR, FLAG_OVERFLOW, MISPLACED, Overflow
from ringserve.server.replies import read_reply as read_bytes_reply
from ringserve.server.sources import Held, ReplyStream
from ringserve.shm.lane import Slab
from ringserve.shm.layout import REPLY_BODY_AT, REPLY_FLAGS, REPLY_ID

# A frame that a worker announces as longer is not waited for.
FRAME_BYTES_MAX = 1 << 40

Hold = Callable[[], Callable[[], None]]


# ---- typed


class TypedTensors:
    """Rows of a typed model as tensors."""

    def __init__(self, signature: Signature) -> None:
        self.outputs = [(spec.name, DATATYPE_OF[spec.dtype], spec.shape) for spec in signature.outputs]
        self._numbers = {spec.name: number for number, spec in enumerate(signature.outputs)}
        self._all = range(len(self.outputs))
        self.row_bytes = [spec.row_bytes for spec in signature.outputs]

    def numbers(self, wanted: Sequence[str]) -> Sequence[int]:
        """Which outputs those are; all for none."""
        if not wanted:
            return self._all
        return [self._numbers[name] for name in wanted if name in self._numbers]

    def views(self, slab: Slab, row: int, wanted: Sequence[str]) -> list[tuple[int, memoryview]]:
        """The bytes of one row of every wanted output."""
        found = []
        for number in self.numbers(wanted):
            length = self.row_bytes[number]
            found.append((number, slab.output_rows[number][row * length : (row + 1) * length]))
        return found

    def tensor(self, number: int, rows: int, data: bytes | bytearray | memoryview) -> Tensor:
        name, datatype, shape = self.outputs[number]
        return Tensor(name, datatype, (rows, *shape), data)

    def answer(self, slab: Slab, row: int, wanted: Sequence[str], hold: Hold | None) -> Answer:
        """One row: views of it where it is long and may be held, else copies."""
        views = self.views(slab, row, wanted)
        held = hold is not None and sum([len(view) for _, view in views]) >= DIRECT_BYTES_MIN
        outputs = [self.tensor(number, 1, view if held else bytes(view)) for number, view in views]
        return Answer(b"", tensors=TensorReply(tuple(outputs)), source=Held(b"", hold()) if held and hold else None)


# ---- framed


def read_framed(
    slab: Slab, line: Sequence[int], overflow: Overflow | None, hold_row: Hold | None
) -> Answer | RingServeError:
    """The reply of a framed model, or its error. With `hold_row` a long one stays where it is until its source is closed."""
    flags, body_at, body_bytes = (
        line[REPLY_FLAGS - REPLY_ID],
        *line[REPLY_BODY_AT - REPLY_ID : REPLY_BODY_AT - REPLY_ID + 2],
    )
    if flags & FLAG_ERROR:
        return read_bytes_reply(slab, line, overflow, None)
    memory, keep = slab.bytes_out, hold_row
    if flags & FLAG_OVERFLOW:
        if overflow is None:
            return Internal("The answer was announced in a parcel that did not come.")
        memory = overflow.segment.view
        keep = None if hold_row is None else overflow.share
    view = memory[body_at : body_at + body_bytes]
    if len(view) != body_bytes:
        return Internal(MISPLACED)
    held = keep is not None and body_bytes >= DIRECT_BYTES_MIN
    try:
        reply = read_reply(view.toreadonly() if held else memoryview(bytes(view)))
    except FrameBroken as error:
        return Internal(f"The worker wrote a reply that cannot be read: {error}.")
    if isinstance(reply, FrameError):
        return _error(reply)
    if keep is None or not held:
        return Answer(b"", tensors=reply)
    return Answer(b"", tensors=reply, source=Held(b"", keep()))


def _error(said: FrameError) -> RingServeError:
    return error_from(said.code, said.message, said.status if 400 <= said.status <= 999 else 500)


def plain_answer(signature: Signature, reply: TensorReply, *, binary: bool) -> Answer | RingServeError:
    """The answer to a plain body, which is one row: one output is its JSON value, several are an object by name; with `binary`, the
    bytes of all."""
    if binary:
        return Answer(b"".join(bytes(_here(each)) for each in reply.outputs), "application/octet-stream")
    try:
        values = {each.name: _value(each, signature) for each in reply.outputs}
        only = len(signature.outputs) == 1 and len(values) == 1
        document = next(iter(values.values())) if only else values
        return Answer(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), "application/json")
    except (ValueError, TypeError) as error:
        return Internal(f"The worker wrote a reply that cannot be read: {error}.")


def _here(tensor: Tensor) -> bytes | bytearray | memoryview:
    """An answer's bytes are always in reach."""
    assert isinstance(tensor.data, bytes | bytearray | memoryview)
    return tensor.data


def _value(tensor: Tensor, signature: Signature) -> Any:
    """What orjson can write, without the batch dimension of one. Raises `ValueError`."""
    shape, data = tensor.shape, _here(tensor)
    if signature.batches and shape and shape[0] == 1:
        shape = shape[1:]
    if tensor.datatype == BYTES:
        elements = np.empty(math.prod(shape), dtype=object)
        elements[:] = [element.decode("utf-8", "replace") for element in split_elements(data)]
        return elements.reshape(shape).tolist()
    if tensor.datatype == "BF16":
        array: Any = from_bfloat16(np.frombuffer(data, "<u2"))
    else:
        array = np.frombuffer(data, DTYPES[tensor.datatype])
    if tensor.datatype == "FP16":
        array = array.astype(np.float32)  # orjson has no float16
    return array.reshape(shape) if shape else array[0]


# ---- decoupled


class FrameReplies:
    """The answers of a decoupled model to one request (protocol/request.py: `TensorReplies`), out of its stream of frames."""

    def __init__(self, stream: ReplyStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._over = False
        self._changed = asyncio.Event()
        stream.on_change = self._changed.set

    async def next(self) -> TensorReply | None:
        while True:
            reply = self.try_next()
            if reply is not None or self._over:
                return reply
            self._changed.clear()
            await self._changed.wait()

    @property
    def over(self) -> bool:
        """Whether the last one has been taken."""
        return self._over

    def try_next(self) -> TensorReply | None:
        """The next one if it is here. Raises as `next`."""
        while not self._over:
            frame = self._frame()
            if frame is not None:
                return self._taken(frame)
            part = self._stream.next()
            if part is not None:
                self._buffer += part
            elif self._stream.ended:
                self._over = True
                if self._stream.broken:
                    raise self._stream.error or WorkerLost("The worker died while it answered.")
                if self._buffer:
                    raise Internal("The worker's last answer ends too early.")
            else:
                return None
        return None

    def _frame(self) -> memoryview | None:
        """The next whole frame. Raises `Internal`."""
        try:
            found = read_prefix(self._buffer, FRAME_BYTES_MAX)
        except FrameBroken as error:
            self.close()
            raise Internal(f"The worker wrote a reply that cannot be read: {error}.") from None
        if found is None or len(self._buffer) < found[1]:
            return None
        frame = memoryview(bytes(memoryview(self._buffer)[: found[1]]))
        del self._buffer[: found[1]]
        return frame

    def _taken(self, frame: memoryview) -> TensorReply | None:
        try:
            reply = read_reply(frame)
        except FrameBroken as error:
            self.close()
            raise Internal(f"The worker wrote a reply that cannot be read: {error}.") from None
        if isinstance(reply, FrameError):
            self.close()
            raise _error(reply)
        if reply.final:
            self.close()
            if not reply.outputs and not reply.parameters:
                return None
        return reply

    def close(self) -> None:
        self._over = True
        self._buffer = bytearray()
        self._stream.close()
        self._changed.set()


class RenderedReplies:
    """The same for a client that knows no tensors (protocol/request.py: `Source`): a line of JSON for each answer, with `error` where
    there is none."""

    __slots__ = ("_replies", "_signature", "_stream", "broken", "ended", "length")

    def __init__(self, replies: FrameReplies, stream: ReplyStream, signature: Signature) -> None:
        self._replies = replies
        self._stream = stream
        self._signature = signature
        self.length: int | None = None
        self.ended = self.broken = False

    @property
    def on_change(self) -> Callable[[], None]:
        return self._stream.on_change

    @on_change.setter
    def on_change(self, call: Callable[[], None]) -> None:
        self._stream.on_change = call

    def next(self) -> bytes | None:
        if self.ended:
            return None
        try:
            reply = self._replies.try_next()
            self.ended = self._replies.over
            if reply is None:
                return None
            answer = plain_answer(self._signature, reply, binary=False)
        except RingServeError as error:
            answer = error
            self.broken = isinstance(error, WorkerLost)
        if isinstance(answer, RingServeError):
            self.close()
            return None if self.broken else orjson.dumps({"error": answer.message}) + b"\n"
        return answer.body + b"\n"

    def close(self) -> None:
        self.ended = True
        self._replies.close()


# ---- handlers


def handler_tensors(answer: Answer) -> Answer | RingServeError:
    """The tensors in a handler's JSON answer, as its envelope kservev2 writes it: `outputs` of name, datatype, shape and flat data,
    BYTES as texts. What is none is the handler's failure; an answer with a status of its own is left alone."""
    if answer.status >= 400:
        text = answer.body[:2048].decode("utf-8", "replace")
        return PredictionFailed(text or f"The handler answered with status {answer.status}.", status=answer.status)
    try:
        document = orjson.loads(answer.body)
        outputs = document["outputs"]
        reply = TensorReply(tuple(_output(each) for each in outputs), _parameters(document))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        wanted = 'expected {"outputs": [{"name", "datatype", "shape", "data"}, ...]}'
        return PredictionFailed(f"The handler's answer is no tensors: {wanted} ({type(error).__name__}: {error}).")
    return Answer(b"", tensors=reply)


def _parameters(document: Mapping[str, Any]) -> dict[str, Any]:
    given = document.get("parameters") or {}
    return {name: value for name, value in given.items() if isinstance(value, bool | int | float | str)}


def _output(said: Mapping[str, Any]) -> Tensor:
    name, datatype, data = said["name"], said["datatype"], said["data"]
    if not isinstance(name, str) or datatype not in DTYPES:
        raise ValueError(f"output {name!r} of datatype {datatype!r}")
    if datatype == BYTES:
        elements = _texts(data)
        shape, found = tuple(said.get("shape") or (len(elements),)), join_elements(elements)
        count = len(elements)
    else:
        array = np.asarray(data)
        shape, count = tuple(said.get("shape") or array.shape), array.size
        dtype = "float32" if datatype == "BF16" else DTYPES[datatype]
        found = array.astype(dtype, casting="same_kind" if array.dtype.kind == "f" else "unsafe").tobytes()
        if datatype == "BF16":
            found = to_bfloat16(array).tobytes()
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) != count:
        raise ValueError(f"output {name!r} has {count} values and the shape {list(shape)}")
    return Tensor(name, datatype, shape, found)


def _texts(data: Any) -> list[bytes]:
    """Elements of BYTES, flat: lists of texts, nested or not."""
    left, found = [data], []
    while left:
        each = left.pop()
        if isinstance(each, list):
            left += reversed(each)
        elif isinstance(each, str):
            found.append(each.encode("utf-8", "surrogatepass"))
        else:
            raise TypeError(f"an element of BYTES is {type(each).__name__}")
    return found
